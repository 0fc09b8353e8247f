"""Whether a line is in the language it is labelled with: its script, and the words that tell neighbours apart.

The label is the person's decision; it is never guessed, only found compatible or contradicted.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from .characters import ACCENTS, HAN, HANGUL, KANA, LATIN, VARIATION, VOICING
from .chinese import CANTONESE, CHINESE, JAPANESE, MANDARIN, weigh
from .findings import Finding
from .han import SIMPLIFIED, TRADITIONAL
from .languages import language as row
from .spacing import unspace
from .words import ANYWHERE, ENGLISH, FRENCH, GERMAN, LETTERS

_RUNS = re.compile(
    rf"(?P<Han>[{HAN}]+)|(?P<Kana>[{KANA}]+)|(?P<Hangul>[{HANGUL}]+)"
    rf"|(?P<Latin>[{LATIN}{ACCENTS}]+(?:['’‘ʼ-][{LATIN}{ACCENTS}]+)*['’]?)"
    rf"|(?P<other>[^\W\d_{HAN}{KANA}{HANGUL}{LATIN}{ACCENTS}{VOICING}{VARIATION}]+)"
)
_ACRONYM = re.compile(r"[A-Z][A-Z0-9.&-]{0,5}s?")
_ELISION = re.compile(r"(?:[cdjlmnst]|qu|jusqu|lorsqu|puisqu|quelqu|presqu)'(?=.)")
_CONTRACTION = re.compile(r".(?:n't|'(?:s|ll|re|ve|d|m))$")
_SPEECH = re.compile(r"[我你]|[！!？?]\W*$|^.{1,14}。$")  # and not a heading
_IBERIAN = re.compile("[¿¡ñãõ]", re.IGNORECASE)

_WORDS = {"English": ENGLISH, "French": FRENCH, "German": GERMAN}
_SURE = 3.0  # a word that one language has, in the unit of the letters' weights: about a factor of 20
_LETTERS_AT_MOST = 2.5  # however foreign a word looks, it may be a name
_LATIN_MARGIN = 1.5  # fitted on tests/conditioning/dialogue/short_lines.txt, odd lines
_NAMED = 5  # words shown in a message
_JUDGED = 4_000  # characters of a text that are looked at; a line has a hundredth of it

_TO_SIMPLIFIED = dict(zip(TRADITIONAL, SIMPLIFIED, strict=True))
_SIMPLIFYING = str.maketrans(_TO_SIMPLIFIED)
# 係 is Cantonese for "is" in either script.
_TRADITIONAL = re.compile(f"[{TRADITIONAL.replace('係', '')}]")


@dataclass(frozen=True, slots=True)
class _Objection:
    """Why a line is not in its language: what it reads as, and the words that say so."""

    reads_as: str
    words: tuple[tuple[int, int], ...]  # (start, end) in the text
    certain: bool  # by its script, not by its words


def contradicts(text: str, language: str) -> bool:
    """Whether ``text`` is clearly not in ``language``. A text that says nothing either way is compatible."""
    return _objection(text[:_JUDGED], row(language).name) is not None


def check_language(text: str, language: str) -> tuple[Finding, ...]:
    """What there is to say about the language and script of a cleaned line, spaced or not.

    Codes: contradicts-language (an error by script, a warning by words), mixed-script, mixed-han (Traditional
    among Simplified), traditional (under Mandarin), simplified (under Cantonese and Japanese),
    no-cantonese-words.
    """
    name, judged = row(language).name, text[:_JUDGED]
    objection = _objection(judged, name)
    if objection is not None:
        return (_contradiction(judged, name, objection),)
    return (*_mixture(judged, name), *_han(text, judged, name))


def _objection(text: str, name: str) -> _Objection | None:
    runs = [(match.lastgroup, match.start(), match.end()) for match in _RUNS.finditer(text)]
    if name in _WORDS:
        return _against_latin(text, name, runs)
    return _against_cjk(text, name, runs)


def _spans(runs: list, *kinds: str) -> tuple[tuple[int, int], ...]:
    return tuple((start, end) for kind, start, end in runs if kind in kinds)


def _length(spans: tuple[tuple[int, int], ...]) -> int:
    return sum(end - start for start, end in spans)


def _foreign(text: str, runs: list) -> tuple[tuple[int, int], ...]:
    """Words in Latin letters that are neither said everywhere nor abbreviations."""
    shouted = _shouted(text, _spans(runs, "Latin"))
    return tuple(
        (start, end)
        for start, end in _spans(runs, "Latin")
        if text[start:end].lower() not in ANYWHERE and (shouted or not _ACRONYM.fullmatch(text[start:end]))
    )


def _shouted(text: str, latin: tuple[tuple[int, int], ...]) -> bool:
    """Whether all of several words are in capitals, so that none is an abbreviation."""
    return len(latin) > 2 and all(text[start:end].isupper() for start, end in latin)


def _against_latin(text: str, name: str, runs: list) -> _Objection | None:
    asian, other, latin = _spans(runs, "Han", "Kana", "Hangul"), _spans(runs, "other"), _spans(runs, "Latin")
    if _length(asian) * 2 > _length(latin) and asian:  # a character says about as much as two letters
        return _Objection(_asian_language(text, runs), asian, True)
    if _length(other) > _length(latin):
        return _Objection(_script_of(text[other[0][0]]), other, True)
    if _IBERIAN.search(text):
        spans = tuple(match.span() for match in _IBERIAN.finditer(text))
        return _Objection("Spanish or Portuguese", spans, False)
    scores = dict.fromkeys(_WORDS, 0.0)
    evidence: list[tuple[dict[str, float], tuple[int, int]]] = []
    shouted = _shouted(text, latin)
    for index, (start, end) in enumerate(latin):
        word = text[start:end].lower() if shouted else text[start:end]
        weights = _weights(word, index > 0)
        evidence.append((weights, (start, end)))
        for language, weight in weights.items():
            scores[language] += weight
    best = max(scores, key=scores.__getitem__)
    if scores[best] - scores[name] < _LATIN_MARGIN:
        return None
    words = tuple(span for weights, span in evidence if weights[best] > weights[name])
    return _Objection(best, words, False)


def _weights(word: str, inside: bool) -> dict[str, float]:
    """How well one word goes with each of the three languages."""
    plain = word.lower().replace("’", "'").replace("‘", "'").replace("ʼ", "'")
    if plain in ANYWHERE or (len(word) > 1 and _ACRONYM.fullmatch(word)):
        return dict.fromkeys(_WORDS, 0.0)
    weights = _listed(plain)
    if weights is None and "'" in plain:
        if _ELISION.match(plain):
            return {language: _SURE * (language == "French") for language in _WORDS}
        if _CONTRACTION.search(plain):
            stem = _listed(plain.rpartition("'")[0])
            if stem and stem["German"] > stem["English"]:  # geht's, gibt's
                return stem
            return {language: _SURE * (language == "English") for language in _WORDS}
    if weights is None and "-" in plain:
        parts = [_listed(part) for part in plain.split("-")]
        known = [part for part in parts if part]
        if known:
            return {language: max(part[language] for part in known) for language in _WORDS}
    if weights is None:
        weights = _spelled(plain)
        if inside and word[0].isupper():  # a name, or a German noun
            weights = {language: weight / 2 for language, weight in weights.items()}
    return weights


def _listed(word: str) -> dict[str, float] | None:
    homes = [language for language, words in _WORDS.items() if word in words]
    return {language: _SURE * (language in homes) for language in _WORDS} if homes else None


def _spelled(word: str) -> dict[str, float]:
    """The letters' evidence, at most _LETTERS_AT_MOST between any two languages."""
    framed = f"^{word[:30]}$"
    pieces = {framed[at : at + size] for size in (1, 2, 3, 4, 5) for at in range(len(framed) - size + 1)}
    scores = {
        language: sum(_LETTER_TABLE[language].get(piece, 0.0) for piece in pieces) for language in _WORDS
    }
    top = max(scores.values())
    return {language: max(score - top, -_LETTERS_AT_MOST) for language, score in scores.items()}


