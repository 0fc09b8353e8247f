"""The films of ``demo --random``: every way through the pipeline with tiny random weights, which show noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..pipeline.film import FilmRequest, Voice

WIDTH, HEIGHT, FRAMES = 128, 64, 25
PROMPT = (
    "A woman with short grey hair sits at a window and speaks to the camera, calm and close.\n\n"
    'Dialogue:\n<woman with grey hair, English>: "The harbour is quiet tonight."\n\n'
    "Background Sound:\n<No prominent background sound>"
)


def random_films() -> Iterator[tuple[str, str, FilmRequest]]:
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
