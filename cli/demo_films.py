"""The films of ``demo``: the trained demo set says its words in every way that the pipeline knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..media.read import FilmReading
from ..model_loading.demo_set import SIDE
from ..pipeline.film import FilmRequest, Voice

FRAMES = 49
NO_SOUND = "Background Sound:\n<No prominent background sound>"


@dataclass(frozen=True, slots=True)
class DemoFilm:
    """One film: its file's name, what is said of it, and the request, which may need films made before."""

    name: str
    title: str
    request: FilmRequest


def face_prompt(face: str, background: str, voice: str, line: str, language: str) -> str:
    """A prompt in the form that the set was trained with."""
    article = "An" if face[0] in "aeiou" else "A"
    body = f'{article} {face} face on a {background} background speaks with a {voice} voice: "{line}"'
    return f'{body}\n\nDialogue:\n<{face} face, {language}>: "{line}"\n\n{NO_SOUND}'


def pair_prompt(
    left: tuple[str, str, str], right: tuple[str, str, str], background: str, language: str
) -> str:
    """Two faces side by side, each (face, voice, line)."""
    (face, voice, line), (face2, voice2, line2) = left, right
    body = (
        f"On the left a {face} face, on the right a {face2} face, {background} background. The left one says in a {voice} "
        f'voice: "{line}" The right one answers in a {voice2} voice: "{line2}"'
    )
    rows = f'<{face} face, {language}>: "{line}"\n<{face2} face, {language}>: "{line2}"'
    return f"{body}\n\nDialogue:\n{rows}\n\n{NO_SOUND}"


def demo_films(made: dict[str, FilmReading], models: Path) -> Iterator[DemoFilm]:
    """Each film once those before it are in ``made``; super-resolution where the set has it."""
    plain = FilmRequest(
        face_prompt("yellow", "teal", "low", "hello moon", "English"), FRAMES, SIDE, SIDE, seed=1
    )
    yield DemoFilm("text_to_film", 'Text to film, English: "hello moon"', plain)
    korean = face_prompt("blue", "cream", "high", "나 무 바 다", "Korean")
    yield DemoFilm("korean", 'Text to film, Korean: "namu bada"', replace(plain, prompt=korean, seed=2))
    pair = pair_prompt(("red", "deep", "salut"), ("green", "clear", "merci"), "grey", "French")
    yield DemoFilm(
        "two_faces", "Two faces, French: salut, merci", replace(plain, prompt=pair, width=2 * SIDE, seed=3)
    )
    first = made["text_to_film"]
    picture = face_prompt("yellow", "teal", "low", "mama go", "English")
    yield DemoFilm(
        "picture_to_film",
        'Picture to film: the first film\'s first frame says "mama go"',
        replace(plain, prompt=picture, image=first.decode_frames()[0], seed=4),
    )
    voice = Voice(made["korean"].decode_waveform(), made["korean"].sample_rate)
    driven = face_prompt("violet", "olive", "high", "나 무 바 다", "Korean")
    yield DemoFilm(
        "voice_to_film",
        "Voice to film: the Korean film's voice moves another face",
        replace(plain, prompt=driven, voice=voice, seed=5),
    )
    yield DemoFilm(
        "base_guided",
        "Base model, 32 guided steps",
        replace(
            plain,
            variant="base",
            num_frames=25,
            prompt=face_prompt("orange", "navy", "clear", "yes", "English"),
            seed=6,
        ),
    )
    if any((models / "diffusion_models").glob("*sr_540p*")):
        yield DemoFilm(
            "super_resolution",
            f"Text to film in two stages, {SIDE}x{SIDE} to {2 * SIDE}x{2 * SIDE}",
            replace(plain, num_frames=25, super_resolution="540p", seed=7),
        )
