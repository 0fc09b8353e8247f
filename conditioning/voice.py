"""The driving voice: any sound to stereo at 51 200 Hz, to the film's length, and through an encoder in windows.

Letters: B batch, C channels, S samples, L audio latents.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConditioningError
from ..shapes import LATENT_SAMPLE_RATE, SAMPLES_PER_LATENT

logger = logging.getLogger(__name__)

WINDOW = 29 * LATENT_SAMPLE_RATE  # samples the audio autoencoder is fed at once: 725 latents
OVERLAP = 0.5  # of a window, with the next
MOST_MIXED = 8  # channels whose places in a room FFmpeg knows
SILENCE = 1e-4  # -80 dB of full scale, below the noise of any room


def prepare_voice(waveform: Tensor, sample_rate: int) -> Tensor:
    """[B, C, S] or [C, S] at any rate -> [1, 2, ceil(S * 51200/rate)] float32 at 51 200 Hz.

    The first of a batch is taken. Integers are read as PCM of their width. Mono is doubled, stereo stays
    stereo, three to eight channels are mixed down as surround sound, more are averaged. Neither pitch,
    level nor timing changes.

    Raises ConditioningError for a voice that is empty or holds values that are not finite.
    """
    if waveform.ndim not in (2, 3) or not waveform.numel():
        raise ConditioningError(
            f"A voice must be [C, S] or [B, C, S] with at least one sample, not {list(waveform.shape)}."
        )
    if sample_rate < 1:
        raise ConditioningError(f"A voice cannot have {sample_rate} samples in a second.")
    sound = _as_float(waveform[0] if waveform.ndim == 3 else waveform)
    lost = int((~sound.isfinite()).sum())
    if lost:
        raise ConditioningError(f"{lost} of {sound.numel()} samples of the voice are not finite numbers.")
    peak = float(sound.abs().max())
    if peak < SILENCE:
        logger.warning("The voice is silent: its peak is %.2g of full scale. Nobody will speak.", peak)
    if len(sound) > MOST_MIXED:
        sound = sound.mean(dim=0, keepdim=True)
    if len(sound) == 1:  # doubled here: libswresample would turn mono down by 3 dB on its way to stereo
        sound = sound.expand(2, -1)
    return _resample(sound, sample_rate)[None]


def pad_voice(waveform: Tensor, num_frames: int) -> Tensor:
    """[1, 2, S] -> [1, 2, num_frames * 2048]: the film's length, continued with silence.

    A voice that is longer is cut, with a warning.
    """
    samples = num_frames * SAMPLES_PER_LATENT
    excess = waveform.shape[-1] - samples
    if excess >= SAMPLES_PER_LATENT:
        logger.warning(
            "The voice lasts %.2f s and the film %.2f s: the last %.2f s are not spoken.",
            waveform.shape[-1] / LATENT_SAMPLE_RATE,
            samples / LATENT_SAMPLE_RATE,
            excess / LATENT_SAMPLE_RATE,
        )
    return F.pad(waveform, (0, -excess))


def encode_in_windows(encode: Callable[[Tensor], Tensor], waveform: Tensor) -> Tensor:
    """[1, 2, S] -> [1, 64, L] by ``encode``, which is given at most 29 seconds.

    Up to 29 s in one pass, L = floor(S/2048). A longer voice in windows of 29 s every 14.5 s, the last
    filled with silence, merged by ``merge_windows`` and cut to L = ceil(S/2048). The merge places each
    window at a whole latent, 363 for 362.5, so every further window comes 20 ms late: so does the
    reference, and so were the voices it was tuned on.
    """
    samples = waveform.shape[-1]
    if samples < SAMPLES_PER_LATENT:
        raise ConditioningError(
            f"A voice of {samples / LATENT_SAMPLE_RATE * 1000:.0f} ms is too short; it needs at least 40 ms."
        )
    if samples <= WINDOW:
        return encode(waveform)
    hop = WINDOW - int(WINDOW * OVERLAP)
    windows = 1 + -(-(samples - WINDOW) // hop)
    filled = F.pad(waveform, (0, (windows - 1) * hop + WINDOW - samples))
    latents = [encode(filled[..., start * hop : start * hop + WINDOW]) for start in range(windows)]
    return merge_windows(latents, OVERLAP)[..., : -(-samples // SAMPLES_PER_LATENT)]


def merge_windows(windows: Sequence[Tensor], overlap_ratio: float) -> Tensor:
    """Windows [B, C, L], all of one length, -> [B, C, L + (n-1)*hop], crossfaded where they overlap.

    overlap = trunc(L * ratio), hop = L - overlap; in the overlap the new window has the weight k/overlap,
    k = 0 ... overlap-1, against what is already merged.
    """
    length = windows[0].shape[-1]
    overlap = int(length * overlap_ratio)
    merged = windows[0]
    rise = torch.arange(overlap, device=merged.device, dtype=merged.dtype) / max(overlap, 1)
    for window in windows[1:]:
        done, tail = merged.split([merged.shape[-1] - overlap, overlap], dim=-1)
        fade = tail * (1 - rise) + window[..., :overlap] * rise
        merged = torch.cat([done, fade, window[..., overlap:]], dim=-1)
    return merged


def _as_float(waveform: Tensor) -> Tensor:
    """Samples as float32; integers scaled from full scale to [-1, 1)."""
    waveform = waveform.detach().cpu()
    if waveform.is_floating_point():
        return waveform.float()
    if waveform.is_complex() or waveform.dtype == torch.bool:
        raise ConditioningError(f"The samples of a voice must be numbers, not {waveform.dtype}.")
    limits = torch.iinfo(waveform.dtype)
    half = (limits.max - limits.min + 1) // 2
    middle = limits.max + 1 - half  # 0, or 128 for unsigned bytes
    return ((waveform.double() - middle) / half).float()


def _resample(sound: Tensor, sample_rate: int) -> Tensor:
    """[2 ... 8, S] -> [2, ceil(S * 51200/rate)] by libswresample, without delay."""
    channels, samples = sound.shape
    if channels == 2 and sample_rate == LATENT_SAMPLE_RATE:
        return sound.contiguous()
    # "5c" is FFmpeg's default order for five channels; for three it has a subwoofer, which a mix leaves out.
    layout = "3.0" if channels == 3 else f"{channels}c"
    # Interleaved: PyAV 18.1 cannot fill a planar frame of eight channels.
    frame = av.AudioFrame.from_ndarray(
        sound.T.reshape(1, -1).contiguous().numpy(), format="flt", layout=layout
    )
    frame.sample_rate = sample_rate
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=LATENT_SAMPLE_RATE)
    blocks = resampler.resample(frame) + resampler.resample(None)  # None brings what the filter still holds
    stereo = np.concatenate([np.empty((2, 0), np.float32), *(block.to_ndarray() for block in blocks)], axis=1)
    expected = -(-samples * LATENT_SAMPLE_RATE // sample_rate)
    # A voice of a few samples does not fill the filter, and nothing comes out of it.
    return F.pad(torch.from_numpy(stereo), (0, expected - stereo.shape[1]))
