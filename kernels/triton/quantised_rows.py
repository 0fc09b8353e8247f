"""A row in registers -> 8 bits and its scale in memory: the end of the kernels that quantise what they make."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantised_rows import LIMITS, empty_rows

# Added to a float32 below 2^22 and taken away again, it leaves the nearest whole number, half to even.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _fold(values, BLOCK: tl.constexpr, STRIDE: tl.constexpr):
    """Every fourth-of-a-group of STRIDE entries -> half the sum of the four of them, less itself."""
    parts = tl.reshape(values, (BLOCK // (4 * STRIDE), 4, STRIDE))
    parts = tl.sum(parts, axis=1, keep_dims=True) * 0.5 - parts
    return tl.reshape(parts, (BLOCK,))


@triton.jit
def store_quantised(
    values,
    out,
    scales,
    static,
    row,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    LIMIT: tl.constexpr,
    STATIC: tl.constexpr,
):
    """float32 values [BLOCK], zeros from the row's own on -> row ``row`` of out [N, WIDTH] and of scales [N].

    H = (E/2 - J) is the reversal of E/2 - I, and so are its Kronecker powers: the folds below leave each group in
    reverse, and it is turned round by the addresses it is stored at.
    """
    column = tl.arange(0, BLOCK)
    target = column
    if GROUP > 0:
        values = _fold(values, BLOCK, 1)
        if GROUP > 4:
            values = _fold(values, BLOCK, 4)
        if GROUP > 16:
            values = _fold(values, BLOCK, 16)
        if GROUP > 64:
            values = _fold(values, BLOCK, 64)
        target = column ^ (GROUP - 1)
    if STATIC:
        scale = tl.load(static).to(tl.float32)
    else:
        largest = tl.reduce(tl.abs(values), 0, _larger)
        scale = tl.where(largest == 0.0, 1.0, largest / LIMIT)
    tl.store(scales + row, scale)
    values = tl.clamp(values / scale, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    if out.dtype.element_ty == tl.int8:
        values = tl.where(values == values, (values + ROUNDER) - ROUNDER, 0.0)
    tl.store(out + row * WIDTH + target, values.to(out.dtype.element_ty), mask=target < WIDTH)


def quantising(
    like: Tensor, count: int, stored: torch.dtype, width: int, group: int, scale: Tensor | None
) -> tuple[dict, dict, Tensor, Tensor]:
    """(arguments, constants, values [N, width], scales [N, 1]) for a kernel that ends in ``store_quantised``."""
    values, scales = empty_rows(like, count, stored, width)
    arguments = {"out": values, "scales": scales, "static": scales if scale is None else scale}
    constants = {"WIDTH": width, "GROUP": group, "LIMIT": LIMITS[stored], "STATIC": scale is not None}
    return arguments, constants, values, scales
