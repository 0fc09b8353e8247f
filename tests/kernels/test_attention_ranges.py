"""Attention over ranges as dense calls: the plan, its copies, and its equality with a masked softmax in float64."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.kernels.attention import (
    AttentionBy,
    attention,
    attention_over_ranges,
    dense_calls,
    range_attention,
)
from comfyui_happyhorse.kernels.range_plan import flatten, pairs, plan
from comfyui_happyhorse.model.sequence import SequenceLayout

many = settings(max_examples=60, deadline=None, derandomize=True)
WINDOW = 11
FILM = SequenceLayout(frames=32, height=34, width=60, audio=126, text=400)  # 5 s of 1920x1088


def masked(q, k, v, ranges, gate=None):
    """A dense softmax under a mask, in float64; q [L, H, D], k and v [K, G, D]."""
    each = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(each, 1), v.double().repeat_interleave(each, 1)
    mask = torch.zeros(q.shape[0], k.shape[0], dtype=torch.bool)
    for (q0, q1), (k0, k1) in ranges:
        mask[q0:q1, k0:k1] = True
    logits = torch.einsum("qhd,khd->hqk", q, k) / q.shape[2] ** 0.5
    weights = logits.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0)
    out = torch.einsum("hqk,khd->qhd", weights, v)
    return out if gate is None else out * torch.sigmoid(gate.double())[:, :, None]


def numbers(seed, rows, keys, heads=4, groups=2, depth=8, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    shapes = ((rows, heads, depth), (keys, groups, depth), (keys, groups, depth))
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for shape in shapes]


@st.composite
def films(draw):
    """Layouts with a window: long enough that it slides, or so short that it holds all."""
    size = st.integers(1, 3)
    layout = SequenceLayout(draw(st.integers(1, 12)), draw(size), draw(size), draw(size), draw(size))
    return layout, draw(st.integers(0, 5))


@st.composite
def any_ranges(draw):
    """Runs of rows with keys in any pieces, some overlapping those of other rows, some rows without keys."""
    rows, keys = draw(st.integers(1, 12)), draw(st.integers(1, 14))
    edges = sorted({0, rows, *draw(st.lists(st.integers(0, rows), max_size=4))})
    ranges = []
    for start, stop in pairwise(edges):
        cuts = sorted(draw(st.lists(st.integers(0, keys), max_size=6)))
        ranges += [((start, stop), pair) for pair in zip(cuts[::2], cuts[1::2], strict=False)]
    return draw(st.permutations(ranges)), rows, keys


@many
@given(film=films(), seed=st.integers(0, 99))
def test_windows_of_any_film(close, film, seed):
    layout, window = film
    ranges = layout.local_ranges(window)
    q, k, v = numbers(seed, layout.length, layout.length)
    wanted = masked(q, k, v, ranges)
    close(dense_calls(q, k, v, flatten(ranges), attention), wanted, 1e-13)
    close(range_attention(q, k, v, ranges), wanted, 1e-13)


@many
@given(case=any_ranges(), seed=st.integers(0, 99))
def test_ranges_of_any_kind(case, seed):
    ranges, rows, keys = case
    q, k, v = numbers(seed, rows, keys)
    out, wanted = dense_calls(q, k, v, flatten(ranges), attention), masked(q, k, v, ranges)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


def test_one_call_a_frame_and_few_copies_at_the_real_size():
    """The bytes of k and v in bfloat16 with 8 heads of 128; laid out as [tail | frames | tail] it is 1.8 GB."""
    flat = flatten(FILM.local_ranges(WINDOW))
    made = plan(flat, FILM.length)
    assert FILM.length == 65_806
    assert [step.queries for step in made.steps[:2]] == [(0, 2040), (2040, 4080)]
    assert len(made.steps) == 33, "32 frames, and audio with text"
    assert made.is_whole
    assert made.capacity == 23 * 2040 + 526
    assert made.copied == 47_446 + 8 * 2040
    assert made.copied * 2 * 8 * 128 * 2 == 261_185_536  # bytes
    assert sum(len(step.copies) for step in made.steps) == 21
    assert sum(not step.is_buffered for step in made.steps) == 13, (
        "the last 12 frames and the tail lie together"
    )
    seen = sum((stop - start) * (b - a) for (start, stop), (a, b), _, _ in made.steps)
    assert seen == sum((q1 - q0) * (k1 - k0) for (q0, q1), (k0, k1) in pairs(flat))


def test_a_film_without_a_window_copies_nothing():
    made = plan(flatten(FILM.local_ranges(40)), FILM.length)
    assert made.copied == 0
    assert {step.keys for step in made.steps} == {(0, FILM.length)}


def test_a_plan_is_made_once():
    flat = flatten(FILM.local_ranges(5))
    assert plan(flat, FILM.length) is plan(flat, FILM.length)


def test_calls_of_a_host_see_views_and_no_mask():
    """A host's function gets q, k and v alone; keys that lie together are not copied for it."""
    layout, seen = SequenceLayout(6, 1, 3, 2, 1), []
    q, k, v = numbers(0, layout.length, layout.length)

    def attend(q, k, v):
        seen.append((len(q), len(k), k.untyped_storage().data_ptr()))
        return attention(q, k, v)

    range_attention(q, k, v, layout.local_ranges(1), attend)
    rows, keys, places = zip(*seen, strict=True)
    assert rows == (3,) * 6 + (3,)
    assert keys == (9, 12, 12, 12, 12, 9, 21)
    original = k.untyped_storage().data_ptr()
    assert [place == original for place in places] == [False] * 4 + [True] * 3


