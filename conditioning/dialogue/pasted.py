"""Prompts from elsewhere: the three paragraphs found under whatever happened to them on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .cleaning import clean
from .compose import DIALOGUE, NO_SOUND, SOUND, sound_name
from .findings import Change, Finding
from .pasted_rows import QUOTED, read_rows
from .template import Row
from .trace import Trace, stripped

_LINE_END = re.compile(r"\r\n?|\x0b|\x0c|\x85|\u2028|\u2029")
_LABEL = re.compile(r"\A\s*(?:prompt|body|description|positive(?: prompt)?)\s*[:：]\s*", re.IGNORECASE)
_FENCE = re.compile(r"^```.*$\n?", re.MULTILINE)
_HEADING = re.compile(
    r"(?:^|(?<=\s))[ \t>#*_]{0,8}(?P<name>dialogues?|background sounds?|background audio)[ \t*_]{0,8}[:：][ \t*_]{0,8}"
    r"(?=\n|<|[\"“”「『«]|$|no\b|none\b)"
    r"|^[ \t>#*_]{0,8}(?P<alone>dialogues?|background sounds?|background audio)[ \t*_]{0,8}[:：][ \t*_]{0,8}",
    re.IGNORECASE | re.MULTILINE,
)
_BRACKETED = re.compile(r"[<＜][^<>＜＞]*[>＞]")
_FIRST_LINE = re.compile(r"[^\n]*")


@dataclass(frozen=True, slots=True)
class Pasted:
    """What was found; ``changes`` are placed in the text as it was pasted."""

    body: str
    rows: tuple[Row, ...]
    sound: str
    changes: tuple[Change, ...]
    findings: tuple[Finding, ...]
    places: tuple[int, ...] = ()  # where each row's text begins in the text as it was pasted
    body_end: int = 0  # and where the body ends in it


def read_pasted(text: str) -> Pasted:
    """Body, rows and sound of any text, in time linear in it."""
    trace = Trace(text)
    _repair(trace)
    body, dialogue, sound = _sections(trace)
    findings: list[Finding] = []
    rows, places = read_rows(trace, dialogue, body, findings)
    name = _sound(trace, sound, findings)
    body_end = trace.origin(stripped(trace.text, *body)[1])
    body_text = trace.text[slice(*body)].strip()
    if rows:
        body_text = _with_prepared_quotes(trace, body, rows)
    if not body_text:
        findings.append(
            Finding(
                "warning",
                "no-body",
                "The prompt had no body, and one was written from the lines. Say in it who is seen, where, and in what light.",
            )
        )
    trace.changes.sort(key=lambda change: change.start)
    return Pasted(
        body_text, tuple(rows), name, tuple(trace.changes), tuple(findings), tuple(places), body_end
    )


def _repair(trace: Trace) -> None:
    trace.substitute(_LINE_END, "\n", "a line end of another system was made a plain one")
    if _is_from_spreadsheet(trace.text):
        trace.substitute(re.compile(r'\A\s*"'), "", "the quotation mark of a spreadsheet was taken out")
        # Inner quotes stand doubled; one more at the very end closed the field.
        trace.substitute(
            re.compile(r'""|"\s*\Z'),
            lambda found: '"' if found.group() == '""' else "",
            "a quotation mark doubled by a spreadsheet was made single",
        )
    trace.substitute(_FENCE, "", "a code fence was taken out")
    trace.substitute(_LABEL, "", "a heading over the body was taken out")
    edits = []
    for start, line in _lines(trace.text):
        if line.strip():
            edits += [
                (start + change.start, start + change.start + len(change.before), change.after, change.reason)
                for change in clean(line).changes
            ]
    trace.replace(edits)


def _is_from_spreadsheet(text: str) -> bool:
    """Whether it opens with a quotation mark and all others stand in pairs, side by side."""
    inner = text.strip()
    if not inner.startswith('"') or '""' not in inner[1:]:
        return False
    runs = [len(run) for run in re.findall('"+', inner[1:])]
    if inner.endswith('"'):
        runs[-1] -= runs[-1] % 2
    return all(run % 2 == 0 for run in runs)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    place = 0
    for line in text.split("\n"):
        yield place, line
        place += len(line) + 1


Span = tuple[int, int]


def _sections(trace: Trace) -> tuple[Span, Span | None, Span | None]:
    """Where body, dialogue and sound stand; None for one that has no heading."""
    text = trace.text
    headings = list(_HEADING.finditer(text))
    starts = [*(heading.start() for heading in headings), len(text)]
    found: dict[str, Span] = {}
    for heading, end in zip(headings, starts[1:], strict=True):
        kind = "dialogue" if (heading["name"] or heading["alone"]).lower().startswith("d") else "sound"
        if kind not in found:
            heading_name = DIALOGUE if kind == "dialogue" else SOUND
            trace.note(
                *stripped(text, *heading.span()), heading_name, "a heading was put into the usual form"
            )
        else:
            trace.note(
                *stripped(text, heading.start(), end), "", "a paragraph that stands twice was left out"
            )
        found.setdefault(kind, (heading.end(), end))
    return (0, starts[0]), found.get("dialogue"), found.get("sound")


def _sound(trace: Trace, place: Span | None, findings: list[Finding]) -> str:
    if place is None:
        message = (
            f"There is no {SOUND} paragraph; one was added that says there is no sound. Name one if there is."
        )
        findings.append(Finding("note", "no-sound-section", message))
        return ""
    start, end = stripped(trace.text, *place)
    stop = (_BRACKETED.match(trace.text, start, end) or _FIRST_LINE.match(trace.text, start, end)).end()
    after = stripped(trace.text, stop, end)
    if after[0] < after[1]:
        trace.note(*after, "", f"text after {SOUND} was left out")
    name = sound_name(trace.text[start:stop])
    trace.note(start, stop, f"<{name}>" if name else NO_SOUND, "the sound was put into the usual form")
    return name


def _with_prepared_quotes(trace: Trace, body: Span, rows: list[Row]) -> str:
    """The body with each line quoted as the rows have it; words that are no line stay as they are."""
    wanted = {_squeezed(row.text): row.text for row in rows if _squeezed(row.text)}
    edits = []
    for found in QUOTED.finditer(trace.text, *body):
        said = wanted.get(_squeezed(found.group()))
        if said is not None:
            reason = "the quoted line was written as it is under Dialogue"
            edits.append((found.start(), found.end(), f'"{said}"', reason))
    before = len(trace.text)
    trace.replace(edits)
    return trace.text[body[0] : body[1] + len(trace.text) - before].strip()


def _squeezed(text: str) -> str:
    """Letters and digits alone, to compare lines that differ in spaces and quotation marks."""
    return "".join(filter(str.isalnum, clean(text).text)).casefold()
