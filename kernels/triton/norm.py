"""RMS norm of the residual stream, one program per row; with or without a branch added first, or 8-bit rows behind.

A row is read once and kept in registers. Letters: N rows, D entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, power_of_two
from .quantised_rows import quantising, store_quantised

WARPS = 8  # for rows of 5120: 20 entries a thread; not yet measured against 4 and 16


@triton.jit
def _normed(
    x,
    branch,
    total,
    weight,
    row,
    column,
    x_stride,
    branch_stride,
    first,
    second,
    epsilon,
    SIZE: tl.constexpr,
    PER_MODALITY: tl.constexpr,
    ADDS: tl.constexpr,
):
    """The norm of one row in float32, zeros behind its entries; with a branch, of the sum, which is stored."""
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
    return values * scale * weights


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
    values = _normed(
        x, branch, total, weight, row, column, x_stride, branch_stride, first, second, epsilon,
        SIZE, PER_MODALITY, ADDS,
    )  # fmt: skip
    tl.store(out + row * SIZE + column, values.to(out.dtype.element_ty), mask=column < SIZE)


@triton.jit(do_not_specialize=["first", "second"])
def quantising_norm_kernel(
    x,
    branch,
    total,
    weight,
    out,
    scales,
    static,
    x_stride,
    branch_stride,
    first,
    second,
    epsilon,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_MODALITY: tl.constexpr,
    ADDS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    LIMIT: tl.constexpr,
    STATIC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    values = _normed(
        x, branch, total, weight, row, tl.arange(0, BLOCK), x_stride, branch_stride, first, second, epsilon,
        SIZE, PER_MODALITY, ADDS,
    )  # fmt: skip
    store_quantised(values, out, scales, static, row, WIDTH, BLOCK, GROUP, LIMIT, STATIC)


def plan(
    x: Tensor, branch: Tensor | None, weight: Tensor, sizes: Sequence[int], dtype: torch.dtype, epsilon: float
) -> tuple[Launch, Tensor, Tensor]:
    """(the launch, x + branch [N, D] float32, its norm [N, D]); without a branch the first tensor is x."""
    out = x.new_empty(x.shape, dtype=dtype)
    arguments, constants, total = _planned(x, branch, weight, sizes, epsilon)
    constants["BLOCK"] = power_of_two(x.shape[1])
    return Launch(norm_kernel, (x.shape[0],), arguments | {"out": out}, constants, WARPS), total, out


def plan_quantised(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    sizes: Sequence[int],
    stored: torch.dtype,
    width: int,
    group: int,
    scale: Tensor | None,
    epsilon: float,
) -> tuple[Launch, Tensor, Tensor, Tensor]:
    """(the launch, the sum as in ``plan``, its norm as ``quantise_rows`` has it: values and scales)"""
    arguments, constants, total = _planned(x, branch, weight, sizes, epsilon)
    more, forms, values, scales = quantising(x, x.shape[0], stored, width, group, scale)
    constants |= forms | {"BLOCK": power_of_two(width)}
    launch = Launch(quantising_norm_kernel, (x.shape[0],), arguments | more, constants, WARPS)
    return launch, total, values, scales


def _planned(x: Tensor, branch: Tensor | None, weight: Tensor, sizes: Sequence[int], epsilon: float):
    """(arguments, constants, the sum) of both kernels."""
    size = x.shape[1]
    total = x if branch is None else x.new_empty(x.shape, dtype=torch.float32)
    per_modality = weight.numel() != size
    arguments = {
        "x": x,
        "branch": x if branch is None else branch,
        "total": total,
        "weight": weight,
        "x_stride": x.stride(0),
        "branch_stride": 0 if branch is None else branch.stride(0),
        "first": sizes[0] if per_modality else 0,
        "second": sizes[0] + sizes[1] if per_modality else 0,
        "epsilon": epsilon,
    }
    constants = {"SIZE": size, "PER_MODALITY": per_modality, "ADDS": branch is not None}
    return arguments, constants, total
