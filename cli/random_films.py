"""``demo``: four films and a contact sheet from a tiny random model set, without downloads or a GPU."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..media.contact_sheet import SheetRow, contact_sheet
from ..media.read import read_film
from ..model_loading.precision import PRECISIONS
from ..model_loading.tiny import write_tiny_set
from ..pipeline.files import ModelFiles
from ..pipeline.film import FilmRequest, Voice, make_film
from .progress import ProgressBars, seconds

HELP = "Make four small films with tiny random weights: what a fresh machine can run at once."
WIDTH, HEIGHT, FRAMES = 128, 64, 25
PROMPT = (
    "A woman with short grey hair sits at a window and speaks to the camera, calm and close.\n\n"
    'Dialogue:\n<woman with grey hair, English>: "The harbour is quiet tonight."\n\n'
    "Background Sound:\n<No prominent background sound>"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("happyhorse_demo"), help="default %(default)s"
    )


def run(options: argparse.Namespace) -> None:
    started = time.monotonic()
    models = options.out / "models"
    write_tiny_set(models)
    print("The weights of this demo are tiny and random: its films show noise. What is real is the way:")
    print(
        "file layouts, tokeniser, text encoder, sampler, super-resolution, decoders, sound and container.\n"
    )
    rows = []
    for name, title, request in _requests():
        print(title)
        path = options.out / f"{name}.mp4"
        files = ModelFiles.locate(models, request, ModelFiles())
        make_film(files, request, path, policy=PRECISIONS["float32"], report=ProgressBars())
        reading = read_film(path)
        print(
            f"  {path}: {reading.width}x{reading.height}, {reading.frames} frames, "
            f"{reading.video_codec} {reading.video_seconds:.2f} s, {reading.audio_codec} {reading.audio_seconds:.2f} s\n"
        )
        rows.append(SheetRow(title, reading.decode_frames(), reading.decode_waveform(), reading.sample_rate))
    sheet = options.out / "contact_sheet.png"
    contact_sheet(sheet, rows)
    print(f"{len(rows)} films and {sheet} in {seconds(time.monotonic() - started)}.")


def _requests():
    """(file name, title, request) of each film."""
    text = FilmRequest(PROMPT, FRAMES, WIDTH, HEIGHT)
    yield "text_to_film", "Text to film, distilled, 8 steps", text
    yield "picture_to_film", "Picture to film, distilled", replace(text, image=drawn_picture(), seed=43)
    yield (
        "voice_to_film",
        "Voice to film, distilled; the voice is a scale of tones",
        replace(text, voice=played_scale(), seed=44),
    )
    yield (
        "super_resolution",
        f"Text to film in two stages, {WIDTH}x{HEIGHT} to {2 * WIDTH}x{2 * HEIGHT}",
        replace(text, super_resolution="540p", seed=45),
    )
    yield (
        "base_guided",
        "Text to film, base model, guided by a negative prompt, 12 steps",
        replace(text, variant="base", seed=46, steps=12, negative="a blurred picture, hiss, mumbling"),
    )


def drawn_picture(height: int = 180, width: int = 320) -> Tensor:
    """[H, W, 3] uint8: a sun over a gradient sky."""
    y, x = torch.meshgrid(
        torch.linspace(0, 1, height), torch.linspace(0, width / height, width), indexing="ij"
    )
    sky = torch.stack([0.95 - 0.5 * y, 0.55 + 0.1 * y, 0.35 + 0.5 * y], dim=-1)
    sun = ((x - 1.2) ** 2 + (y - 0.45) ** 2 < 0.05).unsqueeze(-1)
    return (255 * torch.where(sun, torch.tensor([1.0, 0.9, 0.6]), sky)).round().to(torch.uint8)


def played_scale(sample_rate: int = 48_000) -> Voice:
    """One second of a rising scale, stereo: A4, C5, E5, A5, each a quarter of a second."""
    pitches = torch.tensor([440.0, 523.25, 659.26, 880.0]).repeat_interleave(sample_rate // 4)
    phase = 2 * math.pi * torch.cumsum(pitches / sample_rate, 0)
    fade = torch.sin(math.pi * (torch.arange(len(pitches)) % (sample_rate // 4)) / (sample_rate // 4))
    tone = 0.4 * fade * torch.sin(phase)
    return Voice(torch.stack([tone, 0.8 * tone]), sample_rate)
