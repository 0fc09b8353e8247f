"""What can be wrong with one line of dialogue, each with its place in the text as typed.

A ``fix`` is the whole line with this one thing put right; where several are found, fix one and look again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from .cleaning import clean
from .compose import Prepared
from .document import Line
from .findings import Change, Finding
from .languages import LANGUAGES
from .pasted_rows import language_called
from .scripts import check_language
from .spoken import spoken_form, unread

# Words in angle or square brackets that the tokeniser knows as one token: control tokens and HTML.
SPECIAL = re.compile(
    r"</?(?:eos|bos|pad|mask|unk|cls|sep|s|start_of_turn|end_of_turn|start_of_image|unused\d{1,4}|0x[0-9A-Fa-f]{2}"
    r"|[abipu]|br|h[1-6]|em|strong|code|sub|sup|span|div|blockquote|table|caption|thead|tbody|tfoot|t[rhd]|[uod]l|li|d[td])/?>|<\|[^<>|]{1,40}\|>|\[(?:multimodal|@BOS@|toxicity|INST|/INST)\]",
    re.IGNORECASE,
)
EMOJI = re.compile(
    "(?:[\U0001f1e6-\U0001f1ff]{2}|[#*0-9]\ufe0f?\u20e3|[\u2600-\u27bf\u2b05-\u2b55\U0001f000-\U0001faff])"
    "[\ufe0e\ufe0f\u200d\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f\u2640\u2642]*"
)
MOST = 5  # findings of one kind on one text
LONGEST = 1_000  # characters of a line: more than a minute in any language

_BRACKETS = re.compile("[<>＜＞]")
_DIRECTION = re.compile(r"[(（\[［【]([^()（）\[\]［］【】\n]{1,80})[)）\]］】]|\*([^*\n]{1,80})\*")
_ACRONYM = re.compile(r"(?<![A-Za-z])(?!OK(?![A-Z]))[A-Z]{2,6}(?![A-Za-z])")
_PAIRS = (("“„", "”"), ("「", "」"), ("『", "』"), ("«", "»"), ("《", "》"))
_RARE = {"𡃉": "㗎", "嚹": "喇"}  # cost three tokens; the other way of writing costs one
_BEYOND = re.compile("[𠻺𠸏𠺢啩唓嚿揦𡃉嚹\U00020000-\U0003ffff]")
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_BREAK = re.compile("[\n\r\v\f\x85\u2028\u2029]")
_WIDE = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uff9f]")


def line_findings(line: Line, prepared: Prepared) -> Iterator[Finding]:
    """Everything about one line that can be told from the line alone; ``Finding.line`` is left open."""
    text = line.text
    if not prepared.cleaned:
        yield Finding("error", "empty-line", "The line is empty. Write what is said, or delete the line.")
        return
    if len(prepared.cleaned) > LONGEST:
        message = f"The line has {len(prepared.cleaned):,} characters, minutes of speech. Split it into lines of several clips."
        yield Finding("error", "endless-line", message, start=LONGEST, end=len(text))
    yield from _language(line)
    yield from _structure(line)
    yield from _cleaned(prepared)
    if not any(map(str.isalnum, prepared.spoken)):
        yield Finding(
            "warning", "no-words", f"“{_short(text)}” holds no word to speak. Write one, or use a pause."
        )
        return
    yield from _unspeakable(line, prepared)
    if line.language in LANGUAGES:
        seen = prepared.cleaned[:LONGEST]
        for found in check_language(seen, line.language):
            # The fix of a piece is no fix of the line.
            yield _placed(
                found if seen == prepared.cleaned else replace(found, fix=None), text, prepared.cleaned
            )


def _language(line: Line) -> Iterator[Finding]:
    if line.language in LANGUAGES:
        return
    meant = language_called(line.language)
    advice = f"Did you mean {meant}?" if meant else "Choose one of them, or write the line in one."
    yield Finding(
        "error",
        "unspoken-language",
        f"The model does not speak “{_short(line.language)}”; it speaks {', '.join(LANGUAGES)}. {advice}",
    )


def _structure(line: Line) -> Iterator[Finding]:
    """What would end the line, or the row, before its end."""
    text = line.text
    without = text
    if tokens := list(SPECIAL.finditer(text)):
        without = SPECIAL.sub("", text)
        names = _named(found.group() for found in tokens)
        yield _at(
            tokens[0],
            "error",
            "special-token",
            f"{names} would be read as a command of the tokeniser and not be spoken. Take it out.",
            _tidy(without),
        )
    if brackets := list(_BRACKETS.finditer(without)):
        place = _BRACKETS.search(SPECIAL.sub(lambda found: " " * len(found.group()), text))
        yield _at(
            place or brackets[0],
            "error",
            "angle-bracket",
            f"{len(brackets)} of < and > stand in the line; in a prompt they enclose who speaks. Take them out.",
            _tidy(_BRACKETS.sub("", text)) if not tokens else None,
        )
    if '"' in text:
        count = text.count('"')
        fix, advice = _other_quotes(line), "Use other quotation marks within it."
        if count % 2:
            fix, advice = (
                _tidy(text.replace('"', "")),
                "One has no partner: take it out, or write its partner.",
            )
        start = text.index('"')
        message = f'{count} of " stand in the line; in a prompt they open and close it. {advice}'
        yield Finding("error", "quote-in-line", message, start=start, end=text.rindex('"') + 1, fix=fix)
    for opening, closing in _PAIRS:
        opened, closed = sum(map(text.count, opening)), text.count(closing)
        if opening[0] == "“" and "„" in text:  # German closes with what English opens with
            opened, closed = text.count("„"), text.count("“") + text.count("”")
        if opened != closed:
            place = max(text.find(mark) for mark in (*opening, closing))
            message = f"{opened} opening and {closed} closing of {opening[0]}{closing} stand in the line. Add the one that lacks."
            yield Finding("warning", "unbalanced-quotes", message, start=place, end=place + 1)


def _other_quotes(line: Line) -> str:
    marks = "「」" if line.language in ("Japanese", "Cantonese") else "‘’"
    parts = line.text.split('"')
    return "".join(
        part + (marks[index % 2] if index < len(parts) - 1 else "") for index, part in enumerate(parts)
    )


def _cleaned(prepared: Prepared) -> Iterator[Finding]:
    """What cleaning took out or changed, once for each kind; plain white space is not worth a word."""
    kinds: dict[str, list[Change]] = {}
    for change in prepared.cleaning:
        if kind := _kind(change.before):
            kinds.setdefault(kind, []).append(change)
    for kind, changes in kinds.items():
        first = changes[0]
        level = "note" if kind in ("full-width", "not-composed") else "warning"
        times = f" ({len(changes)} places)" if len(changes) > 1 else ""
        yield Finding(
            level,
            kind,
            f"{first.reason[:1].upper()}{first.reason[1:]}{times}; the prompt has the line without it.",
            start=first.start,
            end=first.start + len(first.before),
            fix=prepared.cleaned,
        )


def _kind(before: str) -> str | None:
    if _BREAK.search(before):
        return "line-break"
    if _BIDI.search(before):
        return "direction-mark"
    if before.isspace():
        return None
    if _WIDE.search(before):
        return "full-width"
    return "not-composed" if any(map(str.isalnum, before)) else "hidden-character"


def _unspeakable(line: Line, prepared: Prepared) -> Iterator[Finding]:
    text = line.text
    if emoji := list(EMOJI.finditer(text)):
        names = _named(found.group() for found in emoji)
        message = f"{names} cannot be spoken. Take it out; a feeling belongs into the delivery."
        yield _at(emoji[0], "warning", "emoji", message, _tidy(EMOJI.sub("", text)))
    for found in islice(_DIRECTION.finditer(text), MOST):
        message = (
            f"“{_short(found.group())}” would be spoken. If it is a direction, write it into the delivery; "
            "if it is said, take the brackets off."
        )
        yield _at(found, "warning", "stage-direction", message, _tidy(_DIRECTION.sub("", text)) or None)
    yield from _not_spelled(line, prepared)
    if text.isupper() and len(re.findall(r"[^\W\d_]{2,}", text)) > 2:
        message = f"“{_short(text)}” is all in capitals, which may be spelled out. Write it in small letters."
        yield Finding("note", "all-capitals", message, start=0, end=len(text))
    elif found := _ACRONYM.search(prepared.spoken):
        names = _named(match.group() for match in _ACRONYM.finditer(prepared.spoken))
        message = f"{names} may be read as a word or letter by letter. Write it as it should sound."
        yield _placed(_at(found, "note", "acronym", message), text, prepared.spoken)
    if rare := _BEYOND.search(text):
        names = _named(match.group() for match in _BEYOND.finditer(text))
        fix = text.translate(str.maketrans(_RARE))
        message = (
            f"{names} is hardly known to the model (three tokens each). Write it with a commoner character."
        )
        yield _at(rare, "note", "rare-character", message, fix if fix != text else None)


def _not_spelled(line: Line, prepared: Prepared) -> Iterator[Finding]:
    # What has a rule of its own above is not named a second time.
    mute = _BRACKETS.sub(
        " ", EMOJI.sub(lambda found: " " * len(found.group()), SPECIAL.sub(_blank, prepared.spoken))
    )
    spans = unread(mute.replace("*", " "))
    if not spans:
        return
    names = _named(prepared.spoken[start:end] for start, end in spans)
    fix = None
    advice = "Write it in words, as it should be said."
    if not line.spell_out and line.language in LANGUAGES:
        spelled = spoken_form(prepared.cleaned, line.language).text
        if spelled != prepared.cleaned:
            fix, advice = spelled, "Let it be spelled out, or write it in words."
    start, end = spans[0]
    found = Finding(
        "warning", "not-spelled", f"How to say {names} is left to the model. {advice}", None, start, end, fix
    )
    yield _placed(found, line.text, prepared.spoken)


def _blank(found: re.Match) -> str:
    return " " * len(found.group())


def _at(found: re.Match, level, code: str, message: str, fix: str | None = None) -> Finding:
    return Finding(level, code, message, start=found.start(), end=found.end(), fix=fix)


def _placed(found: Finding, text: str, seen: str) -> Finding:
    """``found``, placed in ``seen``, placed in ``text``; without a place where its words are not in it."""
    if text == seen or found.start is None:
        return found
    words = seen[found.start : found.end]
    start = text.find(words) if words else -1
    return (
        replace(found, start=start, end=start + len(words))
        if start >= 0
        else replace(found, start=None, end=None)
    )


def _named(words) -> str:
    """ "“a”, “b” and 3 more" """
    shown = list(dict.fromkeys(words))
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return ", ".join(f"“{_short(word)}”" for word in shown[:4]) + more


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def _tidy(text: str) -> str:
    """Without the white space that a piece taken out leaves behind."""
    return re.sub(r" (?=[,.!?;:、。，！？；：])", "", clean(text).text)
