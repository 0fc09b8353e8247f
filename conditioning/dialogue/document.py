"""A scene as a person describes it: who speaks, what is said, what is seen and heard.

Fields that are empty are left out of the prompt. Text is as the person typed it; cleaning, spelling out and
spacing come later and are reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Framing = Literal["close-up", "medium close-up", "medium shot", "wide shot"]
Side = Literal["", "left", "centre", "right"]
Pace = Literal["very slow", "slow", "natural", "fast", "very fast"]

FRAMINGS: tuple[Framing, ...] = ("close-up", "medium close-up", "medium shot", "wide shot")
SIDES: tuple[Side, ...] = ("", "left", "centre", "right")
PACES: tuple[Pace, ...] = ("very slow", "slow", "natural", "fast", "very fast")


@dataclass(frozen=True, slots=True)
class Speaker:
    """One member of the cast."""

    name: str  # how lines refer to this speaker; not in the prompt
    description: str  # about five words, as in "young woman, red coat"; or a well-known name
    side: Side = ""  # of the picture
    voice: str = ""  # "low and warm"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that is said, at one go."""

    speaker: str  # a Speaker's name
    language: str  # a key of LANGUAGES
    text: str
    delivery: str = ""  # "whispers, close to tears"
    pace: Pace = "natural"
    start: float | None = None  # seconds; None follows the line before
    pause: float | None = None  # seconds of silence after it; None as usual between two lines
    spell_out: bool = True  # say numbers and symbols as words; False sends the text as it is


@dataclass(frozen=True, slots=True)
class Shot:
    """A stretch of film without a cut, and the lines spoken in it."""

    lines: tuple[Line, ...] = ()
    framing: Framing = "medium close-up"
    action: str = ""  # what happens besides speaking, in sentences


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything a prompt says. ``body`` is a pasted prompt's first paragraph, where it fits no template."""

    cast: tuple[Speaker, ...] = ()
    shots: tuple[Shot, ...] = ()
    appearance: str = ""
    setting: str = ""
    lighting: str = ""
    mood: str = ""
    sound: str = ""  # the one most prominent background sound
    body: str | None = None

    @property
    def lines(self) -> tuple[Line, ...]:
        """All lines in the order of the film."""
        return tuple(line for shot in self.shots for line in shot.lines)

    def speaker(self, name: str) -> Speaker | None:
        return next((speaker for speaker in self.cast if speaker.name == name), None)
