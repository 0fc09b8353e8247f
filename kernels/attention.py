"""Softmax attention with grouped key heads, over everything or over ranges of tokens; and its gate.

Letters: L tokens, H query heads, G key heads (query head j uses key head floor(j*G/H)), D head entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

Range = tuple[int, int]  # half-open


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q.k / sqrt(D)) v; q [L, H, D], k and v [K, G, D] -> [L, H, D], in q's dtype."""
    q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
    return out.squeeze(0).transpose(0, 1)


def range_attention(
    q: Tensor, k: Tensor, v: Tensor, ranges: Sequence[tuple[Range, Range]], attend=attention
) -> Tensor:
    """Attention in which each query sees the union of the key ranges paired with its row.

    ``ranges`` are (query range, key range) pairs; the key ranges of one query never overlap. Rows with the
    same keys are computed in one dense call of ``attend``, without a mask. A row that sees nothing is zero.
    """
    out = q.new_zeros(q.shape)
    for (start, stop), keys in _rows_with_equal_keys(ranges, q.shape[0]):
        out[start:stop] = attend(q[start:stop], _gather(k, keys), _gather(v, keys))
    return out


def range_log_sum_exp(q: Tensor, k: Tensor, ranges: Sequence[tuple[Range, Range]]) -> Tensor:
    """[L, H] float32: the natural log-sum-exp of each query's scaled logits, -inf where it sees nothing.

    What two partial results over disjoint keys are merged by.
    """
    heads, groups, depth = q.shape[1], k.shape[1], q.shape[2]
    out = q.new_full(q.shape[:2], float("-inf"), dtype=torch.float32)
    for (start, stop), keys in _rows_with_equal_keys(ranges, q.shape[0]):
        key = _gather(k, keys).float().repeat_interleave(heads // groups, dim=1)
        logits = torch.einsum("qhd,khd->qhk", q[start:stop].float(), key) * depth**-0.5
        out[start:stop] = logits.logsumexp(-1)
    return out


def gate_heads(out: Tensor, gate: Tensor) -> Tensor:
    """[L, H, D] times sigmoid of [L, H], one gate per head and token; float32."""
    return out.float() * torch.sigmoid(gate.float()).unsqueeze(-1)


def _gather(rows: Tensor, ranges: Sequence[Range]) -> Tensor:
    if len(ranges) == 1:
        return rows[slice(*ranges[0])]
    return torch.cat([rows[slice(*piece)] for piece in ranges])


def _rows_with_equal_keys(
    ranges: Sequence[tuple[Range, Range]], length: int
) -> list[tuple[Range, list[Range]]]:
    """Runs of query rows between the ranges' edges, each with its key ranges; runs without keys left out."""
    edges = sorted({edge for (start, stop), _ in ranges for edge in (start, stop)} | {0, length})
    runs = []
    for start, stop in pairwise(edges):
        keys = sorted(k for (q0, q1), k in ranges if q0 <= start and stop <= q1 and k[0] < k[1])
        joined: list[Range] = []
        for first, last in keys:
            if joined and joined[-1][1] == first:
                joined[-1] = (joined[-1][0], last)
            else:
                joined.append((first, last))
        if joined:
            runs.append(((start, stop), joined))
    return runs
