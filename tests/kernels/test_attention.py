"""Attention, full and over ranges, against a masked softmax summed key by key in float64."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.kernels import attention, gate_heads, range_attention, range_log_sum_exp

HEADS = [(4, 4), (6, 2), (4, 1)]  # query heads, key heads
random_ranges = settings(max_examples=60, deadline=None, derandomize=True)


def literal(q, k, v, mask):
    """[L, H, D] and the log-sum-exp [L, H]; query head j reads key head floor(j*G/H)."""
    (rows, heads, depth), groups = q.shape, k.shape[1]
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros(rows, heads, depth, dtype=torch.float64)
    lse = torch.full((rows, heads), -math.inf, dtype=torch.float64)
    for row in range(rows):
        for head in range(heads):
            group = head * groups // heads
            seen = [key for key in range(k.shape[0]) if mask[row, key]]
            if not seen:
                continue
            weights = [math.exp(float(q[row, head] @ k[key, group]) / math.sqrt(depth)) for key in seen]
            for key, weight in zip(seen, weights, strict=True):
                out[row, head] += weight / sum(weights) * v[key, group]
            lse[row, head] = math.log(sum(weights))
    return out, lse


def qkv(seed, rows, keys, heads, groups, depth=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, heads, depth), (keys, groups, depth), (keys, groups, depth))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def mask_of(ranges, rows, keys):
    mask = torch.zeros(rows, keys, dtype=torch.bool)
    for (q0, q1), (k0, k1) in ranges:
        for row in range(q0, q1):
            for key in range(k0, k1):
                assert not mask[row, key], "the ranges of one query overlap"
                mask[row, key] = True
    return mask


@st.composite
def ranges_and_sizes(draw):
    """Blocks of query rows, each with key ranges that do not overlap, in any order; some rows see nothing."""
    rows, keys = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    edges = sorted({0, rows, *draw(st.lists(st.integers(0, rows), max_size=3))})
    ranges = []
    for start, stop in pairwise(edges):
        cuts = sorted(draw(st.lists(st.integers(0, keys), max_size=6)))
        ranges += [((start, stop), pair) for pair in zip(cuts[::2], cuts[1::2], strict=False)]
    return draw(st.permutations(ranges)), rows, keys


@pytest.mark.parametrize(("heads", "groups"), HEADS)
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (4, 7), (6, 3)])
def test_key_heads_are_shared_in_blocks(close, heads, groups, rows, keys):
    q, k, v = qkv(0, rows, keys, heads, groups)
    out, _ = literal(q, k, v, torch.ones(rows, keys, dtype=torch.bool))
    close(attention(q, k, v), out, 2e-6)


@pytest.mark.parametrize(("heads", "groups"), HEADS)
@random_ranges
@given(case=ranges_and_sizes(), seed=st.integers(0, 99))
def test_ranges_are_a_dense_mask(close, heads, groups, case, seed):
    ranges, rows, keys = case
    q, k, v = qkv(seed, rows, keys, heads, groups)
    out, lse = literal(q, k, v, mask_of(ranges, rows, keys))
    close(range_attention(q, k, v, ranges), out, 5e-6)
    torch.testing.assert_close(range_log_sum_exp(q, k, ranges).double(), lse, rtol=1e-5, atol=1e-5)


@random_ranges
@given(
    rows=st.integers(1, 6), cuts=st.lists(st.integers(0, 11), min_size=3, max_size=3), seed=st.integers(0, 99)
)
def test_two_disjoint_results_merge_by_log_sum_exp(rows, cuts, seed):
    """out = sum of parts times exp(part's log-sum-exp - whole log-sum-exp)."""
    a, b, c = sorted(cuts)
    q, k, v = qkv(seed, rows, 12, 4, 2)
    ranges = [[((0, rows), (0, a)), ((0, rows), (b, c))], [((0, rows), (a, b)), ((0, rows), (c, 12))]]
    parts = [range_attention(q, k, v, part) for part in ranges]
    sums = [range_log_sum_exp(q, k, part) for part in ranges]
    whole = torch.logaddexp(*sums)
    merged = sum(out * (lse - whole).exp().unsqueeze(-1) for out, lse in zip(parts, sums, strict=True))
    union, lse = literal(q, k, v, torch.ones(rows, 12, dtype=torch.bool))
    torch.testing.assert_close(merged.double(), union, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(whole.double(), lse, rtol=1e-5, atol=1e-5)


def test_rows_that_see_nothing_are_zero(close):
    q, k, v = qkv(3, 5, 4, 2, 2)
    ranges = [((1, 2), (0, 3)), ((2, 3), (2, 2)), ((4, 5), (3, 4))]
    out, lse = range_attention(q, k, v, ranges), range_log_sum_exp(q, k, ranges)
    for row in (0, 2, 3):
        assert out[row].count_nonzero() == 0
        assert lse[row].tolist() == [-math.inf] * 2
    close(out[4], v[3], 1e-6, "the only key a row sees is its result")


@pytest.mark.parametrize("is_local", [False, True])
def test_bfloat16_in_and_out(close, is_local):
    q, k, v = qkv(4, 6, 8, 4, 2, dtype=torch.bfloat16)
    ranges = [((0, 4), (0, 5)), ((0, 4), (6, 8)), ((4, 6), (2, 8))]
    mask = mask_of(ranges, 6, 8) if is_local else torch.ones(6, 8, dtype=torch.bool)
    out = range_attention(q, k, v, ranges) if is_local else attention(q, k, v)
    assert out.dtype == torch.bfloat16
    wanted, lse = literal(q, k, v, mask)
    close(out, wanted, 2**-7)  # one rounding of the result, and one of the softmax weights in some kernels
    if is_local:
        assert range_log_sum_exp(q, k, ranges).dtype == torch.float32
        close(range_log_sum_exp(q, k, ranges), lse, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_gate_per_head_and_row(close, dtype):
    torch.manual_seed(5)
    out, gate = torch.randn(3, 4, 5).to(dtype), (torch.randn(3, 4) * 4).to(dtype)
    wanted = out.double().clone()
    for row in range(3):
        for head in range(4):
            wanted[row, head] *= 1 / (1 + math.exp(-float(gate[row, head])))
    gated = gate_heads(out, gate)
    assert gated.dtype == torch.float32
    close(gated, wanted, 1e-6)
