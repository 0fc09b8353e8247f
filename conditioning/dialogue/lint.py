"""Everything that is wrong with a scene, each thing once, with its place and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..negative import negative_for
from . import scene_rules as rules
from .compose import Prepared, compose_body, prepare
from .document import Scene
from .findings import Finding
from .line_rules import line_findings
from .timeline import Timeline

_ORDER = {"error": 0, "warning": 1, "note": 2}


def lint(
    scene: Scene,
    *,
    prepared: Sequence[Prepared] | None = None,
    timeline: Timeline | None = None,
    tokens: int | None = None,
    negative: str | None = None,
) -> tuple[Finding, ...]:
    """Findings on the scene, errors first, then in the order of the film.

    ``prepared`` are the scene's lines if the caller has them already. Rules of time need ``timeline``, those of
    length ``tokens``; a user's own ``negative`` is held against the scene. A finding with ``line`` is placed in
    that line's text as typed (or, on its delivery, in that), one without in the body or the field that it names.
    """
    prepared = [prepare(line) for line in scene.lines] if prepared is None else prepared
    texts = [line.spaced for line in prepared]
    found = [*rules.cast_findings(scene), *rules.film_findings(scene), *rules.field_findings(scene)]
    for index, (line, ready) in enumerate(zip(scene.lines, prepared, strict=True)):
        found += (replace(each, line=index) for each in line_findings(line, ready))
    found += rules.body_findings(scene, compose_body(scene, texts), texts)
    if timeline is not None:
        found += rules.time_findings(timeline)
    if tokens is not None:
        found += rules.token_findings(tokens)
    if negative is not None:
        found += _against(scene, negative)
    return tuple(sorted(found, key=lambda each: (_ORDER[each.level], -1 if each.line is None else each.line)))


def _against(scene: Scene, negative: str) -> list[Finding]:
    return [
        Finding(
            "note",
            "negative-fights-scene",
            f"“{drop.phrase}” was left out of the negative prompt: {drop.reason}.",
        )
        for drop in negative_for(scene, negative).dropped
    ]
