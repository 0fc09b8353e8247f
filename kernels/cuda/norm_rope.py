"""RMS norm and partial rotation of q and k in one launch, out of the fused projection's rows.

A block takes a token and a few heads, of q or of k; a team of up to 32 threads side by side takes a head, and finds the
other half of each rotated pair in shared memory. Letters: N tokens, H query heads, G key heads, E entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .launch import Kernel, Launch, entries_at_once

THREADS = 128  # of a block: 8 published heads in bfloat16; not yet measured against 64 and 256

KERNEL = Kernel(
    "norm_rope_kernel",
    r"""
extern "C" __global__ void __launch_bounds__(THREADS) norm_rope_kernel(
    const IN* __restrict__ q, const IN* __restrict__ k, OUT* __restrict__ q_out, OUT* __restrict__ k_out,
    const float* __restrict__ q_weight, const float* __restrict__ k_weight, const float* __restrict__ rope,
    long long q_stride, long long q_head_stride, long long k_stride, long long k_head_stride,
    long long rope_stride, long long first, long long second, float epsilon)
{
    alignas(16) __shared__ float rows[TEAMS][SIZE];
    const long long row = blockIdx.x;
    const int team = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const bool is_query = blockIdx.y < Q_PARTS;
    const int head = (is_query ? blockIdx.y : blockIdx.y - Q_PARTS) * TEAMS + team;
    const int heads = is_query ? Q_HEADS : K_HEADS;
    const bool inside = head < heads;  // the others still take part in sums
    const IN* x = is_query ? q + row * q_stride + head * q_head_stride
                           : k + row * k_stride + head * k_head_stride;
    const float* weight = is_query ? q_weight : k_weight;
    OUT* out = (is_query ? q_out : k_out) + (row * heads + head) * SIZE;
    rope += row * rope_stride;
    // Rows are sorted: video before ``first``, audio before ``second``, then text.
    if (PER_MODALITY) weight += ((row >= first) + (row >= second)) * SIZE;

    float kept[TURNS][VECTOR], squares = 0.0f;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int column = (turn * LANES + lane) * VECTOR;
        if (inside && column < SIZE) {
            read(x + column, kept[turn]);
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) squares += kept[turn][i] * kept[turn][i];
        }
    }
    const float scale = 1.0f / sqrtf(sum_of_team<LANES>(squares) / SIZE + epsilon);
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int column = (turn * LANES + lane) * VECTOR;
        if (inside && column < SIZE) {
            float weights[VECTOR];
            read(weight + column, weights);
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) kept[turn][i] *= scale * (1.0f + weights[i]);
            write(&rows[team][column], kept[turn]);
        }
    }
    __syncwarp();
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int column = (turn * LANES + lane) * VECTOR;
        if (inside && column < SIZE) {
            if (column < 2 * HALF) {  // VECTOR divides HALF: all of them are on one side
                const bool is_first = column < HALF;
                float sine[VECTOR], cosine[VECTOR], other[VECTOR];
                read(rope + (is_first ? column : column - HALF), sine);
                read(rope + (is_first ? column + HALF : column), cosine);
                read(&rows[team][is_first ? column + HALF : column - HALF], other);
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) {
                    const float turned = other[i] * (is_first ? -sine[i] : sine[i]);
                    kept[turn][i] = kept[turn][i] * cosine[i] + turned;
                }
            }
            write(out + column, kept[turn]);
        }
    }
}
""",
)


def plan(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    sizes: Sequence[int],
    rope: Tensor,
    dtype: torch.dtype,
    epsilon: float,
) -> tuple[Launch, Tensor, Tensor]:
    """(the launch, q [N, H, E], k [N, G, E]), both contiguous."""
    count, q_heads, size = q.shape
    k_heads, half = k.shape[1], rope.shape[1] // 2
    q_out = q.new_empty((count, q_heads, size), dtype=dtype)
    k_out = k.new_empty((count, k_heads, size), dtype=dtype)
    tensors = (q, k, q_out, k_out, q_weight, k_weight, rope)
    vector = entries_at_once(16 // q.element_size(), [size, half], *((tensor, 1) for tensor in tensors))
    lanes = min(1 << (size // vector - 1).bit_length(), 32)
    teams = THREADS // lanes
    q_parts = -(-q_heads // teams)
    per_modality = q_weight.numel() != size
    arguments = {
        "q": q,
        "k": k,
        "q_out": q_out,
        "k_out": k_out,
        "q_weight": q_weight,
        "k_weight": k_weight,
        "rope": rope,
        "q_stride": q.stride(0),
        "q_head_stride": q.stride(1),
        "k_stride": k.stride(0),
        "k_head_stride": k.stride(1),
        "rope_stride": rope.stride(0),
        "first": sizes[0] if per_modality else 0,
        "second": sizes[0] + sizes[1] if per_modality else 0,
        "epsilon": float(epsilon),
    }
    constants = {
        "IN": q.dtype,
        "OUT": dtype,
        "Q_HEADS": q_heads,
        "K_HEADS": k_heads,
        "Q_PARTS": q_parts,
        "SIZE": size,
        "HALF": half,
        "VECTOR": vector,
        "LANES": lanes,
        "TEAMS": teams,
        "THREADS": THREADS,
        "TURNS": -(-size // (lanes * vector)),
        "PER_MODALITY": per_modality,
    }
    grid = (count, q_parts + -(-k_heads // teams))
    return Launch(KERNEL, grid, THREADS, arguments, constants), q_out, k_out
