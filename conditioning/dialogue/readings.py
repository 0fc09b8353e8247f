"""Japanese text in kana, for a voice that reads no Han characters; needs the optional package sudachipy."""

from __future__ import annotations

import re
from functools import cache

from ...errors import missing_package

_HAN = re.compile("[々〇\u3400-\u9fff\uf900-\ufaff]")
_TO_HIRAGANA = str.maketrans({chr(code): chr(code - 0x60) for code in range(ord("ァ"), ord("ヶ"))})
# Everyday words for which the dictionary's first reading is the formal or the rarer one.
_EVERYDAY = {"私": "わたし", "一度": "いちど", "明日": "あした", "十分後": "じゅっぷんご", "一人": "ひとり"}
_EVERYDAY |= {
    "二人": "ふたり",
    "今日": "きょう",
    "昨日": "きのう",
    "一日中": "いちにちじゅう",
    "後ろ": "うしろ",
    "家": "いえ",
}
_EVERYDAY |= {
    "一晩中": "ひとばんじゅう",
    "上から": "うえから",
    "何か": "なにか",
    "開け": "あけ",
    "開い": "あい",
    "行っ": "いっ",
}
# Not as a part of a longer word: 私 in 私立 is another matter.
_EVERYDAY_WORD = re.compile(
    f"(?<![\u3400-\u9fff])(?:{'|'.join(sorted(_EVERYDAY, key=len, reverse=True))})(?![\u3400-\u9fff])"
)
_PARTICLES = {"は": "わ", "へ": "え", "を": "お"}  # as they are spoken


def kana(text: str) -> str:
    """``text`` with every Han character read; text without one comes back as it is.

    Raises HappyHorseError where sudachipy is needed and not installed.
    """
    if not _HAN.search(text):
        return text
    spoken = []
    text = _EVERYDAY_WORD.sub(lambda found: _EVERYDAY[found.group()], text)
    for morpheme in _tokenizer().tokenize(text):
        surface, reading = morpheme.surface(), morpheme.reading_form()
        is_particle = morpheme.part_of_speech()[0] == "助詞"
        if is_particle and surface in _PARTICLES:
            spoken.append(_PARTICLES[surface])
        else:
            spoken.append(reading.translate(_TO_HIRAGANA) if _HAN.search(surface) else surface)
    return "".join(spoken)


@cache
def _tokenizer():
    try:
        from sudachipy import dictionary

        words = dictionary.Dictionary(dict="small")
    except ImportError:
        raise missing_package("sudachipy", "Reading Japanese characters aloud", "ja") from None
    make = getattr(words, "tokenizer", None) or words.create  # the name before 0.7
    return make()
