"""What one scene asks for and a negative prompt may forbid: music, a second voice, a cut, a whisper.

One row each: how the scene says it, and the phrases that would fight it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .document import Scene


class Conflict(NamedTuple):
    """A wish, and what is against it."""

    reason: str
    is_asked: Callable[[Scene], bool]
    phrase: re.Pattern  # of the negative prompt


_DENIED = re.compile(r"\b(?:no|not|without|never)\b(?:\s+\w+){1,2}", re.IGNORECASE)
_ANY_SOUND = re.compile(
    "sounds?|noises?|voices?|background|audio|prominent|from|over|under|with|behind|through|near|room"
    # Words for how it sounds say nothing of what it is: soft rain has nothing to do with soft focus.
    "|soft(?:ly)?|loud(?:ly)?|quiet(?:ly)?|gentle|gently|faint(?:ly)?|distant|steady|slow(?:ly)?|light|heavy|deep|warm|busy"
)


def _wish(words: str, *fields: str) -> Callable[[Scene], bool]:
    """Whether a scene's fields hold one of ``words`` (a regular expression), and not after "no"."""
    pattern = re.compile(rf"\b(?:{words})", re.IGNORECASE)

    def is_asked(scene: Scene) -> bool:
        return any(
            pattern.search(_DENIED.sub(" ", text)) for field in fields for text in _texts(scene, field)
        )

    return is_asked


def _texts(scene: Scene, field: str) -> list[str]:
    if field == "delivery":
        return [line.delivery for line in scene.lines]
    if field == "voice":
        return [speaker.voice for speaker in scene.cast]
    if field == "action":
        return [shot.action for shot in scene.shots]
    if field == "description":
        return [speaker.description for speaker in scene.cast]
    return [getattr(scene, field) or ""]


def _speakers(scene: Scene) -> int:
    return len({line.speaker for line in scene.lines})


def _people(scene: Scene) -> int:
    return max(len(scene.cast), _speakers(scene))


def shared_sound(sound: str, phrase: str) -> str | None:
    """A word of the scene's own sound that the phrase forbids; endings aside."""
    forbidden = {word[:5] for word in re.findall(r"[a-z]{4,}", phrase.lower())}
    for word in re.findall(r"[a-z]{4,}", _DENIED.sub(" ", sound.lower())):
        if word[:5] in forbidden and not _ANY_SOUND.fullmatch(word):
            return word
    return None


def _forbids(words: str) -> re.Pattern:
    return re.compile(rf"\b(?:{words})", re.IGNORECASE)


