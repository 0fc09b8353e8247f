"""Sizes and lengths: pixels, frames, seconds, samples and latents, converted in this one place.

A film of F = 4k+1 frames has k+1 video latent frames and F audio latents: both streams run at 25 per
second in the end, because the audio autoencoder (2048 samples a latent) is fed at 51 200 Hz.
Letters: F frames, T video latent frames, h and w latent cells, L audio latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from .errors import GeometryError

FPS = 25
TIME_STRIDE = 4  # frames per video latent frame, after the first
SPACE_STRIDE = 16  # pixels per latent cell
PATCH = 2  # latent cells per token side
GRID = SPACE_STRIDE * PATCH  # pixels per token side: every size is a multiple
MIN_SIDE = 64
MIN_FRAMES = 5

VIDEO_CHANNELS = 48
AUDIO_CHANNELS = 64
MAX_TEXT_TOKENS = 640

LATENT_SAMPLE_RATE = 51_200  # Hz, what the audio autoencoder is fed and gives
SAMPLES_PER_LATENT = 2_048
OUTPUT_SAMPLE_RATE = 44_100  # Hz, what a film's sound has
OUTPUT_SAMPLES_PER_LATENT = 1_764  # 2048 * 441/512, and exactly one frame at 25 fps


@dataclass(frozen=True, slots=True)
class LatentSize:
    """The shapes of one film in latent space: video [48, T, h, w] and audio [64, L]."""

    frames: int
    height: int
    width: int
    audio: int

    @property
    def video_shape(self) -> tuple[int, int, int, int, int]:
        return (1, VIDEO_CHANNELS, self.frames, self.height, self.width)

    @property
    def audio_shape(self) -> tuple[int, int, int]:
        return (1, AUDIO_CHANNELS, self.audio)


@dataclass(frozen=True, slots=True)
class SizeRow:
    """One aspect and the sizes (width, height) of its three stages in pixels."""

    name: str
    base: tuple[int, int]
    sr_540p: tuple[int, int]
    sr_1080p: tuple[int, int]
    exact_1080p: tuple[int, int]  # exactly four times the base

    def stage(self, super_resolution: str, *, exact: bool = False) -> tuple[int, int]:
        """(width, height) after "none", "540p" or "1080p"."""
        full = self.exact_1080p if exact else self.sr_1080p
        return {"none": self.base, "540p": self.sr_540p, "1080p": full}[super_resolution]


# The landscape row is the reference's own (its 1080p ratio is off by 0.8 %); the others have about its area.
SIZES = (
    SizeRow("landscape", (448, 256), (896, 512), (1920, 1088), (1792, 1024)),
    SizeRow("portrait", (256, 448), (512, 896), (1088, 1920), (1024, 1792)),
    SizeRow("square", (352, 352), (704, 704), (1440, 1440), (1408, 1408)),
)


def latent_frames(num_frames: int) -> int:
    """Video latent frames T of a film of F = 4k+1 frames: k+1."""
    return (num_frames - 1) // TIME_STRIDE + 1


def decoded_frames(frames: int) -> int:
    """Frames F that T video latent frames decode to: 4(T-1)+1."""
    return TIME_STRIDE * (frames - 1) + 1


def latent_frames_for_audio(audio: int) -> int:
    """Video latent frames T that belong to L audio latents: floor((L-1)/4)+1."""
    return (audio - 1) // TIME_STRIDE + 1


def floor_to_grid(pixels: int) -> int:
    """The largest multiple of 32 that is not above ``pixels``."""
    return pixels // GRID * GRID


def latent_side(pixels: int) -> int:
    """Latent cells of a side, floored to whole tokens: 2*floor(floor(px/16)/2)."""
    return floor_to_grid(pixels) // SPACE_STRIDE


def frames_for_seconds(seconds: float) -> int:
    """The count 4k+1 nearest to 25*seconds; a tie goes upward; at least 5."""
    if not math.isfinite(seconds) or seconds <= 0:
        raise GeometryError(f"A film of {seconds:g} seconds cannot be made; ask for 0.2 seconds or more.")
    # In exact decimals: 4.6 * 25 is 114.99999999999999 in floats, which would turn a tie downward.
    frames = Fraction(str(seconds)) * FPS
    return max(MIN_FRAMES, TIME_STRIDE * math.floor((frames - 1) / TIME_STRIDE + Fraction(1, 2)) + 1)


def frames_for_samples(samples: int, sample_rate: int) -> int:
    """The smallest count 4k+1 whose film holds the whole voice; at least 5."""
    if samples < 1 or sample_rate < 1:
        raise GeometryError(f"A voice of {samples} samples at {sample_rate} Hz has no length.")
    frames = -(
        -samples * FPS // sample_rate
    )  # ceiling, in integers: a voice is never cut by a rounding error
    return max(MIN_FRAMES, -(-(frames - 1) // TIME_STRIDE) * TIME_STRIDE + 1)


def check_frames(num_frames: int) -> None:
    """Raise GeometryError unless ``num_frames`` is 4k+1 and at least 5."""
    if num_frames < MIN_FRAMES:
        raise GeometryError(f"{num_frames} frames are too few; the shortest film has {MIN_FRAMES} (0.2 s).")
    if (num_frames - 1) % TIME_STRIDE:
        below = decoded_frames(latent_frames(num_frames))
        raise GeometryError(
            f"{num_frames} frames cannot be made: counts are 4k+1. "
            f"The nearest are {below} ({below / FPS:.2f} s) and {below + 4} ({(below + 4) / FPS:.2f} s)."
        )


def check_size(width: int, height: int) -> None:
    """Raise GeometryError unless both sides are multiples of 32 and at least 64."""
    if width < MIN_SIDE or height < MIN_SIDE:
        raise GeometryError(f"{width}x{height} is too small; the smallest side is {MIN_SIDE} pixels.")
    if width % GRID or height % GRID:
        raise GeometryError(
            f"{width}x{height} is not made of multiples of {GRID}; "
            f"the nearest size below is {floor_to_grid(width)}x{floor_to_grid(height)}."
        )


def latent_size(width: int, height: int, num_frames: int) -> LatentSize:
    """The latent shapes of a film of ``num_frames`` frames of ``width`` x ``height`` pixels."""
    check_size(width, height)
    check_frames(num_frames)
    return LatentSize(latent_frames(num_frames), height // SPACE_STRIDE, width // SPACE_STRIDE, num_frames)


def size_row(width: int, height: int) -> SizeRow | None:
    """The table's row that starts at this base size, or None."""
    return next((row for row in SIZES if row.base == (width, height)), None)


def nearest_rows(width: int, height: int) -> list[SizeRow]:
    """The table's rows, the nearest in aspect ratio first."""
    return sorted(SIZES, key=lambda row: abs(math.log(row.base[0] / row.base[1]) - math.log(width / height)))


def size_advice(width: int, height: int) -> str | None:
    """What to tell a person who asks for a base size off the table, or None."""
    if size_row(width, height) is not None:
        return None
    rows = ", ".join(f"{row.base[0]}x{row.base[1]}" for row in nearest_rows(width, height))
    return f"{width}x{height} is not a size the model is known to be good at; the nearest are {rows}."


def super_resolution_size(width: int, height: int, target: str, *, exact: bool = False) -> tuple[int, int]:
    """(width, height) that the "540p" or "1080p" stage makes of a base size.

    A size on the table has its row; any other is doubled for 540p and quadrupled for 1080p.
    """
    row = size_row(width, height)
    if row is not None:
        return row.stage(target, exact=exact)
    factor = {"none": 1, "540p": 2, "1080p": 4}[target]
    return width * factor, height * factor
