"""A rough idea turned into a body by any text-generation model: what it is told, and what it may not do.

The lines are fixed; whatever comes back is checked against them before it is used.
"""

from __future__ import annotations

import re
from dataclasses import replace

from .compose import DIALOGUE, NO_DIALOGUE, NO_SOUND, SOUND, body_words, prepare, sound_name, tidy
from .document import Scene
from .findings import Finding
from .parse import parse
from .scene_rules import body_findings
from .wording import WORDS_AT_LEAST, WORDS_AT_MOST

ROOM_FOR_PICTURE = 120  # words that a body may have besides its dialogue, however long that is

_PREFACE = re.compile(r"\A\s*[^\n\"<]{0,160}:[ \t]*\n+(?=\s*\S)")
_REFUSED = frozenset(
    (
        "camera-move",
        "unbalanced-quotes",
        "unlisted-quote",
        "line-not-in-body",
        "line-repeated",
        "special-token",
    )
) | {"not-english", "repeated-section"}


def instruction(scene: Scene, idea: str = "") -> str:
    """What to ask of a text-generation model; ``idea`` is the person's own rough words."""
    neat = tidy(scene)
    texts = [prepare(line).spaced for line in scene.lines]
    people = [
        f"- {speaker.description}{f', {speaker.side} of the picture' if speaker.side else ''}"
        f"{f'; voice: {speaker.voice}' if speaker.voice else ''}"
        for speaker in neat.cast
    ]
    rows = [
        f'<{neat.speaker(line.speaker).description}, {line.language}>: "{text}"'
        for line, text in zip(neat.lines, texts, strict=True)
    ]
    manners = [
        f"- line {number}: {line.pace} pace{f', {line.delivery}' if line.delivery else ''}"
        for number, line in enumerate(neat.lines, 1)
    ]
    known = [
        f"- {name}: {value}"
        for name, value in (
            ("framing", neat.shots[0].framing),
            *((name, getattr(neat, name)) for name in ("appearance", "setting", "lighting", "mood")),
            ("action", ". ".join(shot.action for shot in neat.shots if shot.action)),
        )
        if value
    ]
    parts = [
        "Write the prompt for a film in which people speak. Answer with three paragraphs, separated by blank lines, "
        "and with nothing before or after them: no title, no remarks, no formatting.",
        f"Paragraph 1, the body: {_length(texts)} words of plain, factual English in the present tense, telling what is "
        "seen and heard in the order in which it happens. Begin with the person, the framing and the place. The camera "
        "stands still and the torso hardly moves: describe face, gaze, breath, light and background. Mention no "
        "movement of the camera, no cut, no walking, and leave hands out of it. Where a line is spoken, write that the "
        "mouth opens, then the line in double quotation marks, exactly as given, once, and then pace, pitch and "
        "loudness of the voice. Whoever does not speak is silent with closed lips. Say who speaks by look and side.",
        "The lines are final. Copy every character and every space of them; translate nothing, correct nothing, leave "
        "nothing out and add no speech of your own.",
        f"Paragraph 2, copied as it is:\n{DIALOGUE}\n" + ("\n".join(rows) or NO_DIALOGUE),
        f"Paragraph 3, copied as it is:\n{SOUND}\n{f'<{neat.sound}>' if neat.sound else NO_SOUND}",
        "Who is seen:\n" + ("\n".join(people) or "- nobody in particular"),
    ]
    if manners:
        parts.append("How the lines are said:\n" + "\n".join(manners))
    if known:
        parts.append("What is settled:\n" + "\n".join(known))
    if idea.strip():
        parts.append(f"The idea to work out:\n{idea.strip()}")
    return "\n\n".join(parts)


def _bounds(texts: list[str]) -> tuple[int, int]:
    return WORDS_AT_LEAST, max(WORDS_AT_MOST, sum(map(body_words, texts)) + ROOM_FOR_PICTURE)


def _length(texts: list[str]) -> str:
    least, most = _bounds(texts)
    return f"{least} to {most}"