def _read_letters(rows: str) -> dict[str, float]:
    table, weight = {}, 0.0
    for item in rows.split():
        if re.fullmatch(r"-?\d*\.?\d+", item):
            weight = float(item)
        else:
            table[item] = weight
    return table


_LETTER_TABLE = {language: _read_letters(rows) for language, rows in LETTERS.items()}


def _against_cjk(text: str, name: str, runs: list) -> _Objection | None:
    own = {"Mandarin": ("Han",), "Cantonese": ("Han",), "Japanese": ("Kana", "Han"), "Korean": ("Hangul",)}[
        name
    ]
    ours, foreign, other = _length(_spans(runs, *own)), _foreign(text, runs), _spans(runs, "other")
    asian = tuple(kind for kind in ("Han", "Kana", "Hangul") if kind not in own)
    theirs = _spans(runs, *asian)
    if not ours and not theirs and not foreign and not other:
        return None
    # One syllable of kana in five characters is Japanese grammar; a foreign word may be half a short line.
    if theirs and _length(theirs) * (5 if name in ("Mandarin", "Cantonese") else 2) > ours:
        return _Objection(_asian_language(text, runs), theirs, True)
    if len(foreign) > ours:
        return _Objection(_latin_language(text), foreign, True)
    if _length(other) > ours:
        return _Objection(_script_of(text[other[0][0]]), other, True)
    if name == "Korean" or (name == "Japanese" and _spans(runs, "Kana")):
        return None
    return _against_han(text, name, runs)


