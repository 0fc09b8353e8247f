"""How long a line takes to say: units over the language's rate, and the pauses that its punctuation asks for.

    natural = units / rate + pauses        slow, fast: the tenth and ninetieth percentile of readers

Pauses after Liu et al., Frontiers in Psychology 2022, and Campione and Véronis 2002. Speakers differ by
8 to 16 %, so a count within 3 % is good enough.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .document import Pace
from .languages import language as row
from .units import count

# All constants of the estimate, for a calibration to test. Seconds.
COMMA = 0.22
CLAUSE = 0.30  # semicolon, colon, dash
SENTENCE = 0.45
TRAILING = 0.50  # an ellipsis
FAST_PAUSES = 0.6  # share of a pause that a fast speaker keeps
SLOW_PAUSES = 1.5
PACES: dict[Pace, float] = {"very slow": 0.65, "slow": 0.80, "natural": 1.0, "fast": 1.15, "very fast": 1.30}
EMOTIONAL = 1 / 1.2  # the rate of a line that is whispered, wept or trembling

_MOVED = re.compile(
    r"\b(?:whisper\w*|murmur\w*|sob\w*|weep\w*|wept|cry\w*|cries|tear(?:s|ful|fully)|trembl\w*|shak(?:y|ing)"
    r"|emotional\w*|chok\w*|breathless\w*|mourn\w*|griev\w*|sigh\w*|hushed|broken voice|heartbroken)\b",
    re.IGNORECASE,
)
_PACE_WORDS: tuple[tuple[Pace, re.Pattern[str]], ...] = tuple(
    (pace, re.compile(rf"\b(?:{words})\b", re.IGNORECASE))
    for pace, words in (
        ("very slow", r"(?:very|extremely|painfully) slow(?:ly)?"),
        ("very fast", r"(?:very|extremely) (?:fast|quick(?:ly)?|rapid(?:ly)?)"),
        ("slow", r"slow(?:ly)?|drawl\w*|unhurried|measured|drawn[- ]out|deliberate(?:ly)?"),
        (
            "fast",
            r"fast|quick(?:ly)?|rapid(?:ly)?|hurried(?:ly)?|rush(?:ed|es|ing)|hast(?:y|ily)|urgent(?:ly)?|breakneck",
        ),
    )
)

# One pause for a group of marks, the longest of its own. A mark inside a number or a word is none, nor is an
# apostrophe; a dash counts where it stands free or is an em dash.
_GROUP = re.compile(
    r"(?:(?:[、，；：。．！？…⋯—―]|[,;:.!?](?=[\s\"'”’»)\]]|[,;:.!?]|[^\x00-\u024f]|$)|(?<=\s)[-–](?=\s))"
    r"[\s\"'”’»「」『』“‘«()（）《》]*)+"
)
_SAID = re.compile(r"\w")
_LENGTHS = (("…⋯", TRAILING), ("。．.!?！？", SENTENCE), (";:；：—―-–", CLAUSE), (",、，", COMMA))


@dataclass(frozen=True, slots=True)
class Duration:
    """A line's length in seconds: ``natural`` with its ``pauses``, ``slow`` the longest, ``fast`` the shortest."""

    units: float
    pauses: float
    slow: float
    natural: float
    fast: float


def estimate(text: str, language: str, pace: Pace = "natural", delivery: str = "") -> Duration:
    """The duration of a line in its spoken form, spaced or not; zeros if nothing in it is said.

    ``delivery`` is English, as it stands in the prompt: weeping and whispering slow a line down, and so on; its
    words about speed count where ``pace`` is natural.
    """
    rate, units = row(language).rate, count(text, language)
    if not units:
        return Duration(0.0, 0.0, 0.0, 0.0, 0.0)
    silence, factor = pauses(text), _factor(pace, delivery)
    return Duration(
        units,
        silence,
        units / (rate.slow * factor) + SLOW_PAUSES * silence,
        units / (rate.natural * factor) + silence,
        units / (rate.fast * factor) + FAST_PAUSES * silence,
    )


def pauses(text: str) -> float:
    """Seconds of silence inside a line; none before its first word or after its last."""
    first = _SAID.search(text)
    if first is None:
        return 0.0
    last = len(text)
    while not _SAID.match(text[last - 1]):
        last -= 1
    return sum(_length(match.group()) for match in _GROUP.finditer(text, first.end(), last))


def _length(marks: str) -> float:
    if "..." in marks:
        return TRAILING
    return next((seconds for kinds, seconds in _LENGTHS if any(mark in kinds for mark in marks)), 0.0)


def _factor(pace: Pace, delivery: str) -> float:
    """What the rate is multiplied with."""
    if pace == "natural":
        pace = next((name for name, words in _PACE_WORDS if words.search(delivery)), "natural")
    return PACES[pace] * (EMOTIONAL if _MOVED.search(delivery) else 1.0)
