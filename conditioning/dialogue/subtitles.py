"""Captions of a film's lines, as SubRip or WebVTT text: at most two rows at a time, in the time of their words."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from .characters import CJK, FULL_CLOSING, FULL_OPENING, HANGUL
from .timeline import Timeline

ROW = 42  # characters of a row, of which Chinese, Japanese and Korean have
ROW_CJK = 16
ROWS = 2
LONGEST = 7.0  # seconds that one caption stays
SHORTEST = 0.2  # a caption that is over sooner is not read at all

_CJK = re.compile(f"[{CJK}]")
_HANGUL = re.compile(f"[{HANGUL}]")
_SENTENCE = re.compile(r"[。！？!?.…;；]\W*$")
_PHRASE = re.compile(r"[,，、:：—]\W*$")
# A word with the white space behind it; or one CJK character with what may not begin a row or end it.
_ATOM = re.compile(
    rf"[{FULL_OPENING}“‘(]*[{CJK}][{FULL_CLOSING},.!?;:…—～ーぁぃぅぇぉっゃゅょァィゥェォッャュョ々”’)]*\s*|[^\s{CJK}]+\s*|\s+"
)
_WORD = re.compile(r"\S+\s*")


def srt(timeline: Timeline, texts: Sequence[str]) -> str:
    """SubRip: numbered captions. ``texts`` has what each line's caption says, unspaced, in order of the lines."""
    cues = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n" + "\n".join(rows) + "\n"
        for number, (start, end, rows) in enumerate(_cues(timeline, texts), 1)
    ]
    return "\n".join(cues)


def vtt(timeline: Timeline, texts: Sequence[str]) -> str:
    """WebVTT, with & < > escaped as it asks."""
    cues = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n" + "\n".join(map(_escape, rows)) + "\n"
        for start, end, rows in _cues(timeline, texts)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _cues(timeline: Timeline, texts: Sequence[str]) -> Iterator[tuple[float, float, list[str]]]:
    """(start, end, rows) in order of time, none beyond the film's end."""
    for span in sorted(timeline.spans, key=lambda span: (span.start, span.line)):
        if span.end - span.start < SHORTEST:
            continue
        captions = _captions(" ".join(texts[span.line].split()), span.end - span.start)
        whole = sum(map(_weight, captions))
        at = span.start
        for rows in captions:
            end = at + (span.end - span.start) * _weight(rows) / whole
            if min(end, timeline.seconds) - at >= SHORTEST:
                yield at, min(end, timeline.seconds), rows
            at = end


def _captions(text: str, seconds: float) -> list[list[str]]:
    """``text`` in captions of at most ROWS rows, none of them much over LONGEST; as even as its breaks allow."""
    if not text:
        return []
    limit = _row_length(text)
    number = max(math.ceil(seconds / LONGEST), math.ceil(len(_greedy(text, limit)) / ROWS))
    return [rows for part in _parts(text, number, limit) for rows in _fitted(part, limit)]


def _fitted(part: str, limit: int) -> list[list[str]]:
    """A piece as one caption, or cut again where its rows do not suffice."""
    rows = _greedy(part, limit)
    if len(rows) > ROWS:
        smaller = _parts(part, math.ceil(len(rows) / ROWS), limit)
        if len(smaller) > 1:
            return [caption for piece in smaller for caption in _fitted(piece, limit)]
        return [rows[at : at + ROWS] for at in range(0, len(rows), ROWS)]
    return [_balanced(part, limit) or rows] if len(rows) == ROWS else [rows]


def _parts(text: str, number: int, limit: int) -> list[str]:
    """``text`` in ``number`` pieces or fewer, cut behind sentences and phrases where they are near the even cut."""
    breaks = _breaks(text, limit)
    cuts = [0]
    for index in range(1, number):
        aim, reach = len(text) * index / number, len(text) / number / 3
        near = breaks[bisect_left(breaks, aim - reach) : bisect_right(breaks, aim + reach)]
        if near:
            cuts.append(_nearest(text, near, aim))
    cuts.append(len(text))
    return [text[start:end].strip() for start, end in pairwise(cuts) if text[start:end].strip()]


def _nearest(text: str, breaks: list[int], aim: float) -> int:
    def cost(at: int) -> float:
        before = text[max(0, at - 4) : at]
        return abs(at - aim) - (14 if _SENTENCE.search(before) else 6 if _PHRASE.search(before) else 0)

    return min(breaks, key=cost)


def _balanced(text: str, limit: int) -> list[str] | None:
    """Two rows of about one length, or None where no break leaves both within ``limit``."""
    fitting = [
        at
        for at in _breaks(text, limit)
        if len(text[:at].rstrip()) <= limit and len(text[at:].strip()) <= limit
    ]
    if not fitting:
        return None
    at = _nearest(text, fitting, len(text) / 2)
    return [text[:at].rstrip(), text[at:].strip()]


def _greedy(text: str, limit: int) -> list[str]:
    """Rows that are each as full as they can be."""
    rows = [""]
    for atom in _atoms(text, limit):
        if rows[-1] and len(rows[-1]) + len(atom.rstrip()) > limit:
            rows[-1] = rows[-1].rstrip()
            rows.append("")
        rows[-1] += atom
    rows[-1] = rows[-1].rstrip()
    return rows


def _breaks(text: str, limit: int) -> list[int]:
    """Where ``text`` may be broken, ascending, its end left out."""
    return list(accumulate(map(len, _atoms(text, limit))))[:-1]


def _atoms(text: str, limit: int) -> Iterator[str]:
    """What is not broken: words, CJK characters with their punctuation; a word beyond a row is cut."""
    for match in (_WORD if _HANGUL.search(text) else _ATOM).finditer(text):
        for at in range(0, len(match.group()), limit):
            yield match.group()[at : at + limit]


def _row_length(text: str) -> int:
    return ROW_CJK if len(_CJK.findall(text)) * 2 > len(text.replace(" ", "")) else ROW


def _weight(rows: list[str]) -> int:
    return max(1, sum(map(len, rows)))


def _escape(row: str) -> str:
    return row.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, mark: str) -> str:
    """hh:mm:ss and thousandths."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"
