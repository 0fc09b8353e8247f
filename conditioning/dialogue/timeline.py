"""Where each line lies in a film, and whether they fill it: places in seconds on a film of 4k+1 frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...shapes import FPS, check_frames, frames_for_samples
from .document import Line
from .duration import Duration

LEAD = 0.30  # seconds before the first word
GAP = 0.35  # between two lines of one speaker
TURN = 0.50  # between two speakers
TAIL = 0.40  # after the last word
CLOSE = 0.30  # a last word nearer than this to the end is likely to be cut

UNDER = 0.45  # shares of the film that is spoken: below, the model stretches words or invents some
TIGHT = 0.80
OVER = 0.95

Level = Literal["under", "good", "tight", "over"]


@dataclass(frozen=True, slots=True)
class Span:
    """One line's place: ``start`` to ``end`` at its natural pace, and its three lengths, in seconds."""

    line: int  # its index
    start: float
    end: float
    slow: float
    natural: float
    fast: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """A film of ``frames`` (4k+1) lasting ``seconds``; ``fill`` is the share of it that is spoken.

    Spans stand in the order of the lines. With explicit starts they may overlap or leave the film:
    ``overlaps`` and ``outside`` name those.
    """

    frames: int
    seconds: float
    spans: tuple[Span, ...]
    fill: float
    level: Level

    @property
    def overlaps(self) -> tuple[tuple[int, int], ...]:
        """Pairs of lines that are spoken at once, each next to the other in time."""
        ordered = sorted(
            (span for span in self.spans if span.natural), key=lambda span: (span.start, span.line)
        )
        pairs, latest = [], None
        for span in ordered:
            if latest is not None and span.start < latest.end - 1e-6:
                pairs.append((latest.line, span.line))
            if latest is None or span.end > latest.end:
                latest = span
        return tuple(pairs)

    @property
    def outside(self) -> tuple[int, ...]:
        """Lines that are not spoken to their end within the film."""
        return tuple(span.line for span in self.spans if span.natural and span.end > self.seconds + 1e-6)


def place(lines: Sequence[tuple[Duration, Line]], *, frames: int | None = None) -> Timeline:
    """A place for every line, at its natural pace, one after another or where it says.

    ``frames`` None gives the shortest legal film that holds all with a lead and a tail; a count that is not
    4k+1 is a GeometryError. A line without a ``start`` follows the one before it, after that one's ``pause``
    or the usual gap. A film without speech is "good": there is nothing to stretch.
    """
    if frames is not None:
        check_frames(frames)
    spans = _spans(lines)
    spoken = [span for span in spans if span.natural]
    end = max((span.end for span in spoken), default=0.0)
    if frames is None:
        closing = lines[-1][1].pause if lines else None
        after = max(TAIL, closing or 0.0) if spoken and spans[-1].end >= end else TAIL
        frames = frames_for_samples(max(1, math.ceil(round((end + after) * 1000, 3))), 1000)
    seconds = frames / FPS
    fill = sum(span.natural for span in spoken) / seconds
    return Timeline(frames, seconds, spans, fill, _level(fill, bool(spoken), seconds - end))


def _spans(lines: Sequence[tuple[Duration, Line]]) -> tuple[Span, ...]:
    spans: list[Span] = []
    before: Line | None = None
    at = 0.0
    for index, (duration, line) in enumerate(lines):
        if line.start is not None:
            start = max(0.0, line.start)
        elif before is None:
            start = LEAD
        else:
            start = at + _gap(before, line)
        at = start + duration.natural
        spans.append(Span(index, start, at, duration.slow, duration.natural, duration.fast))
        before = line
    return tuple(spans)


def _gap(before: Line, line: Line) -> float:
    if before.pause is not None:
        return max(0.0, before.pause)
    return GAP if before.speaker == line.speaker else TURN


def _level(fill: float, spoken: bool, left: float) -> Level:
    """``left``: seconds between the last word and the end."""
    if not spoken:
        return "good"
    if fill > OVER or left < 0:
        return "over"
    if fill >= TIGHT or left < CLOSE:
        return "tight"
    return "good" if fill >= UNDER else "under"
