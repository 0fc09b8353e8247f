"""RMS norm of the residual stream, one block of threads per row; with or without a branch added first.

A row is read once and kept in registers. Letters: N rows, D entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .launch import Kernel, Launch, entries_at_once

ENTRIES = 24  # of a thread, about: 20 of rows of 5120; not yet measured against 12 and 40

KERNEL = Kernel(
    "norm_kernel",
    r"""
// One block at least: left to itself, NVRTC 13.5 spills a row's numbers on 10.0 for the sake of more blocks at a time.
extern "C" __global__ void __launch_bounds__(THREADS, 1) norm_kernel(
    const IN* __restrict__ x, const BRANCH* __restrict__ branch, float* __restrict__ total,
    const float* __restrict__ weight, OUT* __restrict__ out,
    long long x_stride, long long branch_stride, long long first, long long second, float epsilon)
{
    __shared__ float sums[32];
    const long long row = blockIdx.x;
    float kept[TURNS][VECTOR], squares = 0.0f;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int column = (turn * THREADS + threadIdx.x) * VECTOR;
        if (column < SIZE) {  // SIZE is a multiple of VECTOR
            read(x + row * x_stride + column, kept[turn]);
            if (ADDS) {
                float more[VECTOR];
                read(branch + row * branch_stride + column, more);
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) kept[turn][i] += more[i];
                write(total + row * SIZE + column, kept[turn]);
            }
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) squares += kept[turn][i] * kept[turn][i];
        }
    }
    const float scale = 1.0f / sqrtf(sum_of_block<THREADS>(squares, sums) / SIZE + epsilon);
    // Rows are sorted: video before ``first``, audio before ``second``, then text.
    if (PER_MODALITY) weight += ((row >= first) + (row >= second)) * SIZE;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int column = (turn * THREADS + threadIdx.x) * VECTOR;
        if (column < SIZE) {
            float weights[VECTOR];
            read(weight + column, weights);
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) kept[turn][i] *= scale * (1.0f + weights[i]);
            write(out + row * SIZE + column, kept[turn]);
        }
    }
}
""",
)


def plan(
    x: Tensor, branch: Tensor | None, weight: Tensor, sizes: Sequence[int], dtype: torch.dtype, epsilon: float
) -> tuple[Launch, Tensor, Tensor]:
    """(the launch, x + branch [N, D] float32, its norm [N, D]); without a branch the first tensor is x."""
    count, size = x.shape
    out = x.new_empty((count, size), dtype=dtype)
    total = x if branch is None else x.new_empty((count, size), dtype=torch.float32)
    added = x if branch is None else branch
    per_modality = weight.numel() != size
    vector = entries_at_once(4, [size], *((tensor, 1) for tensor in (x, added, total, weight, out)))
    threads = min(max(1 << (-(-size // ENTRIES) - 1).bit_length(), 32), 1024)
    arguments = {
        "x": x,
        "branch": added,
        "total": total,
        "weight": weight,
        "out": out,
        "x_stride": x.stride(0),
        "branch_stride": added.stride(0),
        "first": sizes[0] if per_modality else 0,
        "second": sizes[0] + sizes[1] if per_modality else 0,
        "epsilon": float(epsilon),
    }
    constants = {
        "IN": x.dtype,
        "BRANCH": added.dtype,
        "OUT": dtype,
        "SIZE": size,
        "VECTOR": vector,
        "THREADS": threads,
        "TURNS": -(-size // (threads * vector)),
        "PER_MODALITY": per_modality,
        "ADDS": branch is not None,
    }
    return Launch(KERNEL, (count, 1), threads, arguments, constants), total, out
