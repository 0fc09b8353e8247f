"""Japanese text in kana, for a voice that reads no Han characters; needs the optional package sudachipy."""

from __future__ import annotations

import re
from functools import cache

from ...errors import missing_package

_HAN = re.compile("[々〇\u3400-\u9fff\uf900-\ufaff]")
_TO_HIRAGANA = str.maketrans({chr(code): chr(code - 0x60) for code in range(ord("ァ"), ord("ヶ"))})
_PARTICLES = {"は": "わ", "へ": "え", "を": "お"}  # as they are spoken


def kana(text: str) -> str:
    """``text`` with every Han character read; text without one comes back as it is.

    Raises HappyHorseError where sudachipy is needed and not installed.
    """
    if not _HAN.search(text):
        return text
    spoken = []
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

        return dictionary.Dictionary(dict="small").create()
    except ImportError:
        raise missing_package("sudachipy", "Reading Japanese characters aloud", "ja") from None
