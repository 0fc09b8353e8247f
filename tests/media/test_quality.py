"""Measures of a film, each on a film made to have that fault and no other."""

import math

import pytest
import torch

from comfyui_happyhorse.errors import MediaError
from comfyui_happyhorse.media.quality import measure, picture_measures, sound_measures

RATE, FPS, FRAMES = 44_100, 25, 75


@pytest.fixture
def frames():
    """[75, 36, 64, 3]: a still pattern with a little noise that moves."""
    chance = torch.Generator().manual_seed(1)
    still = 0.3 + 0.3 * torch.rand(1, 36, 64, 3, generator=chance)
    return still + 0.02 * torch.randn(FRAMES, 36, 64, 3, generator=chance)


@pytest.fixture
def sound():
    """[1, S]: three seconds of noise at -20 dB of full scale, as long as the frames."""
    return 0.1 * torch.randn(1, 3 * RATE, generator=torch.Generator().manual_seed(2)).clamp(-3, 3)


def levels(quality) -> dict[str, int]:
    found = [verdict.level for verdict in quality.verdicts()]
    return {level: found.count(level) for level in ("good", "look", "bad", "none")}


def test_a_sound_film_has_nothing_to_look_at(frames, sound):
    quality = measure(frames, sound, RATE, FPS)
    assert levels(quality) | {"none": 0, "good": 0} == {"good": 0, "look": 0, "bad": 0, "none": 0}
    assert quality.picture.seconds == 3
    assert quality.sound.seconds == 3
    assert len(quality.report().splitlines()) == len(quality.verdicts())


@pytest.mark.parametrize(
    ("spoil", "name", "expected"),
    [
        (lambda film: film[20:45].fill_(0.01), "black", 1.0),
        (lambda film: film[20:46].copy_(film[20].clone().expand(26, -1, -1, -1)), "frozen", 1.0),
        (lambda film: film[50:].mul_(0.4), "cuts", (50,)),
    ],
)
def test_black_frozen_and_cut_pictures_are_found(frames, spoil, name, expected):
    assert getattr(picture_measures(frames, FPS), name) in (0, ())
    spoil(frames)
    assert getattr(picture_measures(frames, FPS), name) == expected


def test_flicker_is_what_light_does_beside_its_slow_course(frames):
    slow = torch.linspace(0, 0.2, FRAMES)[:, None, None, None]
    assert picture_measures(frames + slow, FPS).flicker < -60
    assert picture_measures(frames + slow, FPS).brightness_drift == pytest.approx(0.2 * 2 / 3, abs=0.01)
    fast = 0.02 * (-1.0) ** torch.arange(FRAMES)[:, None, None, None]
    # Alternation by 0.02 passes the filter but for its own share of the parabola, 59 of 231.
    expected = 20 * math.log10(0.02 * (1 - _share_of_alternation()))
    assert picture_measures(frames + fast, FPS).flicker == pytest.approx(expected, abs=0.1)


def _share_of_alternation() -> float:
    """What a parabola over nine values keeps of +-1 in turns: Savitzky and Golay's own table, norm 231."""
    weights = [-21, 14, 39, 54, 59, 54, 39, 14, -21]
    return sum(weight * (-1) ** place for place, weight in zip(range(-4, 5), weights, strict=True)) / 231


def test_blur_and_burnt_out_whites_are_found(frames):
    blurred = frames.clone()
    blurred[50:] = torch.nn.functional.avg_pool2d(frames[50:].movedim(-1, 1), 5, 1, 2).movedim(1, -1)
    assert picture_measures(blurred, FPS).sharpness_drift < 0.6
    assert picture_measures(frames, FPS).sharpness_drift == pytest.approx(1, abs=0.05)
    frames[:, :9] = 1.0
    assert picture_measures(frames, FPS).burnt == pytest.approx(0.25)


def test_clipping_is_told_from_loud(sound):
    loud = sound / sound.abs().max()
    assert sound_measures(loud, RATE).clipped == 0
    clipped = (20 * sound).clamp(-1, 1)[0]
    expected = run = 0
    for before, sample in zip([0, *clipped.tolist()], [*clipped.tolist(), 0], strict=True):
        if run and sample != before:
            expected, run = expected + run * (run >= 3), 0
        run += abs(sample) == 1
    assert sound_measures(clipped[None], RATE).clipped == pytest.approx(expected, rel=1e-3)
    assert expected > 1000


def test_levels_silence_and_bandwidth_are_measured():
    time = torch.arange(2 * RATE, dtype=torch.float64) / RATE
    tone = (0.25 * torch.sin(2 * torch.pi * 1000 * time)).float()[None]
    tone[:, RATE:] = 0
    found = sound_measures(tone + 0.02, RATE)
    assert found.offset == pytest.approx(0.02, abs=1e-4)
    quiet = sound_measures(tone, RATE)
    assert quiet.silence == pytest.approx(0.5, abs=0.01)
    assert quiet.true_peak == pytest.approx(20 * math.log10(0.25), abs=0.05)
    assert quiet.bandwidth == pytest.approx(1000, abs=50)
    assert quiet.noise_floor < -150
    assert sound_measures(torch.zeros(1, RATE), RATE).loudness == -math.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frames, sound: (frames, sound[:, :RATE]), "differ in length by -2000 ms"),
        (lambda frames, sound: (frames, 0 * sound), "silent throughout"),
        (lambda frames, sound: (frames, (30 * sound).clamp(-1, 1)), "samples are clipped"),
        (lambda frames, sound: (frames[:1].expand(75, -1, -1, -1), sound), "Frozen for 2.96 s"),
        (lambda frames, sound: (0 * frames, sound), "Black for 3.00 s"),
        (lambda frames, sound: (frames, None), "Sound: there is none"),
    ],
)
def test_verdicts_say_what_is_wrong(frames, sound, change, words):
    assert words in measure(*change(frames, sound), RATE, FPS).report()


def test_sound_that_is_not_numbers_is_refused(frames, sound):
    sound[0, 5] = math.nan
    with pytest.raises(MediaError, match="The sound"):
        measure(frames, sound, RATE, FPS)


def test_one_frame_is_measured(sound):
    assert measure(torch.full((1, 4, 4, 3), 0.5), sound[:, :100], RATE, FPS).picture.frames == 1
