"""The first picture of a film, cropped and scaled to the film's size as the network was trained to see it.

Letters: B batch, H height, W width, C colour channels.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ConditioningError


def first_frame(image: Tensor, width: int, height: int) -> Tensor:
    """[H, W, C] or [B, H, W, C] -> [1, 3, 1, height, width] float32 in [-1, 1].

    ``image`` is uint8, or floating point in [0, 1] (ComfyUI's IMAGE), which is rounded to 8 bits because
    the reference resizes 8-bit pictures. The first of a batch is taken, an alpha channel dropped, a single
    channel repeated. Cropped by ``crop_box``, then resized by Pillow's Lanczos filter.

    Raises ConditioningError for an empty picture, other shapes or types, and values that are not numbers.
    """
    pixels = _as_rgb8(image)
    rows, columns = pixels.shape[:2]
    box = crop_box(columns, rows, width, height)
    resized = Image.fromarray(pixels.numpy()).crop(box).resize((width, height), Image.Resampling.LANCZOS)
    frame = torch.from_numpy(np.array(resized)).float() / 255 * 2 - 1
    return frame.permute(2, 0, 1)[None, :, None].contiguous()


def crop_box(width: int, height: int, target_w: int, target_h: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the central part that has the target's aspect ratio.

    The longer side is cut to trunc(other * ratio) and the edges are rounded half to even, as the reference
    does: the part can be one pixel larger or smaller than that.
    """
    if min(width, height, target_w, target_h) < 1:
        raise ConditioningError(
            f"A picture of {width}x{height} cannot be cropped to the format {target_w}x{target_h}."
        )
    if height * target_w > target_h * width:
        new_w, new_h = width, width * target_h // target_w
    else:
        new_w, new_h = height * target_w // target_h, height
    left, right = round((width - new_w) / 2), round((width + new_w) / 2)
    top, bottom = round((height - new_h) / 2), round((height + new_h) / 2)
    if left == right or top == bottom:
        raise ConditioningError(
            f"A picture of {width}x{height} is too narrow: nothing of it is left in the format "
            f"{target_w}x{target_h}. Crop it nearer to that format first."
        )
    return left, top, right, bottom


def _as_rgb8(image: Tensor) -> Tensor:
    """[H, W, C] or [B, H, W, C], 8 bits or [0, 1] -> [H, W, 3] uint8 on the CPU."""
    shape = list(image.shape)
    if image.ndim not in (3, 4) or shape[-1] not in (1, 3, 4):
        raise ConditioningError(
            f"A picture must be [H, W, C] or [B, H, W, C] with 1, 3 or 4 channels last, not {shape}."
        )
    if not image.numel():
        raise ConditioningError(f"The picture is empty: its shape is {shape}. Choose another picture.")
    pixels = image[0] if image.ndim == 4 else image
    if pixels.is_floating_point():
        lost = int((~pixels.isfinite()).sum())
        if lost:
            raise ConditioningError(
                f"{lost} of {pixels.numel()} values of the picture are not finite numbers; "
                "look at what made it."
            )
        pixels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    elif pixels.dtype != torch.uint8:
        raise ConditioningError(f"A picture must be uint8 or floating point, not {pixels.dtype}.")
    return pixels[..., :3].expand(-1, -1, 3).contiguous().cpu()
