"""8-bit matrix product whose epilogue scales, activates (or not) and stores: ``gated_product`` in Triton.

Gate and linear rows of the weight alternate in memory, so the two entries that SwiGLU7 joins are neighbouring
columns of the accumulator, which a matrix unit leaves in one thread: the tile is reshaped to pairs and split there,
and the weight is read as it is stored, in whole rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch

LIMIT, SLOPE = tl.constexpr(7.0), tl.constexpr(1.702)


class Tile(NamedTuple):
    """What one program makes, and how."""

    capability: tuple[int, int]  # from which on
    rows: int
    columns: int  # before the activation
    depth: int
    abreast: int  # tiles of rows that run before the next tile of columns
    warps: int
    stages: int
    promoted: int | None = (
        None  # inputs after which Hopper's FP8 sums, of about 14 bits, move to float32; never
    )


# None was timed yet: the shared memory a card has (99, 163, 227 KB) and 64 to 128 accumulators a thread decide
# [performance.md, section 6]; `bench kernels` shows what they reach.
TILES = (
    Tile((12, 0), 128, 128, 128, 8, 8, 3),
    Tile((9, 0), 128, 256, 128, 8, 8, 4),
    Tile((8, 0), 128, 128, 128, 8, 8, 3),
)
# In the interpreter: small, so that odd sizes have tails in every direction.
SMALL = Tile((0, 0), 16, 32, 32, 2, 4, 1)


def tile(capability: tuple[int, int] | None) -> Tile:
    """The row of ``TILES`` for a compute capability; the small one for none, the interpreter."""
    if capability is None:
        return SMALL
    return next((row for row in TILES if capability >= row.capability), TILES[-1])


@triton.jit
def gated_product_kernel(
    out,
    x,
    weight,
    x_scale,
    weight_scale,
    N,
    K,
    R,
    width,
    x_stride,
    weight_stride,
    out_stride,
    factor,
    GATED: tl.constexpr,
    ACTIVATED: tl.constexpr,
    X_SCALES: tl.constexpr,
    WEIGHT_SCALES: tl.constexpr,
    WHOLE_K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    ABREAST: tl.constexpr,
    PROMOTED: tl.constexpr,
):
    """One tile [ROWS, COLUMNS] of x @ weight.T; ``out`` gets half as many columns where ``GATED``.

    Programs run ``ABREAST`` tiles down before the next column of tiles, so that they share weights in L2.
    """
    program = tl.program_id(0)
    made: tl.constexpr = COLUMNS // 2 if GATED else COLUMNS
    down, across = tl.cdiv(N, ROWS), tl.cdiv(width, made)
    group = program // (ABREAST * across)
    high = min(down - group * ABREAST, ABREAST)
    tile_row = group * ABREAST + (program % (ABREAST * across)) % high
    tile_column = (program % (ABREAST * across)) // high

    # 64 bits: a row times its stride passes 2^31 in films of ten seconds at 1080p.
    rows = tl.cast(tile_row * ROWS + tl.arange(0, ROWS), tl.int64)
    columns = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    has_row, has_column = rows < N, columns < R
    # Rows past the end read the last one: what they make is not stored, and no load needs a mask for them.
    x_tile = x + tl.minimum(rows, N - 1)[:, None] * x_stride + depth[None, :]
    weight_tile = weight + tl.minimum(columns, R - 1)[None, :] * weight_stride + depth[:, None]
    if x.dtype.element_ty == tl.int8:
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
    else:
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, K, DEPTH):
        if WHOLE_K:
            a, b = tl.load(x_tile), tl.load(weight_tile)
        else:
            a = tl.load(x_tile, mask=depth[None, :] < K - start, other=0.0)
            b = tl.load(weight_tile, mask=depth[:, None] < K - start, other=0.0)
        if x.dtype.element_ty == tl.int8:
            total = tl.dot(a, b, total, out_dtype=tl.int32)
        else:
            total = tl.dot(a, b, total, max_num_imprecise_acc=PROMOTED)
        x_tile += DEPTH
        weight_tile += DEPTH

    up = total.to(tl.float32)
    if X_SCALES:
        up *= tl.load(x_scale + rows, mask=has_row, other=0)[:, None]
    else:
        up *= tl.load(x_scale)
    if WEIGHT_SCALES:
        up *= tl.load(weight_scale + columns, mask=has_column, other=0)[None, :]
    else:
        up *= tl.load(weight_scale)
    up = tl.where(has_column[None, :], up, 0.0)
    if GATED:
        gate, straight = tl.split(tl.reshape(up, (ROWS, made, 2)))
        gate = tl.minimum(gate, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        straight = tl.clamp(straight, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        result = gate / (1 + tl.exp(gate * -SLOPE)) * (straight + 1)
    elif ACTIVATED:
        gate = tl.minimum(up, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        result = gate / (1 + tl.exp(gate * -SLOPE))
    else:
        result = up
    places = tile_column * made + tl.arange(0, made)
    target = out + rows[:, None] * out_stride + places[None, :]
    mask = has_row[:, None] & (places[None, :] < width)
    tl.store(target, (result * factor).to(out.dtype.element_ty), mask=mask)


def plan(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    kind: str,
    dtype: torch.dtype,
    width: int,
    factor: float,
    capability: tuple[int, int] | None,
    shape: Tile | None = None,
) -> tuple[Launch, Tensor]:
    """(the launch, [N, width]); results are multiplied by ``factor``. ``capability`` None is the interpreter's.

    ``shape`` is the benchmark's, which compares them.
    """
    shape = tile(capability) if shape is None else shape
    out = x.new_empty((x.shape[0], width), dtype=dtype)
    is_gated = kind == "swiglu7"
    made = shape.columns // 2 if is_gated else shape.columns
    arguments = {
        "out": out,
        "x": x,
        "weight": weight,
        "x_scale": x_scale,
        "weight_scale": weight_scale,
        "N": x.shape[0],
        "K": x.shape[1],
        "R": weight.shape[0],
        "width": width,
        "x_stride": x.stride(0),
        "weight_stride": weight.stride(0),
        "out_stride": out.stride(0),
        "factor": factor,
    }
    constants = {
        "GATED": is_gated,
        "ACTIVATED": kind != "none",
        "X_SCALES": x_scale.numel() > 1,
        "WEIGHT_SCALES": weight_scale.numel() > 1,
        "WHOLE_K": x.shape[1] % shape.depth == 0,
        "ROWS": shape.rows,
        "COLUMNS": shape.columns,
        "DEPTH": shape.depth,
        "ABREAST": shape.abreast,
        "PROMOTED": shape.promoted,
    }
    grid = (-(-x.shape[0] // shape.rows) * -(-width // made),)
    return Launch(gated_product_kernel, grid, arguments, constants, shape.warps, shape.stages), out
