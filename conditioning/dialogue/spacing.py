"""Chinese, Japanese and Korean as the model reads them: one space between any two characters.

Only borders at which a CJK character or full-width punctuation stands are decided here, each by the two
characters beside it; so the result is stable, and words in Latin letters stay whole.
"""

from __future__ import annotations

import re

from .characters import (
    ACCENTS,
    CJK,
    EITHER,
    FULL,
    HAN,
    HANGUL,
    KANA,
    NARROW_CLOSING,
    NARROW_OPENING,
    VARIATION,
    VOICING,
)

_IDEOGRAPH = HAN + KANA
_STUCK = f"{ACCENTS}{VOICING}{VARIATION}\u200d"  # parts of the character before
_AFTER = f"(?<=[{CJK}{VOICING}{VARIATION}])"  # behind a CJK character
_RUN = re.compile(r"\s+")
_GLUE = re.compile(
    rf"(?<=[{FULL}]) | (?=[{FULL}])"
    rf"|(?<=[{_IDEOGRAPH}{EITHER}]) (?=[{EITHER}])|(?<=[{EITHER}]) (?=[{_IDEOGRAPH}{EITHER}])"
    rf"|(?<=[{CJK}]) (?=[{NARROW_CLOSING}])|(?<=[{NARROW_OPENING}]) (?=[{CJK}])"
)
_PART = re.compile(
    rf"{_AFTER}(?=[{CJK}])"
    rf"|{_AFTER}(?=[^\s{CJK}{FULL}{EITHER}{NARROW_CLOSING}{_STUCK}\"'])"
    rf"|(?<=[^\s{CJK}{FULL}{EITHER}{NARROW_OPENING}\"'])(?=[{CJK}])"
)
_BETWEEN = re.compile(rf"(?<=[{_IDEOGRAPH}{VOICING}{VARIATION}]) (?=[{_IDEOGRAPH}])")
_BETWEEN_HANGUL = re.compile(rf"(?<=[{HANGUL}]) (?=[{HANGUL}])")
_JOINED_HANGUL = re.compile(rf"[{HANGUL}][{HANGUL}]")


def space(text: str) -> str:
    """``text`` with one space between CJK characters and around words among them, none beside full-width
    punctuation; other text as it is, single-spaced. Loses and adds nothing but spaces; spacing twice is
    spacing once."""
    return _PART.sub(" ", _GLUE.sub("", _RUN.sub(" ", text).strip()))


def unspace(text: str) -> str:
    """``text`` without the spaces that ``space`` puts between CJK characters, for captions and for counting.

    Spaces beside Latin words stay. Of Korean, whose own word spaces cannot be told from those put in, a text
    spaced throughout is joined; any other keeps its words.
    """
    joined = _BETWEEN.sub("", _RUN.sub(" ", text).strip())
    return joined if _JOINED_HANGUL.search(joined) else _BETWEEN_HANGUL.sub("", joined)
