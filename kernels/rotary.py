"""Partial rotary embedding: the first 6B of D head entries are rotated in half-split pairs."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """(x_i, x_{i+3B}) -> (x_i cos_i - x_{i+3B} sin_i, x_{i+3B} cos_i + x_i sin_i) for i < 3B, in float32.

    x is [L, H, D]; ``rope`` is [L, 6B], the sines of 3B angles and then their cosines. Entries of x from
    6B on pass unchanged.
    """
    sine, cosine = rope.float().unsqueeze(1).chunk(2, dim=-1)
    half = sine.shape[-1]
    first, second, rest = x.float().split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], dim=-1)
