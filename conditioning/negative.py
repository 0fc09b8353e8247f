"""What a film should not be: the default negative prompt, in three groups, and a user's own from a file.

Only guided sampling (the base model) reads it. The phrases are this pack's own. They name faults and never
things a scene may hold, such as music, a crowd or a second speaker: guidance would push those out too. What
one scene asks for and another would call a fault, such as a cut or fast speech, ``negative_for`` takes out;
so it does with a user's own text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import ConditioningError
from .dialogue.conflicts import CONFLICTS, shared_sound
from .dialogue.document import Scene

PICTURE_FAULTS = (
    "lips out of time with the words",
    "a mouth that melts or slides over the face",
    "teeth running into one another",
    "a face that turns into another person",
    "crossed or wandering eyes",
    "waxy plastic skin",
    "smeared facial features",
    "ghosted double outlines",
    "limbs that bend the wrong way",
    "a hand with the wrong number of fingers",
    "body parts passing through objects",
    "a backdrop that warps and swims",
    "furniture that appears and vanishes",
    "a shaking camera",
    "a sudden cut or zoom",
    "stuttering motion",
    "a frozen frame",
    "flickering light",
    "burnt-out highlights",
    "crushed shadows",
    "colour banding",
    "square encoding blocks",
    "soft focus over the whole frame",
    "printed captions",
    "a watermark or logo",
    "a drawn or computer-rendered look",
)

SOUND_FAULTS = (
    "a voice late or early against the mouth",
    "speech drowned by its surroundings",
    "a voice from inside a tin or a tube",
    "a voice as if through a wall",
    "overdriven rasping peaks",
    "metallic warbling of low bitrate coding",
    "steady tape noise under the words",
    "mains humming",
    "clicks and dropouts",
    "a cavernous empty-room ring",
    "pumping loudness",
    "sound that stops short of the end",
    "a short loop that repeats",
    "noises that belong to nothing in the picture",
)

DELIVERY_FAULTS = (
    "gibberish syllables",
    "words skipped or doubled or invented",
    "the wrong language or a drifting accent",
    "swallowed word endings",
    "a speech synthesiser's cadence",
    "every sentence on the same pitch",
    "a line recited without thought",
    "theatrical overacting",
    "feeling at odds with the words",
    "a gabbled tempo",
    "syllables stretched to fill the time",
    "pauses in the middle of a word",
    "a voice that changes its owner",
    "smacking and popping close to the microphone",
)


def default_negative() -> str:
    """The three groups as one comma-separated line."""
    return ", ".join(PICTURE_FAULTS + SOUND_FAULTS + DELIVERY_FAULTS)


def read_negative(path: Path) -> str:
    """The text of a UTF-8 file, to stand in for the default; ConditioningError if there is none in it."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise ConditioningError(f"The negative prompt {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConditioningError(
            f"The negative prompt {path} is not UTF-8 text (byte {error.start} is not); save it as UTF-8."
        ) from None
    if not text:
        raise ConditioningError(
            f"The negative prompt {path} is empty; write into it what the film should not be, or name no file."
        )
    return text


@dataclass(frozen=True, slots=True)
class Dropped:
    """A phrase that would have fought the scene."""

    phrase: str
    reason: str  # "the scene has music"


class NegativePrompt(NamedTuple):
    """A negative prompt and what was taken out of it."""

    text: str
    dropped: tuple[Dropped, ...]


def negative_for(scene: Scene, negative: str | None = None) -> NegativePrompt:
    """``negative``, or the default one, without the phrases that ask for the opposite of ``scene``.

    Phrases stand between commas, semicolons and line ends. Without a conflict the text stays as it is.
    """
    text = default_negative() if negative is None else negative
    asked = [conflict for conflict in CONFLICTS if conflict.is_asked(scene)]
    kept, dropped = [], []
    for phrase in filter(None, map(str.strip, re.split("[,;，；、\n]", text))):
        reason = next((conflict.reason for conflict in asked if conflict.phrase.search(phrase)), None)
        if reason is None and (word := shared_sound(scene.sound, phrase)):
            reason = f'the scene\'s sound is "{scene.sound.strip()}" ("{word}")'
        if reason is None:
            kept.append(phrase)
        else:
            dropped.append(Dropped(phrase, reason))
    return NegativePrompt(", ".join(kept) if dropped else text, tuple(dropped))
