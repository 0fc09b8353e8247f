"""The composer's own body, read back into the fields it was made of.

Every field stands behind words of its own (wording.py), so the body is cut at those and at the quoted lines.
Words of a field that look like the composer's can lead it astray: the caller composes what was read and
compares, and keeps the body as it is where the two differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from . import wording
from .document import FRAMINGS, PACES, Line, Scene, Shot, Speaker

# A text beyond these bounds was not written by the composer, and would keep the expressions below busy.
MAX_CHARACTERS = 40_000  # of a body
MAX_PIECE = 4_000  # of what stands between two lines
MAX_MARKS = 6  # of one field's words in such a piece


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the Dialogue paragraph."""

    description: str
    language: str
    text: str  # as it stands between the quotation marks


_FRAMING = "|".join(map(re.escape, FRAMINGS))
_PACE = "|".join(map(re.escape, PACES))
_FILLERS = "|".join(map(re.escape, sorted(wording.FILLERS)))
_TOLD = "".join(rf"(?: The {name}(?: is |: )(?P<{name}>.+?)\.)?" for name in ("setting", "lighting", "mood"))
_ACT = rf"(?: {re.escape(wording.ACTION)}(?P<action>.+?)\.)?"
_HEAD = re.compile(
    rf"{wording.OPENING}(?P<framing>{_FRAMING}) (?:opens the film|shows (?P<cast>.+?))\. {re.escape(wording.STILL)}"
    rf"(?: {re.escape(wording.APPEARANCE)}(?P<appearance>.+?)\.)?{_TOLD}"
    rf"(?: {re.escape(wording.SILENT_CAST)})?(?: (?:{_FILLERS}))*(?P<rest>(?: {re.escape(wording.ACTION)}"
    rf"| {re.escape(wording.CUT)}| At the start, | {re.escape(wording.NO_SPEECH)}).*)",
    re.DOTALL,
)
_SHOT = re.compile(rf"(?: {re.escape(wording.CUT)}(?P<framing>{_FRAMING})\.)?{_ACT}")
_CUT = re.compile(rf" {re.escape(wording.CUT)}(?:{_FRAMING})\.")
_TRIGGER = re.compile(
    r" (?:At the start, |Then |After a brief pause, |After a silence of about (?P<count>[a-z]+) seconds?, )"
    r"(?:the speaker changes: )?(?P<who>.+?) (?:parts|opens) (?:his|her|their) (?:lips|mouth(?: again)?) and says, ",
    re.DOTALL,
)
_MARKS = (
    wording.APPEARANCE,
    "The setting",
    "The lighting",
    "The mood",
    wording.STILL,
    " voice",
    wording.ACTION,
)
_SIDE = re.compile("(?:,?(?P<words> on the left| in the centre| on the right))?$")
_SIDES = {words: side for side, words in wording.SIDE_WORDS.items()}


def read_template(body: str, rows: Sequence[Row]) -> Scene | None:
    """The scene without its sound; None where the body was not made by the composer.

    ``rows`` are the lines in order; their texts are kept as they are.
    """
    if len(body) > MAX_CHARACTERS or not body.startswith(wording.OPENING):
        return None
    pieces = _cut_at_lines(body, rows)
    if any(len(piece) > MAX_PIECE or max(map(piece.count, _MARKS)) > MAX_MARKS for piece in pieces):
        return None
    head = _HEAD.fullmatch(pieces[0]) if pieces else None
    if head is None:
        return None
    cast = _cast(head["cast"] or "", rows)
    if rows:
        read = _read_lines(head, pieces[1:], rows, cast)
        if read is None:
            return None
        shots, voices = read
        cast = tuple(replace(speaker, voice=voices.get(speaker.name, "")) for speaker in cast)
    else:
        ending = head["rest"].find(f" {wording.NO_SPEECH}")
        shots = _shots(head["rest"][:ending], head["framing"])
        if ending < 0 or shots is None:
            return None
    fields = {name: head[name] or "" for name in ("appearance", "setting", "lighting", "mood")}
    return Scene(cast, tuple(shots), **fields)


def _cut_at_lines(body: str, rows: Sequence[Row]) -> list[str]:
    """The body's text before, between and after the quoted lines; empty where one is not there."""
    pieces, place = [], 0
    for row in rows:
        quoted = f'says, "{row.text}"'
        found = body.find(quoted, place)
        if found < 0:
            return []
        pieces.append(body[place : found + len("says, ")])
        place = found + len(quoted)
    return [*pieces, body[place:]]


