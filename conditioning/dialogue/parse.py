"""A prompt read back: our own into its fields, anybody else's as far as it can be understood.

The composer's text comes back as the scene that composes to exactly that text. A pasted prompt is repaired
first (line ends, quotes of a spreadsheet, odd headings), keeps its body word for word, and every repair is
listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .compose import DIALOGUE, NO_DIALOGUE, NO_SOUND, SOUND, compose, prepare
from .document import Line, Scene, Shot, Speaker
from .findings import Change, Finding
from .languages import LANGUAGES
from .pasted import read_pasted
from .spacing import unspace
from .template import Row, read_template


@dataclass(frozen=True, slots=True)
class Parsed:
    """A scene, what was changed in the text to read it (placed in that text), and what is missing in it."""

    scene: Scene
    changes: tuple[Change, ...] = ()
    findings: tuple[Finding, ...] = ()
    places: tuple[int, ...] = ()  # where each line's text begins in the text that was read
    body_end: int = 0  # and where the body ends in it


_ENDING = re.compile(rf"\n\n{SOUND}\n<(?P<sound>[^\n]*)>\Z")
_ROW = re.compile(r'<(?P<description>[^\n]*?), (?P<language>[^\n,<>"]+)>: "(?P<text>[^\n]*)"')


def parse(text: str) -> Parsed:
    """The scene in ``text``; never refuses, an empty text is an empty scene.

    A line comes back unspaced where spacing gives the same again, and is marked not to be spelled out where
    that would change it.
    """
    composed = _read_composed(text)
    if composed is not None:
        return composed
    pasted = read_pasted(text)
    cast, lines = _with_speakers(pasted.rows)
    scene = Scene(cast, (Shot(lines),), sound=pasted.sound, body=pasted.body or None)
    # The repaired text may well be the composer's: a prompt that went through a spreadsheet.
    again = _read_composed(compose(scene))
    scene = again.scene if again is not None else scene
    return Parsed(scene, pasted.changes, pasted.findings, pasted.places, pasted.body_end)


def _read_composed(text: str) -> Parsed | None:
    """The scene that composes to exactly ``text``, if there is one."""
    ending = _ENDING.search(text)
    start = text.rfind(f"\n\n{DIALOGUE}\n", 0, ending.start()) if ending else -1
    if start < 0:
        return None
    sound = "" if f"<{ending['sound']}>" == NO_SOUND else ending["sound"]
    first = start + len(DIALOGUE) + 3
    found = list(_rows(text, first, ending.start()))
    if not all(found):
        return None
    rows = [Row(row["description"], row["language"], row["text"]) for row in found]
    body = text[:start]
    for scene in (read_template(body, rows), _verbatim(body, rows)):
        if scene is None:
            continue
        scene = as_typed(replace(scene, sound=sound))
        if compose(scene) == text:
            return Parsed(scene, places=tuple(row.start("text") for row in found), body_end=start)
    return None


def _rows(text: str, start: int, end: int) -> Iterator[re.Match | None]:
    """Each row between the two places, None for what is no row."""
    if text[start:end] == NO_DIALOGUE:
        return
    while start <= end:
        stop = text.find("\n", start, end)
        stop = end if stop < 0 else stop
        yield _ROW.fullmatch(text, start, stop)
        start = stop + 1


def _verbatim(body: str, rows: list[Row]) -> Scene:
    cast, lines = _with_speakers(rows)
    return Scene(cast, (Shot(lines),), body=body)


def _with_speakers(rows) -> tuple[tuple[Speaker, ...], tuple[Line, ...]]:
    """A cast of the descriptions in the rows, in order, and the lines."""
    names: dict[str, str] = {}
    for row in rows:
        names.setdefault(row.description, f"Speaker {len(names) + 1}")
    cast = tuple(Speaker(name, description) for description, name in names.items())
    return cast, tuple(line_as_typed(Line(names[row.description], row.language, row.text)) for row in rows)


def as_typed(scene: Scene) -> Scene:
    """The scene with each line as a person would type it."""
    return replace(
        scene,
        shots=tuple(replace(shot, lines=tuple(map(line_as_typed, shot.lines))) for shot in scene.shots),
    )


def line_as_typed(line: Line) -> Line:
    """A line whose text is as prompts hold it: unspaced, and spelled out only where that changes nothing."""
    plain = line.text
    row = LANGUAGES.get(line.language)
    candidates = [unspace(plain), plain] if row is not None and row.spaced else [plain]
    for text in candidates:
        for spell_out in (True, False):
            typed = replace(line, text=text, spell_out=spell_out)
            if prepare(typed).spaced == plain:
                return typed
    return replace(line, text=candidates[0], spell_out=False)