def check_enhanced(scene: Scene, answer: str) -> tuple[Scene | None, tuple[Finding, ...]]:
    """``scene`` with the body that a model wrote; None where an error says why it is not to be used.

    Cast, lines and sound stay those of ``scene``. Differences in spaces and in the kind of quotation marks are
    put right, everything else in a line counts as a change of it.
    """
    texts = [prepare(line).spaced for line in scene.lines]
    parsed = parse(_PREFACE.sub("", answer, count=1) if DIALOGUE not in answer[:160] else answer)
    found = [
        _missing(each)
        for each in parsed.findings
        if each.code in ("no-dialogue-section", "no-sound-section", "no-body")
    ]
    found += _lines_kept(scene, texts, parsed.scene)
    body = _body_of(parsed.scene, answer)
    body = _with_lines(body, texts)
    scene = replace(scene, body=body)
    least, most = _bounds(texts)
    if body and not least <= body_words(body) <= most:
        message = f"The body has {body_words(body)} words; {least} to {most} were asked for. Ask again, for that length."
        found.append(Finding("error", "wrong-length", message))
    for each in body_findings(scene, body, texts):
        if each.code in _REFUSED:
            found.append(replace(each, level="error"))
        elif each.code not in ("body-short", "body-long"):
            found.append(each)
    heard, wanted = parsed.scene.sound, sound_name(scene.sound)
    if heard.casefold() != wanted.casefold():
        message = f"The answer's sound is “{heard or 'none'}”; “{wanted or 'none'}” was kept."
        found.append(Finding("warning", "sound-changed", message))
    is_refused = any(each.level == "error" for each in found)
    return (None if is_refused else scene), tuple(found)


def _missing(found: Finding) -> Finding:
    paragraph = {"no-dialogue-section": DIALOGUE, "no-sound-section": SOUND, "no-body": "body"}[found.code]
    message = f"The answer lacks its paragraph {paragraph} Ask again for all three paragraphs."
    return Finding("error", found.code, message)


def _body_of(scene: Scene, answer: str) -> str:
    if scene.body is not None:
        return scene.body
    # What our own composer wrote, word for word, is read into fields.
    return answer.partition(f"\n\n{DIALOGUE}")[0].strip() if DIALOGUE in answer else ""


def _lines_kept(scene: Scene, texts: list[str], answered: Scene) -> list[Finding]:
    found = []
    given = [(line.language, prepare(line).spaced) for line in answered.lines]
    bare = [_bare(text) for _, text in given]
    for index, (line, text) in enumerate(zip(scene.lines, texts, strict=True)):
        if index < len(given) and bare[index] == _bare(text):
            if given[index][0] != line.language:
                message = f"Line {index + 1} is in {line.language} and the answer calls it {given[index][0]}. Ask again."
                found.append(Finding("error", "language-changed", message, line=index))
        elif _bare(text) in bare:
            message = f"Line {index + 1} stands at another place in the answer: {text[:60]}. Ask for the given order."
            found.append(Finding("error", "line-moved", message, line=index))
        elif len(given) < len(texts):
            message = (
                f"Line {index + 1} is missing from the answer: {text[:60]}. Ask for all {len(texts)} lines."
            )
            found.append(Finding("error", "line-dropped", message, line=index))
        else:
            message = f"Line {index + 1} came back changed: “{given[index][1][:60]}” for “{text[:60]}”. Ask for it unchanged."
            found.append(Finding("error", "line-changed", message, line=index))
    if len(given) > len(texts):
        message = f"The answer has {len(given)} lines for {len(texts)}; the first one too many is “{given[len(texts)][1][:60]}”."
        found.append(Finding("error", "line-added", f"{message} Ask for no speech but the given."))
    return found


def _with_lines(body: str, texts: list[str]) -> str:
    """The body with its quotes written as the lines are, where only spaces and marks differ."""
    wanted = {_bare(text): text for text in texts}
    return re.sub(
        r"\"([^\"\n]*)\"|“([^“”\n]*)”",
        lambda found: (
            f'"{wanted[_bare(found.group())]}"' if _bare(found.group()) in wanted else found.group()
        ),
        body,
    )


def _bare(text: str) -> str:
    """The characters of a line without white space and quotation marks, apostrophes in one form."""
    return re.sub(r"[\s\"“”]", "", text.replace("’", "'").replace("‘", "'"))
