"""A scene as the model's text: a body in English, the dialogue again in rows, and one background sound.

The three paragraphs are those of the reference's prompts. Each line stands in the text twice, prepared:
cleaned, its numbers spelled out, its characters spaced where the language is written so. ``parse`` reads
the text back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import wording
from .cleaning import clean
from .document import Line, Scene, Shot, Speaker
from .findings import Change
from .languages import LANGUAGES
from .spacing import space
from .spoken import spoken_form

NO_SOUND = "<No prominent background sound>"
NO_DIALOGUE = "<No dialogue>"
DIALOGUE = "Dialogue:"
SOUND = "Background Sound:"


@dataclass(frozen=True, slots=True)
class Prepared:
    """One line's text at each stage; the last is what the prompt holds."""

    cleaned: str
    spoken: str
    spaced: str
    cleaning: tuple[Change, ...] = ()  # placed in the text as typed
    spelling: tuple[Change, ...] = ()  # placed in ``cleaned``


def prepare(line: Line) -> Prepared:
    """Cleaned, spelled out if wished, spaced if the language is; a language not known is only cleaned."""
    cleaned = clean(line.text)
    row = LANGUAGES.get(line.language)
    if row is None:
        return Prepared(cleaned.text, cleaned.text, cleaned.text, cleaned.changes)
    spoken, spelling = cleaned.text, ()
    if line.spell_out:
        form = spoken_form(cleaned.text, line.language)
        spoken, spelling = form.text, form.changes
    spaced = space(spoken) if row.spaced else spoken
    return Prepared(cleaned.text, spoken, spaced, cleaned.changes, spelling)


def tidy(scene: Scene) -> Scene:
    """The scene as the prompt can hold it; what ``parse`` gives back, but for names and the lines' spacing.

    Fields are cleaned and lose their last full stop, descriptions and voices their article. There is at
    least one shot, and everybody who speaks is in the cast. A start is timing and not text, and a pause is
    whole seconds between two lines. A body leaves only cast, lines and sound.
    """
    cast = [_tidy_speaker(speaker, scene) for speaker in scene.cast]
    known = {speaker.name for speaker in cast}
    for name in dict.fromkeys(line.speaker for line in scene.lines):
        if name not in known:
            cast.append(Speaker(name, wording.without_article(_field(name))))
    if scene.body is not None and scene.body.strip():
        return _tidy_pasted(scene, cast)
    shots = [replace(shot, action=_field(shot.action), lines=tuple(_tidy_line(line) for line in shot.lines))
             for shot in scene.shots]  # fmt: skip
    _end_pause(shots)
    return Scene(
        tuple(cast),
        tuple(shots) or (Shot(),),
        _field(scene.appearance),
        _field(scene.setting),
        _field(scene.lighting),
        _field(scene.mood),
        sound_name(scene.sound),
    )


def _tidy_pasted(scene: Scene, cast: list[Speaker]) -> Scene:
    lines = tuple(replace(_tidy_line(line), delivery="", pace="natural", pause=None) for line in scene.lines)
    spoken_by = {line.speaker for line in lines}
    kept = tuple(replace(speaker, side="", voice="") for speaker in cast if speaker.name in spoken_by)
    return Scene(kept, (Shot(lines),), sound=sound_name(scene.sound), body=scene.body.strip())


def _end_pause(shots: list[Shot]) -> None:
    for index in range(len(shots) - 1, -1, -1):
        if lines := shots[index].lines:
            shots[index] = replace(shots[index], lines=(*lines[:-1], replace(lines[-1], pause=None)))
            return


def _field(text: str) -> str:
    return clean(text).text.strip().rstrip(" .。")


_VOICE = re.compile(r"(?:\s+voice)+\Z", re.IGNORECASE)


def _tidy_speaker(speaker: Speaker, scene: Scene) -> Speaker:
    speaks = any(line.speaker == speaker.name for line in scene.lines)
    voice = wording.without_article(_field(speaker.voice)) if speaks else ""
    description = wording.without_article(_field(speaker.description)) or "person"
    return replace(speaker, description=description, voice=_VOICE.sub("", voice))


def _tidy_line(line: Line) -> Line:
    seconds = silent_seconds(line.pause)
    return replace(
        line, delivery=_field(line.delivery), start=None, pause=float(seconds) if seconds else None
    )


def silent_seconds(pause: float | None) -> int:
    """Whole seconds that the body speaks of, at most nine; 0 for the usual pause."""
    return min(math.floor(pause + 0.5), len(wording.NUMBERS)) if pause is not None and pause > 0 else 0


def sound_name(text: str) -> str:
    """The sound without brackets; empty for none."""
    words = clean(text).text.strip(" <>＜＞").rstrip(" .。<>＜＞")
    return "" if is_no_sound(words) else words


_NO_SOUND = re.compile(
    r"(?:no|without)(?: prominent| any)*(?: background)? (?:sounds?|noises?)(?: effects?)?|none|silence|n/?a",
    re.IGNORECASE,
)


