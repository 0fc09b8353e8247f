"""What a film of the drawn world shows and says, read from pixels and samples alone; numpy only.

Letters: F frames, H and W pixels, S samples.
"""

from __future__ import annotations

from difflib import SequenceMatcher

import numpy as np

from .scene import BACKGROUNDS, FACES, SIDE
from .voice import PITCHES, period
from .words import VOWELS

FPS = 25
DARK = 0.2  # luminance below which a pixel is the mouth's, by degrees
LUMA = np.array([0.299, 0.587, 0.114])
VOICED = 0.3  # of the loudest 10 ms: what counts as speech
QUIET = 0.01  # RMS of a film in which nobody speaks
HOP = 0.01  # seconds
SHORTEST = 0.05  # seconds of a syllable


def mouth_area(frames: np.ndarray, left: int = 0) -> np.ndarray:
    """[F, H, W, 3] in 0 … 1 -> [F] dark pixels, at scale 1, of the face whose square begins at column ``left``."""
    scale = frames.shape[1] / SIDE
    start = int(left * scale)
    square = frames[:, int(30 * scale) : int(56 * scale), start : start + int(SIDE * scale)]
    luminance = square @ LUMA
    return np.clip((DARK - luminance) / DARK, 0, 1).sum((1, 2)) / scale**2


def loudness(wave: np.ndarray, rate: int, frames: int) -> np.ndarray:
    """[S] -> [F] RMS over each frame's 40 ms."""
    samples = rate // FPS
    wave = np.pad(wave[: frames * samples], (0, max(0, frames * samples - len(wave))))
    return np.sqrt((wave.reshape(frames, samples) ** 2).mean(1))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of them does not change."""
    a, b = a - a.mean(), b - b.mean()
    length = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / length) if length > 1e-9 else 0.0


def lag_curve(mouth: np.ndarray, sound: np.ndarray, most: int = 2) -> list[float]:
    """Correlation with the sound taken -most … most frames later than the picture."""
    curve = []
    for lag in range(-most, most + 1):
        a = mouth[max(0, -lag) : len(mouth) - max(0, lag)]
        b = sound[max(0, lag) : len(sound) - max(0, -lag)]
        curve.append(correlation(a, b))
    return curve


def colours(frames: np.ndarray, left: int = 0) -> tuple[str, str]:
    """Names of the nearest face and background colours of the square that begins at column ``left``."""
    scale = frames.shape[1] / SIDE
    square = frames[:, :, int(left * scale) : int((left + SIDE) * scale)]

    def part(rows: slice, columns: slice) -> np.ndarray:
        rows, columns = (slice(int(s.start * scale), int(s.stop * scale)) for s in (rows, columns))
        return np.median(square[:, rows, columns].reshape(-1, 3), axis=0) * 255

    face = part(slice(15, 20), slice(29, 35))
    corner = np.mean([part(slice(1, 6), slice(1, 6)), part(slice(1, 6), slice(58, 63))], axis=0)
    return _nearest(face, FACES), _nearest(corner, BACKGROUNDS)


def _nearest(rgb: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: float(((np.array(palette[name]) - rgb) ** 2).sum()))


def pitch(wave: np.ndarray, rate: int) -> str | None:
    """The name of the voice's pitch: the highest whose multiples hold nearly all the energy; None for silence."""
    if np.sqrt((wave**2).mean()) < QUIET:
        return None
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    frequency = np.fft.rfftfreq(len(wave), 1 / rate)
    heard = (frequency > 60) & (frequency < 2000)
    power, frequency = power[heard], frequency[heard]
    shares = {}
    for name, hertz in PITCHES.items():
        off = np.abs(frequency / hertz - np.round(frequency / hertz)) * hertz
        shares[name] = power[(off < 12) & (frequency > 0.8 * hertz)].sum() / power.sum()
    best = max(shares.values())
    return max((name for name in shares if shares[name] > 0.93 * best), key=PITCHES.get)


def vowels(wave: np.ndarray, rate: int, name: str | None) -> str:
    """The vowels of a voice of this pitch, one for each stretch of sound between two quiet moments."""
    if name is None:
        return ""
    hop = int(rate * HOP)
    count = len(wave) // hop
    level = np.sqrt((wave[: count * hop].reshape(count, hop) ** 2).mean(1))
    level = np.convolve(level, np.ones(3) / 3, "same")
    is_voiced = np.concatenate([[False], level > VOICED * np.quantile(level, 0.97), [False]])
    edges = np.flatnonzero(np.diff(is_voiced.astype(int)))
    found = ""
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        if (stop - start) * HOP >= SHORTEST:
            found += _vowel(wave[start * hop : stop * hop], rate, PITCHES[name])
    return found


def _vowel(wave: np.ndarray, rate: int, hertz: int) -> str:
    """The vowel whose harmonics are the most like this sound's."""
    heard = _harmonics(wave, rate, hertz)
    reference = {v: _harmonics(period(v, hertz), 51_200, hertz) for v in VOWELS}
    return max(reference, key=lambda v: correlation(heard, reference[v]))


def _harmonics(wave: np.ndarray, rate: int, hertz: int) -> np.ndarray:
    """Roots of the strengths of the harmonics up to 3.5 kHz."""
    number = np.arange(1, 3500 // hertz + 1)
    time = np.arange(len(wave)) / rate
    kernel = np.exp(-2j * np.pi * hertz * number[:, None] * time)
    return np.sqrt(np.abs(kernel @ wave) / len(wave))


def likeness(read: str, wanted: str) -> float:
    """Ratio of equal letters in equal order, 1 where both are the same."""
    return SequenceMatcher(None, read, wanted, autojunk=False).ratio()


def psnr(made: np.ndarray, picture: np.ndarray) -> float:
    """Decibels over values in 0 … 1."""
    return float(10 * np.log10(1 / max(float(((made - picture) ** 2).mean()), 1e-10)))
