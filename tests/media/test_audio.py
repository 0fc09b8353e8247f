"""Sound files, rates and lengths, in numbers."""

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.errors import MediaError
from comfyui_happyhorse.media.audio import fit_samples, fourier_resample, load_audio, resample, to_output_rate
from comfyui_happyhorse.media.mux import write_film


def save(path, samples, codec="pcm_f32le", rate=48000, layout=None, form="flt"):
    """Write samples [S, C] with PyAV; ``form`` is what the codec takes."""
    samples = np.ascontiguousarray(samples)
    layout = layout or {1: "mono", 2: "stereo"}[samples.shape[1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        data = samples.T.copy() if form.endswith("p") else samples.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(data, format=form, layout=layout)
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def noise():
    return np.random.default_rng(0).uniform(-0.9, 0.9, (5000, 2)).astype(np.float32)


@pytest.mark.parametrize(("samples", "rate"), [(5000, 44100), (1, 8000), (3000, 51200)])
def test_float_files_come_back_exactly(tmp_path, noise, samples, rate):
    save(tmp_path / "sound.wav", noise[:samples], rate=rate)
    waveform, sample_rate = load_audio(tmp_path / "sound.wav")
    assert sample_rate == rate
    assert waveform.dtype == torch.float32
    assert torch.equal(waveform[0], torch.from_numpy(noise[:samples].T.copy()))


def test_integer_files_are_scaled(tmp_path):
    levels = np.array([[-32768], [-16384], [0], [16384], [32767]], dtype=np.int16)
    save(tmp_path / "sound.flac", levels, codec="flac", form="s16")
    waveform, _ = load_audio(tmp_path / "sound.flac")
    assert waveform[0, 0].tolist() == [-1, -0.5, 0, 0.5, 32767 / 32768]


@pytest.mark.parametrize("layout", ["mono", "stereo", "3.0", "5.1", "7.1"])
def test_channels_stay_apart(tmp_path, layout):
    channels = av.AudioLayout(layout).nb_channels
    levels = np.tile(np.arange(1, channels + 1) / 10, (300, 1)).astype(np.float32)
    save(tmp_path / "sound.wav", levels, layout=layout)
    waveform, _ = load_audio(tmp_path / "sound.wav")
    assert torch.equal(waveform[0], torch.from_numpy(levels.T.copy()))


def test_the_sound_of_a_film(tmp_path):
    sound = torch.sin(2 * torch.pi * 440 * torch.arange(44100) / 44100).expand(2, -1) * 0.5
    write_film(tmp_path / "film.mp4", [torch.zeros(25, 32, 32, 3, dtype=torch.uint8)], sound)
    waveform, sample_rate = load_audio(tmp_path / "film.mp4")
    assert sample_rate == 44100
    assert (waveform[0, :, :44100] - sound).abs().max() < 0.04  # what AAC adds, most at the very start


def test_files_without_sound(tmp_path):
    write_film(tmp_path / "film.mp4", [torch.zeros(5, 32, 32, 3, dtype=torch.uint8)], None)
    with pytest.raises(MediaError, match="has no sound"):
        load_audio(tmp_path / "film.mp4")


def test_empty_and_endless_sound(tmp_path, noise):
    save(tmp_path / "sound.wav", noise[:50])
    header = (tmp_path / "sound.wav").read_bytes()[: -50 * 2 * 4]
    (tmp_path / "empty.wav").write_bytes(header)
    with pytest.raises(MediaError, match=r"empty\.wav is empty"):
        load_audio(tmp_path / "empty.wav")
    noise[3, 0], noise[4:6, 1] = np.nan, np.inf
    save(tmp_path / "sound.wav", noise)
    with pytest.raises(MediaError, match=r"10000 samples 1 are not numbers .* and 2 are infinite"):
        load_audio(tmp_path / "sound.wav")


@pytest.mark.parametrize("content", [None, b"", b"not a sound"])
def test_what_is_no_sound(tmp_path, content):
    if content is not None:
        (tmp_path / "sound.wav").write_bytes(content)
    with pytest.raises(MediaError, match=r"sound\.wav"):
        load_audio(tmp_path / "sound.wav")


@settings(deadline=None)
@given(latents=st.integers(1, 60), extra=st.integers(0, 2047))
def test_output_lengths(latents, extra):
    samples = 2048 * latents + extra
    assert to_output_rate(torch.zeros(1, 1, samples)).shape[-1] == int(samples * 441 / 512)
    assert to_output_rate(torch.zeros(1, 1, 2048 * latents)).shape[-1] == 1764 * latents


@pytest.mark.parametrize("samples", [2048, 206848, 2048 * 127, 206851])
def test_float32_is_accurate(samples):
    noise = torch.randn(2, samples, generator=torch.Generator().manual_seed(1)) * 0.3
    length = samples * 441 // 512
    bins = torch.fft.rfft(noise.double())[:, : length // 2 + 1].clone()
    if length % 2 == 0:
        bins[:, -1] *= 2
    exact = torch.fft.irfft(bins, length) * length / samples
    assert (to_output_rate(noise[None])[0] - exact).abs().max() < 1e-6 * exact.abs().max()


@settings(deadline=None)
@given(length=st.integers(2, 60), samples=st.integers(2, 60), cycles=st.integers(0, 29))
def test_whole_cycles_stay_the_same_wave(length, samples, cycles):
    """A wave below both Nyquist frequencies is sampled anew, at the same times, up and down."""
    cycles %= (min(length, samples) + 1) // 2

    def wave(count):
        return torch.cos(2 * torch.pi * cycles * torch.arange(count).double() / count + 0.4)

    resampled = fourier_resample(wave(length).float(), samples)
    assert (resampled - wave(samples)).abs().max() < 2e-6


def test_too_short_to_resample():
    with pytest.raises(MediaError, match="1 samples"):
        to_output_rate(torch.zeros(1, 2, 1))


@given(have=st.integers(0, 50), want=st.integers(0, 50))
def test_fitting(have, want):
    waveform = torch.arange(1.0, have + 1).expand(1, 2, -1)
    fitted = fit_samples(waveform, want)
    kept = min(have, want)
    assert fitted.shape == (1, 2, want)
    assert torch.equal(fitted[..., :kept], waveform[..., :kept])
    assert (fitted[..., kept:] == 0).all()


@settings(deadline=None)
@given(
    samples=st.integers(0, 3000),
    rates=st.tuples(*[st.sampled_from([8000, 22050, 44100, 48000, 51200, 96000])] * 2),
)
def test_resampled_lengths(samples, rates):
    old, new = rates
    assert resample(torch.zeros(2, samples), old, new).shape == (2, -(-samples * new // old))


@pytest.mark.parametrize("rates", [(48000, 44100), (16000, 44100), (51200, 44100)])
def test_resampling_keeps_time_and_level(rates):
    old, new = rates

    def wave(rate):
        return 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(rate).double() / rate)

    error = resample(wave(old).float()[None], old, new)[0] - wave(new)
    assert error[200:-200].abs().max() < 3e-5
    constant = resample(torch.full((2, old // 10), 0.5), old, new)
    assert (constant - 0.5).abs().max() < 0.01  # to the last sample: nothing is held back
