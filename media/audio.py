"""Sound as waveforms: from files, to the film's sample rate, to a film's length.

Letters: B batch, C channels, S samples.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MediaError
from ..shapes import LATENT_SAMPLE_RATE, OUTPUT_SAMPLE_RATE


def to_output_rate(waveform: Tensor) -> Tensor:
    """[B, C, S] at 51 200 Hz -> [B, C, floor(S*441/512)] at 44 100 Hz: 1764 samples for each latent."""
    samples = waveform.shape[-1] * OUTPUT_SAMPLE_RATE // LATENT_SAMPLE_RATE
    if not samples:
        raise MediaError(f"A sound of {waveform.shape[-1]} samples is too short to resample.")
    return fourier_resample(waveform, samples)


def fourier_resample(waveform: Tensor, samples: int) -> Tensor:
    """[..., S] -> [..., samples] in float32, by cutting or extending the spectrum.

    y = irfft(Y, samples) * samples/S, with Y the bins both lengths share. Where the shorter length is even,
    its Nyquist bin stands for two frequencies: it is doubled on the way down and halved on the way up.
    On CPU within 7e-7 of the same in float64, up to 3 million samples.
    """
    length = waveform.shape[-1]
    if samples == length:
        return waveform.float()
    shared = min(length, samples)
    bins = torch.fft.rfft(waveform.float())[..., : shared // 2 + 1].clone()
    if shared % 2 == 0:
        bins[..., -1] *= 2.0 if samples < length else 0.5
    return torch.fft.irfft(bins, samples) * (samples / length)


def resample(waveform: Tensor, sample_rate: int, new_rate: int) -> Tensor:
    """[C, S] float32, mono or stereo -> [C, ceil(S * new_rate/sample_rate)] by libswresample, without delay."""
    if sample_rate == new_rate or not waveform.shape[-1]:
        return waveform
    layout = "mono" if len(waveform) == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(waveform.contiguous().numpy(), format="fltp", layout=layout)
    frame.sample_rate = sample_rate
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=new_rate)
    blocks = resampler.resample(frame) + resampler.resample(None)  # None brings what the filter still holds
    blocks = [torch.from_numpy(block.to_ndarray()) for block in blocks]
    samples = -(-waveform.shape[-1] * new_rate // sample_rate)
    return fit_samples(torch.cat([waveform[:, :0], *blocks], dim=-1), samples)


def fit_samples(waveform: Tensor, samples: int) -> Tensor:
    """[..., S] -> [..., samples]: trimmed at the end, or continued with silence."""
    return F.pad(waveform, (0, samples - waveform.shape[-1]))


def load_audio(path: str | Path, stream: int = 0) -> tuple[Tensor, int]:
    """(waveform [1, C, S] float32, sample rate in Hz) of a file's first sound stream, or a later one.

    Raises MediaError for a file without sound, with an unreadable one, or with samples that are not finite.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise MediaError(f"{path} has no sound. Choose a sound file, or a film with a sound track.")
            sample_rate = 0
            # Neither rate nor layout given: only the sample format changes, so nothing is held back.
            # Interleaved: PyAV 18.1 reads beyond a planar frame of eight channels, and the process dies.
            to_float = av.AudioResampler(format="flt")
            blocks = []
            for frame in container.decode(audio=stream):
                sample_rate, channels = frame.sample_rate, frame.layout.nb_channels
                blocks += [block.to_ndarray().reshape(-1, channels) for block in to_float.resample(frame)]
    except (av.FFmpegError, ValueError) as error:  # ValueError: the layout or rate changes on the way
        raise MediaError(
            f"The sound of {path} cannot be read ({error}). Save it again as WAV or FLAC."
        ) from error
    if not sum(map(len, blocks)):
        raise MediaError(f"The sound of {path} is empty: its sound track holds no samples.")
    waveform = torch.from_numpy(np.concatenate(blocks).T.copy())[None]
    check_finite(waveform, f"The sound of {path}")
    return waveform, sample_rate


def check_finite(waveform: Tensor, what: str) -> None:
    """Raise MediaError, with the counts, if any sample is NaN or infinite."""
    nan, infinite = int(waveform.isnan().sum()), int(waveform.isinf().sum())
    if nan or infinite:
        raise MediaError(
            f"{what} cannot be used: of {waveform.numel()} samples {nan} are not numbers (NaN) and {infinite} "
            "are infinite."
        )
