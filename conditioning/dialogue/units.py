"""How much there is to say: syllables, morae or characters of a line in its spoken form."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from .characters import HAN, HANGUL, KANA, LATIN
from .kanji import ALONE_FOUR, ALONE_ONE, ALONE_THREE, BEFORE, COMPOUND_ONE, STEM_ONE, STEM_THREE, WORDS
from .languages import language as row
from .spacing import unspace
from .syllables import english_syllables, french_syllables, german_syllables

_SYLLABLES = {"English": english_syllables, "French": french_syllables, "German": german_syllables}
_LATIN_WORD = re.compile(rf"[{LATIN}]+(?:['’][{LATIN}]+)*['’]?")
_CHARACTER = re.compile(f"[{HAN}{KANA}{HANGUL}]")
_DIGIT = re.compile(r"\d")
_LONGEST_LATIN = 60  # letters; what is longer is no word, and is counted in pieces
_INITIALS = re.compile(r"(?=[A-Z]{2,5}$)(?:[^AEIOUY]+|[A-Z]{2,3})$")  # read letter by letter

# A digit that was left is read as a word: about so many units of each language.
_PER_DIGIT = {"English": 1.3, "French": 1.2, "German": 1.3, "Japanese": 2.0}
_MORAE_PER_SYLLABLE = 1.7  # of a foreign word in Japanese

_SMALL_KANA = "ぁぃぅぇぉゃゅょゎァィゥェォャュョヮㇰ-ㇿｧｨｩｪｫｬｭｮ"  # part of the mora before
_MORA = re.compile(f"(?![{_SMALL_KANA}])[{KANA}]")
_HAN_RUN = re.compile(f"[{HAN}]+")
_AN_INFLECTION = re.compile("[ぁ-ん]")
# After a character alone these are particles or the copula, so it is a noun; other kana inflect it.
_PARTICLE = re.compile(
    "[がをはにのともへやだ、。！？]|です|でし|から|まで|より|さん|さま|ちゃん|くん|たち|じゃ|なら|な(?![いかくけらりるれろさ])|で(?!き)|か(?![っいくけらりるれろえわ])"
)
_OF_SURU = re.compile("[しすさせ]|でき")  # 勉強する: a compound keeps its reading before it


def _read_words() -> dict[str, int]:
    table, count = {}, 0
    for item in WORDS.split():
        if item.isdigit():
            count = int(item)
        else:
            table[item] = count
    return table


_WORD_MORAE = _read_words()
_HAN_PIECE = re.compile("|".join([*sorted(_WORD_MORAE, key=len, reverse=True), "."]))
_ALONE = {**dict.fromkeys(ALONE_ONE, 1), **dict.fromkeys(ALONE_THREE, 3), **dict.fromkeys(ALONE_FOUR, 4)}
_STEM = {**dict.fromkeys(STEM_ONE, 1), **dict.fromkeys(STEM_THREE, 3)}
_COMPOUND = dict.fromkeys(COMPOUND_ONE, 1)


def count(text: str, language: str) -> float:
    """Syllables (English, French, German), morae (Japanese) or characters (Mandarin, Cantonese, Korean).

    The text is spaced or not. Punctuation counts nothing; a digit, and a word in another script than the
    language's own, count about what they take to say.
    """
    name = row(language).name
    if name in _SYLLABLES:
        own = _latin(text, _SYLLABLES[name])
        return float(own + len(_CHARACTER.findall(text))) + _digits(text, name)
    if name == "Japanese":
        plain = unspace(text)
        foreign = _MORAE_PER_SYLLABLE * _latin(plain, english_syllables)
        return _morae(plain) + len(re.findall(f"[{HANGUL}]", plain)) + foreign + _digits(plain, name)
    return float(len(_CHARACTER.findall(text)) + _latin(text, english_syllables)) + _digits(text, name)


def unit_word(language: str, number: float) -> str:
    """What is counted, for a sentence: "syllable" or "syllables", "morae", "characters"."""
    unit = row(language).unit
    if number == 1:
        return unit
    return "morae" if unit == "mora" else unit + "s"


def _digits(text: str, name: str) -> float:
    return _PER_DIGIT.get(name, 1.0) * len(_DIGIT.findall(text))


def _latin(text: str, syllables: Callable[[str], int]) -> int:
    """Syllables of the words in Latin letters; among CJK characters they are read as English."""
    words = Counter(
        word[at : at + _LONGEST_LATIN]
        for word in _LATIN_WORD.findall(text)
        for at in range(0, len(word), _LONGEST_LATIN)
    )
    return sum(times * (_initials(word) or syllables(word)) for word, times in words.items())


def _initials(word: str) -> int:
    """Syllables of an abbreviation read letter by letter, else 0; a W has three in English."""
    return len(word) + 2 * word.count("W") if _INITIALS.match(word) else 0


def _morae(text: str) -> float:
    total = len(_MORA.findall(text))
    for run in _HAN_RUN.finditer(text):
        total += _han_morae(run.group(), text[run.end() : run.end() + 3])
    return float(total)


def _han_morae(run: str, after: str) -> int:
    """Morae of Han characters that stand together, by what follows them: words first, then single ones."""
    inflected = run[-1] + after[:1] in BEFORE or bool(
        _AN_INFLECTION.match(after) and not _PARTICLE.match(after)
    )
    total, before = 0, ""
    for match in _HAN_PIECE.finditer(run):
        piece = match.group()
        if len(piece) > 1:
            total += _WORD_MORAE[piece]
            continue
        character = before if piece == "々" and before else piece
        if inflected and match.end() == len(run) and (len(run) == 1 or not _OF_SURU.match(after)):
            total += BEFORE.get(character + after[:1]) or _STEM.get(character, 2)
        elif len(run) == 1:
            total += _ALONE.get(character, 2)
        else:
            total += _COMPOUND.get(character, 2)
        before = character
    return total
