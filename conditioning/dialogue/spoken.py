"""The spoken form of a line: figures and signs as the words a speaker says for them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .findings import Change
from .languages import language as row_of
from .spelling import chinese, english, french, german, japanese, korean
from .spelling.rules import ROMAN, plain_widths

_RULES = {
    "zh": chinese.mandarin,
    "yue": chinese.cantonese,
    "en": english.rules,
    "ja": japanese.rules,
    "ko": korean.rules,
    "fr": french.rules,
    "de": german.rules,
}

# Digits of any script (but not 〇, a Han character that is read), numbers in one character, and signs that are
# either read as a word or not meant to be spoken. A tilde is left out: it draws a sound out in 네~.
_UNREAD = r"[\d²³¹¼-¾⁰-₉⅐-↋①-⓿❶-➓〡-〩㈠-㈩㉈-㉏㉑-㉟㊀-㊉㊱-㊿㋀-㋋％‰°℃℉㎎㎏㎜-㎞㎡$＄€£￡¥￥₩￦¢№§#＃@＠&＆+＋=＝×÷*＊/／\\^_|<>＜＞]+"
_SAYABLE = re.compile(rf"[0-9&½-¾⅐-⅞]|{ROMAN}")
_IN_TOKEN = ".,:'’–-"


@dataclass(frozen=True, slots=True)
class SpokenForm:
    """What is said, and each piece of the given text that was replaced, in order."""

    text: str
    changes: tuple[Change, ...]


def spoken_form(text: str, language: str) -> SpokenForm:
    """``text`` with its numbers, dates, times, money and measures in words of ``language``.

    What cannot be read with certainty stays as it is, for ``unread`` to show. Doing it twice changes nothing.
    Raises ConditioningError for a language that the model does not speak.
    """
    row = row_of(language)
    seen = plain_widths(text)
    found: list[Change] = []
    # What was read is struck out by a letter, so that the next rules see words there; what a rule left for its
    # neighbours' sake may then be read, so we go round until nothing is.
    letter = "々" if row.spaced else "ø"
    going = True
    while going and _SAYABLE.search(seen):
        going = False
        present = set(seen)
        for rule in _RULES[row.code]():
            if rule.needs and rule.needs.isdisjoint(present):
                continue
            whole = "it" if "it" in rule.pattern.groupindex else 0
            pieces, at = [], 0
            for match in rule.pattern.finditer(seen):
                start, end = match.span(whole)
                if (words := rule.read(match)) is None:
                    continue
                last = letter if words[-1].isalnum() else words[-1]  # the full stop of "p.m."
                pieces += (seen[at:start], letter * (end - start - 1), last)
                at = end
                found.append(Change(start, text[start:end], words, rule.reason))
            if at:
                seen = "".join((*pieces, seen[at:]))
                going = True
    changes = tuple(sorted(found, key=lambda change: change.start))
    return SpokenForm(replaced(text, changes), changes)


def replaced(text: str, changes: tuple[Change, ...]) -> str:
    """``text`` with ``changes``, which are in order and do not overlap, made in it."""
    pieces, at = [], 0
    for change in changes:
        pieces += (text[at : change.start], change.after)
        at = change.start + len(change.before)
    return "".join((*pieces, text[at:]))


def unread(text: str) -> tuple[tuple[int, int], ...]:
    """(start, end) of what nobody can be sure how to say: figures, signs, Roman numerals, with what hangs on them.

    Meant for a spoken form, where it shows what was left: ``MP3``, ``10/10``, ``a@b.org``.
    """
    spans: list[tuple[int, int]] = []
    for match in re.finditer(rf"{_UNREAD}|(?<!\w)(?=[IVX]{{2}}){ROMAN}", text):
        start, end = match.span()
        floor = spans[-1][1] if spans else 0
        if end <= floor:
            continue
        start = max(start, floor)
        while start > floor and _hangs_on(text[start - 1]):
            start -= 1
        while end < len(text) and _hangs_on(text[end]):
            end += 1
        while text[start] in _IN_TOKEN:
            start += 1
        while text[end - 1] in _IN_TOKEN:
            end -= 1
        spans.append((start, end))
    return tuple(spans)


def _hangs_on(character: str) -> bool:
    """Latin letters, and the marks inside an address or a version."""
    return (character < "\u0250" and character.isalnum()) or character in _IN_TOKEN
