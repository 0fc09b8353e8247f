"""The drawn people's voice: a hum with formants, at pitches whose period divides the 40 ms of an audio latent.

Pitches in multiples of 25 Hz lock the harmonics to the latent's grid, so that a held vowel is the same latent
again and again. Letters: S samples at 51 200 Hz, F frames of 2048 samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from ..shapes import FPS, LATENT_SAMPLE_RATE, SAMPLES_PER_LATENT

PITCHES = {"deep": 100, "low": 150, "clear": 200, "high": 250}  # Hz
# Hz of the first three formants
FORMANTS = {
    "a": (800, 1250, 2600),
    "e": (500, 1950, 2700),
    "i": (300, 2300, 3100),
    "o": (500, 900, 2500),
    "u": (320, 700, 2300),
}
# Open vowels are louder, which is also what the area of an open mouth says.
LOUDNESS = {"a": 1.0, "e": 0.85, "i": 0.75, "o": 0.8, "u": 0.6}
LEVEL = 0.16  # RMS of an "a" at full voice
HIGHEST = 5_000  # Hz
ATTACK, RELEASE = 0.04, 0.07  # seconds


@dataclass(frozen=True, slots=True)
class Timbre:
    """What makes two voices of one pitch differ."""

    formant_scale: float = 1.0
    tilt: float = 0.6  # harmonic n is weaker by n^-tilt


PLAIN = Timbre()
# Never in training: a smaller head and a duller sound than any there.
STRANGER = Timbre(formant_scale=1.2, tilt=1.0)


@dataclass(frozen=True, slots=True)
class Syllable:
    """One sung vowel: when, for how long (seconds), how loud (0 … 1), and whose (number of the face)."""

    vowel: str
    start: float
    length: float
    loudness: float
    speaker: int = 0


@cache
def period(vowel: str, pitch: int, timbre: Timbre = PLAIN) -> np.ndarray:
    """[2048] float32: one latent's worth of a vowel, ready to be repeated; RMS ``LEVEL`` times its loudness."""
    if pitch % FPS:
        raise ValueError(f"A pitch of {pitch} Hz does not fit whole periods into {1000 // FPS} ms.")
    time = np.arange(SAMPLES_PER_LATENT) / LATENT_SAMPLE_RATE
    number = np.arange(1, HIGHEST // pitch + 1)
    frequency = number * pitch
    strength = sum(
        weight / (1 + ((frequency - timbre.formant_scale * formant) / (60 + 0.07 * formant)) ** 2)
        for formant, weight in zip(FORMANTS[vowel], (1.0, 0.7, 0.3), strict=True)
    )
    strength = (strength + 0.02) * number**-timbre.tilt
    phase = -np.pi * number**2 / len(number)  # Schroeder's: no harmonics that add up to a click
    wave = (strength[:, None] * np.cos(2 * np.pi * frequency[:, None] * time + phase[:, None])).sum(0)
    return (wave * (LEVEL * LOUDNESS[vowel] / np.sqrt((wave**2).mean()))).astype(np.float32)


def envelope(syllable: Syllable, samples: int) -> np.ndarray:
    """[S] float32 between 0 and the syllable's loudness; half cosines at both ends."""
    time = np.arange(samples) / LATENT_SAMPLE_RATE - syllable.start
    rise = np.clip(time / ATTACK, 0, 1)
    fall = np.clip((syllable.length - time) / RELEASE, 0, 1)
    return (syllable.loudness * (0.5 - 0.5 * np.cos(np.pi * np.minimum(rise, fall)))).astype(np.float32)


def sing(syllables: tuple[Syllable, ...], pitches: tuple[int, ...], frames: int, timbre: Timbre = PLAIN):
    """-> waveform [S] float32, and [speakers, F] openness 0 … 1 with the vowel of each frame as [speakers, F] str."""
    samples = frames * SAMPLES_PER_LATENT
    wave = np.zeros(samples, np.float32)
    opening = np.zeros((len(pitches), frames), np.float32)
    vowels = np.full((len(pitches), frames), "")
    for syllable in syllables:
        curve = envelope(syllable, samples)
        wave += curve * np.tile(period(syllable.vowel, pitches[syllable.speaker], timbre), frames)
        per_frame = curve.reshape(frames, -1).mean(1)
        heard = per_frame > opening[syllable.speaker]
        opening[syllable.speaker][heard] = per_frame[heard]
        vowels[syllable.speaker][heard] = syllable.vowel
    return wave, opening, vowels
