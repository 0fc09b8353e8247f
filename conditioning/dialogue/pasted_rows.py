"""The rows under ``Dialogue:`` of a prompt from elsewhere, however they are written."""

from __future__ import annotations

import re

from .compose import DIALOGUE, prepare
from .document import Line
from .findings import Finding
from .languages import LANGUAGES
from .scripts import contradicts
from .spacing import unspace
from .template import Row
from .trace import Trace, stripped

MAX_ROWS = 500
UNNAMED = "person"  # who speaks where a prompt does not say

_OPEN = '"“”„‟＂「『«'
_CLOSE = '"“”‟＂」』»'
QUOTED = re.compile(
    r"\"([^\"\n]+)\"|“([^“”\n]+)”|「([^「」\n]+)」|『([^『』\n]+)』|«([^«»\n]+)»|„([^„“”\n]+)[“”]|＂([^＂\n]+)＂"
)
_ROW_HEAD = re.compile(r"[<＜](?P<who>[^<>＜＞\n]{0,300})[>＞]\s*[:：]?\s*")
_NAMED_ROW = re.compile(
    rf"^[ \t]*(?P<who>[^\n:：{_OPEN}]{{1,80}}?)[ \t]*[:：][ \t]*(?P<text>\S[^\n]*)$", re.MULTILINE
)
_NOTHING = re.compile(r"(?:(?:no|without) (?:dialogue|speech|words)|none)?", re.IGNORECASE)

_ALSO_CALLED = {
    **{name.lower(): name for name in LANGUAGES},
    **dict.fromkeys(
        ("chinese", "mandarin chinese", "standard chinese", "putonghua", "普通话", "中文", "zh"), "Mandarin"
    ),
    **dict.fromkeys(("cantonese chinese", "yue", "粤语", "粵語", "廣東話", "广东话"), "Cantonese"),
    **dict.fromkeys(("british english", "american english", "en", "english (us)", "english (uk)"), "English"),
    **dict.fromkeys(("日本語", "ja", "jp"), "Japanese"),
    **dict.fromkeys(("한국어", "ko", "kr"), "Korean"),
    **dict.fromkeys(("français", "fr"), "French"),
    **dict.fromkeys(("deutsch", "de"), "German"),
}
# Kept as they are, so that the lint can say that the model does not speak them.
_NOT_SPOKEN = re.compile(
    "arabic|bengali|czech|danish|dutch|finnish|greek|hebrew|hindi|hungarian|indonesian|italian|latin|malay|norwegian|"
    "persian|polish|portuguese|romanian|russian|spanish|swedish|tagalog|tamil|thai|turkish|ukrainian|urdu|vietnamese",
    re.IGNORECASE,
)


def language_called(name: str) -> str | None:
    """The model's name for a language that others call otherwise: "Chinese" -> "Mandarin"."""
    return _ALSO_CALLED.get(name.strip().lower())


def read_rows(
    trace: Trace, dialogue: tuple[int, int] | None, body: tuple[int, int], findings: list[Finding]
) -> tuple[list[Row], list[int]]:
    """The rows in ``dialogue``, or what is quoted in ``body`` where that is None; and where each text began."""
    text = trace.text
    if dialogue is None:
        found = [(body[0], body[0], match.start(), match.end()) for match in QUOTED.finditer(text, *body)]
        findings.append(
            Finding(
                "warning",
                "no-dialogue-section",
                f"There is no {DIALOGUE} paragraph. "
                + (
                    "It was made from what is quoted in the body; say there who speaks and in which language."
                    if found
                    else "Nothing is quoted in the body either, so nobody speaks; quote what is to be said."
                ),
            )
        )
    else:
        found = _places(text, *dialogue)
        if not found and not _says_nothing(text[slice(*dialogue)]):
            message = f'No line could be read under {DIALOGUE} Write each as <young woman red coat, English>: "Hello."'
            start, end = map(trace.origin, stripped(text, *dialogue))
            findings.append(Finding("error", "unreadable-dialogue", message, start=start, end=end))
    if len(found) > MAX_ROWS:
        message = f"{len(found)} lines were found and the first {MAX_ROWS} read. A clip holds two or three; cut the text up."
        findings.append(Finding("error", "too-many-lines", message))
        if dialogue is not None:
            trace.note(
                found[MAX_ROWS][0], dialogue[1], "", f"lines beyond the first {MAX_ROWS} were left out"
            )
        del found[MAX_ROWS:]
    rows, places = [], []
    for index, (who_start, who_end, start, end) in enumerate(found):
        start, end = stripped(text, start, end)
        places.append(trace.origin(start))
        rows.append(_row(trace, (who_start, who_end), start, end, findings, index))
    return rows, places