def _against_han(text: str, name: str, runs: list) -> _Objection | None:
    """Among Mandarin, Cantonese and Japanese a line in Han characters is judged by its words and forms."""
    plain, places = _gathered(text)
    japanese = _weigh_japanese(plain)
    if name == "Japanese":
        chinese, found = weigh(plain, CHINESE)
        foreign = [
            at for at, character in enumerate(plain) if _is_han(character) and not _in(character, "shift_jis")
        ]
        old = [match.start() for match in _TRADITIONAL.finditer(plain) if _has_new_form(match.group())]
        cantonese, marks = weigh(plain, CANTONESE)
        if 2 * len(foreign) + len(old) + chinese + cantonese <= max(japanese, 0.5):
            return None
        spans = [(match.start(), match.end()) for match in (*found, *marks)] + [
            (at, at + 1) for at in (*foreign, *old)
        ]
        reads_as = "Cantonese" if cantonese > chinese else "Mandarin"
        return _Objection(reads_as, _back(sorted(spans), places), False)
    mandarin, mandarin_words = weigh(plain, MANDARIN)
    cantonese, cantonese_words = weigh(plain, CANTONESE)
    if japanese >= 1.5 and japanese > max(mandarin, cantonese):
        return _Objection("Japanese", _spans(runs, "Han"), False)
    simplified = [match.start() for match in re.finditer(f"[{HAN}]", plain) if _is_simplified(match.group())]
    if simplified:  # documents in Cantonese are written so too; where a person speaks it is hardly done
        mandarin += 1.0 if _SPEECH.search(plain) else 0.5
    elif _TRADITIONAL.search(plain):
        cantonese += 0.5
    theirs, ours, words = (
        (cantonese, mandarin, cantonese_words)
        if name == "Mandarin"
        else (mandarin, cantonese, mandarin_words)
    )
    if theirs < 1 or theirs <= ours:
        return None
    spans = [match.span() for match in words] or [(at, at + 1) for at in simplified]
    return _Objection("Cantonese" if name == "Mandarin" else "Mandarin", _back(spans, places), False)


def _gathered(text: str) -> tuple[str, list[int]]:
    """``text`` without the spaces between characters, and where each of its characters stood."""
    places = [at for at, character in enumerate(text) if not (character == " " and _between_han(text, at))]
    return "".join(text[at] for at in places), [*places, len(text)]


def _between_han(text: str, at: int) -> bool:
    return 0 < at < len(text) - 1 and ord(text[at - 1]) > 0x2E80 and ord(text[at + 1]) > 0x2E80


def _back(spans, places: list[int]) -> tuple[tuple[int, int], ...]:
    return tuple((places[start], places[end - 1] + 1) for start, end in spans)


def _weigh_japanese(plain: str) -> float:
    """Japanese words, forms that only Japan has, and old and new forms side by side as Japan mixes them."""
    score, _ = weigh(plain, JAPANESE)
    han = {character for character in plain if _is_han(character)}
    if not all(_in(character, "shift_jis") for character in han):
        return min(score, 1.0)
    chinese = {character: (_in(character, "gb2312"), _in(character, "big5")) for character in han}
    score += 2 * any(
        forms == (False, False) and character not in "々〇" for character, forms in chinese.items()
    )
    mixed = (True, False) in chinese.values() and (False, True) in chinese.values()
    return score + 2 * mixed


def _is_han(character: str) -> bool:
    return "\u3400" <= character <= "\u9fff" or "\uf900" <= character <= "\ufaff" or character >= "\U00020000"


def _in(character: str, encoding: str) -> bool:
    """Whether a national character set has ``character``: the standard library's table of who writes what."""
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _is_simplified(character: str) -> bool:
    return _in(character, "gb2312") and not _in(character, "big5")


def _has_new_form(character: str) -> bool:
    """Whether Japan writes this Traditional character in its Simplified or in a form of its own today."""
    return not _in(character, "shift_jis") or _in(_TO_SIMPLIFIED[character], "shift_jis")


def _asian_language(text: str, runs: list) -> str:
    if _spans(runs, "Hangul"):
        return "Korean"
    if _spans(runs, "Kana"):
        return "Japanese"
    plain = unspace(text)
    scores = {
        "Mandarin": 0.1 + weigh(plain, MANDARIN)[0],
        "Cantonese": weigh(plain, CANTONESE)[0],
        "Japanese": _weigh_japanese(plain),
    }
    return max(scores, key=scores.__getitem__)


def _latin_language(text: str) -> str:
    fitting = [name for name in _WORDS if not contradicts(text, name)]
    return fitting[0] if len(fitting) == 1 else "a language in Latin letters"


