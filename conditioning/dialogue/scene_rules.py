"""What can be wrong with a scene beyond its lines: cast, fields, body, sound, length."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

from ...shapes import MAX_TEXT_TOKENS
from .cleaning import clean
from .compose import body_words, sound_name
from .document import Scene, Speaker
from .findings import Finding
from .line_rules import MOST, SPECIAL
from .timeline import CLOSE, OVER, UNDER, Timeline
from .wording import WORDS_AT_LEAST, WORDS_AT_MOST, is_name, without_article

FEW_WORDS = 100  # people came out blurred and doubled with bodies shorter than this
MANY_TOKENS = 600

_CAMERA = re.compile(
    r"\b(?:camera (?:slowly |gently |then |now )?(?:moves?|pans?|tilts?|follows?|circles?|pushes|pulls|flies|zooms?|"
    r"orbits?|tracks?|dollies|rises|glides|drifts|shakes)|pans|panning|pan (?:left|right|up|down|across|to|over)|"
    r"zoom(?:s|ing|ed)?|doll(?:y|ies) (?:in|out|shot)|orbit(?:s|ing)?|tracking shot|crane shot|drone shot|hand-?held|"
    r"cuts? to|jump cut|cross-?fades?|fades? (?:in|out|to)|whip pan|push(?:es)?[- ]in|pulls? back|rack focus|"
    r"time-?lapse|steadicam)\b",
    re.IGNORECASE,
)
_MOTION = re.compile(
    r"\b(?:walk(?:s|ing|ed)?|run(?:s|ning)|danc(?:e|es|ing)|jump(?:s|ing)?|spin(?:s|ning)|leap(?:s|ing)?|"
    r"turn(?:s|ing)? around|stand(?:s|ing)? up|sit(?:s|ting)? down|climb(?:s|ing)?|fight(?:s|ing)?|rid(?:es|ing)|"
    r"driv(?:es|ing)|crawl(?:s|ing)?|swim(?:s|ming)?)\b",
    re.IGNORECASE,
)
_HANDS = re.compile(
    r"\b(?:hands?|fingers?|fists?|palms?|gestur(?:es?|ing)|wav(?:es|ing)|clap(?:s|ping)?|point(?:s|ing) (?:at|to))\b",
    re.IGNORECASE,
)
_RULES = (
    ("camera-move", _CAMERA, "The model keeps the camera still and films without cuts. Leave it out."),
    (
        "large-motion",
        _MOTION,
        "The model shows small motions of a still torso. Leave it out, or expect blur.",
    ),
    ("hands", _HANDS, "Hands come out badly unless the first picture shows them. Leave them out if you can."),
)
_DENIED = re.compile(r"\b(?:no|not|never|without|nor|avoid|free of)(?: \w+){0,2} ?$", re.IGNORECASE)
_FOREIGN = re.compile("[\u0370-\u1dff\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]+")
_QUOTED = re.compile(r'"([^"\n]*)"')
_HEADING = re.compile(r"^(?:Dialogue|Background Sound):", re.MULTILINE)
_SOUNDS = re.compile(r"[,;+&、，；]|\band\b|\bwith\b", re.IGNORECASE)


def cast_findings(scene: Scene) -> Iterator[Finding]:
    """Who is seen, and whether the model can tell them apart."""
    known = Counter(speaker.name for speaker in scene.cast)
    for name, count in known.items():
        if count > 1:
            yield Finding(
                "error", "same-name", f"{count} speakers are called “{name}”. Give each a name of its own."
            )
    for index, line in enumerate(scene.lines):
        if line.speaker not in known:
            names = ", ".join(known) or "nobody"
            message = f"“{line.speaker}” is not in the cast, which holds {names}. Choose one of them, or add a speaker."
            yield Finding("error", "unknown-speaker", message, line=index)
    for speaker in scene.cast:
        yield from _description(speaker)
    if len(scene.cast) < 2:
        return
    if len(scene.cast) > 2:
        message = f"{len(scene.cast)} people are in the scene; the model tells two apart, seldom more. Use two if you can."
        yield Finding("warning", "many-speakers", message)
    for speaker in scene.cast:
        if not speaker.side:
            message = f"Nothing says where “{speaker.name}” is. Set the side, so that the model knows whose lips move."
            yield Finding("warning", "no-side", message)
    for side, count in Counter(speaker.side for speaker in scene.cast if speaker.side).items():
        if count > 1:
            yield Finding(
                "warning", "same-side", f"{count} people are on the {side}. Give each a side of its own."
            )
    yield from _alike(scene.cast)


def _description(speaker: Speaker) -> Iterator[Finding]:
    words = without_article(speaker.description.strip())
    if not words:
        message = f"Speaker “{speaker.name}” has no description. Say in about five words who is seen: young woman, red coat."
        yield Finding("error", "no-description", message)
    elif is_name(words) and len(words.split()) == 1 and words.isascii():
        message = f"“{words}” is a name, and the model does not know whose. Describe who is seen: young woman, red coat."
        yield Finding("warning", "name-for-description", message)
    elif len(words.split()) > 8:
        message = f"“{words[:60]}” has {len(words.split())} words; about five are usual. Put the rest into the appearance."
        yield Finding("note", "long-description", message)


def _alike(cast: Sequence[Speaker]) -> Iterator[Finding]:
    words = [
        frozenset(re.findall(r"\w+", speaker.description.lower())) - {"a", "an", "the"} for speaker in cast
    ]
    for first in range(min(len(cast), 20)):
        for second in range(first + 1, min(len(cast), 20)):
            one, other = words[first], words[second]
            if one and other and len(one & other) >= 0.6 * len(one | other):
                message = (
                    f"“{cast[first].description}” and “{cast[second].description}” are hard to tell apart. Describe them by "
                    "different clothes, age or gender."
                )
                yield Finding("warning", "alike-speakers", message)


def field_findings(scene: Scene) -> Iterator[Finding]:
    """The fields in English, each named in the message; places are in that field."""
    for name, text, line in _fields(scene):
        if not text:
            continue
        is_bracketed = name.startswith(("The description", "The sound"))
        if found := SPECIAL.search(text):
            message = f"{name} holds “{found.group()}”, a command of the tokeniser. Take it out."
            yield Finding("error", "special-token", message, line, found.start(), found.end())
        elif found := re.search("[<>]", text):
            level = "error" if is_bracketed else "warning"
            message = (
                f"{name} holds “{found.group()}”, which encloses who speaks and what is heard. Take it out."
            )
            yield Finding(level, "angle-bracket", message, line, found.start(), found.end())
        if found := re.search('["“”]', text):
            message = f"{name} holds quotation marks; what they enclose would be spoken. Leave them out."
            yield Finding("warning", "quote-in-field", message, line, found.start(), found.end())
        if any(not change.before.isspace() for change in clean(text).changes):
            first = next(change for change in clean(text).changes if not change.before.isspace())
            message = f"{name}: {first.reason}; the prompt has the text without it."
            yield Finding(
                "note", "hidden-character", message, line, first.start, first.start + len(first.before)
            )
        if not name.startswith("The sound"):
            yield from _english(name, text, line)


def _fields(scene: Scene) -> Iterator[tuple[str, str, int | None]]:
    for name in ("appearance", "setting", "lighting", "mood", "sound"):
        yield f"The {name}", getattr(scene, name), None
    for speaker in scene.cast:
        yield f"The description of “{speaker.name}”", speaker.description, None
        yield f"The voice of “{speaker.name}”", speaker.voice, None
    for number, shot in enumerate(scene.shots, 1):
        yield f"The action of shot {number}", shot.action, None
    for index, line in enumerate(scene.lines):
        yield f"The delivery of line {index + 1}", line.delivery, index


def _english(name: str, text: str, line: int | None) -> Iterator[Finding]:
    if found := _FOREIGN.search(text):
        message = (
            f"{name} holds “{found.group()[:30]}”. All but the spoken lines is read in English: translate it."
        )
        yield Finding("warning", "not-english", message, line, found.start(), found.end())
    for code, pattern, advice in _RULES:
        for found in pattern.finditer(text):
            if not _DENIED.search(text[max(0, found.start() - 40) : found.start()]):
                message = f"{name} says “{found.group()}”. {advice}"
                yield Finding("warning", code, message, line, found.start(), found.end())
                break


def film_findings(scene: Scene) -> Iterator[Finding]:
    """Shots, framing and how much is asked of one clip."""
    if len(scene.shots) > 1:
        message = f"The scene has {len(scene.shots)} shots; the model was made for one. A clip for each gives steadier faces."
        yield Finding("warning", "several-shots", message)
    for number, shot in enumerate(scene.shots, 1):
        if shot.framing in ("medium shot", "wide shot") and (shot.lines or len(scene.shots) == 1):
            level = "warning" if shot.framing == "wide shot" else "note"
            message = f"Shot {number} is a {shot.framing}: small faces come out soft. Use a close-up or medium close-up."
            yield Finding(level, "small-faces", message)
    if len(scene.lines) > 2:
        message = f"{len(scene.lines)} lines are in one clip; two or fewer keep the lips most exact. Think of a second clip."
        yield Finding("note", "many-lines", message)
    sound = sound_name(scene.sound)
    if len([part for part in _SOUNDS.split(sound) if part.strip()]) > 1:
        message = f"“{sound[:60]}” is more than one sound. Name the most prominent one."
        yield Finding("warning", "several-sounds", message)


def body_findings(scene: Scene, body: str, texts: Sequence[str]) -> Iterator[Finding]:
    """The first paragraph: its length, and in a pasted one what it says and quotes."""
    words, spoken = body_words(body), sum(map(body_words, texts))
    of_it = f" ({spoken} of them dialogue)" if spoken else ""
    if words < WORDS_AT_LEAST:
        risk = " People come out blurred and doubled with so few." if words < FEW_WORDS else ""
        message = f"The body has {words} words{of_it}; {WORDS_AT_LEAST} to {WORDS_AT_MOST} are right.{risk} Say more of face, light and place."
        yield Finding("warning", "body-short", message)
    elif words > WORDS_AT_MOST:
        message = f"The body has {words} words{of_it}; {WORDS_AT_LEAST} to {WORDS_AT_MOST} are right. Say less, or make two clips."
        yield Finding("warning", "body-long", message)
    if scene.body is None or not scene.body.strip():
        return
    yield from _quotes_of_body(body, texts)
    if found := _HEADING.search(body):
        message = f"“{found.group()}” stands in the body, so the prompt has it twice. Keep one of each."
        yield Finding("error", "repeated-section", message, None, found.start(), found.end())
    if found := SPECIAL.search(body):
        message = f"The body holds “{found.group()}”, a command of the tokeniser. Take it out."
        yield Finding("error", "special-token", message, None, found.start(), found.end())
    silent = _QUOTED.sub(lambda found: " " * len(found.group()), body)
    yield from _english("The body", silent, None)


def _quotes_of_body(body: str, texts: Sequence[str]) -> Iterator[Finding]:
    if body.count('"') % 2:
        place = body.rindex('"')
        message = (
            f"The body has {body.count(chr(34))} quotation marks; one has no partner. Add it, or take it out."
        )
        yield Finding("error", "unbalanced-quotes", message, None, place, place + 1)
    quoted = Counter(found.group(1) for found in _QUOTED.finditer(body))
    for index, text in enumerate(texts):
        if text not in quoted:
            message = f'The body does not quote line {index + 1}. Put "{text[:60]}" where it is spoken, after words such as “she says”.'
            yield Finding("warning", "line-not-in-body", message, line=index)
        elif quoted[text] > texts.count(text):
            message = f"The body quotes line {index + 1} {quoted[text]} times, so it may be said so often. Quote it once."
            yield Finding("warning", "line-repeated", message, line=index)
    lines = set(texts)
    unlisted = (found for found in _QUOTED.finditer(body) if found.group(1) not in lines)
    for found in islice(unlisted, MOST):
        message = f"The body quotes “{found.group(1)[:60]}”, which is no line of the dialogue. Make it one, or take it out."
        yield Finding("warning", "unlisted-quote", message, None, found.start(), found.end())


def time_findings(timeline: Timeline) -> Iterator[Finding]:
    """Whether the words fit the clip."""
    seconds, spans = timeline.seconds, [span for span in timeline.spans if span.natural]
    spoken = sum(span.natural for span in spans)
    for span in spans:
        if span.natural > seconds:
            message = (
                f"Line {span.line + 1} takes {span.natural:.1f} s at its pace and the clip has {seconds:.2f} s. Lengthen the "
                f"clip to {span.natural + 0.7:.1f} s or more, shorten the line, or have it said faster."
            )
            yield Finding("error", "line-longer-than-clip", message, line=span.line)
    late = [span for span in spans if span.end > seconds + 1e-6 and span.natural <= seconds]
    if late:
        more = f" (and {len(late) - 1} more)" if len(late) > 1 else ""
        message = (
            f"Line {late[0].line + 1}{more} ends at {late[0].end:.2f} s and the clip at {seconds:.2f} s: it would be cut off. "
            f"Lengthen the clip to {max(span.end for span in late) + CLOSE:.1f} s or more, or start it earlier."
        )
        yield Finding("error", "line-outside-clip", message, line=late[0].line)
    if timeline.fill > OVER:
        message = (
            f"{spoken:.1f} s of speech fill {100 * timeline.fill:.0f} % of {seconds:.2f} s: words would be cut off. Lengthen the clip, or "
            "say less."
        )
        yield Finding("warning", "over-full", message)
    elif spans and timeline.fill < UNDER:
        message = (
            f"{spoken:.1f} s of speech fill {100 * timeline.fill:.0f} % of {seconds:.2f} s: the model will stretch the words or invent "
            "some. Shorten the clip, or say more."
        )
        yield Finding("warning", "under-full", message)
    if spans and 0 <= seconds - (last := max(spans, key=lambda span: span.end)).end < CLOSE:
        message = f"Line {last.line + 1} ends {seconds - last.end:.2f} s before the clip does; leave {CLOSE} s at least."
        yield Finding("warning", "ends-late", message, line=last.line)
    ordered = sorted(spans, key=lambda span: span.start)
    for before, after in pairwise(ordered):
        if after.start < before.end - 1e-6:
            message = (
                f"Line {after.line + 1} starts at {after.start:.2f} s, before line {before.line + 1} ends at {before.end:.2f} s; the "
                "model speaks one line at a time. Start it later."
            )
            yield Finding("warning", "lines-overlap", message, line=after.line)


def token_findings(tokens: int) -> Iterator[Finding]:
    """Whether the text fits the transformer's input."""
    if tokens > MAX_TEXT_TOKENS:
        message = f"The prompt has {tokens} tokens and {MAX_TEXT_TOKENS} are read: the end, with the dialogue, is lost. Shorten it."
        yield Finding("warning", "too-many-tokens", message)
    elif tokens > MANY_TOKENS:
        yield Finding(
            "warning",
            "many-tokens",
            f"The prompt has {tokens} of {MAX_TEXT_TOKENS} tokens. Little can be added.",
        )