def _cast(shown: str, rows: Sequence[Row]) -> tuple[Speaker, ...]:
    """Speakers from "a young woman, red coat, on the left; and …", with the descriptions of the rows."""
    described = {row.description: None for row in rows}
    cast = []
    for number, item in enumerate(shown.split("; ") if shown else [], 1):
        phrase = item.removeprefix("and ") if number > 1 else item
        side = _SIDE.search(phrase)
        bare = Speaker("", "", _SIDES[side["words"] or ""])
        words = wording.without_article(phrase[: side.start()])
        same = (text for text in described if _mention(replace(bare, description=text)) == phrase)
        cast.append(replace(bare, name=f"Speaker {number}", description=next(same, words)))
    return tuple(cast)


def _mention(speaker: Speaker) -> str:
    return wording.mentions([speaker])[speaker.name].first


def _read_lines(head, pieces, rows, cast) -> tuple[list[Shot], dict[str, str]] | None:
    names = {mention.later: name for name, mention in wording.mentions(cast).items()}
    tail_of_line = _tail(names)
    shots: list[Shot] = []
    voices: dict[str, str] = {}
    rest, framing = head["rest"], head["framing"]
    for row, after in zip(rows, pieces, strict=True):
        trigger = _last_trigger(rest)
        name = names.get(trigger["who"]) if trigger else None
        opened = _shots(rest[: trigger.start()], framing) if name else None
        if opened is None:
            return None
        seconds = wording.NUMBERS.index(trigger["count"]) + 1 if trigger["count"] in wording.NUMBERS else 0
        if seconds:
            _set_pause(shots, float(seconds))
        # With no cut the line belongs to the shot before; the first piece always opens the first shot.
        shots += opened if framing else opened[1:]
        framing = ""
        tail = tail_of_line.fullmatch(after)
        if tail is None:
            return None
        if tail["voice"]:
            voices[name] = tail["voice"]
        line = Line(name, row.language, row.text, tail["manner"] or "", tail["pace"] or "natural")
        shots[-1] = replace(shots[-1], lines=(*shots[-1].lines, line))
        rest = tail["rest"]
    ending = rest.find(f" {wording.END_OF_SPEECH}")
    closed = _shots(rest[:ending], "") if ending >= 0 else None
    return None if closed is None else (shots + closed[1:], voices)


def _tail(names: Iterable[str]) -> re.Pattern:
    """What follows a line: its delivery, and who of ``names`` listens."""
    who = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(
        rf"(?: The line is delivered at a (?P<pace>{_PACE}) pace"
        r"(?: in an? (?P<voice>.+?) voice)?(?:: (?P<manner>.+?))?\.)?"
        rf"(?: (?i:{who})(?:(?:, | and )(?:{who}))* listens? in silence with closed lips\.)?"
        rf"(?P<rest>(?: {re.escape(wording.CUT)}| After | Then ).*)",
        re.DOTALL,
    )


def _last_trigger(text: str) -> re.Match | None:
    """The trigger that ends ``text``; the action before it may hold words that begin like one."""
    for start in sorted(
        {text.rfind(words) for words in (" At the start, ", " After a ", " Then ")}, reverse=True
    ):
        found = _TRIGGER.fullmatch(text, start) if start >= 0 else None
        if found:
            return found
    return None


def _shots(text: str, framing: str) -> list[Shot] | None:
    """Shots from " In this shot: …. The picture changes to a static …. …", the first one with ``framing``."""
    starts = [0, *(found.start() for found in _CUT.finditer(text))]
    shots = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(text)], strict=True)):
        found = _SHOT.fullmatch(text, start, end)
        if found is None or (number == 0 and found["framing"]):
            return None
        shots.append(Shot((), found["framing"] or framing or FRAMINGS[0], found["action"] or ""))
    if not framing and shots[0].action:
        return None  # an action within a shot is nothing the composer writes
    return shots


def _set_pause(shots: list[Shot], seconds: float) -> None:
    for index in range(len(shots) - 1, -1, -1):
        if lines := shots[index].lines:
            shots[index] = replace(shots[index], lines=(*lines[:-1], replace(lines[-1], pause=seconds)))
            return
