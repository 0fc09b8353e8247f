"""Loudness: how loud a sound is to an ear (ITU-R BS.1770-4), and a sound brought to a given loudness.

Letters: C channels, S samples.
"""

from __future__ import annotations

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MediaError
from .audio import fourier_resample

logger = logging.getLogger(__name__)

SILENCE = -70.0  # LUFS; blocks below count for nothing
RELATIVE_GATE = -10.0  # LU below the mean of what is not silent
CEILING = -1.0  # dBTP: room for what a lossy codec adds between and beyond the samples
LOOK = 0.005  # seconds the limiter sees ahead and back
MAKE_UP = 6.0  # dB at most for what the limiter takes away: more would raise what lies between the peaks
TOLERANCE = 0.2  # LU


def integrated_loudness(waveform: Tensor, sample_rate: int) -> float:
    """LUFS of [C, S], one or two channels of weight 1; -inf for silence.

    Blocks of 0.4 s, one every 0.1 s, each -0.691 + 10 log10 of the K-weighted mean square summed over
    channels; the mean of those above both gates. A sound shorter than a block is one block.
    """
    hop = round(sample_rate / 10)
    squares = k_weighted(waveform, sample_rate).square().sum(0)
    blocks = squares.unfold(0, min(4 * hop, len(squares)), hop).mean(-1) if len(squares) else squares
    blocks = blocks[blocks > _mean_square(SILENCE)]
    return _lufs(blocks[blocks > _mean_square(_lufs(blocks) + RELATIVE_GATE)])


def k_weighted(waveform: Tensor, sample_rate: int) -> Tensor:
    """[C, S] -> [C, S] float64 through BS.1770's shelf and high-pass, built for any rate.

    Multiplied in the spectrum: the filters' ring has died by 1e-50 within the second of silence appended.
    """
    length = waveform.shape[-1] + sample_rate
    bins = torch.fft.rfft(waveform.double(), length)
    turn = torch.exp(-2j * math.pi * torch.arange(bins.shape[-1], dtype=torch.float64) / length)
    for numerator, denominator in k_filters(sample_rate):
        response = [sum(c * turn**power for power, c in enumerate(part)) for part in (numerator, denominator)]
        bins = bins * (response[0] / response[1])
    return torch.fft.irfft(bins, length)[..., : waveform.shape[-1]]


def k_filters(sample_rate: int) -> list[tuple[list[float], list[float]]]:
    """(b, a) of both biquads by the bilinear transform; at 48 kHz they are the standard's tables.

    The analogue corner, gain and quality behind those tables are De Man's, as in libebur128.
    """
    k, q = math.tan(math.pi * 1681.974450955533 / sample_rate), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    one = 1 + k / q + k * k
    shelf = [
        (high + band * k / q + k * k) / one,
        2 * (k * k - high) / one,
        (high - band * k / q + k * k) / one,
    ]
    shelf_poles = [1.0, 2 * (k * k - 1) / one, (1 - k / q + k * k) / one]
    k, q = math.tan(math.pi * 38.13547087602444 / sample_rate), 0.5003270373238773
    one = 1 + k / q + k * k
    return [(shelf, shelf_poles), ([1.0, -2.0, 1.0], [1.0, 2 * (k * k - 1) / one, (1 - k / q + k * k) / one])]


def to_loudness(waveform: Tensor, sample_rate: int, target: float, what: str = "The sound") -> Tensor:
    """[C, S] with an integrated loudness of ``target`` LUFS and no true peak above -1 dBTP.

    One gain for all of it; where peaks would then stand out, a limiter turns them down and the gain makes up
    for it. Silence stays silent. A warning says when the target is missed by more than 0.2 LU.
    """
    check_target(target)
    measured = integrated_loudness(waveform, sample_rate)
    if measured == -math.inf:
        logger.warning("%s is silent; it cannot be brought to %g LUFS and stays as it is.", what, target)
        return waveform
    gain, reached, louder = target - measured, measured, waveform
    for _ in range(8):  # the limiter takes some loudness away; a few rounds find the gain that restores it
        louder = limited(waveform * 10 ** (gain / 20), sample_rate)
        reached = integrated_loudness(louder, sample_rate)
        if abs(target - reached) < TOLERANCE / 4:
            break
        gain = min(gain + target - reached, target - measured + MAKE_UP)
    if abs(target - reached) > TOLERANCE:
        logger.warning(
            "%s reaches %.1f LUFS, not %g: its peaks are too high above the rest to be louder.",
            what,
            reached,
            target,
        )
    return louder


def check_target(target: float) -> None:
    if not -50 <= target <= -5:
        raise MediaError(
            f"A loudness of {target:g} LUFS cannot be aimed at; choose from -50 to -5, such as -16 for the web."
        )


def limited(waveform: Tensor, sample_rate: int) -> Tensor:
    """[C, S] whose true peaks stay at or below -1 dBTP, by a gain that moves smoothly over 10 ms.

    The gain is the mean over a window of minima over the same window, so that it is never above what any
    sample needs.
    """
    ceiling, reach = 10 ** (CEILING / 20), round(LOOK * sample_rate)
    need = (ceiling / true_peaks(waveform)).clamp(max=1)
    if need.min() == 1:
        return waveform
    window = {"kernel_size": 2 * reach + 1, "stride": 1}
    held = -F.max_pool1d(-F.pad(need[None, None], (2 * reach, 2 * reach), value=1.0), **window)
    return waveform * F.avg_pool1d(held, **window)[0, 0].to(waveform.dtype)


def true_peaks(waveform: Tensor) -> Tensor:
    """[C, S] -> [S]: the highest magnitude of any channel at each sample and up to the next, oversampled 4 times."""
    samples = waveform.shape[-1]
    between = fourier_resample(waveform, 4 * samples).abs().amax(0).unflatten(0, (samples, 4))
    return between.amax(-1).clamp(min=1e-9)


def _lufs(blocks: Tensor) -> float:
    return -0.691 + 10 * math.log10(float(blocks.mean())) if len(blocks) else -math.inf


def _mean_square(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)
