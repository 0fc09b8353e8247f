"""A line as it was meant: composed characters, no invisible ones, plain spaces. Nothing a person would miss.

Emoji, quotes and special tokens stay, for the lint to name; so does all punctuation.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from .characters import ACCENTS, VOICING
from .findings import Change

# What nobody sees: control characters, zero widths, direction marks, fillers, byte order marks, halves of
# surrogate pairs (a browser can send them), noncharacters. A zero-width joiner inside an emoji and the letters
# of a flag belong to the picture and stay.
_UNSEEN = (
    "(?:[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200c\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffc\ufffe\uffff\ud800-\udfff]"
    "|\u200d(?![\u2190-\u2bff\U0001f000-\U0001faff])"
    "|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+)"
)
_MARK = f"[{ACCENTS}{VOICING}\uff9e\uff9f\u1161-\u11ff\ud7b0-\ud7fb]"  # what joins the character before it
_WIDE = "[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]"  # Latin letters and digits
_HALF = "[\uff66-\uff9d]"  # katakana
_PIECE = re.compile(
    rf"(?P<space>{_UNSEEN}*\s(?:\s|{_UNSEEN})*)"
    rf"|(?P<cluster>(?!{_UNSEEN})[^\U000e0000-\U000e007f](?:{_UNSEEN}*{_MARK})+)"
    rf"|(?P<unseen>{_UNSEEN}+)"
    rf"|(?P<wide>{_WIDE}+)"
    rf"|(?P<half>{_HALF}+)"
    r"|(?P<plain>.)",
    re.DOTALL,
)
_INVISIBLE = re.compile(_UNSEEN)
_SUSPECT = re.compile(rf"{_UNSEEN}|{_MARK}|{_WIDE}|{_HALF}|\s\s|[^\S ]|^\s|\s\Z")
# Unicode's own bound for a stream-safe text. Normalising takes the square of a pile's height.
_PILE = 30

_NAMES = {
    "\u00ad": "a soft hyphen",
    "\u200b": "a zero-width space",
    "\u200c": "a zero-width non-joiner",
    "\u200d": "a zero-width joiner",
    "\u2060": "a word joiner",
    "\ufeff": "a byte order mark",
    "\ufffc": "an object's placeholder",
}


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A text and what was done to it, in order and without overlaps."""

    text: str
    changes: tuple[Change, ...] = ()


def clean(text: str) -> Cleaned:
    """``text`` in normal form C, on one line, single-spaced, without invisible characters.

    Full-width Latin letters and digits become half-width ones, half-width katakana full-width. A second
    cleaning changes nothing. Time is linear in the text, whatever it holds.
    """
    if not _SUSPECT.search(text) and unicodedata.is_normalized("NFC", text):
        return Cleaned(text)
    pieces, changes = [], []
    for piece in _PIECE.finditer(text):
        before = piece.group()
        after, reason = _repair(piece.lastgroup, before, piece.start() == 0 or piece.end() == len(text))
        pieces.append(after)
        if after != before:
            changes.append(Change(piece.start(), before, after, reason))
    joined = "".join(pieces)
    whole = unicodedata.normalize("NFC", joined)
    if whole != joined:  # pairs of the Indic scripts, which the model does not speak; kept simple
        return Cleaned(whole, (Change(0, text, whole, "the text was put into its composed form"),))
    return Cleaned(joined, tuple(changes))


def _repair(kind: str | None, before: str, at_an_end: bool) -> tuple[str, str]:
    """(what stands for ``before``, why)."""
    if kind == "space":
        return ("" if at_an_end else " "), _why_space(before, at_an_end)
    if kind == "unseen":
        return "", _why_unseen(before)
    if kind == "wide":
        return unicodedata.normalize("NFKC", before), "full-width letters or digits were made half-width"
    if kind == "half":
        return unicodedata.normalize("NFKC", before), "half-width katakana was made full-width"
    if kind == "cluster":
        return _compose(before)
    after = unicodedata.normalize("NFC", before)
    return after, f"{_code(before)} was replaced by the character it stands for"


def _compose(before: str) -> tuple[str, str]:
    seen = _INVISIBLE.sub("", before)
    pile = seen[: 1 + _PILE]
    form = "NFKC" if re.match(f"{_HALF}|{_WIDE}", pile) else "NFC"
    after = unicodedata.normalize(form, pile)
    reasons = []
    if len(seen) > len(pile):
        reasons.append(
            f"{len(seen) - len(pile)} of {len(seen) - 1} marks piled on one character were taken out"
        )
    if len(before) > len(seen):
        reasons.append(_why_unseen("".join(_INVISIBLE.findall(before))))
    if after != pile:
        reasons.append("a character typed in parts was put together")
    return after, "; ".join(reasons)


def _why_space(before: str, at_an_end: bool) -> str:
    unseen = "".join(_INVISIBLE.findall(before))
    if unseen:
        return f"{_why_unseen(unseen)}, with the white space around"
    if at_an_end:
        return "white space at the end of the line was taken out"
    if re.search(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", before):
        return "a line break was made a space"
    return "white space was made one plain space"


def _why_unseen(before: str) -> str:
    first = before[0]
    name = _NAMES.get(first)
    if name is None and ("\u200e" <= first <= "\u202e" or "\u2061" <= first <= "\u206f" or first == "\u061c"):
        name = "a text direction mark"
    name = name or f"an invisible character ({_code(first)})"
    return (
        f"{name} was taken out" if len(before) == 1 else f"{name} and {len(before) - 1} more were taken out"
    )


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"