@pytest.mark.parametrize(
    "by", [attention, AttentionBy(None), AttentionBy("definition"), lambda *qkv: attention(*qkv)]
)
def test_a_gate_multiplies_the_result(close, by):
    ranges = [((0, 4), (0, 3)), ((0, 4), (5, 7)), ((6, 9), (0, 7))]
    q, k, v = numbers(3, 9, 7)
    gate = torch.randn(9, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 3
    # The gate is applied in float32, also where the rest is float64.
    close(range_attention(q, k, v, ranges, by, gate), masked(q, k, v, ranges, gate), 2e-7)


@pytest.mark.parametrize("kind", ["definition", "dense calls"])
def test_bfloat16_is_within_the_gate(kind):
    """5e-3 of the result in the Frobenius norm, against float64 of the same inputs; 3 s of a small film."""
    layout = SequenceLayout(20, 4, 5, 76, 40)
    ranges = layout.local_ranges(WINDOW // 2)
    q, k, v = numbers(6, layout.length, layout.length, 5, 1, 128, torch.bfloat16)
    out = range_attention(
        q, k, v, ranges, attention if kind == "definition" else (lambda *qkv: attention(*qkv))
    )
    wanted = masked(q, k, v, ranges)
    assert out.dtype == torch.bfloat16
    assert ((out.double() - wanted).norm() / wanted.norm()).item() <= 5e-3


def test_a_forced_way_goes_on_to_the_dense_calls():
    q, k, v = numbers(5, 4, 4)
    ranges = [((0, 4), (0, 1)), ((0, 4), (2, 4))]
    with pytest.raises(SamplingError, match="attention cannot run as cudnn: cpu is not an NVIDIA card"):
        range_attention(q, k, v, ranges, AttentionBy("cudnn"))
    with pytest.raises(
        SamplingError, match="attention_over_ranges cannot run as frames: cpu is not an NVIDIA card"
    ):
        range_attention(q, k, v, ranges, AttentionBy("frames"))
    with pytest.raises(SamplingError, match="attention knows no way 'cuddn'"):
        range_attention(q, k, v, ranges, AttentionBy("cuddn"))


def test_torch_knows_it():
    q, k, v = numbers(7, 6, 6, dtype=torch.float32)
    flat = flatten([((0, 3), (0, 2)), ((0, 3), (4, 6)), ((3, 6), (0, 6))])
    for gate in (None, torch.randn(6, 4)):
        torch.library.opcheck(torch.ops.happyhorse.attention_over_ranges.default, (q, k, v, flat, gate))
    torch.library.opcheck(torch.ops.happyhorse.attention.default, (q, k, v))


def test_it_compiles_in_one_graph():
    q, k, v = numbers(8, 6, 6, dtype=torch.float32)
    ranges = [((0, 3), (0, 2)), ((0, 3), (4, 6)), ((3, 6), (0, 6))]

    def layer(q, k, v):
        by = AttentionBy("definition")
        return by(q, k, v) * 2 + range_attention(q, k, v, ranges, by)

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), layer(q, k, v))
    assert attention_over_ranges.chosen(q, k, v, flatten(ranges), None) == "definition"
