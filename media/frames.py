"""Frames as bytes: from the decoder's [-1, 1] to 8 bits, to another size, from and to picture files.

Letters: F frames, H height, W width.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import MediaError
from .whole_file import whole_file

Rounding = Literal["round", "truncate"]


def to_uint8(frames: Tensor, rounding: Rounding = "round") -> Tensor:
    """[3, F, H, W] or [1, 3, F, H, W] in [-1, 1] -> [F, H, W, 3] uint8 on the same device.

    level = 255 * clamp(0.5*x + 0.5, 0, 1). The reference truncates it, which darkens a film by half a
    level on average; "round" takes the nearest level.

    Raises MediaError for another shape and for pixels that are not numbers.
    """
    unit, lost = _unit(frames)
    check_lost(int(lost), unit.numel())
    return to_levels(unit, rounding).permute(1, 2, 3, 0).contiguous()


def to_frames(pixels: Tensor, bit_depth: int = 8) -> tuple[Tensor, Tensor]:
    """``to_uint8`` for any depth, and without waiting for the device: ``check_lost`` is the caller's.

    [1, 3, F, H, W] in [-1, 1] -> ([F, H, W, 3], how many values are NaN as an int64 scalar), both on the
    same device: uint8 for 8 bits, else float32 in [0, 1].
    """
    unit, lost = _unit(pixels)
    # In place, in 8 bits before the axes are moved, and by stack(): a third of the time of the plain way on a CPU.
    frames = unit.clamp_(0, 1)
    if bit_depth == 8:
        frames = frames.mul_(255).round_().to(torch.uint8)
    return torch.stack(frames.unbind(), dim=-1), lost


def check_lost(lost: int, total: int) -> None:
    """Raise MediaError if any of the decoded pixels are NaN."""
    if lost:
        raise MediaError(
            f"{lost} of {total} decoded pixel values are not numbers (NaN). "
            "Decode the video in bfloat16 or float32; float16 overflows."
        )


def _unit(frames: Tensor) -> tuple[Tensor, Tensor]:
    """[3, F, H, W] or [1, 3, F, H, W] in [-1, 1] -> ([3, F, H, W] in [0, 1], float32, not clamped; NaNs)"""
    if frames.ndim == 5 and frames.shape[0] == 1:
        frames = frames[0]
    if frames.ndim != 4 or frames.shape[0] != 3:
        raise MediaError(f"Frames must be [3, F, H, W] or [1, 3, F, H, W], not {list(frames.shape)}.")
    # Halving is exact in every dtype, so that there is one copy in float32 and not two.
    return (frames * 0.5).float().add_(0.5), torch.count_nonzero(frames.isnan())


def resize_frames(
    frames: Tensor,
    height: int,
    width: int,
    mode: Literal["bilinear", "nearest", "bicubic"] = "bicubic",
    rounding: Rounding = "round",
) -> Tensor:
    """[F, H, W, 3] uint8 -> [F, height, width, 3] uint8; no antialiasing, corners not aligned.

    Interpolated in float32 in [0, 1] and clamped, because bicubic overshoots at edges.
    The reference truncates to 8 bits.
    """
    check_frames(frames)
    if height < 1 or width < 1:
        raise MediaError(f"Frames cannot be resized to {width}x{height}.")
    planes = frames.permute(0, 3, 1, 2).float() / 255
    align = {} if mode == "nearest" else {"align_corners": False}
    resized = F.interpolate(planes, (height, width), mode=mode, **align)
    return to_levels(resized, rounding).permute(0, 2, 3, 1).contiguous()


def check_frames(frames: Tensor) -> None:
    """Raise MediaError unless ``frames`` is [F, H, W, 3] uint8 and not empty."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.numel():
        raise MediaError(
            f"Frames must be [F, H, W, 3] in 8 bits, not {list(frames.shape)} in {frames.dtype}."
        )


def load_image(path: str | Path) -> Tensor:
    """[H, W, 3] uint8: the first picture in the file, upright as its EXIF says, without transparency."""
    # What Pillow's decoders raise for damaged files, besides OSError: SyntaxError (PNG chunks), ValueError
    # (limits), EOFError, zlib.error; DecompressionBombError for sizes no one means.
    broken = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8 instead of scaling
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            pixels = np.array(upright.convert("RGB"))
    except broken as error:
        raise MediaError(
            f"The picture {path} cannot be read ({error}). Save it again as PNG or JPEG."
        ) from error
    return torch.from_numpy(pixels)


def save_image(path: str | Path, image: Tensor) -> None:
    """Write [H, W, 3] uint8 in the format of the file's ending; the file appears whole or not at all."""
    if image.ndim != 3:
        raise MediaError(f"A picture must be [H, W, 3], not {list(image.shape)}.")
    check_frames(image[None])
    path = Path(path)
    form = Image.registered_extensions().get(path.suffix.lower())
    if form not in Image.SAVE:
        raise MediaError(f"{path.name} does not say a picture format that can be written; use .png or .jpg.")
    with whole_file(path) as part:
        Image.fromarray(image.cpu().numpy()).save(part, format=form)


def to_levels(unit: Tensor, rounding: Rounding = "round") -> Tensor:
    """[0, 1] -> uint8; values outside are clamped."""
    levels = unit.clamp(0, 1) * 255
    return (levels.round() if rounding == "round" else levels).to(torch.uint8)
