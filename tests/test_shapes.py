"""Sizes and lengths: every conversion against its definition, ties and edges included."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse import shapes
from comfyui_happyhorse.errors import GeometryError, HappyHorseError

counted = settings(max_examples=300, deadline=None, derandomize=True)
sides = st.integers(2, 200).map(lambda n: 32 * n)
film_frames = st.integers(1, 2000).map(lambda k: 4 * k + 1)


def test_constants_that_hang_together():
    assert shapes.GRID == 32
    assert Fraction(shapes.LATENT_SAMPLE_RATE, shapes.SAMPLES_PER_LATENT) == shapes.FPS == 25
    assert Fraction(shapes.OUTPUT_SAMPLE_RATE, shapes.OUTPUT_SAMPLES_PER_LATENT) == 25
    assert Fraction(2048 * 441, 512) == shapes.OUTPUT_SAMPLES_PER_LATENT
    assert (shapes.VIDEO_CHANNELS, shapes.AUDIO_CHANNELS, shapes.MAX_TEXT_TOKENS) == (48, 64, 640)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (9, 3), (97, 25), (101, 26), (125, 32)])
def test_latent_frames_of_known_films(frames, latents):
    assert shapes.latent_frames(frames) == latents


@counted
@given(film_frames)
def test_latent_frames_invert(frames):
    assert shapes.decoded_frames(shapes.latent_frames(frames)) == frames


@counted
@given(st.integers(1, 10_000))
def test_decoded_frames_invert(latents):
    assert shapes.decoded_frames(latents) == 1 + sum(4 for _ in range(latents - 1))
    assert shapes.latent_frames(shapes.decoded_frames(latents)) == latents


@counted
@given(st.integers(1, 10_000))
def test_a_frame_belongs_to_every_four_audio_latents(audio):
    """4 s: 101 audio latents, 26 frames; a voice of 100 latents has 25."""
    assert shapes.latent_frames_for_audio(audio) == math.floor(Fraction(audio - 1, 4)) + 1
    assert [shapes.latent_frames_for_audio(n) for n in (1, 4, 5, 100, 101, 126)] == [1, 1, 2, 25, 26, 32]


@counted
@given(st.integers(0, 100_000))
def test_sides_are_floored_to_whole_tokens(pixels):
    assert shapes.latent_side(pixels) == 2 * ((pixels // 16) // 2)
    assert shapes.floor_to_grid(pixels) == 16 * shapes.latent_side(pixels)
    assert 0 <= pixels - shapes.floor_to_grid(pixels) < 32


def test_the_published_default_size_is_floored():
    assert (shapes.floor_to_grid(480), shapes.floor_to_grid(272)) == (480, 256)


@counted
@given(st.floats(1e-6, 5000, allow_nan=False))
def test_frames_for_seconds_is_the_nearest_count(seconds):
    frames = shapes.frames_for_seconds(seconds)
    assert frames >= 5
    assert frames % 4 == 1
    wanted = Fraction(seconds) * 25
    # Exact arithmetic on the float given; only the product's own rounding may move a tie.
    slack = Fraction(1, 10**9)
    assert abs(frames - wanted) <= 2 + slack or (frames == 5 and wanted < 5)


@pytest.mark.parametrize("seconds", [3, 7, 11, 43, 1003, 3.0])
def test_a_tie_of_whole_seconds_goes_upward(seconds):
    assert 25 * seconds % 4 == 3
    assert shapes.frames_for_seconds(seconds) == 25 * seconds + 2


def test_a_tie_of_decimal_seconds_goes_upward():
    ties = range(7, 20_000, 4)
    assert [n for n in ties if shapes.frames_for_seconds(n / 25) != n + 2] == []


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [
        (0.01, 5),
        (0.2, 5),
        (0.24, 5),
        (0.28, 9),
        (0.36, 9),
        (1, 25),
        (4, 101),
        (5, 125),
        (10, 249),
        (4.04, 101),
    ],
)
def test_frames_for_known_seconds(seconds, frames):
    assert shapes.frames_for_seconds(seconds) == frames


@pytest.mark.parametrize("seconds", [0, -1, -0.5, math.nan, math.inf, -math.inf])
def test_no_film_without_a_length(seconds):
    with pytest.raises(GeometryError, match=f"{seconds:g} seconds"):
        shapes.frames_for_seconds(seconds)


@counted
@given(st.integers(1, 10**9), st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000, 51_200, 96_000, 7]))
def test_a_voice_is_never_cut_and_the_film_is_the_shortest(samples, rate):
    frames = shapes.frames_for_samples(samples, rate)
    assert frames % 4 == 1
    seconds = Fraction(samples, rate)
    assert Fraction(frames, 25) >= seconds
    assert frames == 5 or Fraction(frames - 4, 25) < seconds


@pytest.mark.parametrize(("samples", "frames"), [(1, 5), (10_240, 5), (10_241, 9), (18_432, 9), (18_433, 13)])
def test_a_voice_at_its_edges(samples, frames):
    """At 51 200 Hz a frame is 2048 samples: five are 10 240, nine are 18 432."""
    assert shapes.frames_for_samples(samples, 51_200) == frames


@pytest.mark.parametrize(("samples", "rate"), [(0, 44_100), (-5, 44_100), (100, 0)])
def test_a_voice_without_length_is_refused(samples, rate):
    with pytest.raises(GeometryError, match=f"{samples} samples at {rate} Hz"):
        shapes.frames_for_samples(samples, rate)


@pytest.mark.parametrize("frames", [5, 9, 101, 2401])
def test_counts_that_can_be_made(frames):
    shapes.check_frames(frames)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (4, "4 frames are too few; the shortest film has 5"),
        (1, "1 frames are too few"),
        (-3, "-3 frames"),
        (6, r"6 frames .* nearest are 5 \(0\.20 s\) and 9 \(0\.36 s\)"),
        (7, r"7 frames .* nearest are 5 \(0\.20 s\) and 9 \(0\.36 s\)"),
        (8, r"8 frames .* nearest are 5 \(0\.20 s\) and 9 \(0\.36 s\)"),
        (100, r"100 frames .* nearest are 97 \(3\.88 s\) and 101 \(4\.04 s\)"),
    ],
)
def test_counts_that_cannot_be_made(frames, message):
    with pytest.raises(GeometryError, match=message):
        shapes.check_frames(frames)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((480, 272), "480x272 .* multiples of 32; the nearest size below is 480x256"),
        ((450, 256), "450x256 .* 448x256"),
        ((32, 256), "32x256 is too small; the smallest side is 64"),
        ((256, 0), "256x0 is too small"),
        ((63, 64), "63x64 is too small"),
    ],
)
def test_sizes_that_cannot_be_made(size, message):
    with pytest.raises(GeometryError, match=message):
        shapes.check_size(*size)
    with pytest.raises(ValueError, match=message):  # for callers that do not know this pack
        shapes.latent_size(*size, 5)


@counted
@given(sides, sides, film_frames)
def test_latent_sizes_invert(width, height, frames):
    size = shapes.latent_size(width, height, frames)
    assert (16 * size.width, 16 * size.height) == (width, height)
    assert shapes.decoded_frames(size.frames) == size.audio == frames
    assert shapes.latent_frames_for_audio(size.audio) == size.frames
    assert size.video_shape == (1, 48, (frames - 1) // 4 + 1, height // 16, width // 16)
    assert size.audio_shape == (1, 64, frames)


def test_a_latent_size_of_a_count_that_cannot_be_made():
    with pytest.raises(HappyHorseError, match="100 frames"):
        shapes.latent_size(448, 256, 100)


@pytest.mark.parametrize("row", shapes.SIZES, ids=lambda row: row.name)
def test_rows_of_the_table(row):
    for stage in (row.base, row.sr_540p, row.sr_1080p, row.exact_1080p):
        shapes.check_size(*stage)
        assert stage == tuple(side // 32 * 32 for side in stage)
    assert row.sr_540p == tuple(2 * side for side in row.base)
    assert row.exact_1080p == tuple(4 * side for side in row.base)
    stretch = Fraction(*row.sr_1080p) / Fraction(*row.base)
    assert abs(stretch - 1) < Fraction(1, 100)
    area = Fraction(math.prod(row.base), 448 * 256)
    assert abs(area - 1) < Fraction(9, 100)


def test_the_published_sizes_are_on_the_table():
    row = shapes.size_row(448, 256)
    assert [row.stage(name) for name in ("none", "540p", "1080p")] == [(448, 256), (896, 512), (1920, 1088)]
    assert row.stage("1080p", exact=True) == (1792, 1024)
    assert row.stage("540p", exact=True) == (896, 512)
    assert shapes.size_row(448, 288) is None
    assert shapes.size_row(256, 448).sr_1080p == (1088, 1920)
    assert shapes.size_row(352, 352).sr_1080p == (1440, 1440)


@pytest.mark.parametrize(
    ("size", "names"),
    [
        ((1920, 1080), ["landscape", "square", "portrait"]),
        ((1080, 1920), ["portrait", "square", "landscape"]),
        ((500, 480), ["square", "landscape", "portrait"]),
        ((10, 11), ["square", "portrait", "landscape"]),
    ],
)
def test_rows_by_nearness_in_aspect(size, names):
    assert [row.name for row in shapes.nearest_rows(*size)] == names


@pytest.mark.parametrize("exact", [False, True])
def test_super_resolution_of_the_table(exact):
    for row in shapes.SIZES:
        assert shapes.super_resolution_size(*row.base, "540p", exact=exact) == row.sr_540p
        full = row.exact_1080p if exact else row.sr_1080p
        assert shapes.super_resolution_size(*row.base, "1080p", exact=exact) == full


@counted
@given(sides, sides)
def test_super_resolution_of_other_sizes_doubles_twice(width, height):
    if shapes.size_row(width, height) is None:
        assert shapes.super_resolution_size(width, height, "540p") == (2 * width, 2 * height)
        assert shapes.super_resolution_size(width, height, "1080p") == (4 * width, 4 * height)
        shapes.check_size(*shapes.super_resolution_size(width, height, "1080p"))


def test_advice_for_sizes_off_the_table():
    assert shapes.size_advice(448, 256) is None
    advice = shapes.size_advice(1280, 704)
    assert advice.startswith("1280x704 is not ")
    assert advice.endswith("448x256, 352x352, 256x448.")
