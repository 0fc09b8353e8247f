"""A pasted prompt, examined and put right as far as there is one right way; every change is listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import wording
from .compose import Prepared, compose, filler, prepare, tidy
from .document import Line, Scene
from .findings import Change, Finding
from .line_rules import SPECIAL, line_findings
from .lint import lint
from .parse import Parsed, parse

MAX_FIXES = 20  # of one line, one after the other


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found in a text, and the text as it should be."""

    findings: tuple[Finding, ...]  # of the text as it was
    corrected: str
    changes: tuple[Change, ...]  # from the text as it was to the corrected one, placed in the former
    scene: Scene  # that ``corrected`` is composed of
    remaining: tuple[Finding, ...]  # of the corrected text: what a person has to decide


def doctor(text: str) -> Diagnosis:
    """Read ``text``, lint it, apply every fix there is, and write it again in the usual form.

    Lines have their numbers spelled out. A body too short gets sentences on face, framing and light; a line that
    it does not quote is added to its end.
    """
    parsed = parse(text)
    scene = parsed.scene
    before = [prepare(line) for line in scene.lines]
    findings = (*parsed.findings, *lint(scene, prepared=before))
    changes = list(parsed.changes)
    mended = [_mended(line) for line in scene.lines]
    after = [prepare(line) for line, _ in mended]
    for place, (_, reasons), old, new in zip(parsed.places, mended, before, after, strict=True):
        if old.spaced != new.spaced:
            spelled = (change.reason for change in new.spelling)
            _merge(changes, text, place, old.spaced, new.spaced, [*reasons, *spelled])
    lines = iter([line for line, _ in mended])
    shots = tuple(replace(shot, lines=tuple(next(lines) for _ in shot.lines)) for shot in scene.shots)
    scene = replace(scene, shots=shots)
    if scene.body is not None:
        scene = replace(scene, body=_mended_body(text, parsed, scene, before, after, changes))
    corrected = compose(scene)
    remaining = lint(scene, prepared=after)
    return Diagnosis(findings, corrected, tuple(sorted(changes, key=lambda c: c.start)), scene, remaining)


def _mended(line: Line) -> tuple[Line, list[str]]:
    """The line with every fix applied, and why."""
    reasons = []
    line = replace(line, spell_out=True)
    for _ in range(MAX_FIXES):
        fixes = (found for found in line_findings(line, prepare(line)) if found.fix not in (None, line.text))
        found = next(fixes, None)
        if found is None:
            break
        line = replace(line, text=found.fix)
        reasons.append(found.code.replace("-", " "))
    return line, reasons


def _merge(changes: list[Change], text: str, place: int, old: str, new: str, reasons: list[str]) -> None:
    """One change of the row or quote that begins at ``place``: the one made in reading it, if any, taken further."""
    found = next((change for change in changes if change.start == place and change.after == f'"{old}"'), None)
    if found is not None:
        changes.remove(found)
        reasons, before, after = [found.reason, *reasons], found.before, f'"{new}"'
    else:
        place += text.startswith(f'"{old}', place)
        before, after = old, new
    changes.append(Change(place, before, after, "; ".join(dict.fromkeys(reasons))))


def _mended_body(
    text: str,
    parsed: Parsed,
    scene: Scene,
    before: Sequence[Prepared],
    after: Sequence[Prepared],
    changes: list[Change],
) -> str:
    body, end = scene.body, parsed.body_end
    for found in SPECIAL.finditer(text, 0, end):
        changes.append(Change(found.start(), found.group(), "", "a command of the tokeniser was taken out"))
    body = SPECIAL.sub("", body)
    for old, new in zip(before, after, strict=True):
        if old.spaced != new.spaced and f'"{old.spaced}"' in body:
            body = body.replace(f'"{old.spaced}"', f'"{new.spaced}"')
            read = (
                change.start for change in changes if change.after == f'"{old.spaced}"' and change.start < end
            )
            place = next(read, text.find(f'"{old.spaced}"'))
            _merge(changes, text, place, old.spaced, new.spaced, ["written as it is under Dialogue"])
    added = _unquoted_lines(scene, body, after)
    if added:
        changes.append(Change(end, "", " ".join(added), "lines that the body did not quote were added to it"))
    texts = [line.spaced for line in after]
    first, last = filler([body, *added], [], texts)
    if first or last:
        reason = "sentences on face, framing and light were added, for the body was too short"
        changes.append(Change(end, "", " ".join((*first, *last)), reason))
    return " ".join((body, *first, *added, *last)).strip()


def _unquoted_lines(scene: Scene, body: str, after: Sequence[Prepared]) -> list[str]:
    neat = tidy(scene)
    mention = wording.mentions(neat.cast)
    said, last = [], None
    for line, ready in zip(neat.lines, after, strict=True):
        if ready.spaced and f'"{ready.spaced}"' not in body:
            said.append(f'{wording.trigger(mention[line.speaker], last, 0)}"{ready.spaced}"')
        last = mention[line.speaker]
    return said
