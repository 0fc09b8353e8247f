"""SwiGLU7 and GELU7 of the up-projection's rows, zeros behind them, in the dtype of the down-projection."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, alignment

BLOCK = (
    1024  # results of a program: 8 a thread, read as two vectors of 16 bytes in bfloat16; not yet measured
)
WARPS = 4


@triton.jit
def activation_kernel(
    x,
    out,
    x_stride,
    entries,
    width,
    gain,
    BLOCK: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    IS_GATED: tl.constexpr,
    LIMIT: tl.constexpr,
    SLOPE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x += row * (x_stride * ALIGNMENT)
    entries *= ALIGNMENT
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if IS_GATED:
        pair = tl.program_id(1) * 2 * BLOCK + tl.arange(0, 2 * BLOCK)
        both = tl.load(x + pair, mask=pair < entries, other=0.0).to(tl.float32)
        value, linear = tl.split(tl.reshape(both, (BLOCK, 2)))
        linear = tl.clamp(linear, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL) + 1
    else:
        value = tl.load(x + column, mask=column < entries, other=0.0).to(tl.float32)
        linear = 1.0
    # A number that is none stays none, as in the definition, for the sampler's watch to see.
    value = tl.minimum(value, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    # What is behind the entries was read as zeros, and activates to zero.
    value = value * tl.sigmoid(SLOPE * value) * linear * gain
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), mask=column < width)


def plan(
    up: Tensor,
    is_gated: bool,
    dtype: torch.dtype,
    width: int,
    gain: float,
    limit: float,
    slope: float,
) -> tuple[Launch, Tensor]:
    """(the launch, [N, width])"""
    count, entries = up.shape
    out = up.new_empty((count, width), dtype=dtype)
    unit = alignment(up.stride(0), entries)
    arguments = {
        "x": up,
        "out": out,
        "x_stride": up.stride(0) // unit,
        "entries": entries // unit,
        "width": width,
        "gain": gain,
    }
    constants = {
        "BLOCK": BLOCK,
        "ALIGNMENT": unit,
        "IS_GATED": is_gated,
        "LIMIT": limit,
        "SLOPE": slope,
    }
    return Launch(activation_kernel, (count, -(-width // BLOCK)), arguments, constants, WARPS), out