def is_no_sound(words: str) -> bool:
    """Whether it says, in one way or another, that there is none."""
    return not words or _NO_SOUND.fullmatch(words) is not None


def compose(scene: Scene) -> str:
    """The prompt. Never refuses: what is wrong with a scene is for ``lint`` to say."""
    return compose_prepared(scene, [prepare(line).spaced for line in scene.lines])


def compose_prepared(scene: Scene, texts: Sequence[str]) -> str:
    """The prompt of a scene whose lines have been prepared already, in the order of the film."""
    scene = tidy(scene)
    rows = "\n".join(
        f'<{scene.speaker(line.speaker).description}, {line.language}>: "{text}"'
        for line, text in zip(scene.lines, texts, strict=True)
    )
    sound = f"<{scene.sound}>" if scene.sound else NO_SOUND
    return f"{_body(scene, texts)}\n\n{DIALOGUE}\n{rows or NO_DIALOGUE}\n\n{SOUND}\n{sound}"


def compose_body(scene: Scene, texts: Sequence[str]) -> str:
    """The first paragraph alone; ``texts`` are the prepared lines."""
    return _body(tidy(scene), texts)


def body_words(body: str) -> int:
    """Words of a body as they are counted everywhere here: what white space separates, dialogue included."""
    return len(body.split())


def _body(scene: Scene, texts: Sequence[str]) -> str:
    if scene.body is not None:
        return scene.body
    for brevity in range(3):
        before, after = _sentences(scene, texts, brevity)
        if sum(map(body_words, (*before, *after))) <= wording.WORDS_AT_MOST:
            break
    first, last = filler(before, after, texts)
    # Filler stands in front of the first shot's action and lines, and after the last line.
    place = (
        next(index for index, sentence in enumerate(before) if sentence == "")
        if "" in before
        else len(before)
    )
    return " ".join(part for part in (*before[:place], *first, *before[place:], *after, *last) if part)


def _sentences(scene: Scene, texts: Sequence[str], brevity: int) -> tuple[list[str], list[str]]:
    """What must be said, to the last line and after it; an empty string marks the filler's place.

    ``brevity`` 1 leaves out what is as usual: a natural delivery, and who listens to each line; 2 also says in
    fewer words that the next line begins.
    """
    mention = wording.mentions(scene.cast)
    parts = [
        wording.opening(scene.shots[0].framing, [person.first for person in mention.values()]),
        wording.STILL,
    ]
    if scene.appearance:
        parts.append(f"{wording.APPEARANCE}{scene.appearance}.")
    for field, value in (("setting", scene.setting), ("lighting", scene.lighting), ("mood", scene.mood)):
        if value:
            parts.append(wording.told(field, value))
    if brevity and len(scene.cast) > 1 and texts:
        parts.append(wording.SILENT_CAST)
    parts.append("")
    remaining = iter(texts)
    last: Line | None = None
    heard: set[str] = set()
    for number, shot in enumerate(scene.shots):
        if number:
            parts.append(f"{wording.CUT}{shot.framing}.")
        if shot.action:
            parts.append(f"{wording.ACTION}{shot.action}.")
        for line in shot.lines:
            parts += _spoken(scene, mention, line, last, next(remaining), line.speaker not in heard, brevity)
            last = line
            heard.add(line.speaker)
    return parts, [wording.END_OF_SPEECH if texts else wording.NO_SPEECH]


def _spoken(
    scene, mention, line: Line, last: Line | None, text: str, is_first: bool, brevity: int
) -> list[str]:
    before = mention[last.speaker] if last else None
    seconds = silent_seconds(last.pause) if last else 0
    parts = [f'{wording.trigger(mention[line.speaker], before, seconds, short=brevity > 1)}"{text}"']
    voice = scene.speaker(line.speaker).voice if is_first else ""
    if not brevity or voice or line.delivery or line.pace != "natural":
        parts.append(wording.delivered(line.pace, voice, line.delivery))
    others = [person.later for name, person in mention.items() if name != line.speaker]
    if others and not brevity and (last is None or last.speaker != line.speaker):
        parts.append(wording.listening(others))
    return parts


def filler(before: Sequence[str], after: Sequence[str], texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sentences for both places, in their fixed order: as many as make 150 words besides the dialogue, but
    never beyond 200 words with it."""
    total = sum(map(body_words, (*before, *after)))
    dialogue = sum(map(body_words, texts))
    chosen: list[str] = []
    for sentence in wording.FILLER_WITH_SPEECH if texts else wording.FILLER_WITHOUT_SPEECH:
        if total - dialogue >= wording.WORDS_AT_LEAST:
            break
        if total + body_words(sentence) <= wording.WORDS_AT_MOST:
            chosen.append(sentence)
            total += body_words(sentence)
    return [s for s in chosen if s in wording.BEFORE], [s for s in chosen if s not in wording.BEFORE]
