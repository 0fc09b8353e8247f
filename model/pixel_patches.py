"""Square patches of pixels as channels, in the order both video autoencoders use."""

from __future__ import annotations

import math

from einops import rearrange
from torch import Tensor

PIXEL_CHANNELS = 3


def patch_size(channels: int) -> int:
    """The side in pixels of the patches that so many channels hold; 0 where they hold no square ones."""
    size = math.isqrt(channels // PIXEL_CHANNELS)
    return size if PIXEL_CHANNELS * size**2 == channels else 0


def patchify(pixels: Tensor, size: int) -> Tensor:
    """[B, C, F, H, W] -> [B, C*size^2, F, H/size, W/size]; channel (c*size + column)*size + row.

    The column runs before the row, as in the reference, unlike in every other rearrangement of the network.
    """
    return rearrange(pixels, "b c f (h row) (w column) -> b (c column row) f h w", row=size, column=size)


def unpatchify(patches: Tensor, size: int) -> Tensor:
    """The inverse of ``patchify``: [B, C*size^2, F, h, w] -> [B, C, F, h*size, w*size]."""
    return rearrange(patches, "b (c column row) f h w -> b c f (h row) (w column)", row=size, column=size)
