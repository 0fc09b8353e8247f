"""The seven languages, one row each: what the model calls them, what is counted, and how fast they are spoken.

Rates are articulation rates of ten readers per language, pauses over 150 ms taken out: mean, tenth and
ninetieth percentile of units a second, computed from the data of Coupé, Oh, Dediu and Pellegrino, "Different
languages, similar encoding efficiency", Science Advances 5(9), 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import ConditioningError

Unit = Literal["syllable", "mora", "character"]
Script = Literal["Latin", "Han", "Kana", "Hangul"]


@dataclass(frozen=True, slots=True)
class Rate:
    """Units a second without pauses."""

    slow: float
    natural: float
    fast: float


@dataclass(frozen=True, slots=True)
class Language:
    """One language that the model speaks."""

    name: str  # as the model's prompts name it
    code: str  # BCP 47
    unit: Unit  # what a duration is counted in
    rate: Rate
    script: Script  # that tells it from others; Japanese has Han characters besides
    spaced: bool  # every character stands alone in a prompt
    voice: str  # espeak-ng's name for it


LANGUAGES = {
    row.name: row
    for row in (
        Language("Mandarin", "zh", "character", Rate(5.10, 5.86, 6.70), "Han", True, "cmn"),
        Language("Cantonese", "yue", "character", Rate(4.97, 5.57, 6.06), "Han", True, "yue"),
        Language("English", "en", "syllable", Rate(5.51, 6.34, 7.40), "Latin", False, "en-us"),
        Language("Japanese", "ja", "mora", Rate(7.37, 8.03, 8.73), "Kana", True, "ja"),
        Language("Korean", "ko", "character", Rate(6.12, 7.12, 8.14), "Hangul", True, "ko"),
        Language("French", "fr", "syllable", Rate(6.08, 6.88, 7.79), "Latin", False, "fr"),
        Language("German", "de", "syllable", Rate(4.70, 6.09, 7.23), "Latin", False, "de"),
    )
}


def language(name: str) -> Language:
    """The row of ``name``; ConditioningError names the seven for any other."""
    try:
        return LANGUAGES[name]
    except KeyError:
        raise ConditioningError(
            f"The model does not speak {name!r}; it speaks {', '.join(LANGUAGES)}. Choose the nearest of these, or "
            "write the line in one of them."
        ) from None
