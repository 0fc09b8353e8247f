"""The attention's result times the sigmoid of one gate per head; a program takes a token and a few heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, power_of_two
from .quantised_rows import quantising, store_quantised

HEADS = 8  # of a program; not yet measured against 1 and 40
WARPS = 4
ROW_WARPS = 8  # of a program that has a whole row, to quantise it: 32 of 64 x 128 entries a thread


@triton.jit
def _gated(
    x,
    gate,
    row,
    head,
    column,
    x_stride,
    head_stride,
    gate_stride,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Some heads of one token in float32; zeros outside."""
    inside = (head < COUNT)[:, None] & (column < SIZE)
    opened = tl.sigmoid(tl.load(gate + row * gate_stride + head, mask=head < COUNT, other=0.0).to(tl.float32))
    # The head's stride may be a whole plane of N rows, where attention laid its result out by heads.
    source = x + row * x_stride + head.to(tl.int64)[:, None] * head_stride + column
    return tl.load(source, mask=inside, other=0.0).to(tl.float32) * opened[:, None]


@triton.jit
def gate_kernel(
    x,
    gate,
    out,
    x_stride,
    head_stride,
    gate_stride,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (head < COUNT)[:, None] & (column < SIZE)
    values = _gated(x, gate, row, head, column, x_stride, head_stride, gate_stride, COUNT, SIZE)
    target = out + row * COUNT * SIZE + head[:, None] * SIZE + column
    tl.store(target, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def quantising_gate_kernel(
    x,
    gate,
    out,
    scales,
    static,
    x_stride,
    head_stride,
    gate_stride,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    LIMIT: tl.constexpr,
    STATIC: tl.constexpr,
):
    """A whole row; ``SIZE`` is a power of two, so the tile of heads is the row."""
    row = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS), tl.arange(0, SIZE)[None, :]
    values = _gated(x, gate, row, head, column, x_stride, head_stride, gate_stride, COUNT, SIZE)
    values = tl.reshape(values, (HEADS * SIZE,))
    store_quantised(values, out, scales, static, row, WIDTH, HEADS * SIZE, GROUP, LIMIT, STATIC)


def plan(x: Tensor, gate: Tensor, dtype: torch.dtype) -> tuple[Launch, Tensor]:
    """(the launch, [N, H*E])"""
    count, heads, size = x.shape
    out = x.new_empty((count, heads * size), dtype=dtype)
    arguments = {
        "x": x,
        "gate": gate,
        "out": out,
        "x_stride": x.stride(0),
        "head_stride": x.stride(1),
        "gate_stride": gate.stride(0),
    }
    constants = {"COUNT": heads, "SIZE": size, "HEADS": HEADS, "BLOCK": power_of_two(size)}
    return Launch(gate_kernel, (count, -(-heads // HEADS)), arguments, constants, WARPS), out


def plan_quantised(
    x: Tensor, gate: Tensor, stored: torch.dtype, width: int, group: int, scale: Tensor | None
) -> tuple[Launch, Tensor, Tensor]:
    """(the launch, values [N, H*E], scales [N, 1])"""
    count, heads, size = x.shape
    more, constants, values, scales = quantising(x, count, stored, width, group, scale)
    arguments = {
        "x": x,
        "gate": gate,
        "x_stride": x.stride(0),
        "head_stride": x.stride(1),
        "gate_stride": gate.stride(0),
    }
    constants |= {"COUNT": heads, "SIZE": size, "HEADS": power_of_two(heads)}
    return Launch(quantising_gate_kernel, (count,), arguments | more, constants, ROW_WARPS), values, scales
