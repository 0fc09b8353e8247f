"""Packing, unpacking, coordinates, rotary angles and local ranges, each counted out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.errors import ConditioningError, SamplingError
from comfyui_happyhorse.model.sequence import (
    SequenceLayout,
    pack_audio,
    pack_video,
    rotary_angles,
    unpack_audio,
    unpack_video,
)

LATENTS = [(3, 2, 4, 6), (1, 1, 2, 2), (2, 3, 6, 2), (5, 1, 2, 8)]  # C, T, h, w
LAYOUTS = [  # T, token rows, token columns, audio latents, text tokens
    (3, 2, 3, 9, 4),
    (3, 2, 3, 9, 1),
    (1, 1, 1, 1, 2),
    (1, 2, 2, 1, 1),
    (4, 1, 2, 12, 5),  # 12 audio latents are not 4(T-1)+1 = 13
    (2, 3, 1, 7, 3),
    (1, 2, 1, 6, 2),
]


def literal_coordinates(layout, style):
    """The table of nine numbers a token, row by row."""
    frames, height, width, audio, text = layout
    rows = []
    for t in range(frames):
        for h in range(height):
            for w in range(width):
                rows.append([t, h, w, frames, height, width, frames, height, width])
    for i in range(audio):
        rows.append(
            [i, 0, 0, audio, 1, 1, math.floor((audio - 1) / 4) + 1 if style == "v2" else frames, 1, 1]
        )
    for i in range(text):
        rows.append([i - text if style == "v2" else i, 0, 0, text, 1, 1, 1 if style == "v2" else 2, 1, 1])
    return rows


def literal_angles(coordinates, bands):
    """u = (position - centre) * scale; sines of u*f for t, h, w, then the cosines."""
    rows = []
    for row in coordinates:
        angles = []
        for axis in range(3):
            position, size, reference = row[axis], row[axis + 3], row[axis + 6]
            scale = 1 if size == reference == 1 else (reference - 1) / (size - 1)
            centre = 0 if axis == 0 else (size - 1) / 2
            angles += [(position - centre) * scale * 10000 ** (-band / bands) for band in range(bands)]
        rows.append([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])
    return torch.tensor(rows, dtype=torch.float64)


def is_possible(layout, style):
    frames, _, _, audio, text = layout
    return style == "v2" or (text >= 2 and (audio >= 2 or frames == 1))


@pytest.mark.parametrize("shape", LATENTS)
def test_packing_puts_the_channel_slowest(shape):
    channels, frames, height, width = shape
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tokens = pack_video(latent)
    assert tokens.shape == (frames * height * width // 4, 4 * channels)
    for c in range(channels):
        for t in range(frames):
            for y in range(height):
                for x in range(width):
                    row = (t * (height // 2) + y // 2) * (width // 2) + x // 2
                    assert tokens[row, c * 4 + (y % 2) * 2 + x % 2] == latent[c, t, y, x]


@pytest.mark.parametrize("shape", LATENTS)
def test_unpacking_takes_the_channel_fastest(shape):
    channels, frames, height, width = shape
    tokens = torch.randn(
        frames * height * width // 4, 4 * channels, generator=torch.Generator().manual_seed(1)
    )
    latent = unpack_video(tokens, SequenceLayout(frames, height // 2, width // 2, 0, 0))
    assert latent.shape == shape
    for c in range(channels):
        for t in range(frames):
            for y in range(height):
                for x in range(width):
                    row = (t * (height // 2) + y // 2) * (width // 2) + x // 2
                    assert latent[c, t, y, x] == tokens[row, ((y % 2) * 2 + x % 2) * channels + c]


def test_unpacking_does_not_undo_packing():
    """With two channels the eight features of a token come back in this order and no other."""
    latent = torch.arange(8.0).reshape(2, 1, 2, 2)
    assert pack_video(latent).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    back = unpack_video(pack_video(latent), SequenceLayout(1, 1, 1, 0, 0))
    assert back.flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_audio_latents_become_rows_and_come_back():
    latent = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    assert pack_audio(latent).tolist() == [[1, 4], [2, 5], [3, 6]]
    assert unpack_audio(pack_audio(latent)).tolist() == latent.tolist()


def test_layout_of_latents():
    layout = SequenceLayout.of(torch.zeros(3, 2, 4, 6), torch.zeros(5, 7), torch.zeros(4, 9))
    assert layout == SequenceLayout(frames=2, height=2, width=3, audio=7, text=4)
    assert (layout.video, layout.sizes, layout.length) == (12, (12, 7, 4), 23)


@pytest.mark.parametrize("size", [(3, 4), (4, 5)])
def test_half_a_patch_is_refused_with_the_numbers(size):
    with pytest.raises(SamplingError, match=f"{size[0]}x{size[1]} cells"):
        SequenceLayout.of(torch.zeros(1, 1, *size), torch.zeros(1, 1), torch.zeros(1, 1))


@pytest.mark.parametrize("style", ["v1", "v2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_coordinates_are_the_table(layout, style):
    coordinates = SequenceLayout(*layout).coordinates(style)
    assert coordinates.dtype == torch.float32
    assert coordinates.tolist() == literal_coordinates(layout, style)


@pytest.mark.parametrize(
    ("layout", "style"),
    [(layout, style) for layout in LAYOUTS for style in ("v1", "v2") if is_possible(layout, style)],
)
@pytest.mark.parametrize("bands", [1, 3, 16])
def test_rotary_angles_are_sines_then_cosines(layout, style, bands):
    frequencies = 10000.0 ** (-torch.arange(bands, dtype=torch.float64) / bands)
    rope = rotary_angles(SequenceLayout(*layout).coordinates(style), frequencies.float())
    assert rope.shape == (SequenceLayout(*layout).length, 6 * bands)
    assert rope.dtype == torch.float32
    wanted = literal_angles(literal_coordinates(layout, style), bands)
    assert (rope.double() - wanted).abs().max() <= 2e-6  # float32 angles of up to 12 radians


def test_angles_worth_knowing():
    """v2 does not turn text, except one token alone; v1 spreads text over 0 … 1; audio has four a frame."""
    bands = torch.ones(1)
    rope = rotary_angles(SequenceLayout(3, 1, 1, 9, 4).coordinates("v2"), bands)
    assert rope[12:, :3].tolist() == [[0, 0, 0]] * 4
    assert torch.allclose(rope[3:12, 0], torch.tensor([math.sin(i / 4) for i in range(9)]))
    alone = rotary_angles(SequenceLayout(3, 1, 1, 9, 1).coordinates("v2"), bands)
    assert torch.allclose(alone[12, 0], torch.tensor(math.sin(-1)))
    first = rotary_angles(SequenceLayout(3, 1, 1, 9, 4).coordinates("v1"), bands)
    assert torch.allclose(first[12:, 0], torch.tensor([math.sin(i / 3) for i in range(4)]))


@pytest.mark.parametrize("layout", [(3, 2, 2, 9, 1), (1, 1, 1, 1, 1), (3, 2, 2, 1, 4), (2, 1, 1, 1, 1)])
def test_a_single_token_cannot_be_spread_in_v1(layout):
    assert not is_possible(layout, "v1")
    coordinates = SequenceLayout(*layout).coordinates("v1")
    places = max([2] * (layout[4] == 1) + [layout[0]] * (layout[3] == 1))
    with pytest.raises(ConditioningError, match=f"one token cannot be spread over {places} places"):
        rotary_angles(coordinates, torch.ones(2))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    frames=st.integers(1, 7),
    height=st.integers(1, 2),
    width=st.integers(1, 3),
    audio=st.integers(1, 4),
    text=st.integers(1, 3),
    window=st.integers(0, 8),
)
def test_local_ranges_are_the_mask_of_the_definition(frames, height, width, audio, text, window):
    layout = SequenceLayout(frames, height, width, audio, text)
    seen = torch.zeros(layout.length, layout.length, dtype=torch.int64)
    for (q0, q1), (k0, k1) in layout.local_ranges(window):
        seen[q0:q1, k0:k1] += 1
    video = frames * height * width
    for query in range(layout.length):
        for key in range(layout.length):
            is_near = abs(query // (height * width) - key // (height * width)) <= window
            wanted = not (query < video and key < video) or is_near
            assert seen[query, key] == int(wanted), (query, key)  # 2 would be an overlap


def test_a_window_of_eleven_sees_twenty_three_frames():
    ranges = SequenceLayout(30, 1, 1, 1, 1).local_ranges(11)
    assert ranges[15] == ((15, 16), (4, 27))
    assert ranges[0] == ((0, 1), (0, 12))
    assert ranges[29] == ((29, 30), (18, 30))
