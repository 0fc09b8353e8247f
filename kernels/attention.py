"""Softmax attention with grouped key heads, over everything or over ranges of tokens.

Letters: L tokens, H query heads, G key heads (query head j uses key head floor(j*G/H)), D head entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import cards
from .attention_ways import LIBRARIES, PREFERENCES, RANGE_PREFERENCES, sdpa
from .cards import LAST, by_preference
from .gate import gate_heads
from .range_plan import Range, flatten, pairs, plan, rows_with_equal_keys
from .registry import DEFINITION, needs_triton

__all__ = [
    "AttentionBy",
    "Range",
    "attention",
    "attention_over_ranges",
    "gate_heads",
    "range_attention",
    "range_log_sum_exp",
]


def _like_q(q: Tensor, *_) -> Tensor:
    return q.new_empty(q.shape)


@by_preference(fake=_like_q, rows=PREFERENCES)
def attention(q: Tensor, k: Tensor, v: Tensor, way: str | None = None) -> Tensor:  # noqa: ARG001 - see Preferred
    """softmax(q.k / sqrt(D)) v; q [L, H, D], k and v [K, G, D] -> [L, H, D], in q's dtype."""
    return sdpa(q, k, v)


def _of_tensors(function: Callable) -> Callable:
    return lambda q, k, v, *_, **__: function(q, k, v)


for _name, _library in LIBRARIES.items():
    attention.fast(_name, _of_tensors(_library.refuses))(_of_tensors(_library.run))


@dataclass(frozen=True, slots=True)
class AttentionBy:
    """``attention`` by one of its ways, "definition" for none, or (None) as the card prefers."""

    way: str | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, self.way)


def range_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ranges: Sequence[tuple[Range, Range]],
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = attention,
    gate: Tensor | None = None,
) -> Tensor:
    """Attention in which each query sees the union of the key ranges paired with its row.

    ``ranges`` are (query range, key range) pairs; the key ranges of one query never overlap. A row that sees nothing is
    zero. ``gate`` [L, H]: the result is multiplied by its sigmoid. With an ``attend`` that is not ours, rows with the
    same keys are computed in one dense call of it, without a mask.
    """
    if attend is attention or isinstance(attend, AttentionBy):
        return attention_over_ranges(q, k, v, flatten(ranges), gate, getattr(attend, "way", None))
    return _gated(dense_calls(q, k, v, flatten(ranges), attend), gate)


@by_preference(fake=_like_q, rows=RANGE_PREFERENCES, passes_on=True)
def attention_over_ranges(
    q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[int], gate: Tensor | None, way: str | None = None
) -> Tensor:
    """``range_attention`` as torch knows it: four integers for each pair; ``way`` may be one of ``attention``'s."""
    out = q.new_zeros(q.shape)
    for (start, stop), keys in rows_with_equal_keys(pairs(ranges), q.shape[0]):
        out[start:stop] = attention(q[start:stop], _gather(k, keys), _gather(v, keys), _inner(way))
    return _gated(out, gate)


def _inner(way: str | None) -> str | None:
    """What is asked of the dense calls."""
    return None if way in attention_over_ranges.ways else way


def _frames_refuse(q: Tensor, k: Tensor, v: Tensor, *others) -> str | None:
    if not cards.has_card(q):
        return f"{q.device.type} is not an NVIDIA card"
    way = _inner(others[2]) if len(others) > 2 else None
    inner = attention.chosen(q, k, v, way)
    return f"its dense calls would run as {inner}" if inner in (LAST, DEFINITION) and inner != way else None


# At 1080p: 33 calls, 33 results put in place, 42 copies of rows.
@attention_over_ranges.fast("frames", _frames_refuse, launches=108)
def _by_frames(
    q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[int], gate: Tensor | None, way: str | None = None
) -> Tensor:
    attend = AttentionBy(_inner(way))
    return _gated(dense_calls(q, k, v, tuple(ranges), attend), gate)


def _triton_refuses(q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[int], *_, **__) -> str | None:
    if reason := needs_triton(q, k, v):
        return reason
    from .triton.range_attention import refuses

    return refuses(q, k, v, tuple(ranges))


@attention_over_ranges.fast("triton", _triton_refuses)
def _by_triton(q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[int], gate: Tensor | None, *_) -> Tensor:
    from .triton import range_attention as kernel

    capability = cards.capability(q) if cards.has_card(q) else None
    launch, out = kernel.plan(q, k, v, tuple(ranges), gate, capability)
    launch.run()
    return out


def dense_calls(q: Tensor, k: Tensor, v: Tensor, ranges: tuple[int, ...], attend) -> Tensor:
    """Attention over flattened ranges by calls of ``attend`` without a mask, as range_plan.py lays them out."""
    steps, capacity, is_whole = plan(ranges, q.shape[0])
    out = q.new_empty(q.shape) if is_whole else q.new_zeros(q.shape)
    near = [part.new_empty((capacity, *part.shape[1:])) for part in (k, v)]
    for (start, stop), keys, is_buffered, copies in steps:
        for rows, at in copies:
            for buffer, part in zip(near, (k, v), strict=True):
                buffer[at : at + rows[1] - rows[0]] = part[slice(*rows)]
        seen = (part[slice(*keys)] for part in (near if is_buffered else (k, v)))
        out[start:stop] = attend(q[start:stop], *seen)
    return out


def range_log_sum_exp(q: Tensor, k: Tensor, ranges: Sequence[tuple[Range, Range]]) -> Tensor:
    """[L, H] float32: the natural log-sum-exp of each query's scaled logits, -inf where it sees nothing.

    What two partial results over disjoint keys are merged by.
    """
    heads, groups, depth = q.shape[1], k.shape[1], q.shape[2]
    out = q.new_full(q.shape[:2], float("-inf"), dtype=torch.float32)
    for (start, stop), keys in rows_with_equal_keys(ranges, q.shape[0]):
        key = _gather(k, keys).float().repeat_interleave(heads // groups, dim=1)
        logits = torch.einsum("qhd,khd->qhk", q[start:stop].float(), key) * depth**-0.5
        out[start:stop] = logits.logsumexp(-1)
    return out


def _gated(out: Tensor, gate: Tensor | None) -> Tensor:
    return out if gate is None else gate_heads(out, gate).to(out.dtype)


def _gather(rows: Tensor, ranges: Sequence[Range]) -> Tensor:
    if len(ranges) == 1:
        return rows[slice(*ranges[0])]
    return torch.cat([rows[slice(*piece)] for piece in ranges])
