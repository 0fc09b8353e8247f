"""What a clip shows and says, drawn by lot from a seed, and the prompt that asks for it.

Combinations of colours and pitch, and lines of words, whose hash falls into one class are kept out of training:
what is measured was never seen. Letters: F frames.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..shapes import FPS
from .scene import BACKGROUNDS, FACES, Face, draw
from .voice import PITCHES, PLAIN, Syllable, Timbre, sing
from .words import LANGUAGES, WORDS, vowels_of

HELD_OUT = 6  # one combination of so many is never trained on
SYLLABLE = (0.16, 0.24)  # seconds
GAP = (0.03, 0.07)  # seconds between syllables of a word
PAUSE = (0.07, 0.18)  # seconds between words
LEAST_FRAMES = 13  # for each face: shorter clips have no room for a word
SILENT = 0.04  # share of clips in which nobody speaks
ARTICLES = {"orange": "An"}


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip: everything that its picture, its sound and its prompt follow from."""

    frames: int
    faces: tuple[Face, ...]
    background: str
    voices: tuple[str, ...]  # names of pitches, one for each face
    language: str
    lines: tuple[str, ...]  # one for each face, "" for silence
    syllables: tuple[Syllable, ...]
    timbre: Timbre = PLAIN
    style: int = 0  # which of the ways to say it the prompt takes

    @property
    def prompt(self) -> str:
        return prompt(self)

    @property
    def vowels(self) -> str:
        return "".join(syllable.vowel for syllable in self.syllables)

    def film(self, scale: int = 1, only: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Pixels [3, F, H, W] in [-1, 1], of ``only`` these frames, and the whole waveform [2, S] at 51 200 Hz."""
        pitches = tuple(PITCHES[voice] for voice in self.voices)
        wave, opening, vowels = sing(self.syllables, pitches, self.frames, self.timbre)
        pixels = draw(self.faces, self.background, opening[:, only], vowels[:, only], scale)
        return pixels, torch.from_numpy(wave).expand(2, -1)


def is_held_out(*parts: str) -> bool:
    """Whether a combination belongs to what is measured rather than trained on."""
    return hashlib.sha256("|".join(parts).encode()).digest()[0] % HELD_OUT == 0


def clip_of(
    seed: int,
    frames: int,
    *,
    held_out: bool = False,
    faces: int = 1,
    language: str | None = None,
    timbre: Timbre | None = PLAIN,
) -> Clip:
    """The clip of this seed. ``timbre`` None: drawn by lot, for clips that are only listened to."""
    if frames < LEAST_FRAMES * faces:
        raise ValueError(
            f"{frames} frames are too short for {faces} to speak; take {LEAST_FRAMES * faces} or more."
        )
    lot = np.random.default_rng([seed, frames, faces, int(held_out)])

    def pick(names):
        return str(lot.choice(list(names)))

    while True:  # until the combination is on the side that is wanted
        background = pick(BACKGROUNDS)
        colours = [str(name) for name in lot.choice(list(FACES), faces, replace=False)]
        voices = [str(name) for name in lot.choice(list(PITCHES), faces, replace=False)]
        kept_out = [is_held_out(c, background, v) for c, v in zip(colours, voices, strict=True)]
        if all(kept_out) if held_out else not any(kept_out):
            break
    language = language or pick(LANGUAGES)
    seconds = frames / FPS
    silent = lot.random() < SILENT and not held_out
    while True:
        share = seconds / faces
        lines = ["" if silent else _line(lot, language, share) for _ in colours]
        if silent or faces > 1 or len(lines[0].split()) < 2 or is_held_out(lines[0]) == held_out:
            syllables = _timed(lot, lines, language, seconds)
            if syllables is not None:
                break
    if timbre is None:
        timbre = Timbre(float(lot.uniform(0.9, 1.1)), float(lot.uniform(0.4, 0.8)))
    places = [Face(colour, float(lot.integers(-3, 4)), float(lot.integers(-3, 4))) for colour in colours]
    return Clip(
        frames,
        tuple(places),
        background,
        tuple(voices),
        language,
        tuple(lines),
        tuple(syllables),
        timbre,
        int(lot.integers(len(BODIES))),
    )


def _line(lot: np.random.Generator, language: str, seconds: float) -> str:
    """Words that can be said in so many seconds, and not always as many as could be."""
    room = max(1, int((seconds - 0.1) / 0.29))
    wanted = int(lot.integers(max(1, 2 * room // 3), room + 1))
    words: list[str] = []
    while True:
        word = str(lot.choice(list(WORDS[language])))
        if len(vowels_of(" ".join([*words, word]), language)) > wanted:
            if words:
                return " ".join(words)
            continue
        words.append(word)


def _timed(lot: np.random.Generator, lines: list[str], language: str, seconds: float):
    """Syllables with free timing one after the other, or None where the lot left no room for them."""
    timed, now = [], 0.0
    for speaker, line in enumerate(lines):
        words = _words(line, language)
        for vowels in words:
            for vowel in vowels:
                length = float(lot.uniform(*SYLLABLE))
                timed.append(Syllable(vowel, now, length, float(lot.uniform(0.75, 1.0)), speaker))
                now += length + float(lot.uniform(*GAP))
            now += float(lot.uniform(*PAUSE))
    if not timed:
        return []
    room = seconds - (timed[-1].start + timed[-1].length) - 0.04
    if room < 0:
        return None
    shift = 0.04 + float(lot.uniform(0, room))
    return [Syllable(s.vowel, s.start + shift, s.length, s.loudness, s.speaker) for s in timed]


def _words(line: str, language: str) -> list[str]:
    """The vowels of each word of a line, in order."""
    found, rest = [], line
    while rest:
        word = max((word for word in WORDS[language] if (rest + " ").startswith(word + " ")), key=len)
        found.append(WORDS[language][word])
        rest = rest[len(word) + 1 :]
    return found


BODIES = (
    '{The} {face} face on a {background} background speaks with a {voice} voice: "{line}"',
    'Before a {background} wall {the} {face} face looks at the camera and says in a {voice} voice: "{line}"',
    '{The} {face} face, {background} behind it, a {voice} voice, static camera. It says: "{line}"',
)
SILENT_BODY = "{The} {face} face on a {background} background is silent, static camera."
PAIR_BODY = (
    "On the left {the} {face} face, on the right {the2} {face2} face, {background} background. The left one "
    'says in a {voice} voice: "{line}" The right one answers in a {voice2} voice: "{line2}"'
)


def prompt(clip: Clip) -> str:
    """The clip in the structured form that the model family was trained with."""
    article = [ARTICLES.get(face.colour, "A") for face in clip.faces]
    words = {
        "The": article[0],
        "the": article[0].lower(),
        "face": clip.faces[0].colour,
        "background": clip.background,
        "voice": clip.voices[0],
        "line": clip.lines[0],
    }
    if len(clip.faces) == 2:
        words |= {
            "the2": article[1].lower(),
            "face2": clip.faces[1].colour,
            "voice2": clip.voices[1],
            "line2": clip.lines[1],
        }
        body = PAIR_BODY
    else:
        body = BODIES[clip.style] if clip.lines[0] else SILENT_BODY
    spoken = [
        f'<{face.colour} face, {clip.language}>: "{line}"'
        for face, line in zip(clip.faces, clip.lines, strict=True)
        if line
    ]
    dialogue = "\n\nDialogue:\n" + "\n".join(spoken) if spoken else ""
    return body.format(**words) + dialogue + "\n\nBackground Sound:\n<No prominent background sound>"
