"""The shapes a mouth takes on a line, roughly: from its letters, without a dictionary.

Nine shapes, named as animators name them: A closed (p b m), B teeth together (most consonants), C wide (e i),
D open (a), E rounded (o), F puckered (u w), G teeth on lip (f v), H tongue up (l th), X at rest.
Han characters do not tell their sound: they alternate between D and C, which is right in rhythm only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import groupby

CONSONANT_SHARE = 0.4  # of the time that a vowel takes
PAUSE_SHARES = {",": 1.3, ";": 1.8, ":": 1.8, ".": 2.7, "!": 2.7, "?": 2.7, "…": 3.0, "—": 1.8}
CLOSED, TEETH, WIDE, OPEN, ROUND, PUCKER, LIP, TONGUE, REST = "ABCDEFGHX"

_PAUSES = str.maketrans("，、。！？；：", ",,.!?;:")
# Longest first; a key may stand for two shapes.
_LATIN = {
    "English": {
        "th": "H",
        "sh": "B",
        "ch": "B",
        "ph": "G",
        "wh": "F",
        "oo": "F",
        "ou": "EF",
        "ow": "EF",
        "oy": "EC",
    }
    | {
        "oi": "EC",
        "ee": "C",
        "ea": "C",
        "ai": "DC",
        "ay": "DC",
        "igh": "DC",
        "au": "E",
        "aw": "E",
        "u": "D",
        "i": "C",
    },
    "French": {
        "ou": "F",
        "oi": "FD",
        "eau": "E",
        "au": "E",
        "eu": "E",
        "œu": "E",
        "ai": "C",
        "ei": "C",
        "an": "D",
    }
    | {
        "en": "D",
        "on": "E",
        "in": "C",
        "un": "E",
        "ch": "B",
        "ph": "G",
        "qu": "B",
        "u": "F",
        "h": "",
        "û": "F",
    },
    "German": {"sch": "B", "ei": "DC", "ai": "DC", "ie": "C", "eu": "EC", "äu": "EC", "au": "DF", "ch": "B"}
    | {"ph": "G", "pf": "AG", "w": "G", "v": "G", "ö": "E", "ü": "F", "ä": "C", "qu": "BG", "ß": "B"},
}
_LETTERS = {"a": "D", "e": "C", "i": "C", "y": "C", "o": "E", "u": "F", "œ": "E", "æ": "C", "w": "F"}
_LETTERS |= (
    dict.fromkeys("bmp", CLOSED)
    | dict.fromkeys("fv", LIP)
    | {"l": TONGUE}
    | dict.fromkeys("cdghjknqrstxzç", TEETH)
)
_PATTERNS = {
    name: re.compile("|".join(sorted(map(re.escape, pairs), key=len, reverse=True)))
    for name, pairs in _LATIN.items()
}
_KANA_VOWELS = {"A": OPEN, "I": WIDE, "U": PUCKER, "E": WIDE, "O": ROUND}
_HANGUL_FIRST, _MEDIALS, _FINALS = 0xAC00, 21, 28
_INITIALS = (
    "BBBBBHAAABBBBBBBBAB"  # ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ; ㅇ and ㅎ have no shape of their own
)
_SILENT_INITIALS = {11, 18}
# ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ
_MEDIAL_SHAPES = (
    "D",
    "C",
    "D",
    "C",
    "E",
    "C",
    "E",
    "C",
    "E",
    "FD",
    "FC",
    "FC",
    "E",
    "F",
    "FE",
    "FC",
    "FC",
    "F",
    "C",
)
_MEDIAL_SHAPES += ("C", "C")


def visemes(text: str, language: str, start: float, end: float) -> tuple[tuple[float, str], ...]:
    """(second, shape) pairs from ``start`` on, ending with rest at ``end``; each shape holds until the next."""
    shapes = list(_shapes(text, language))
    total = sum(share for _, share in shapes)
    found, clock = [], 0.0
    for shape, run in groupby(shapes, key=lambda each: each[0]):
        found.append((round(start + (end - start) * clock / total, 3), shape))
        clock += sum(share for _, share in run)
    return (*found, (end, REST))


def _shapes(text: str, language: str) -> Iterator[tuple[str, float]]:
    """(shape, share of time) of each sound of a line."""
    text = unicodedata.normalize("NFC", text).lower().translate(_PAUSES).rstrip(" .,;:!?…—")
    pairs = _LATIN.get(language, _LATIN["English"])
    pattern = _PATTERNS.get(language, _PATTERNS["English"])
    place = han = 0
    held = WIDE  # the vowel that a long mark goes on with
    while place < len(text):
        sign = text[place]
        together = pattern.match(text, place)
        if together:
            place = together.end()
            yield from _timed(pairs[together.group()])
            continue
        place += 1
        if sign in PAUSE_SHARES:
            yield REST, PAUSE_SHARES[sign]
        elif _HANGUL_FIRST <= ord(sign) <= 0xD7A3:
            yield from _hangul(ord(sign) - _HANGUL_FIRST)
        elif sign == "ー":
            yield held, 1.0
        elif "ぁ" <= sign <= "ヺ":
            *onset, (held, share) = _kana(sign)
            yield from onset
            yield held, share
        elif unicodedata.category(sign) == "Lo":
            han += 1
            yield TEETH, CONSONANT_SHARE
            yield (OPEN if han % 2 else WIDE), 1.0
        else:
            bare = unicodedata.normalize("NFD", sign)[0]
            yield from _timed(_LETTERS.get(sign, _LETTERS.get(bare, "")))


def _timed(shapes: str) -> Iterator[tuple[str, float]]:
    for shape in shapes:
        yield shape, 1.0 if shape in "CDEF" else CONSONANT_SHARE


def _hangul(number: int) -> Iterator[tuple[str, float]]:
    initial, rest = divmod(number, _MEDIALS * _FINALS)
    medial, final = divmod(rest, _FINALS)
    if initial not in _SILENT_INITIALS:
        yield _INITIALS[initial], CONSONANT_SHARE
    yield from _timed(_MEDIAL_SHAPES[medial])
    if final in (16, 17, 18, 26):  # ㅁ ㅂ ㅄ ㅍ
        yield CLOSED, CONSONANT_SHARE


def _kana(sign: str) -> Iterator[tuple[str, float]]:
    name = unicodedata.name(sign, "").rsplit(" ", 1)[-1]  # "MA" of "HIRAGANA LETTER SMALL MA"
    if name == "N" or (name == "TU" and sign in "っッ"):
        yield TEETH, 1.0
    else:
        if name[0] in "MBP":
            yield CLOSED, CONSONANT_SHARE
        elif name == "HU":
            yield LIP, CONSONANT_SHARE
        elif len(name) > 1 and name[0] in "KSTNRGZDHVYW":
            yield (PUCKER if name[0] == "W" else TEETH), CONSONANT_SHARE
        small = "SMALL" in unicodedata.name(sign, "")
        yield _KANA_VOWELS.get(name[-1], WIDE), CONSONANT_SHARE if small else 1.0
