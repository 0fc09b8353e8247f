"""Loudness against the standard's own numbers, and sounds brought to it."""

import math

import pytest
import torch

from comfyui_happyhorse.errors import MediaError
from comfyui_happyhorse.media.loudness import (
    integrated_loudness,
    k_filters,
    k_weighted,
    limited,
    to_loudness,
    true_peaks,
)


def sine(level, seconds, hertz=1000.0, rate=48000, channels=2):
    """[C, S] at ``level`` dBFS of its peak."""
    angle = 2 * math.pi * hertz * torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return (10 ** (level / 20) * angle.sin()).float().expand(channels, -1)


def speech_like(seconds=6, rate=44100):
    """[2, S]: bursts of noise with pauses and hard attacks, peaks 20 dB above its loudness."""
    noise = torch.randn(2, seconds * rate, generator=torch.Generator().manual_seed(0))
    time = torch.arange(seconds * rate) / rate
    return 0.02 * noise * (0.1 + (time % 0.5 < 0.3)) * (1 + 4 * (time % 0.25 < 0.004))


def test_the_filters_are_the_standards_at_48_khz():
    """BS.1770-4, tables 1 and 2."""
    (shelf, shelf_poles), (high_pass, high_poles) = k_filters(48000)
    assert shelf == pytest.approx([1.53512485958697, -2.69169618940638, 1.19839281085285], abs=1e-10)
    assert shelf_poles == pytest.approx([1, -1.69065929318241, 0.73248077421585], abs=1e-10)
    assert high_pass == [1, -2, 1]
    assert high_poles == pytest.approx([1, -1.99004745483398, 0.99007225036621], abs=1e-10)


def test_the_spectrum_filters_as_the_recursion_does():
    sound = torch.randn(1, 700, generator=torch.Generator().manual_seed(1)).double()
    expected = sound[0].tolist()
    for b, a in k_filters(8000):
        held, expected = expected, []
        for n in range(len(held)):
            past = sum(b[k] * held[n - k] for k in range(3) if n >= k)
            expected.append(past - sum(a[k] * expected[n - k] for k in (1, 2) if n >= k))
    assert (k_weighted(sound, 8000)[0] - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-9


@pytest.mark.parametrize("rate", [44100, 48000])
def test_a_full_scale_sine(rate):
    """BS.1770-4 says -3.01 LKFS for 997 Hz at 0 dBFS in one channel; in both it is twice the power."""
    one = torch.cat([sine(0, 2, 997, rate, 1), torch.zeros(1, 2 * rate)])
    assert integrated_loudness(one, rate) == pytest.approx(-3.01, abs=0.02)
    assert integrated_loudness(sine(0, 2, 997, rate), rate) == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize(
    ("parts", "lufs"),
    [
        ([(-23, 20)], -23),
        ([(-33, 20)], -33),
        ([(-36, 10), (-23, 60), (-36, 10)], -23),  # the relative gate
        ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23),  # and the absolute one
        ([(-26, 20), (-20, 20.1), (-26, 20)], -23),
    ],
)
def test_the_cases_of_ebu_tech_3341(parts, lufs):
    sound = torch.cat([sine(level, seconds) for level, seconds in parts], dim=1)
    assert integrated_loudness(sound, 48000) == pytest.approx(lufs, abs=0.1)


@pytest.mark.parametrize(("quiet", "counts"), [(-31.5, True), (-34, False)])
def test_the_relative_gate_by_hand(quiet, counts):
    """2 s at -20 and 2 s quieter, with a gate 10 LU below their mean, about -32.7."""
    high, low = 10**-2.0, 10 ** (quiet / 10)
    shares = [min(4, max(0, 20 - start)) / 4 for start in range(37)]  # of a block that is loud
    blocks = [share * high + (1 - share) * low for share in shares]
    kept = blocks if counts else [block for block in blocks if block > low * 1.001]
    sound = torch.cat([sine(-20, 2), sine(quiet, 2)], dim=1)
    assert integrated_loudness(sound, 48000) == pytest.approx(
        10 * math.log10(sum(kept) / len(kept)), abs=0.05
    )


