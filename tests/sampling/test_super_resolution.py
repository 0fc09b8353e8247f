"""The second stage: enlargement, noise and audio share written out, and what it must not change."""

import math
from dataclasses import replace

import pytest
import torch

from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.sampling.guidance import FrameGuidance
from comfyui_happyhorse.sampling.schedule import flow_sigmas
from comfyui_happyhorse.sampling.solvers import unipc
from comfyui_happyhorse.sampling.streams import Streams
from comfyui_happyhorse.sampling.super_resolution import (
    GUIDED_PRESET,
    PRESET,
    SuperResolution,
    prepare,
    super_resolve,
)

# (channels, frames, height, width) and the enlarged height and width
SIZES = [((2, 3, 2, 4), 4, 8), ((1, 1, 2, 2), 5, 7), ((3, 2, 4, 2), 4, 2), ((1, 2, 1, 3), 2, 6)]
SIGNAL, NOISE = 0.83891040, 0.54426956  # of entry 220 of the table


def randn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def literal_enlarged(video, height, width):
    """Corner-aligned: row k of n' rows stands at k*(n - 1)/(n' - 1) of the n old ones."""
    _, channels, frames, rows, columns = video.shape
    out = torch.zeros(1, channels, frames, height, width, dtype=torch.float64)

    def place(k, old, new):
        at = k * (old - 1) / (new - 1) if new > 1 else 0.0
        low = min(int(at), old - 1)
        return low, min(low + 1, old - 1), at - low

    for y in range(height):
        top, bottom, down = place(y, rows, height)
        for x in range(width):
            left, right, over = place(x, columns, width)
            old = video.double()[0]
            upper = (1 - over) * old[:, :, top, left] + over * old[:, :, top, right]
            lower = (1 - over) * old[:, :, bottom, left] + over * old[:, :, bottom, right]
            out[0, :, :, y, x] = (1 - down) * upper + down * lower
    return out


def base_and_noise(shape=(2, 3, 2, 4), height=4, width=8, audio=(1, 5, 9)):
    base = Streams(randn((1, *shape), 0), randn(audio, 1))
    return base, Streams(randn((1, *shape[:2], height, width), 2), randn(audio, 3))


@pytest.mark.parametrize(("shape", "height", "width"), SIZES)
def test_enlargement_is_linear_and_corner_aligned(close, shape, height, width):
    base, noise = base_and_noise(shape, height, width)
    start = prepare(base, height, width, noise, SuperResolution(noise_value=0))
    close(start.video, literal_enlarged(base.video, height, width), 1e-6)


@pytest.mark.parametrize(("shape", "height", "width"), SIZES)
def test_noise_is_mixed_by_the_table_s_entry(close, shape, height, width):
    base, noise = base_and_noise(shape, height, width)
    start = prepare(base, height, width, noise, SuperResolution())
    enlarged = literal_enlarged(base.video, height, width)
    close(start.video, SIGNAL * enlarged + NOISE * noise.video.double(), 1e-6)


def test_other_entries_of_the_table(close):
    base, noise = base_and_noise()
    enlarged = literal_enlarged(base.video, 4, 8)
    pure = prepare(base, 4, 8, noise, SuperResolution(noise_value=999))
    assert torch.equal(pure.video, noise.video)
    product, first, last = 1.0, math.sqrt(0.00085), math.sqrt(0.012)
    signals = []
    for k in range(1000):
        product *= 1 - (first + (last - first) * k / 999) ** 2
        signals.append(math.sqrt(product))
    for entry in (1, 500):
        signal = (signals[entry] - signals[-1]) * signals[0] / (signals[0] - signals[-1])
        start = prepare(base, 4, 8, noise, SuperResolution(noise_value=entry))
        wanted = signal * enlarged + math.sqrt(1 - signal**2) * noise.video.double()
        # Close to 1 the float32 signal's complement has lost digits.
        close(start.video, wanted, 1e-5)


def test_no_noise_at_value_zero():
    """Zero means none, not the table's first entry."""
    base, noise = base_and_noise()
    start = prepare(base, 4, 8, noise, SuperResolution(noise_value=0))
    louder = prepare(base, 4, 8, Streams(noise.video * 1e6, noise.audio), SuperResolution(noise_value=0))
    assert torch.equal(start.video, louder.video)


@pytest.mark.parametrize("share", [0.7, 0.0, 1.0, 0.25])
def test_the_audio_listened_to_is_a_share_of_noise(close, share):
    base, noise = base_and_noise()
    start = prepare(base, 4, 8, noise, SuperResolution(audio_noise=share))
    close(start.audio, share * noise.audio.double() + (1 - share) * base.audio.double(), 1e-6)
    assert SuperResolution().audio_noise == 0.7


