"""``demo``: small films with sound and a contact sheet from a model set that comes with the pack."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from ..conditioning.dialogue.languages import LANGUAGES
from ..media.contact_sheet import SheetRow, contact_sheet
from ..media.read import FilmReading, read_film
from ..model_loading.demo_set import SIDE, copy_demo_set, unknown_words, vocabulary
from ..model_loading.precision import PRECISIONS
from ..model_loading.tiny import write_tiny_set
from ..pipeline.files import ModelFiles
from ..pipeline.film import FilmRequest, make_film
from .demo_films import FRAMES, DemoFilm, demo_films, face_prompt
from .progress import ProgressBars, seconds
from .random_films import random_films

HELP = "Make small films with the trained demo set: what a fresh machine can run, see and hear at once."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("happyhorse_demo"), help="default %(default)s"
    )
    parser.add_argument("--say", metavar="WORDS", help="make one film that says these words, and no other")
    parser.add_argument(
        "--language", choices=LANGUAGES, default="English", help="of --say (default %(default)s)"
    )
    parser.add_argument(
        "--random",
        action="store_true",
        help="use random weights: every path in seconds, and only noise to see",
    )


def run(options: argparse.Namespace) -> None:
    started = time.monotonic()
    models = options.out / "models"
    made: dict[str, FilmReading] = {}
    if options.random:
        write_tiny_set(models)
        print("The weights of this demo are tiny and random: its films show noise. What is real is the way:")
        print(
            "file layouts, tokeniser, text encoder, sampler, super-resolution, decoders, sound and container.\n"
        )
        films: Iterator[DemoFilm] = (DemoFilm(*film) for film in random_films())
    else:
        copy_demo_set(models)
        print(
            "A drawn face that says what it is told, from weights trained on nothing but such faces: this is not"
        )
        print("the large model, but every step from the prompt to the file is the same.\n")
        films = iter([_said(options)]) if options.say else demo_films(made, models)
    rows = []
    for film in films:
        print(film.title)
        path = options.out / f"{film.name}.mp4"
        files = ModelFiles.locate(models, film.request, ModelFiles())
        make_film(files, film.request, path, policy=PRECISIONS["float32"], report=ProgressBars())
        reading = made[film.name] = read_film(path)
        print(
            f"  {path}: {reading.width}x{reading.height}, {reading.frames} frames, "
            f"{reading.video_codec} {reading.video_seconds:.2f} s, {reading.audio_codec} {reading.audio_seconds:.2f} s\n"
        )
        rows.append(
            SheetRow(film.title, reading.decode_frames(), reading.decode_waveform(), reading.sample_rate)
        )
    sheet = options.out / "contact_sheet.png"
    contact_sheet(sheet, rows)
    count = f"{len(rows)} films" if len(rows) > 1 else "One film"
    print(f"{count} and {sheet} in {seconds(time.monotonic() - started)}.")


def _said(options: argparse.Namespace) -> DemoFilm:
    """The film of ``--say``; names the words that the set does not know."""
    words = vocabulary()["languages"][options.language]
    if strange := unknown_words(options.say, words):
        print(
            f"The set does not know {', '.join(strange)}: a face and a voice come all the same. Its {options.language}:"
        )
        print(f"  {', '.join(words)}\n")
    prompt = face_prompt("yellow", "teal", "low", options.say, options.language)
    request = FilmRequest(prompt, FRAMES, SIDE, SIDE, seed=1)
    return DemoFilm("said", f'{options.language}: "{options.say}"', request)
