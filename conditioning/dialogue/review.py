"""A scene seen whole: what the model will read, how long it takes, and what is wrong with it.

Nodes, the browser's editor and tests ask here; nothing else joins the rules of this room.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...errors import ConditioningError
from ...shapes import MAX_TEXT_TOKENS
from ..negative import NegativePrompt, negative_for
from .compose import Prepared, compose_prepared, prepare
from .document import Line, Scene, Shot
from .duration import Duration, estimate
from .findings import Change, Finding
from .languages import LANGUAGES
from .lint import lint
from .timeline import Span, Timeline, place
from .tokens import estimate_tokens
from .units import unit_word
from .visemes import visemes

CountTokens = Callable[[str], int]
SILENT_FRAMES = 125  # of a film in which nobody speaks, where no length is given: 5 s


@dataclass(frozen=True, slots=True)
class ReviewedLine:
    """One line on its way into the prompt."""

    line: Line
    prepared: Prepared
    duration: Duration
    span: Span
    visemes: tuple[tuple[float, str], ...]
    findings: tuple[Finding, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every change, the cleaning's first; the spelling's are placed in the cleaned text."""
        return (*self.prepared.cleaning, *self.prepared.spelling)


@dataclass(frozen=True, slots=True)
class Review:
    """All that is known of a scene before it is filmed."""

    scene: Scene
    prompt: str
    negative: NegativePrompt
    timeline: Timeline
    lines: tuple[ReviewedLine, ...]
    findings: tuple[Finding, ...]  # of the whole; a line's are in ``lines``
    tokens: int
    is_exact: bool  # counted by the encoder's own tokeniser

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What keeps the scene from being filmed."""
        every = (*self.findings, *(found for line in self.lines for found in line.findings))
        return tuple(found for found in every if found.level == "error")

    def report(self) -> str:
        """Length, tokens, every line's time, every change and every finding, for a person to read."""
        timeline = self.timeline
        about = "" if self.is_exact else "about "
        parts = [
            f"{timeline.frames} frames, {timeline.seconds:.2f} s; speech fills {100 * timeline.fill:.0f} % "
            f"({timeline.level}); {about}{self.tokens} of {MAX_TEXT_TOKENS} tokens."
        ]
        for number, line in enumerate(self.lines, 1):
            parts.append(_line_report(number, line))
        parts += [
            f"negative prompt: without “{drop.phrase}”, because {drop.reason}"
            for drop in self.negative.dropped
        ]
        parts += [said(finding) for finding in self.findings]
        return "\n".join(parts)

    def as_json(self) -> dict[str, Any]:
        """What the editor is answered."""
        return {
            "prompt": self.prompt,
            "negative": self.negative.text,
            "frames": self.timeline.frames,
            "seconds": round(self.timeline.seconds, 3),
            "tokens": {"count": self.tokens, "limit": MAX_TEXT_TOKENS, "exact": self.is_exact},
            "fill": {"ratio": round(self.timeline.fill, 3), "level": self.timeline.level},
            "lines": [_line_json(line) for line in self.lines],
            "findings": [_finding_json(found) for found in self.findings],
            "report": self.report(),
            "error": None,
        }


def review(scene: Scene, *, frames: int = 0, count_tokens: CountTokens | None = None) -> Review:
    """Everything about ``scene``; ``frames`` is 4k+1, or 0 for as many as the lines need.

    Raises ConditioningError for a language that the model does not speak and GeometryError for a length that
    cannot be made; everything else that is wrong is a finding.
    """
    lines = scene.lines
    prepared = [prepare(line) for line in lines]
    durations = [
        estimate(ready.spoken, line.language, line.pace, line.delivery)
        for line, ready in zip(lines, prepared, strict=True)
    ]
    is_automatic = not frames
    if is_automatic and not any(duration.natural for duration in durations):
        frames = SILENT_FRAMES
    timeline = place(list(zip(durations, lines, strict=True)), frames=frames or None)
    prompt = compose_prepared(scene, [ready.spaced for ready in prepared])
    tokens = estimate_tokens(prompt) if count_tokens is None else count_tokens(prompt)
    findings = lint(scene, prepared=prepared, timeline=timeline, tokens=tokens)
    if is_automatic:  # it is as short as the words allow already
        findings = tuple(found for found in findings if found.code != "under-full")
    return Review(
        scene,
        prompt,
        negative_for(scene),
        timeline,
        tuple(
            ReviewedLine(
                line,
                ready,
                duration,
                span,
                visemes(ready.spoken, line.language, span.start, span.end),
                tuple(found for found in findings if found.line == number),
            )
            for number, (line, ready, duration, span) in enumerate(
                zip(lines, prepared, durations, timeline.spans, strict=True)
            )
        ),
        tuple(found for found in findings if found.line is None),
        tokens,
        count_tokens is not None,
    )


def described(scene: Scene, *, framing: str, action: str, **fields: str) -> Scene:
    """``scene`` with what a node's own fields say; an empty field leaves what the scene has.

    Framing and action are the first shot's.
    """
    first, *rest = scene.shots or (Shot(),)
    first = replace(first, framing=framing, action=action or first.action)
    said = {name: text for name, text in fields.items() if text.strip()}
    return replace(scene, shots=(first, *rest), **said)


def join_lines(before: Scene, after: Scene) -> Scene:
    """Both casts and all lines, in one shot.

    Raises ConditioningError where two different speakers have one name.
    """
    cast = {speaker.name: speaker for speaker in before.cast}
    for speaker in after.cast:
        if cast.setdefault(speaker.name, speaker) != speaker:
            raise ConditioningError(
                f"Two speakers are called {speaker.name!r}: {cast[speaker.name].description!r} and "
                f"{speaker.description!r}. Give each a name of its own."
            )
    return replace(before, cast=tuple(cast.values()), shots=(Shot((*before.lines, *after.lines)),))


def _line_report(number: int, line: ReviewedLine) -> str:
    span, duration = line.span, line.duration
    parts = [
        f"line {number}, {span.start:.2f} to {span.end:.2f} s, {duration.units:.0f} {unit_word(line.line.language, duration.units)}, "
        f"{duration.fast:.1f} / {duration.natural:.1f} / {duration.slow:.1f} s fast / natural / slow: "
        f"{line.prepared.cleaned}"
    ]
    if line.prepared.spoken != line.prepared.cleaned:
        parts.append(f"  spoken as: {line.prepared.spoken}")
    parts += [f"  changed “{change.before}” to “{change.after}”: {change.reason}" for change in line.changes]
    parts += [f"  {said(finding)}" for finding in line.findings]
    return "\n".join(parts)


def said(finding: Finding) -> str:
    """A finding in one line of a report."""
    return f"{finding.level}: {finding.message}"


def _line_json(line: ReviewedLine) -> dict[str, Any]:
    return {
        "cleaned": line.prepared.cleaned,
        "spoken": line.prepared.spoken,
        "spaced": line.prepared.spaced,
        "changes": [asdict(change) for change in line.changes],
        "units": line.duration.units,
        "unit": LANGUAGES[line.line.language].unit,
        "start": round(line.span.start, 3),
        "end": round(line.span.end, 3),
        "slow": round(line.duration.slow, 3),
        "natural": round(line.duration.natural, 3),
        "fast": round(line.duration.fast, 3),
        "visemes": [[round(time, 3), shape] for time, shape in line.visemes],
        "findings": [_finding_json(found) for found in line.findings],
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {name: value for name, value in asdict(finding).items() if name != "line"}
