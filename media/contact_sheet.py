"""Contact sheet: films side by side on one picture, each as a few frames with its sound drawn beneath."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import MediaError
from ..shapes import FPS, OUTPUT_SAMPLE_RATE
from .audio import check_finite
from .frames import check_frames, save_image

# Pixels
WIDTH = 1280
MARGIN = 28
GAP = 8
LINE = 24  # height of a line of text
CHANNEL = 48  # height of one channel's waveform
MAX_CELL_HEIGHT = 260
COLUMNS = 6  # frames shown of each film

PAPER, BAND, RULE, FAINT, INK = "#14161a", "#1b1e24", "#343944", "#8d94a1", "#eef0f3"
CHANNEL_INKS = ("#62b6de", "#e3a75a")


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One film: a title, a note beneath, frames [F, H, W, 3] uint8 and a waveform [C, S] or None."""

    title: str
    frames: Tensor
    waveform: Tensor | None = None
    sample_rate: int = OUTPUT_SAMPLE_RATE
    fps: float = FPS
    note: str = ""

    @property
    def seconds(self) -> float:
        """The longer of picture and sound."""
        sound = 0.0 if self.waveform is None else self.waveform.shape[-1] / self.sample_rate
        return max(len(self.frames) / self.fps, sound)


def contact_sheet(path: str | Path, rows: Sequence[SheetRow]) -> None:
    """Draw the films one below the other and save the picture at ``path``.

    Six evenly spaced frames each, the first and the last among them; small ones are enlarged in whole
    pixels, large ones reduced. Lines in the waveform mark their moments.
    """
    if not rows:
        raise MediaError("A contact sheet needs at least one film.")
    parts = [strip(row) for row in rows]
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in parts) + MARGIN), PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    save_image(path, torch.from_numpy(np.array(sheet)))


def strip(row: SheetRow) -> Image.Image:
    """One film's part of the sheet."""
    check_frames(row.frames)
    shown = np.unique(np.linspace(0, len(row.frames) - 1, COLUMNS).round().astype(int))
    pictures = [_fitted(row.frames[index]) for index in shown]
    frames_top = MARGIN + LINE * (2 if row.note else 1) + GAP
    labels_top = frames_top + pictures[0].height + 4
    sound_top = labels_top + LINE
    channels = 0 if row.waveform is None else len(row.waveform)
    axis_top = sound_top + channels * CHANNEL + (channels > 0) * GAP // 2
    drawn = Image.new("RGB", (WIDTH, axis_top + (LINE if channels else 0)), PAPER)
    pen = ImageDraw.Draw(drawn)

    facts = _facts(row)
    room = WIDTH - 2 * MARGIN - pen.textlength(facts, _font(14)) - MARGIN
    pen.text((MARGIN, MARGIN), _shortened(row.title, room, _font(19)), INK, _font(19))
    pen.text((WIDTH - MARGIN, MARGIN + 4), facts, FAINT, _font(14), anchor="ra")
    if row.note:
        note = _shortened(row.note, WIDTH - 2 * MARGIN, _font(14))
        pen.text((MARGIN, MARGIN + LINE + 2), note, FAINT, _font(14))
    for column, (index, picture) in enumerate(zip(shown, pictures, strict=True)):
        left = MARGIN + round(column * (_cell_width() + GAP))
        drawn.paste(picture, (left, frames_top))
        pen.text((left, labels_top), f"{index / row.fps:.2f} s", FAINT, _font(12))
    if channels:
        _draw_sound(pen, row, shown / row.fps, sound_top, axis_top)
    return drawn


def _draw_sound(
    pen: ImageDraw.ImageDraw, row: SheetRow, moments: np.ndarray, top: int, axis_top: int
) -> None:
    """The channels' envelopes, the shown frames' moments and the axis in seconds."""
    waveform = row.waveform.detach().float().cpu()
    check_finite(waveform, f"The sound of '{row.title}'")
    columns = WIDTH - 2 * MARGIN
    scale = columns / row.seconds
    for number, channel in enumerate(waveform.numpy()):
        band = top + number * CHANNEL
        pen.rectangle((MARGIN, band, MARGIN + columns, band + CHANNEL - 3), BAND)
        for moment in moments:
            pen.line((MARGIN + moment * scale, band, MARGIN + moment * scale, band + CHANNEL - 3), RULE)
        middle, half = band + CHANNEL / 2 - 1.5, CHANNEL / 2 - 3
        ink = CHANNEL_INKS[number % len(CHANNEL_INKS)]
        for column, (low, high) in enumerate(_envelope(channel, row.sample_rate / scale)):
            pen.line((MARGIN + column, middle - high * half, MARGIN + column, middle - low * half), ink)
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, np.inf) if row.seconds / step <= 12)
    for tick in np.arange(0, row.seconds + step / 1000, step):
        across = MARGIN + tick * scale
        pen.line((across, axis_top, across, axis_top + 4), FAINT)
        pen.text((across, axis_top + 6), f"{tick:g} s", FAINT, _font(12), anchor="ma")


def _envelope(channel: np.ndarray, samples_per_column: float) -> np.ndarray:
    """[S] -> [columns, 2]: the lowest and highest sample of each column of pixels, within [-1, 1]."""
    if not len(channel):
        return np.empty((0, 2))
    starts = np.arange(0, len(channel), samples_per_column).astype(int)
    lows, highs = np.minimum.reduceat(channel, starts), np.maximum.reduceat(channel, starts)
    return np.stack([lows, highs], axis=1).clip(-1, 1)


def _facts(row: SheetRow) -> str:
    height, width = row.frames.shape[1:3]
    facts = [f"{width}x{height}", f"{len(row.frames)} frames", f"{len(row.frames) / row.fps:.2f} s"]
    if row.waveform is not None and row.waveform.numel():
        peak = float(row.waveform.abs().max())
        facts.append(f"peak {20 * np.log10(peak):.1f} dB" if peak > 0 else "silent")
    return "   ".join(facts)


def _cell_width() -> float:
    return (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS


def _fitted(frame: Tensor) -> Image.Image:
    """[H, W, 3] as a picture that fits its cell: whole multiples upward, filtered downward."""
    picture = Image.fromarray(frame.cpu().numpy())
    ratio = min(_cell_width() / picture.width, MAX_CELL_HEIGHT / picture.height)
    if ratio >= 1:
        return picture.resize(
            (picture.width * int(ratio), picture.height * int(ratio)), Image.Resampling.NEAREST
        )
    smaller = max(1, int(picture.width * ratio)), max(1, int(picture.height * ratio))
    return picture.resize(smaller, Image.Resampling.LANCZOS)


def _shortened(text: str, room: float, font: ImageFont.ImageFont) -> str:
    """The text on one line, cut with an ellipsis where it is longer than ``room`` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)
