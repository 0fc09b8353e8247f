"""SwiGLU7 and GELU7 of the up-projection's rows, zeros behind them, in the dtype of the down-projection."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Kernel, Launch, entries_at_once

THREADS = 128  # of a block: 1024 results in bfloat16; not yet measured

KERNEL = Kernel(
    "activation_kernel",
    r"""
extern "C" __global__ void __launch_bounds__(THREADS) activation_kernel(
    const IN* __restrict__ x, OUT* __restrict__ out,
    long long x_stride, long long entries, long long width, float limit, float slope)
{
    constexpr int PARTS = IS_GATED ? 2 : 1;  // gate and linear part, interleaved
    const long long row = blockIdx.x;
    const int column = (blockIdx.y * THREADS + threadIdx.x) * VECTOR;
    if (column >= width) return;
    x += row * x_stride + column * PARTS;
    const long long left = entries - column * PARTS;
    float given[VECTOR * PARTS], values[VECTOR];
    if (VECTOR > 1 && left >= VECTOR * PARTS) {  // of 1 nothing is known about how a pair lies
        read(x, given);
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR * PARTS; ++i) given[i] = i < left ? number(x[i]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        // A number that is none compares as false and stays none, for the sampler's watch to see.
        float value = given[i * PARTS];
        value = value > limit ? limit : value;
        value *= sigmoid(slope * value);
        if (IS_GATED) {
            float linear = given[i * PARTS + PARTS - 1];
            linear = linear > limit ? limit : linear;
            value *= (linear < -limit ? -limit : linear) + 1.0f;
        }
        values[i] = value;  // of zeros behind the entries: zero
    }
    write(out + row * width + column, values);
}
""",
)


def plan(
    up: Tensor, is_gated: bool, dtype: torch.dtype, width: int, limit: float, slope: float
) -> tuple[Launch, Tensor]:
    """(the launch, [N, width])"""
    count, entries = up.shape
    out = up.new_empty((count, width), dtype=dtype)
    vector = entries_at_once(16 // up.element_size(), [width], (up, 2 if is_gated else 1), (out, 1))
    arguments = {
        "x": up,
        "out": out,
        "x_stride": up.stride(0),
        "entries": entries,
        "width": width,
        "limit": float(limit),
        "slope": float(slope),
    }
    constants = {"IN": up.dtype, "OUT": dtype, "IS_GATED": is_gated, "VECTOR": vector, "THREADS": THREADS}
    return Launch(KERNEL, (count, -(-width // (vector * THREADS))), THREADS, arguments, constants), out
