"""The report's picture: as high as it must be, with every verdict's colour in it."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import ImageColor

from comfyui_happyhorse.media.contact_sheet import WIDTH, SheetRow
from comfyui_happyhorse.media.quality import measure
from comfyui_happyhorse.media.quality_plot import LEVEL_INKS, quality_plot

RATE, FPS = 16_000, 25


@pytest.fixture
def film():
    """Frames [60, 48, 64, 3] uint8 in which a square flashes with the sound [1, S]."""
    chance = torch.Generator().manual_seed(3)
    frames = torch.randint(60, 120, (60, 48, 64, 3), generator=chance, dtype=torch.uint8)
    level = torch.rand(60, generator=chance)
    for number in range(60):
        frames[number, 20:30, 30:40] = int(200 * level[number])
    time = torch.arange(60 * RATE // FPS) / RATE
    return frames, (level.repeat_interleave(RATE // FPS) * torch.sin(2 * math.pi * 600 * time))[None]


def count(picture: torch.Tensor, ink: str) -> int:
    return int((picture == torch.tensor(ImageColor.getrgb(ink), dtype=torch.uint8)).all(-1).sum())


def test_every_verdict_has_its_dot(film):
    frames, sound = film
    quality = measure(frames, sound, RATE, FPS)
    picture = quality_plot(quality, SheetRow("Film", frames, sound, RATE))
    assert picture.dtype == torch.uint8
    assert picture.shape[1:] == (WIDTH, 3)
    levels = [verdict.level for verdict in quality.verdicts()]
    for level in ("look", "bad"):
        assert (count(picture, LEVEL_INKS[level]) > 0) == (level in levels or level == "look")
    assert count(picture, LEVEL_INKS["good"]) > 50 * levels.count("good")


def test_without_sound_there_are_no_curves(film):
    frames, sound = film
    both = quality_plot(measure(frames, sound, RATE, FPS), SheetRow("Film", frames, sound, RATE))
    alone = quality_plot(measure(frames, None, RATE, FPS), SheetRow("Film", frames))
    assert alone.shape[0] < both.shape[0] - 200


@pytest.mark.parametrize(("p", "level"), [(0.001, "good"), (0.5, "none")])
def test_the_likeliest_place_is_framed_where_it_is(film, p, level):
    """In the little picture, 150 pixels high and 200 wide below the strip, a frame of 2 pixels."""
    frames, sound = film
    row, quality = SheetRow("Film", frames, sound, RATE), measure(frames, sound, RATE, FPS)
    drawn = []
    for box in ((0.25, 0.2, 0.5, 0.6), (0.5, 0.2, 0.75, 0.6)):
        sync = replace(quality.sync, p=p, box=box, heat=0 * quality.sync.heat)
        drawn.append(quality_plot(replace(quality, sync=sync), row))
    ink = torch.tensor(ImageColor.getrgb(LEVEL_INKS[level]), dtype=torch.uint8)
    first, second = ((picture[:-250] == ink).all(-1) for picture in drawn)
    (rows, columns), (_, moved) = (
        (each & ~other).nonzero(as_tuple=True) for each, other in ((first, second), (second, first))
    )
    assert int(moved.min() - columns.min()) == 50  # a quarter of the picture's width
    assert int(rows.max() - rows.min()) == pytest.approx(0.4 * 150, abs=2)
