"""The attention's result times the sigmoid of one gate per head; a program takes a token and a few heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, power_of_two

HEADS = 8  # of a program; not yet measured against 1 and 40
WARPS = 4


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
    opened = tl.sigmoid(tl.load(gate + row * gate_stride + head, mask=head < COUNT, other=0.0).to(tl.float32))
    # The head's stride may be a whole plane of N rows, where attention laid its result out by heads.
    source = x + row * x_stride + head.to(tl.int64)[:, None] * head_stride + column
    values = tl.load(source, mask=inside, other=0.0).to(tl.float32) * opened[:, None]
    target = out + row * COUNT * SIZE + head[:, None] * SIZE + column
    tl.store(target, values.to(out.dtype.element_ty), mask=inside)


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
