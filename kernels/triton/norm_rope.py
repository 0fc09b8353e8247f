"""RMS norm and partial rotation of q and k in one launch, out of the fused projection's rows.

A program takes a token and a few heads, of q or of k. Letters: N tokens, H query heads, G key heads, E entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, alignment, power_of_two

HEADS = 8  # of a program: 40 and 8 are whole multiples; not yet measured against 1 and 16
WARPS = 4


@triton.jit(do_not_specialize=["first", "second"])
def norm_rope_kernel(
    q,
    k,
    q_out,
    k_out,
    q_weight,
    k_weight,
    rope,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    rope_stride,
    first,
    second,
    epsilon,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PER_MODALITY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    q_parts: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS
    modality = 0
    if PER_MODALITY:
        modality = (row >= first).to(tl.int32) + (row >= second).to(tl.int32)
    if part < q_parts:
        _rotate_heads(
            q + row * (q_stride * ALIGNMENT),
            q_out + row * Q_HEADS * SIZE,
            q_weight + modality * SIZE,
            rope + row * rope_stride,
            q_head_stride,
            part * HEADS,
            epsilon,
            Q_HEADS,
            SIZE,
            HALF,
            HEADS,
            HALF_BLOCK,
            REST_BLOCK,
        )
    else:
        _rotate_heads(
            k + row * (k_stride * ALIGNMENT),
            k_out + row * K_HEADS * SIZE,
            k_weight + modality * SIZE,
            rope + row * rope_stride,
            k_head_stride,
            (part - q_parts) * HEADS,
            epsilon,
            K_HEADS,
            SIZE,
            HALF,
            HEADS,
            HALF_BLOCK,
            REST_BLOCK,
        )


@triton.jit
def _rotate_heads(
    x,
    out,
    weight,
    rope,
    head_stride,
    start,
    epsilon,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
):
    head = start + tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, HALF_BLOCK)[None, :]
    rest = 2 * HALF + tl.arange(0, REST_BLOCK)[None, :]
    in_pair, in_rest = (head < COUNT) & (pair < HALF), (head < COUNT) & (rest < SIZE)
    source, target = x + head * head_stride, out + head * SIZE
    a = tl.load(source + pair, mask=in_pair, other=0.0).to(tl.float32)
    b = tl.load(source + HALF + pair, mask=in_pair, other=0.0).to(tl.float32)
    c = tl.load(source + rest, mask=in_rest, other=0.0).to(tl.float32)
    squares = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1) + tl.sum(c * c, axis=1)
    scale = (1 / tl.sqrt(squares / SIZE + epsilon))[:, None]
    a *= scale * (1 + tl.load(weight + pair, mask=pair < HALF, other=0.0))
    b *= scale * (1 + tl.load(weight + HALF + pair, mask=pair < HALF, other=0.0))
    c *= scale * (1 + tl.load(weight + rest, mask=rest < SIZE, other=0.0))
    sine = tl.load(rope + pair, mask=pair < HALF, other=0.0)
    cosine = tl.load(rope + HALF + pair, mask=pair < HALF, other=0.0)
    kind = out.dtype.element_ty
    tl.store(target + pair, (a * cosine - b * sine).to(kind), mask=in_pair)
    tl.store(target + HALF + pair, (b * cosine + a * sine).to(kind), mask=in_pair)
    tl.store(target + rest, c.to(kind), mask=in_rest)


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
    unit = alignment(q.stride(0), k.stride(0))
    per_modality = q_weight.numel() != size
    arguments = {
        "q": q,
        "k": k,
        "q_out": q_out,
        "k_out": k_out,
        "q_weight": q_weight,
        "k_weight": k_weight,
        "rope": rope,
        "q_stride": q.stride(0) // unit,
        "q_head_stride": q.stride(1),
        "k_stride": k.stride(0) // unit,
        "k_head_stride": k.stride(1),
        "rope_stride": rope.stride(0),
        "first": sizes[0] if per_modality else 0,
        "second": sizes[0] + sizes[1] if per_modality else 0,
        "epsilon": epsilon,
    }
    constants = {
        "Q_HEADS": q_heads,
        "K_HEADS": k_heads,
        "SIZE": size,
        "HALF": half,
        "HEADS": HEADS,
        "HALF_BLOCK": power_of_two(half),
        "REST_BLOCK": power_of_two(size - 2 * half),
        "ALIGNMENT": unit,
        "PER_MODALITY": per_modality,
    }
    parts = -(-q_heads // HEADS) + -(-k_heads // HEADS)
    return Launch(norm_rope_kernel, (count, parts), arguments, constants, WARPS), q_out, k_out