_SEEN = ("setting", "appearance", "action", "body")
_SAID = ("delivery", "voice", "body")
_MUSIC = "music|song|sing(?:s|ing|er)?\\b|melod|piano|guitar|violin|orchestra|band\\b|drum|choir|instrument|jazz|humming"
_CROWD = "crowd|audience|chatter|murmur|applau|cheer|spectators|busy (?:caf|bar|street|market)|people talking"
CONFLICTS = (
    Conflict(
        "several people speak in the scene",
        lambda scene: _speakers(scene) > 1,
        _forbids(
            "(?:second|two|other|another|multiple|several|many|more than one) (?:voice|speaker)|background talk|"
            "overlapping (?:voice|speech)|other people (?:talk|speak)"
        ),
    ),
    Conflict(
        "several people are in the scene",
        lambda scene: _people(scene) > 1,
        _forbids("(?:second|two|other|multiple|several|many|extra|more than one) (?:people|person|face)"),
    ),
    Conflict(
        "the scene has several shots",
        lambda scene: len(scene.shots) > 1,
        _forbids(
            "(?:sudden |jump |hard |abrupt )?cuts?\\b|scene (?:change|transition)|shot change|multiple shots|transition"
        ),
    ),
    Conflict(
        "a line is to be spoken fast",
        lambda scene: (
            any(line.pace in ("fast", "very fast") for line in scene.lines)
            or _wish("fast|quick|hurried|rushed|rapid|breathless", *_SAID)(scene)
        ),
        _forbids("gabbl|(?:fast|rushed|hurried|rapid)"),
    ),
    Conflict(
        "a line is to be spoken slowly",
        lambda scene: (
            any(line.pace in ("slow", "very slow") for line in scene.lines)
            or _wish("slow|drawl|drawn[- ]out|lingering", *_SAID)(scene)
        ),
        _forbids("(?:slow|sluggish|dragging|stretched)|slow"),
    ),
    Conflict(
        "a line is whispered or low",
        _wish("whisper|murmur|under (?:his|her|their) breath|hushed|barely audible|soft", *_SAID),
        _forbids("whisper|murmur|mumbl|hushed|breathy|faint|quiet|low volume|breath"),
    ),
    Conflict(
        "somebody breathes audibly",
        _wish(
            "pant|gasp|breathless|out of breath|sob|heav(?:y|ily) breath|breathes? heav|sigh|cry\\b|cries|crying",
            *_SAID,
            "sound",
        ),
        _forbids("breath|gasp|pant|sigh"),
    ),
    Conflict(
        "somebody shouts, weeps or laughs",
        _wish("shout|yell|scream|cry\\b|cries|crying|sob|weep|tears|laugh|wail|roar", *_SAID),
        _forbids("shout|yell|scream|cry|sob|weep|laugh|theatrical|overact|exaggerated|loud\\b"),
    ),
    Conflict(
        "a line is to sound flat",
        _wish(
            "monoton|flat\\b|deadpan|robot|mechanical|recit|without emotion|emotionless",
            *_SAID,
            "description",
        ),
        _forbids(
            "monoton|flat|robot|mechanical|emotionless|a speech synth|every sentence on|a line recited|synthetic"
        ),
    ),
    Conflict(
        "somebody hesitates or stammers",
        _wish("stammer|stutter|hesita|falter|stumbl|halting", *_SAID),
        _forbids("stutter(?!ing motion)|stammer|words skipped|pauses in|hesita|(?:unnatural|long) pauses"),
    ),
    Conflict(
        "a voice comes over a telephone, a radio or the like",
        _wish("(?:tele)?phone|radio|megaphone|loudspeaker|intercom|walkie|helmet", *_SAID, "sound"),
        _forbids("a voice from inside|tinny|telephone|radio|muffled|distort"),
    ),
    Conflict(
        "a voice is muffled",
        _wish(
            "muffled|through (?:a|the) (?:door|wall|mask)|behind (?:a|the) (?:door|wall|mask)", *_SAID, *_SEEN
        ),
        _forbids("muffled|a voice as if through|unclear voice"),
    ),
    Conflict(
        "the room echoes",
        _wish(
            "cathedral|church|cave|cavern|tunnel|stairwell|empty hall|warehouse|echo|reverb", "sound", *_SEEN
        ),
        _forbids("echo|reverb|a cavernous"),
    ),
    Conflict(
        "the scene has music",
        _wish(_MUSIC, "sound", "setting", "action", "delivery", "body"),
        _forbids(f"(?:{_MUSIC})"),
    ),
    Conflict(
        "the scene has a crowd",
        _wish(_CROWD, "sound", *_SEEN),
        _forbids(f"(?:{_CROWD})|background talk|many people"),
    ),
    Conflict(
        "the light is to flicker",
        _wish("flicker|candle|fire|torch|strobe|lightning|neon|disco", "lighting", "setting", "body"),
        _forbids("flicker|unstable light|changing light"),
    ),
    Conflict(
        "the light is to be hard or dark",
        _wish(
            "silhouette|low[- ]key|noir|high[- ]contrast|deep shadow|back-?lit|chiaroscuro|dark", "lighting"
        ),
        _forbids("crushed shadow|burnt-out|overexpos|underexpos|dark|high contrast"),
    ),
    Conflict(
        "the picture is to look drawn",
        _wish(
            "cartoon|anime|animated|drawn|drawing|painting|3d[- ]render|cgi|claymation", *_SEEN, "description"
        ),
        _forbids("a drawn|cartoon|anime|cgi|3d|painting|illustration|waxy"),
    ),
    Conflict(
        "writing is to be seen",
        _wish(
            "caption|subtitle|logo|sign\\b|signs\\b|poster|banner|lettering",
            "setting",
            "appearance",
            "action",
        ),
        _forbids("(?:captions?|subtitles?|logos?|text|letters)\\b"),
    ),
    Conflict(
        "the camera is held by hand",
        _wish("hand-?held|shak(?:y|ing) camera", *_SEEN),
        _forbids("a shaking camera|shaky|camera shake|camera motion|unstable camera"),
    ),
)