def test_blocks_overlap_by_hand():
    """Of 0.7 s of tone in 1.4 s, seven blocks hear 1, 1, 1, 1, 3/4, 1/2 and 1/4; four hear silence."""
    sound = torch.cat([sine(-20, 0.7), torch.zeros(2, 33600)], dim=1)
    assert integrated_loudness(sound, 48000) == pytest.approx(-20 + 10 * math.log10(5.5 / 7), abs=0.05)


def test_silence_and_short_sounds():
    assert integrated_loudness(torch.zeros(2, 48000), 48000) == -math.inf
    assert integrated_loudness(torch.zeros(2, 0), 48000) == -math.inf
    assert integrated_loudness(sine(-80, 2), 48000) == -math.inf
    assert integrated_loudness(sine(-20, 0.2), 48000) == pytest.approx(-20, abs=0.3)


@pytest.mark.parametrize("target", [-30, -23, -16, -14])
@pytest.mark.parametrize("rate", [44100, 48000])
def test_the_target_is_reached(target, rate, caplog):
    sound = speech_like(rate=rate)
    louder = to_loudness(sound, rate, target)
    assert integrated_loudness(louder, rate) == pytest.approx(target, abs=0.2)
    assert float(true_peaks(louder).max()) <= 10 ** (-0.9 / 20)
    assert louder.abs().max() <= 10 ** (-1 / 20) + 1e-5
    assert not caplog.records


def test_without_peaks_it_is_one_gain():
    sound = speech_like()
    quieter = to_loudness(sound, 44100, -40)
    gain = float((quieter / sound)[0, 1000])
    torch.testing.assert_close(quieter, sound * gain)


def test_what_cannot_be_reached_is_said(caplog):
    clicks = torch.zeros(2, 44100)
    clicks[:, ::11025] = 0.9
    louder = to_loudness(clicks, 44100, -8, "The clicks")
    assert "The clicks reaches" in caplog.text
    assert "not -8" in caplog.text
    assert louder.abs().max() <= 10 ** (-1 / 20) + 1e-5


def test_what_lies_between_peaks_is_not_raised_for_ever(caplog):
    sound = sine(-70, 4).clone()
    sound[:, ::24000] = 0.9
    louder = to_loudness(sound, 48000, -10)
    raised = 20 * math.log10(float(louder[:, 12000:13000].abs().max() / sound[:, 12000:13000].abs().max()))
    assert raised <= -10 - integrated_loudness(sound, 48000) + 6.01
    assert "not -10" in caplog.text


def test_silence_stays(caplog):
    assert not to_loudness(torch.zeros(2, 1000), 44100, -16).any()
    assert "silent" in caplog.text


def test_the_limiter_sees_peaks_between_samples():
    """A quarter of the sample rate, sampled 45 degrees off its peaks, is 3 dB higher than its samples."""
    angle = math.pi / 2 * torch.arange(48000) + math.pi / 4
    sound = angle.sin().expand(2, -1) * 1.2
    inner = slice(1000, -1000)
    assert float(true_peaks(sound)[inner].max()) == pytest.approx(1.2, rel=0.01)
    assert float(true_peaks(limited(sound, 48000))[inner].max()) == pytest.approx(10 ** (-1 / 20), rel=0.01)


def test_the_limiter_leaves_the_rest_alone():
    sound = sine(-20, 1)
    sound = sound.clone()
    sound[:, 24000] = 3.0
    calm = limited(sound, 48000)
    assert calm.abs().max() <= 10 ** (-1 / 20) + 1e-5
    seen = sound[0] > 0.01  # where there is something to see the gain by
    gain = calm[0][seen] / sound[0][seen]
    assert gain.diff().abs().max() < 0.06  # it moves over 10 ms, not at once
    far = 48 * 12  # samples, 12 ms
    torch.testing.assert_close(calm[:, : 24000 - far], sound[:, : 24000 - far])
    torch.testing.assert_close(calm[:, 24000 + far :], sound[:, 24000 + far :])


@pytest.mark.parametrize("target", [0, -51, float("nan"), float("inf")])
def test_targets_it_refuses(target):
    with pytest.raises(MediaError, match="cannot be aimed at"):
        to_loudness(sine(-20, 1), 48000, target)
