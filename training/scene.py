"""The drawn world: faces in eight colours before eight backgrounds, with a small mouth that opens as the voice does.

Letters: B clips, F frames, H and W pixels. One face takes 64x64 pixels at scale 1; two stand side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIDE = 64  # pixels of a face's square at scale 1
FACES = {
    "red": (220, 60, 50),
    "orange": (240, 150, 40),
    "yellow": (240, 220, 70),
    "green": (80, 190, 80),
    "cyan": (70, 210, 220),
    "blue": (80, 130, 240),
    "violet": (170, 100, 220),
    "white": (240, 240, 235),
}
BACKGROUNDS = {
    "pink": (250, 170, 190),
    "navy": (40, 70, 150),
    "brown": (130, 85, 50),
    "grey": (130, 130, 135),
    "olive": (120, 125, 50),
    "teal": (30, 120, 115),
    "cream": (250, 235, 200),
    "maroon": (125, 40, 60),
}
MOUTH = (25, 5, 15)  # nothing else in the picture is as dark
PUPIL = (60, 60, 80)
# A mouth's half height in pixels at full voice, and its half width.
OPEN = {"a": (6.0, 6.5), "e": (5.0, 7.0), "i": (4.2, 7.5), "o": (5.6, 5.0), "u": (4.6, 4.2), "": (0.0, 5.5)}
SHUT = 0.7  # half height of a mouth that says nothing
RADII = (21.0, 23.0)


@dataclass(frozen=True, slots=True)
class Face:
    """One face: its colour's name and how far it stands from the middle of its square, in pixels."""

    colour: str
    right: float = 0.0
    down: float = 0.0


def draw(
    faces: tuple[Face, ...], background: str, opening: np.ndarray, vowels: np.ndarray, scale: int = 1
) -> Tensor:
    """[3, F, H, W] float32 in [-1, 1]; ``opening`` [faces, F] in 0 … 1 and ``vowels`` [faces, F] move the mouths."""
    squares = [
        _square(face, background, opening[number], vowels[number], scale) for number, face in enumerate(faces)
    ]
    return torch.cat(squares, dim=-1) / 127.5 - 1


def _square(face: Face, background: str, opening: np.ndarray, vowels: np.ndarray, scale: int) -> Tensor:
    size = SIDE * scale
    rows = ((torch.arange(size) + 0.5) / scale)[:, None]
    columns = ((torch.arange(size) + 0.5) / scale)[None, :]
    across, down = SIDE / 2 + face.right, SIDE / 2 + face.down
    still = _colour(BACKGROUNDS[background]).expand(3, size, size)

    def paint(picture: Tensor, colour: tuple[int, int, int], x, y, half_width, half_height) -> Tensor:
        cover = _ellipse(columns, rows, x, y, half_width, half_height, scale)
        return picture + cover.unsqueeze(-3) * (_colour(colour) - picture)

    still = paint(still, FACES[face.colour], across, down, *RADII)
    for eye in (-8.0, 8.0):
        still = paint(still, (255, 255, 255), across + eye, down - 7, 3.6, 3.6)
        still = paint(still, PUPIL, across + eye, down - 7, 1.7, 1.7)
    shapes = np.array([OPEN[vowel] for vowel in vowels], np.float32)
    wide = OPEN[""][1] + opening * (shapes[:, 1] - OPEN[""][1])
    high = SHUT + opening * shapes[:, 0]
    wide, high = (torch.as_tensor(part, dtype=torch.float32)[:, None, None] for part in (wide, high))
    film = paint(still.expand(len(opening), 3, size, size), MOUTH, across, down + 10.5, wide, high)
    return film.transpose(0, 1)


def _colour(rgb: tuple[int, int, int]) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float32)[:, None, None]


def _ellipse(columns, rows, x, y, half_width, half_height, scale: int) -> Tensor:
    """How much of each pixel an ellipse covers, 0 … 1, its edge one pixel soft."""
    high = torch.as_tensor(half_height, dtype=torch.float32)
    wide = torch.as_tensor(half_width, dtype=torch.float32)
    dx, dy = (columns - x) / wide, (rows - y) / high
    distance = (dx.square() + dy.square()).sqrt()
    # The gradient's length turns the relative distance into pixels, also for a mouth that is nearly a line.
    slope = ((dx / wide).square() + (dy / high).square()).sqrt() / distance.clamp_min(1e-3)
    return ((1 - distance) / slope.clamp_min(1e-3) * scale + 0.5).clamp(0, 1)
