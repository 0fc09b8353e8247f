"""A text under repair that remembers where each of its characters came from."""

from __future__ import annotations

import re
from collections.abc import Callable

from .findings import Change


class Trace:
    """``text`` as it is now, and the changes so far, each placed in the text as it was given.

    A change shows what stood there at first, also where that was changed twice.
    """

    def __init__(self, text: str):
        self.text = text
        self._given = text
        self.changes: list[Change] = []
        self._origins = list(range(len(text) + 1))

    def origin(self, place: int) -> int:
        """Where the character at ``place`` of ``text`` stood at first."""
        return self._origins[place]

    def note(self, start: int, end: int, after: str, reason: str) -> None:
        """List a change of ``text[start:end]`` that is made by who reads it; none where it is ``after`` already."""
        if self.text[start:end] != after:
            self.changes.append(Change(self.origin(start), self._before(start, end), after, reason))

    def _before(self, start: int, end: int) -> str:
        first = self.origin(start)
        return self._given[first : self.origin(end - 1) + 1] if end > start else ""

    def substitute(self, pattern: re.Pattern, after: str | Callable[[re.Match], str], reason: str) -> None:
        """Replace every match of ``pattern``; one that is replaced by itself is no change."""
        found = [(match, after(match) if callable(after) else after) for match in pattern.finditer(self.text)]
        self.replace([(match.start(), match.end(), new, reason) for match, new in found])

    def replace(self, edits: list[tuple[int, int, str, str]]) -> None:
        """Apply (start, end, after, reason), given in order and without overlaps."""
        parts, origins, place = [], [], 0
        for start, end, after, reason in edits:
            before = self.text[start:end]
            if before == after:
                continue
            self.changes.append(Change(self._origins[start], self._before(start, end), after, reason))
            parts += [self.text[place:start], after]
            origins += self._origins[place:start]
            origins += [self._origins[start]] * len(after)
            place = end
        if parts:
            self.text = "".join((*parts, self.text[place:]))
            self._origins = origins + self._origins[place:]


def stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The span of ``text[start:end].strip()``."""
    inner = text[start:end]
    start += len(inner) - len(inner.lstrip())
    return start, max(start, start + len(inner.strip()))