def _places(text: str, start: int, end: int) -> list[tuple[int, int, int, int]]:
    """For each row the spans of who speaks and of what is said."""
    heads = list(_ROW_HEAD.finditer(text, start, end))
    if heads:
        ends = [*(head.start() for head in heads[1:]), end]
        found = ((*head.span("who"), head.end(), stop) for head, stop in zip(heads, ends, strict=True))
        return [
            place for place in found if place[3] > place[2] or not _says_nothing(text[place[0] : place[1]])
        ]
    named = [(*match.span("who"), *match.span("text")) for match in _NAMED_ROW.finditer(text, start, end)]
    return named or [(start, start, *match.span()) for match in QUOTED.finditer(text, start, end)]


def _says_nothing(words: str) -> bool:
    return _NOTHING.fullmatch(words.strip(" \t\n.<>＜＞")) is not None


def _row(
    trace: Trace, who: tuple[int, int], start: int, end: int, findings: list[Finding], index: int
) -> Row:
    """One line; what was changed to read it is listed."""
    inner, outer_end = _unquoted(trace.text, start, end)
    said = trace.text[slice(*inner)]
    after = stripped(trace.text, outer_end, end)
    if after[0] < after[1]:
        trace.note(*after, "", "words behind a line's last quotation mark were left out")
    description, name = _who(trace, who, said, findings, index)
    row = LANGUAGES.get(name)
    is_spaced = row is not None and row.spaced
    text = prepare(Line("", name, unspace(said) if is_spaced else said, spell_out=False)).spaced
    reasons = []
    if trace.text[start:outer_end] != f'"{said}"':
        reasons.append("quotation marks were made plain and put close to the words")
    if text != said:
        reasons.append("characters were spaced one by one" if is_spaced else "white space was made plain")
    trace.note(start, outer_end, f'"{text}"', "; ".join(reasons))
    return Row(description, name, text)


def _who(
    trace: Trace, place: tuple[int, int], said: str, findings: list[Finding], index: int
) -> tuple[str, str]:
    """(description, language) of "young woman, red coat, English", with what had to be guessed."""
    who = trace.text[slice(*place)]
    comma = max(who.rfind(","), who.rfind("，"))
    start, end = stripped(trace.text, place[0] + comma + 1, place[1])
    called = trace.text[start:end]
    name = language_called(called) or (called if _NOT_SPOKEN.fullmatch(called) else None)
    if comma >= 0 and name:
        trace.note(start, end, name, f"the model's word for {called} is {name}")
        return who[:comma].strip() or UNNAMED, name
    who = who.strip()
    name = guess_language(said)
    if who:
        trace.note(*stripped(trace.text, *place), f"{who}, {name}", "the language was added")
    findings.append(
        Finding(
            "warning",
            "language-guessed",
            f"The words before line {index + 1} ({who or 'there are none'}) name none of the seven languages at their "
            f"end; {name} was taken, by the line's own words. Write <{who or UNNAMED}, {name}>: or the right one.",
            line=index,
        )
    )
    return who or UNNAMED, name


def _unquoted(text: str, start: int, end: int) -> tuple[tuple[int, int], int]:
    """(the span between the outermost quotation marks, where the last of those ends)."""
    if start == end or text[start] not in _OPEN:
        return (start, end), end
    last = max(text.rfind(mark, start + 1, end) for mark in _CLOSE)
    if last < 0:
        return stripped(text, start + 1, end), end
    return stripped(text, start + 1, last), last + 1


def guess_language(text: str) -> str:
    """The first of the seven that the words do not contradict, asking the surest scripts first."""
    if re.search("[\u3041-\u30ff]", text):
        return "Japanese"
    if re.search("[\uac00-\ud7a3]", text):
        return "Korean"
    has_han = re.search("[\u3400-\u9fff]", text) is not None
    order = ("Mandarin", "Cantonese", "Japanese") if has_han else ("English", "French", "German")
    return next((name for name in order if not contradicts(text, name)), order[0])
