"""A film's measures as one picture: strip of frames and waveform, where lips were found, and the verdicts."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .contact_sheet import BAND, CHANNEL_INKS, FAINT, GAP, INK, LINE, MARGIN, PAPER, WIDTH, SheetRow, strip
from .lip_sync import LipSync
from .quality import Level, Quality

CURVES = 150  # pixels of height
LEVEL_INKS: dict[Level, str] = {"good": "#7bc47f", "look": "#e3a75a", "bad": "#e2685f", "none": FAINT}
HEAT = np.array([255, 120, 40], np.float32)
COLUMN = 580  # pixels a verdict may take


def quality_plot(quality: Quality, row: SheetRow) -> Tensor:
    """[H, 1280, 3] uint8: ``row`` as on a contact sheet, the lips' curves, and every verdict with its colour."""
    parts = [strip(row)]
    if quality.sync is not None:
        parts.append(_curves(quality.sync, row))
    parts.append(_verdicts(quality))
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in parts) + MARGIN), PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return torch.from_numpy(np.array(sheet))


def _curves(sync: LipSync, row: SheetRow) -> Image.Image:
    """The place where lips were sought, and its motion with the sound, one above the other."""
    picture = _heated(sync, row)
    top = 2 * LINE
    part = Image.new("RGB", (WIDTH, top + CURVES + GAP), PAPER)
    part.paste(picture, (MARGIN, top))
    pen = ImageDraw.Draw(part)
    left = MARGIN + picture.width + 2 * GAP
    width = WIDTH - MARGIN - left
    pen.text((MARGIN, LINE - 2), "where motion follows the sound", FAINT, _font(13))
    pen.text((left, LINE - 2), "motion of that place", CHANNEL_INKS[1], _font(13))
    pen.text((left + 160, LINE - 2), "sound", CHANNEL_INKS[0], _font(13))
    pen.rectangle((left, top, left + width, top + CURVES), BAND)
    for series, ink in ((sync.sound, CHANNEL_INKS[0]), (sync.motion, CHANNEL_INKS[1])):
        across = left + np.linspace(0, width, len(series))
        down = top + CURVES / 2 - series.clip(-2.5, 2.5) * CURVES / 5.4
        pen.line(list(zip(across.tolist(), down.tolist(), strict=True)), ink, 2)
    return part


def _heated(sync: LipSync, row: SheetRow) -> Image.Image:
    """The film's middle frame with the likeness laid over it and the likeliest place framed."""
    frame = row.frames[len(row.frames) // 2].numpy().astype(np.float32)
    width = max(1, round(CURVES * frame.shape[1] / frame.shape[0]))
    picture = Image.fromarray(frame.astype(np.uint8)).resize((width, CURVES), Image.Resampling.LANCZOS)
    heat = Image.fromarray((sync.heat * 255).astype(np.uint8)).resize(
        (width, CURVES), Image.Resampling.BICUBIC
    )
    share = np.asarray(heat, np.float32)[..., None] / 255 * 0.6
    picture = Image.fromarray((np.asarray(picture, np.float32) * (1 - share) + HEAT * share).astype(np.uint8))
    left, top, right, bottom = sync.box
    frame_ink = LEVEL_INKS["good" if sync.is_sure else "none"]
    box = (left * width, top * CURVES, right * width - 1, bottom * CURVES - 1)
    ImageDraw.Draw(picture).rectangle(box, outline=frame_ink, width=2)
    return picture


def _verdicts(quality: Quality) -> Image.Image:
    """Two columns of coloured dots and words."""
    verdicts = quality.verdicts()
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    blocks = [(verdict.level, _wrapped(verdict.text, pen)) for verdict in verdicts]
    half = (sum(len(lines) for _, lines in blocks) + 1) // 2
    columns: list[list[tuple[Level, list[str]]]] = [[], []]
    for block in blocks:
        full = sum(len(lines) for _, lines in columns[0]) >= half
        columns[full].append(block)
    height = max(sum(len(lines) for _, lines in column) for column in columns) * LINE + 2 * GAP
    part = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(part)
    for number, column in enumerate(columns):
        left, top = MARGIN + number * (WIDTH // 2 - MARGIN // 2), GAP
        for level, lines in column:
            pen.ellipse((left, top + 6, left + 9, top + 15), LEVEL_INKS[level])
            for line in lines:
                pen.text((left + 18, top + 2), line, INK if level != "none" else FAINT, _font(14))
                top += LINE
    return part


def _wrapped(text: str, pen: ImageDraw.ImageDraw) -> list[str]:
    """``text`` in lines that fit a column."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and pen.textlength(longer, _font(14)) > COLUMN:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line]


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)
