"""RMS norm of the residual stream, one program per row; with or without a branch added first.

A row is read once and kept in registers. Letters: N rows, D entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, power_of_two

WARPS = 8  # for rows of 5120: 20 entries a thread; not yet measured against 4 and 16


@triton.jit(do_not_specialize=["first", "second"])
def norm_kernel(
    x,
    branch,
    total,
    weight,
    out,
    x_stride,
    branch_stride,
    first,
    second,
    epsilon,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_MODALITY: tl.constexpr,
    ADDS: tl.constexpr,
):
    # 64 bits: 65,806 rows of 27,304 entries are near 2^31 already, and longer films pass it.
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        values += tl.load(branch + row * branch_stride + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + row * SIZE + column, values, mask=inside)
    scale = 1 / tl.sqrt(tl.sum(values * values, axis=0) / SIZE + epsilon)
    if PER_MODALITY:
        # Rows are sorted: video before ``first``, audio before ``second``, then text.
        weight += ((row >= first).to(tl.int32) + (row >= second).to(tl.int32)) * SIZE
    weights = 1 + tl.load(weight + column, mask=inside, other=0.0)
    tl.store(out + row * SIZE + column, (values * scale * weights).to(out.dtype.element_ty), mask=inside)


def plan(
    x: Tensor, branch: Tensor | None, weight: Tensor, sizes: Sequence[int], dtype: torch.dtype, epsilon: float
) -> tuple[Launch, Tensor, Tensor]:
    """(the launch, x + branch [N, D] float32, its norm [N, D]); without a branch the first tensor is x."""
    count, size = x.shape
    out = x.new_empty((count, size), dtype=dtype)
    total = x if branch is None else x.new_empty((count, size), dtype=torch.float32)
    per_modality = weight.numel() != size
    arguments = {
        "x": x,
        "branch": x if branch is None else branch,
        "total": total,
        "weight": weight,
        "out": out,
        "x_stride": x.stride(0),
        "branch_stride": 0 if branch is None else branch.stride(0),
        "first": sizes[0] if per_modality else 0,
        "second": sizes[0] + sizes[1] if per_modality else 0,
        "epsilon": epsilon,
    }
    constants = {
        "SIZE": size,
        "BLOCK": power_of_two(size),
        "PER_MODALITY": per_modality,
        "ADDS": branch is not None,
    }
    return Launch(norm_kernel, (count,), arguments, constants, WARPS), total, out
