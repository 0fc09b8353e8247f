"""The driving voice keeps pitch, level, sides and timing; windows join without a seam."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.conditioning.voice import (
    OVERLAP,
    WINDOW,
    encode_in_windows,
    merge_windows,
    pad_voice,
    prepare_voice,
)
from comfyui_happyhorse.errors import ConditioningError

RATES = [8000, 11025, 16000, 22050, 32000, 44100, 48000, 50999, 51200, 96000, 192000]


def tone(hertz, samples, rate, level=0.5):
    return level * torch.sin(2 * torch.pi * hertz * torch.arange(samples, dtype=torch.float64) / rate)


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_keeps_pitch_level_and_phase(rate):
    """Sample for sample the tone that a 51 200 Hz recording would hold; 3e-5 is what the filter ripples."""
    stereo = torch.stack([tone(440, rate, rate), tone(660, rate, rate, 0.25)]).float()
    voice = prepare_voice(stereo, rate)
    assert voice.dtype == torch.float32
    assert voice.shape == (1, 2, 51200)
    expected = torch.stack([tone(440, 51200, 51200), tone(660, 51200, 51200, 0.25)])
    edge = 60 + 51200 * 40 // rate  # where the filter reaches beyond the sound
    assert (voice[0] - expected)[:, edge:-edge].abs().max() < 3e-5


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_click_stays_where_it_is(rate):
    for at in (0.0, 0.25, 0.9):
        sound = torch.zeros(1, rate)
        sound[0, int(at * rate)] = 0.9
        click = int(prepare_voice(sound, rate)[0, 0].abs().argmax())
        assert abs(click - int(at * rate) * 51200 / rate) <= 1


@pytest.mark.parametrize("rate", [16000, 44100, 96000])
def test_nothing_is_held_back(rate):
    """A constant stays one up to its last sample: the resampler's filter was emptied."""
    voice = prepare_voice(torch.full((2, rate // 10), 0.5), rate)
    assert (voice - 0.5).abs().max() < 0.01


@given(samples=st.integers(1, 5000), rate=st.sampled_from(RATES), channels=st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_lengths(samples, rate, channels):
    voice = prepare_voice(torch.full((1, channels, samples), 0.1), rate)
    assert voice.shape == (1, 2, -(-samples * 51200 // rate))


@pytest.mark.parametrize("rate", [44100, 51200])
def test_mono_is_doubled_at_its_level(rate):
    voice = prepare_voice(tone(440, rate, rate)[None], rate)
    assert torch.equal(voice[0, 0], voice[0, 1])
    assert voice[0, 0].square().mean() == pytest.approx(0.125, rel=1e-3)


def test_its_own_rate_is_untouched():
    sound = torch.rand(2, 3000) - 0.5
    assert torch.equal(prepare_voice(sound, 51200)[0], sound)


@pytest.mark.parametrize(("channels", "centre"), [(3, 2), (4, 2), (5, 2), (6, 2), (7, 2), (8, 2)])
def test_surround_is_mixed_down(channels, centre):
    """Left stays left, right stays right, the centre comes on both sides at -3 dB."""
    for channel, expected in ((0, (0.5, 0)), (1, (0, 0.5)), (centre, (0.5**1.5, 0.5**1.5))):
        sound = torch.zeros(channels, 4000)
        sound[channel] = 0.5
        voice = prepare_voice(sound, 51200)
        assert voice[0, :, 2000].tolist() == pytest.approx(expected, abs=1e-6)


def test_very_many_channels_are_averaged():
    sound = torch.linspace(0, 0.5, 12)[:, None].expand(-1, 4000)
    assert prepare_voice(sound, 51200)[0].allclose(torch.tensor(0.25))


@pytest.mark.parametrize(
    ("dtype", "full", "zero"),
    [
        (torch.int16, 1 << 15, 0),
        (torch.int32, 1 << 31, 0),
        (torch.int8, 1 << 7, 0),
        (torch.uint8, 1 << 7, 128),
        (torch.float64, 1, 0),
        (torch.float16, 1, 0),
        (torch.bfloat16, 1, 0),
    ],
)
def test_every_kind_of_number(dtype, full, zero):
    levels = torch.tensor([-1.0, -0.5, 0.0, 0.25, 0.5], dtype=torch.float64)
    voice = prepare_voice((levels * full + zero).to(dtype)[None], 51200)
    assert voice[0, 0].tolist() == levels.tolist()


def test_the_first_of_a_batch():
    sound = torch.rand(3, 2, 4000)
    assert torch.equal(prepare_voice(sound, 44100), prepare_voice(sound[0], 44100))


def test_silence_is_said_once(caplog):
    prepare_voice(torch.full((1, 1, 44100), 5e-5), 44100)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "5e-05" in caplog.text
    caplog.clear()
    prepare_voice(torch.full((1, 1, 44100), 2e-4), 44100)
    assert not caplog.records


@pytest.mark.parametrize(
    ("sound", "rate", "words"),
    [
        (torch.zeros(1, 2, 0), 44100, r"\[1, 2, 0\]"),
        (torch.zeros(1, 0, 100), 44100, r"\[1, 0, 100\]"),
        (torch.zeros(100), 44100, r"\[100\]"),
        (torch.full((2, 100), float("nan")), 44100, "200 of 200"),
        (torch.full((2, 100), float("inf")), 44100, "200 of 200"),
        (torch.ones(2, 100, dtype=torch.bool), 44100, "bool"),
        (torch.zeros(2, 100), 0, "0 samples"),
    ],
)
def test_what_it_refuses(sound, rate, words):
    with pytest.raises(ConditioningError, match=words):
        prepare_voice(sound, rate)


@given(samples=st.integers(1, 60_000), num_frames=st.integers(1, 29))
@settings(deadline=None)
def test_padding(samples, num_frames):
    voice = torch.arange(1.0, samples + 1).expand(1, 2, -1)
    padded = pad_voice(voice, num_frames)
    kept = min(samples, num_frames * 2048)
    assert padded.shape == (1, 2, num_frames * 2048)
    assert torch.equal(padded[..., :kept], voice[..., :kept])
    assert (padded[..., kept:] == 0).all()


def test_a_voice_too_long_is_cut_with_a_warning(caplog):
    pad_voice(torch.zeros(1, 2, 51200 * 5), 101)
    assert "lasts 5.00 s and the film 4.04 s: the last 0.96 s" in caplog.text
    caplog.clear()
    pad_voice(torch.zeros(1, 2, 101 * 2048 + 2047), 101)
    assert not caplog.records


def means(waveform):
    """A stand-in encoder [1, 2, S] -> [1, 64, L]: the mean of each latent's samples, in every channel."""
    assert waveform.shape[-1] <= WINDOW
    return waveform[:, 0].unfold(-1, 2048, 2048).mean(-1)[:, None].expand(-1, 64, -1)


@pytest.mark.parametrize("samples", [2048, 2049, WINDOW - 1, WINDOW])
def test_up_to_29_seconds_in_one_pass(samples):
    voice = torch.rand(1, 2, samples)
    latent = encode_in_windows(means, voice)
    assert torch.equal(latent, means(voice))
    assert latent.shape == (1, 64, samples // 2048)


@pytest.mark.parametrize("samples", [WINDOW + 1, WINDOW + 742_400, WINDOW + 742_401, 51200 * 75, 51200 * 60])
def test_longer_voices_in_windows(samples):
    """A slow ramp comes back as a ramp, each further window half a latent late and nothing more."""
    calls = []
    voice = torch.linspace(0, 1, samples).expand(1, 2, -1)
    latent = encode_in_windows(lambda window: calls.append(window.shape[-1]) or means(window), voice)
    assert set(calls) == {WINDOW}
    assert len(calls) == 1 + -(-(samples - WINDOW) // 742_400)
    assert latent.shape == (1, 64, -(-samples // 2048))
    step = 2048 / samples
    ramp = (torch.arange(latent.shape[-1]) + 0.5) * step
    late = (ramp - latent[0, 0])[: samples // 2048 - 1] / step
    assert late.min() > -0.01
    assert late.max() < 0.5 * (len(calls) - 1) + 0.01


def test_voices_below_one_latent():
    with pytest.raises(ConditioningError, match="40 ms"):
        encode_in_windows(means, torch.zeros(1, 2, 2047))


@settings(deadline=None)
@given(length=st.integers(1, 40), count=st.integers(1, 5), ratio=st.sampled_from([0.0, 0.25, OVERLAP, 0.8]))
def test_merging_by_the_formula(length, count, ratio):
    """Against the definition, one latent at a time, in double precision."""
    windows = torch.rand(count, 1, 3, length, dtype=torch.float64)
    overlap = int(length * ratio)
    hop = length - overlap
    expected = torch.zeros(1, 3, length + (count - 1) * hop, dtype=torch.float64)
    expected[..., :length] = windows[0]
    for number in range(1, count):
        for k in range(length):
            weight = k / overlap if k < overlap else 1.0
            place = number * hop + k
            expected[..., place] = (1 - weight) * expected[..., place] + weight * windows[number][..., k]
    torch.testing.assert_close(merge_windows(list(windows), ratio), expected)