@pytest.mark.parametrize("value", [-1, 1000])
def test_an_entry_outside_the_table_is_refused(value):
    base, noise = base_and_noise()
    with pytest.raises(SamplingError, match=f"noise value of {value} "):
        prepare(base, 4, 8, noise, SuperResolution(noise_value=value))


def test_presets_are_the_published_ones():
    assert (PRESET.steps, PRESET.solver, PRESET.guidance, PRESET.shift) == (5, "unipc", None, 5.0)
    assert replace(PRESET, guidance=FrameGuidance(3.5, 2.0, 13)) == GUIDED_PRESET
    assert SuperResolution() == SuperResolution(PRESET, 220, 0.7, True)


def velocity(x, sigma):
    return Streams(
        torch.sin(2 * x.video + sigma) + 0.2 * x.audio.mean() + 0.3 * x.video[:, :, :1], x.audio + 1
    )


def negative(x, sigma):
    return Streams((0.5 + 0.1 * sigma) * x.video + 0.1 * x.audio.mean(), x.audio)


@pytest.fixture
def once():
    """A noise source for one draw only."""

    def source(noise):
        drawn = iter([noise])
        return lambda: next(drawn)

    return source


def test_the_stage_is_unipc_over_the_full_schedule(close, once):
    """Five steps from 0.9998, not from the level of the noise that was mixed in; the audio stands still."""
    base, noise = base_and_noise()
    heard = 0.7 * noise.audio + 0.3 * base.audio
    start = SIGNAL * literal_enlarged(base.video, 4, 8) + NOISE * noise.video.double()
    flow = lambda x, sigma: velocity(Streams(x, heard.double()), sigma).video  # noqa: E731
    wanted = unipc(flow, start, flow_sigmas(5).tolist())
    seen = []

    def watching(x, sigma):
        seen.append((x, sigma))
        return velocity(x, sigma)

    found = super_resolve(watching, None, base, 4, 8, once(noise))
    close(found.video, wanted, 1e-5)
    assert [sigma for _, sigma in seen] == flow_sigmas(5).tolist()[:-1]
    for x, _ in seen:
        assert torch.equal(x.audio, seen[0][0].audio)
        close(x.audio, heard, 1e-6)


def test_a_guided_stage_guides_the_leading_frames_less(close, once):
    base, noise = base_and_noise((1, 15, 1, 2), 2, 4)
    start = prepare(base, 2, 4, noise, SuperResolution())
    scale = torch.tensor([2.0] * 13 + [3.5] * 2, dtype=torch.float64).view(1, 1, 15, 1, 1)

    def flow(x, sigma):
        streams = Streams(x, start.audio.double())
        against = negative(streams, sigma).video
        return against + scale * (velocity(streams, sigma).video - against)

    wanted = unipc(flow, start.video.double(), flow_sigmas(5).tolist())
    found = super_resolve(velocity, negative, base, 2, 4, once(noise), SuperResolution(GUIDED_PRESET))
    close(found.video, wanted, 2e-5)


@pytest.mark.parametrize("preset", [PRESET, GUIDED_PRESET], ids=["plain", "guided"])
def test_the_base_audio_comes_back_bit_equal(once, preset):
    base, noise = base_and_noise()
    before = base.audio.clone()
    found = super_resolve(velocity, negative, base, 4, 8, once(noise), SuperResolution(preset))
    assert torch.equal(found.audio, before)
    assert torch.equal(base.audio, before)


def test_the_first_frame_is_pinned_at_the_new_size(once):
    base, noise = base_and_noise()
    picture, seen = randn((1, 2, 1, 4, 8), 4), []

    def watching(x, sigma):
        seen.append(x)
        return velocity(x, sigma)

    found = super_resolve(watching, None, base, 4, 8, once(noise), first_frame=picture)
    assert len(seen) == 5
    for x in [*seen, found]:
        assert torch.equal(x.video[:, :, :1], picture)
    free = super_resolve(velocity, None, base, 4, 8, once(noise))
    assert not torch.equal(found.video[:, :, 1:], free.video[:, :, 1:])
    with pytest.raises(SamplingError, match=r"\(1, 2, 1, 2, 4\); this film needs \(1, 2, 1, 4, 8\)"):
        super_resolve(velocity, None, base, 4, 8, once(noise), first_frame=picture[..., :2, :4])
