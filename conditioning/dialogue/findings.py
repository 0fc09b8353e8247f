"""What is reported about a text: what was changed in it, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Change:
    """A piece of text that was replaced: nothing is altered without one of these."""

    start: int  # where it stood in the text as given, in characters
    before: str
    after: str
    reason: str  # in a person's words: "a zero-width space was taken out"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a text that a person should know."""

    level: Level  # an error stops the text from being used, a warning does not
    code: str  # kebab-case, one per rule: "unspoken-language"
    message: str  # what is wrong, with the words and numbers in question, and what to do
    line: int | None = None  # index of the dialogue line; None for the whole prompt
    start: int | None = None  # of the words in question, in characters of that text
    end: int | None = None
    fix: str | None = None  # that text corrected, whole, where there is one right correction