def _script_of(character: str) -> str:
    return f"{unicodedata.name(character, 'UNKNOWN').split()[0].capitalize()} script"


def _contradiction(text: str, name: str, objection: _Objection) -> Finding:
    words = _quote(text, objection.words)
    advice = f"Set its language to {objection.reads_as}, or write the line in {name}."
    if objection.reads_as not in (*_WORDS, "Mandarin", "Cantonese", "Japanese", "Korean"):
        advice = f"Write the line in {name}."
    message = f"The line is labelled {name} but reads as {objection.reads_as}: {words}. {advice}"
    start, end = objection.words[0] if objection.words else (0, len(text))
    level = "error" if objection.certain else "warning"
    return Finding(level, "contradicts-language", message, start=start, end=end)


def _quote(text: str, spans: tuple[tuple[int, int], ...]) -> str:
    shown = list(dict.fromkeys(text[start:end] for start, end in spans))
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return ", ".join(f"“{word if len(word) <= 24 else word[:24] + '…'}”" for word in shown[:_NAMED]) + more


def _mixture(text: str, name: str) -> tuple[Finding, ...]:
    """Words of another script in a line that is otherwise in its own."""
    runs = [(match.lastgroup, match.start(), match.end()) for match in _RUNS.finditer(text)]
    own = {
        "Mandarin": ("Han",),
        "Cantonese": ("Han",),
        "Japanese": ("Han", "Kana"),
        "Korean": ("Hangul",),
    }.get(name, ())
    kinds = {"Han", "Kana", "Hangul", "other"} - set(own)
    strange = _spans(runs, *kinds)
    findings = []
    if strange:
        message = (
            f"{_quote(text, strange)} cannot be read in {name}. Write it as it sounds in {name}, "
            "or make it a line of its own in its language."
        )
        findings.append(Finding("warning", "mixed-script", message, start=strange[0][0], end=strange[0][1]))
    latin = _foreign(text, runs) if own else ()
    if latin:
        message = (
            f"{_quote(text, latin)} will be read as foreign words within {name}; "
            "write them in its script if they sound wrong."
        )
        findings.append(Finding("note", "mixed-script", message, start=latin[0][0], end=latin[0][1]))
    return tuple(findings)


def _han(whole: str, text: str, name: str) -> tuple[Finding, ...]:
    """Traditional and Simplified characters against the language's custom and against one another.

    ``text`` is the part of ``whole`` that is judged; a correction is of the whole.
    """
    if name not in ("Mandarin", "Cantonese", "Japanese"):
        return ()
    traditional = [match.start() for match in _TRADITIONAL.finditer(text)]
    simplified = [at for at, c in enumerate(text) if "\u3400" <= c <= "\u9fff" and _is_simplified(c)]
    if name == "Japanese":
        foreign = [at for at in simplified if not _in(text[at], "shift_jis")]
        return (
            _one("warning", "simplified", text, foreign, "is not written in Japanese; use the Japanese form")
            if foreign
            else ()
        )
    as_simplified = whole.translate(_SIMPLIFYING)
    if traditional and simplified:
        fewer = min(traditional, simplified, key=len)
        which = "Traditional" if fewer is traditional else "Simplified"
        message = "is {} among {} characters; write the line in one script".format(
            which, "Simplified" if which == "Traditional" else "Traditional"
        )
        fix = as_simplified if name == "Mandarin" else None
        return _one("warning", "mixed-han", text, fewer, message, fix)
    if traditional and name == "Mandarin":
        message = "is Traditional; the model knows Mandarin mostly in Simplified characters"
        return _one("note", "traditional", text, traditional, message, as_simplified)
    findings: tuple[Finding, ...] = ()
    if simplified and name == "Cantonese":
        message = "is Simplified; Cantonese is mostly written in Traditional characters (Hong Kong)"
        findings = _one("note", "simplified", text, simplified, message)
    return findings + (_no_cantonese(text) if name == "Cantonese" else ())


def _no_cantonese(text: str) -> tuple[Finding, ...]:
    han = sum(map(_is_han, text))
    if han < 6 or weigh(unspace(text), CANTONESE)[0]:
        return ()
    message = (
        f"None of the {han} characters is particular to Cantonese, so the line may be spoken in Mandarin. "
        "Write it as it is said (係, 唔, 嘅, 咗, 佢) if Cantonese is meant."
    )
    return (Finding("note", "no-cantonese-words", message),)


def _one(
    level, code: str, text: str, places: list[int], what: str, fix: str | None = None
) -> tuple[Finding, ...]:
    spans = tuple((at, at + 1) for at in places)
    return (
        Finding(level, code, f"{_quote(text, spans)} {what}.", start=places[0], end=places[0] + 1, fix=fix),
    )
