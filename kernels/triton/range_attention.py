"""Attention over ranges of keys in one kernel: forward, grouped heads, an optional gate on the result.

A program computes BM query rows of one head. A table made on the host gives it their first row, the row after the last,
and the pieces of keys that they see, so that neither a mask nor a copy of keys is needed. The softmax runs over blocks
of BN keys with a running maximum, in powers of two; logits, sums and the result are float32 until they are stored.

Programs of the same head and of neighbouring rows run at the same time and find each other's keys in the L2 cache: a
window of 23 frames of 2040 keys takes 24 MB of it. Rows that see most come first, so that none is left alone at the end.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..range_plan import pairs, rows_with_equal_keys
from .launch import Launch, alignment

DTYPES = (torch.bfloat16, torch.float16)
DEPTHS = (16, 32, 64, 128)
MOST_PIECES = 8
LOG2_E = 1.4426950408889634


class Tiles(NamedTuple):
    """BM query rows and BN keys at a time, by so many warps, with so many stages of keys in flight."""

    rows: int
    keys: int
    warps: int
    stages: int


# The first row that is not above the card's compute capability. None of them spills at heads of 128 values, where 128 x
# 64 does on 8.x and 12.x (tests/kernels/test_range_attention.py); which are the fastest is for the benchmark to say.
TILES = (
    ((12, 0), Tiles(128, 32, 8, 3)),
    ((9, 0), Tiles(128, 64, 8, 3)),
    ((8, 0), Tiles(128, 32, 8, 3)),
)
INTERPRETED = Tiles(16, 16, 1, 1)


def tiles_for(capability: tuple[int, int] | None) -> Tiles:
    """The tiles for a compute capability; small ones for none, the interpreter."""
    if capability is None:
        return INTERPRETED
    return next((tiles for least, tiles in TILES if capability >= least), TILES[-1][1])


def refuses(q: Tensor, k: Tensor, v: Tensor, ranges: tuple[int, ...]) -> str | None:
    """Why the kernel does not take what Triton itself would, in words."""
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        return f"q, k and v of {q.dtype}, {k.dtype} and {v.dtype} are not all bfloat16 or all float16"
    if q.shape[2] not in DEPTHS:
        return f"heads of {q.shape[2]} values are not of {', '.join(map(str, DEPTHS))}"
    if q.shape[1] % k.shape[1]:
        return f"{q.shape[1]} query heads are not a multiple of {k.shape[1]} key heads"
    if any(part.stride(2) != 1 for part in (q, k, v)):
        return "the values of a head do not lie together in memory"
    if (pieces := _most_pieces(ranges, q.shape[0])) > MOST_PIECES:
        return f"a row sees {pieces} pieces of keys, more than {MOST_PIECES}"
    return None


def plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ranges: tuple[int, ...],
    gate: Tensor | None,
    capability: tuple[int, int] | None,
) -> tuple[Launch, Tensor]:
    """(the launch, [L, H, D]) for q [L, H, D], k and v [K, G, D], flattened ranges, gate [L, H] or None."""
    length, heads, depth = q.shape
    tiles = tiles_for(capability)
    pieces = max(_most_pieces(ranges, length), 1)
    table = _table(ranges, length, tiles.rows, pieces, q.device)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    strides = [stride for part in (q, k, v, out) for stride in part.stride()[:2]]
    unit = alignment(*strides)  # v is a view of rows of 7208: without it every number would be read alone
    names = ("q_row", "q_head", "k_row", "k_head", "v_row", "v_head", "out_row", "out_head")
    arguments = {
        "q": q,
        "k": k,
        "v": v,
        "gate": q if gate is None else gate,
        "out": out,
        "table": table,
        **{name: stride // unit for name, stride in zip(names, strides, strict=True)},
        "gate_row": 0 if gate is None else gate.stride(0),
        "gate_head": 0 if gate is None else gate.stride(1),
        "scale": depth**-0.5 * LOG2_E,
    }
    constants = {
        "GROUP": heads // k.shape[1],
        "D": depth,
        "BM": tiles.rows,
        "BN": tiles.keys,
        "UNIT": unit,
        "PIECES": pieces,
        "GATED": gate is not None,
    }
    grid = (table.shape[0], heads)
    return Launch(range_attention_kernel, grid, arguments, constants, tiles.warps, tiles.stages), out


@lru_cache(maxsize=8)  # every layer of every step asks for the same
def _table(ranges: tuple[int, ...], length: int, rows: int, pieces: int, device: torch.device) -> Tensor:
    """[programs, 2 + 2*pieces] int32: query rows from, to; keys from, to for each piece, empty ones at the end."""
    lines, at = [], 0
    runs = rows_with_equal_keys(pairs(ranges), length)
    for (start, stop), keys in [*runs, ((length, length), [])]:
        lines += _lines(at, start, [], rows, pieces)  # rows that see nothing
        lines += _lines(start, stop, keys, rows, pieces)
        at = stop
    lines.sort(key=lambda line: -sum(line[3::2]) + sum(line[2::2]))  # stable: neighbours stay neighbours
    return torch.tensor(lines, dtype=torch.int32).view(-1, 2 + 2 * pieces).to(device)


def _lines(start: int, stop: int, keys, rows: int, pieces: int) -> list[list[int]]:
    seen = [edge for piece in keys for edge in piece] + [0] * 2 * (pieces - len(keys))
    return [[first, min(first + rows, stop), *seen] for first in range(start, stop, rows)]


@lru_cache(maxsize=8)
def _most_pieces(ranges: tuple[int, ...], length: int) -> int:
    return max((len(keys) for _, keys in rows_with_equal_keys(pairs(ranges), length)), default=0)


@triton.jit
def _attend_to(
    acc,
    total,
    top,
    q,
    k_at,
    v_at,
    begin,
    last,
    k_step,
    v_step,
    scale,
    BN: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """One block of keys: the running result, sum and maximum, moved on."""
    # The block's place is a scalar of 64 bits: in the tensors of pointers it would take twice the registers.
    k_at += begin * k_step
    v_at += begin * v_step
    if IS_WHOLE:
        k = tl.load(k_at)
        v = tl.load(v_at)
    else:
        is_key = begin + tl.arange(0, BN) < last
        k = tl.load(k_at, mask=is_key[None, :], other=0.0)
        v = tl.load(v_at, mask=is_key[:, None], other=0.0)
    logits = tl.dot(q, k) * scale
    if not IS_WHOLE:
        logits = tl.where(is_key[None, :], logits, float("-inf"))
    above = tl.maximum(top, tl.max(logits, 1))
    weights = tl.exp2(logits - above[:, None])
    shrink = tl.exp2(top - above)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None])
    return acc, total, above


@triton.jit
def range_attention_kernel(
    q,
    k,
    v,
    gate,
    out,
    table,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    out_row,
    out_head,
    gate_row,
    gate_head,
    scale,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    UNIT: tl.constexpr,
    PIECES: tl.constexpr,
    GATED: tl.constexpr,
):
    """Letters as in kernels/attention.py; ?_row and ?_head are strides, in UNITs but for the gate's."""
    q_row, q_head, k_row, k_head = q_row * UNIT, q_head * UNIT, k_row * UNIT, k_head * UNIT
    v_row, v_head, out_row, out_head = v_row * UNIT, v_head * UNIT, out_row * UNIT, out_head * UNIT
    line = table + tl.program_id(0) * (2 + 2 * PIECES)
    head = tl.program_id(1).to(tl.int64)
    start, stop = tl.load(line), tl.load(line + 1)
    rows = start + tl.arange(0, BM)
    entries = tl.arange(0, D)
    is_row = rows[:, None] < stop
    at = tl.arange(0, BM)[:, None] * q_row + entries[None, :]
    query = tl.load(q + start.to(tl.int64) * q_row + head * q_head + at, mask=is_row, other=0.0)
    keys = tl.arange(0, BN)
    k_at = k + (head // GROUP) * k_head + (keys[None, :] * k_row + entries[:, None])
    v_at = v + (head // GROUP) * v_head + (keys[:, None] * v_row + entries[None, :])
    k_step, v_step = k_row.to(tl.int64), v_row.to(tl.int64)

    # Not -inf: the difference of two of them is no number. Far below any logit, and its power of two is 0.
    top = tl.full([BM], -1.0e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, D], tl.float32)
    for piece in tl.range(0, PIECES):
        first = tl.load(line + 2 + 2 * piece)
        last = tl.load(line + 3 + 2 * piece)
        whole = first + (last - first) // BN * BN
        for begin in tl.range(first, whole, BN):
            acc, total, top = _attend_to(
                acc, total, top, query, k_at, v_at, begin, last, k_step, v_step, scale, BN, True
            )
        if whole < last:
            acc, total, top = _attend_to(
                acc, total, top, query, k_at, v_at, whole, last, k_step, v_step, scale, BN, False
            )

    share = 1.0 / tl.where(total > 0, total, 1.0)  # rows that see nothing are 0
    if GATED:
        opened = tl.load(gate + rows.to(tl.int64) * gate_row + head * gate_head, mask=rows < stop, other=0.0)
        share = share * tl.sigmoid(opened.to(tl.float32))
    at = tl.arange(0, BM)[:, None] * out_row + entries[None, :]
    tl.store(
        out + start.to(tl.int64) * out_row + head * out_head + at,
        (acc * share[:, None]).to(out.dtype.element_ty),
        mask=is_row,
    )
