"""Whether a mouth moves with the sound: where in the picture, how many frames apart, and how surely.

No face detector: the picture is cut into blocks, and every block's motion is compared with the sound at every
shift. A chance likeness looks the same at all shifts, so the shifts of over half a second are the null that
the best likeness near zero is judged by, block search included.
Letters: F frames, S samples, b and c rows and columns of blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCKS_ACROSS = 37  # 12 pixels at a width of 448
NEAR = 3  # frames of lag at most that count as in time: 120 ms at 25 a second
APART = 0.5  # seconds; shifts beyond belong to the null
SURE = 0.02  # the largest p with which a lag is told
SPEECH = (200.0, 4_000.0)  # Hz
FLOOR = 1e-3  # of the loudest, before the logarithm
MIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class LipSync:
    """One film's likeness of lips and sound."""

    correlation: float  # Pearson's r of motion and sound at ``lag``, in the likeliest place
    lag: int  # frames by which the sound comes after the lips; negative where it comes before
    p: float  # how often chance does as well
    box: tuple[float, float, float, float]  # left, top, right, bottom of that place, as shares of the picture
    heat: np.ndarray  # [b, c], 0 to 1: where motion follows the sound
    motion: np.ndarray  # [F], of that place, standardised
    sound: np.ndarray  # [F], standardised

    @property
    def is_sure(self) -> bool:
        """Whether there is a verdict at all."""
        return self.p < SURE


def lip_sync(frames: Tensor, waveform: Tensor, sample_rate: int, fps: float) -> LipSync | None:
    """Compare frames [F, H, W, 3] (float in [0, 1] or uint8) with a waveform [C, S].

    None where nothing can be said: under 2 s, silence, or a picture that stands still.
    """
    count = min(len(frames), int(waveform.shape[-1] / sample_rate * fps))
    if count < MIN_SECONDS * fps:
        return None
    sound = speech_envelope(waveform, sample_rate, fps, count)
    motion = spread(block_motion(frames[:count]))
    moving = motion.mean(0)
    if sound.std() < 1e-6 or not moving.max() > 1e-6:
        return None
    ours = standardised(smoothed(np.log(motion + FLOOR * moving.max())))
    sound = standardised(smoothed(sound))
    # r[s, b, c]: motion against the sound moved s frames earlier, around the clip's end.
    spectrum = np.fft.rfft(ours, axis=0) * np.fft.rfft(sound).conj()[:, None, None]
    likeness = np.fft.irfft(spectrum.conj(), count, axis=0) / count
    weight = np.sqrt(moving / moving.max())
    score = likeness * weight
    best = score.max((1, 2))
    windows = np.stack([np.roll(best, shift) for shift in range(-NEAR, NEAR + 1)]).max(0)
    apart = round(APART * fps)
    null = windows[apart : count - apart + 1]
    lag = max(range(-NEAR, NEAR + 1), key=lambda shift: best[shift])
    row, column = np.unravel_index(score[lag].argmax(), score[lag].shape)
    rows, columns = score[lag].shape
    heat = np.clip(score[lag], 0, None)
    return LipSync(
        correlation=float(likeness[lag, row, column]),
        lag=lag,
        p=float((1 + (null >= windows[0]).sum()) / (1 + len(null))),
        box=tuple(
            float(np.clip(edge, 0, 1))
            for edge in ((column - 1) / columns, (row - 1) / rows, (column + 2) / columns, (row + 2) / rows)
        ),
        heat=heat / heat.max() if heat.max() > 0 else heat,
        motion=ours[:, row, column],
        sound=sound,
    )


def speech_envelope(waveform: Tensor, sample_rate: int, fps: float, count: int) -> np.ndarray:
    """[count] float64: the log energy from 200 to 4000 Hz within each frame's time."""
    sound = waveform.double().mean(0)
    bins = torch.fft.rfft(sound)
    hertz = torch.arange(len(bins)) * (sample_rate / len(sound))
    band = torch.fft.irfft(bins * ((hertz >= SPEECH[0]) & (hertz <= SPEECH[1])), len(sound))
    edges = (torch.arange(count + 1, dtype=torch.float64) * sample_rate / fps).round().long()
    sums = F.pad(band.square().cumsum(0), (1, 0))[edges.clamp(max=len(sound))]
    energy = (sums.diff() / edges.diff()).clamp(min=0)
    if not energy.max() > 0:
        return np.zeros(count)
    return torch.log(energy.sqrt() + math.sqrt(FLOOR) * energy.max().sqrt()).numpy()


def block_motion(frames: Tensor) -> np.ndarray:
    """[F, b, c] float64: the mean change of brightness since the frame before; the first has the second's."""
    height, width = frames.shape[1:3]
    columns = min(BLOCKS_ACROSS, width)
    rows = max(1, round(columns * height / width))
    before, found = None, []
    for frame in frames:  # one at a time: a film at 1080p takes gigabytes as numbers
        grey = frame[..., :3].float().mean(-1) / (255 if frame.dtype == torch.uint8 else 1)
        if before is not None:
            change = (grey - before).abs()[None, None]
            found.append(F.adaptive_avg_pool2d(change, (rows, columns))[0, 0])
        before = grey
    return torch.stack([found[0], *found]).double().numpy()


def smoothed(series: np.ndarray) -> np.ndarray:
    """The mean of each value and its two neighbours along the first axis."""
    padded = np.concatenate([series[:1], series, series[-1:]])
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def standardised(series: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 along the first axis; what does not vary becomes 0."""
    centred = series - series.mean(0)
    deviation = centred.std(0)
    return centred / np.where(deviation > 1e-9, deviation, np.inf)


def spread(motion: np.ndarray) -> np.ndarray:
    """[F, b, c], each block the mean of itself and its eight neighbours: a mouth is larger than a block."""
    return F.avg_pool2d(torch.from_numpy(motion)[:, None], 3, 1, 1, count_include_pad=False)[:, 0].numpy()
