"""The sentences a prompt's body is built of, each with words that tell it from all others when it is read back.

A field always follows words of its own ("The setting is …", "In this shot: …"), so that parse.py can find
it again. Filler describes face, framing, light and camera and is true of any scene with a still camera; it
names no thing, no hand and no movement of the camera.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .document import Side, Speaker

WORDS_AT_LEAST, WORDS_AT_MOST = 150, 200  # of the body, dialogue included

OPENING = "A static "
STILL = "The camera and every torso stay still."
SILENT_CAST = "Whoever is not speaking stays silent with closed lips."
END_OF_SPEECH = "After the last word the lips close, and the pose holds until the final frame."
NO_SPEECH = "Nobody speaks: the lips stay closed until the final frame."
APPEARANCE = "Visible details: "
ACTION = "In this shot: "
CUT = "The picture changes to a static "

BEFORE_LINES = (
    "Every face is level, well framed and in sharp focus throughout.",
    "Brows, cheeks and gaze follow the meaning of each phrase with small, precise motion.",
    "The shoulders rest, and only a slight sway of the head goes with the breathing.",
    "Blinks come at a calm, natural rate.",
    "Skin, hair and clothing look the same from the first frame to the last.",
)
AFTER_LINES = (
    "The background stays calm, slightly soft and unchanged.",
    "The light keeps its direction and strength.",
    "Colours are natural and the exposure is steady.",
    "The head keeps its place in the picture and the eyeline stays where it began.",
    "Fine detail in eyes, lashes and lips can be seen at all times.",
    "The edges of each figure are clean against the backdrop.",
    "All motion is slow, small and continuous, as in a filmed interview.",
    "It looks like real footage, taken in one piece from eye level.",
    "Reflections in the eyes are stable, and the outline of the jaw keeps its shape.",
    "Nothing enters the picture and nothing leaves it.",
)
OF_SPEECH = (  # stand in BEFORE_LINES where somebody speaks
    "Lips, teeth and tongue form each syllable clearly and in time with the voice.",
    "Between phrases the jaw relaxes and a quiet breath is visible.",
    "Each voice is close, dry and clear above any other sound.",
)
OF_SILENCE = (
    "Quiet breathing lifts the chest a little and lets it sink again.",
    "The thoughts behind the eyes show in the brow alone.",
)

# In the order in which they are taken until the body is long enough; speech first, for the lips matter most.
FILLER_WITH_SPEECH = (
    *(OF_SPEECH[0], *BEFORE_LINES[:3], AFTER_LINES[0], AFTER_LINES[1], *OF_SPEECH[1:]),
    *(*BEFORE_LINES[3:], *AFTER_LINES[2:]),
)
FILLER_WITHOUT_SPEECH = (
    *(*BEFORE_LINES[:3], *OF_SILENCE, *AFTER_LINES[:2], *BEFORE_LINES[3:], *AFTER_LINES[2:]),
)
BEFORE = frozenset((*BEFORE_LINES, *OF_SPEECH, *OF_SILENCE))
FILLERS = frozenset((*BEFORE, *AFTER_LINES))

SIDE_WORDS: dict[Side, str] = {
    "": "",
    "left": " on the left",
    "centre": " in the centre",
    "right": " on the right",
}
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")  # seconds of silence


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FEMININE = _words(
    "woman girl lady mother daughter grandmother aunt sister wife queen actress "
    "businesswoman waitress nun witch bride hostess princess grandma mum mom she her"
)
_MASCULINE = _words(
    "man boy gentleman father son grandfather uncle brother husband king actor monk priest "
    "businessman waiter wizard groom host prince grandpa dad guy he his"
)
# Words that a description may begin with in a capital without being a name.
_COMMON = _words(
    "young old elderly middle-aged tall short little small woman man girl boy lady gentleman person child "
    "teenage teenager adult bearded bald slim smiling serious professional female male blonde dark red grey "
    "gray white black blue green mother father host presenter doctor nurse teacher student singer"
)
_ARTICLE = re.compile(r"(?:(?:an?|the)\s+(?=\S))+", re.IGNORECASE)
_VOWEL = re.compile(r"(?!one\b|once\b|uni|eu|use)[aeiou]|hour|honest|heir", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Mention:
    """How the body speaks of one member of the cast."""

    first: str  # "a young woman, red coat, on the left"
    later: str  # "the young woman on the left"
    possessive: str  # "her"


def without_article(words: str) -> str:
    """ "a low voice" -> "low voice" """
    found = _ARTICLE.match(words)
    return words[found.end() :] if found else words


def with_article(words: str) -> str:
    """ "old man" -> "an old man" """
    return f"{'an' if _VOWEL.match(words) else 'a'} {words}"


def capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def is_name(description: str) -> bool:
    """Whether it is a name rather than a description: "Ada Lovelace", "小明", but not "Young woman"."""
    words = description.partition(",")[0].split()
    if not words or words[0].lower() in _COMMON:
        return False
    return not any(word[0].islower() or word[0].isdigit() for word in words)


def _in_a_sentence(description: str) -> str:
    first = description.split(maxsplit=1)[0] if description.strip() else ""
    return description[:1].lower() + description[1:] if first.lower().strip(",") in _COMMON else description


def possessive(description: str) -> str:
    """his, her or their, by the first word that tells."""
    for word in re.findall(r"[a-z]+", description.lower()):
        if word in _FEMININE:
            return "her"
        if word in _MASCULINE:
            return "his"
    return "their"


def mentions(cast: Sequence[Speaker]) -> dict[str, Mention]:
    """{name: Mention}. Later mentions are short where that leaves no doubt, else they repeat the description."""
    heads = [_head(speaker) + SIDE_WORDS[speaker.side] for speaker in cast]
    return {
        speaker.name: Mention(
            first=_first(speaker),
            later=head if heads.count(head) == 1 else _the(speaker.description) + _side(speaker),
            possessive=possessive(speaker.description),
        )
        for speaker, head in zip(cast, heads, strict=True)
    }


def _the(description: str) -> str:
    return description if is_name(description) else f"the {_in_a_sentence(description)}"


def _head(speaker: Speaker) -> str:
    return _the(speaker.description.partition(",")[0].strip())


def _side(speaker: Speaker) -> str:
    return ("," if "," in speaker.description and speaker.side else "") + SIDE_WORDS[speaker.side]


def _first(speaker: Speaker) -> str:
    words = speaker.description
    return (words if is_name(words) else with_article(_in_a_sentence(words))) + _side(speaker)


def told(field: str, value: str) -> str:
    """ "The setting is a kitchen." for a phrase, "The setting: They sit." for what begins like a sentence."""
    return f"The {field} is {value}." if value[:1].islower() else f"The {field}: {value}."


def opening(framing: str, cast: Sequence[str]) -> str:
    """The first sentence; ``cast`` holds first mentions."""
    if not cast:
        return f"{OPENING}{framing} opens the film."
    shown = "; ".join(cast[:-1]) + "; and " + cast[-1] if len(cast) > 1 else cast[0]
    return f"{OPENING}{framing} shows {shown}."


def silence(seconds: int) -> str:
    """ "After a silence of about two seconds, ", or the usual brief pause for 0."""
    if seconds < 1:
        return "After a brief pause, "
    plural = "" if seconds == 1 else "s"
    return f"After a silence of about {NUMBERS[min(seconds, len(NUMBERS)) - 1]} second{plural}, "


def trigger(mention: Mention, before: Mention | None, seconds: int, *, short: bool = False) -> str:
    """What opens the mouth, up to the quotation mark; ``before`` spoke last, ``seconds`` ago."""
    who, whose = mention.later, mention.possessive
    if before is None:
        return f"At the start, {who} parts {whose} lips and says, "
    if short and seconds < 1:
        return f"Then {who} opens {whose} mouth and says, "
    if before == mention:
        return f"{silence(seconds)}{who} opens {whose} mouth again and says, "
    return f"{silence(seconds)}the speaker changes: {who} opens {whose} mouth and says, "


def delivered(pace: str, voice: str, delivery: str) -> str:
    """How a line is said: the sentence after it."""
    sound = f" in {with_article(voice)} voice" if voice else ""
    manner = f": {delivery}" if delivery else ""
    return f"The line is delivered at a {pace} pace{sound}{manner}."


def listening(names: Sequence[str]) -> str:
    """Who hears it with closed lips."""
    who = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
    return capital(f"{who} {'listen' if len(names) > 1 else 'listens'} in silence with closed lips.")
