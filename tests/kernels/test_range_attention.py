"""The Triton kernel of attention over ranges: in the interpreter against float64, and what it compiles to."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.kernels.attention import attention_over_ranges
from comfyui_happyhorse.kernels.range_plan import flatten, pairs
from comfyui_happyhorse.kernels.registry import forced
from comfyui_happyhorse.model.sequence import SequenceLayout

INTERPRETED = (
    "windows",
    "windows, gated",
    "ten heads on two",
    "one key",
    "everything",
    "rows that see nothing",
    "many pieces",
    "large logits",
    "not a number",
)
FILM = SequenceLayout(frames=32, height=34, width=60, audio=126, text=400)  # 5 s of 1920x1088
TARGETS = (80, 86, 89, 90, 100, 120)
# The unit that multiplies matrices: of a warp, of four warps at once (9.0), or the fifth generation's (10.0).
UNITS = {90: "HGMMA", 100: "UTCHMMA"}


@pytest.fixture(scope="module")
def found(interpreted):
    measured = interpreted.run(Path(__file__).parent / "run_range_attention.py")
    assert tuple(measured) == INTERPRETED
    return measured


@pytest.mark.parametrize("name", INTERPRETED)
def test_triton_is_the_definition(found, name):
    """In float16: the result and the softmax's weights are rounded to 11 bits, 2.8e-4 of a number on average."""
    measured = found[name]
    assert measured["error"] <= 3.5e-4
    assert measured["error"] <= 1.1 * measured["definition"]
    assert measured["repeats"]


def test_rows_that_see_nothing_are_zero(found):
    assert found["rows that see nothing"]["empty"] == [*range(5), *range(21, 30), *range(44, 50)]
    assert found["windows"]["empty"] == []


def test_what_is_not_a_number_stays_one(found):
    """The sampler stops a run by it; it must reach the row and head it belongs to, and no other."""
    assert found["not a number"]["lost"] == [[7, 2]]
    assert all(found[name]["lost"] == [] for name in INTERPRETED if name != "not a number")


def planned(capability, gated=True, depth=128):
    """A launch as at 1080p, on views of the fused projection's rows of 7208; tensors hold no numbers."""
    from comfyui_happyhorse.kernels.triton.range_attention import plan

    widths = (40 * depth, 8 * depth, 8 * depth, 40)
    *parts, gate = torch.empty(FILM.length, sum(widths), dtype=torch.bfloat16, device="meta").split(widths, 1)
    q, k, v = (part.unflatten(1, (-1, depth)) for part in parts)
    gate = gate if gated else None
    return plan(q, k, v, flatten(FILM.local_ranges(11)), gate, divmod(capability, 10))[0]


@pytest.mark.parametrize("capability", TARGETS)
def test_it_compiles_for_every_card(aot, tmp_path, capability):
    code = aot.compile_launch(planned(capability), capability, tmp_path)
    assert code.spills == 0 and code.stack == 0
    assert code.shared <= aot.SHARED[capability]
    assert code.count(UNITS.get(capability, "HMMA")) > 0, sorted(code.instructions)
    copies = [name for name in code.instructions if name.startswith("LDGSTS")]
    assert copies and all(name.endswith(".128") for name in copies), copies  # keys come 16 bytes at a time


def test_the_other_sizes_and_no_gate_compile(aot, tmp_path):
    code = aot.compile_launch(planned(89, gated=False, depth=64), 89, tmp_path)
    assert code.spills == 0 and code.count("HMMA") > 0


def test_programs_cover_every_row_once_and_the_longest_come_first():
    from comfyui_happyhorse.kernels.triton.range_attention import _table, tiles_for

    flat, rows = flatten(FILM.local_ranges(11)), tiles_for((9, 0)).rows
    table = _table(flat, FILM.length, rows, 2, torch.device("cpu")).tolist()
    assert len(table) == 32 * 16 + 5, "16 programs a frame of 2040 rows, 5 for 526 rows of audio and text"
    covered = sorted((start, stop) for start, stop, *_ in table)
    assert covered[0][0] == 0 and covered[-1][1] == FILM.length
    assert all(a[1] == b[0] and b[1] - b[0] <= rows for a, b in pairwise(covered))
    sizes = [stop - start + other_stop - other for _, _, start, stop, other, other_stop in table]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == FILM.length
    seen = sum((line[1] - line[0]) * size for line, size in zip(table, sizes, strict=True))
    assert seen == sum((q1 - q0) * (k1 - k0) for (q0, q1), (k0, k1) in pairs(flat))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": torch.float32}, "are not all bfloat16 or all float16"),
        ({"depth": 24}, "heads of 24 values are not of 16, 32, 64, 128"),
        ({"heads": 3}, "3 query heads are not a multiple of 2 key heads"),
        ({"pieces": 9}, "a row sees 9 pieces of keys, more than 8"),
    ],
)
def test_it_refuses_in_words(change, words):
    from comfyui_happyhorse.kernels.triton.range_attention import refuses

    case = {"dtype": torch.float16, "depth": 16, "heads": 4, "pieces": 2} | change
    q = torch.zeros(5, case["heads"], case["depth"], dtype=case["dtype"])
    k = torch.zeros(40, 2, case["depth"], dtype=case["dtype"])
    flat = flatten([((0, 5), (4 * piece, 4 * piece + 2)) for piece in range(case["pieces"])])
    assert words in refuses(q, k, k, flat)
    turned = torch.zeros(5, 16, 4, dtype=torch.float16).transpose(1, 2)
    good = torch.zeros(40, 2, 16, dtype=torch.float16)
    assert refuses(turned, good, good, ()) == "the values of a head do not lie together in memory"
    assert refuses(turned.contiguous(), good, good, ()) is None


def test_the_cpu_is_refused_in_words():
    pytest.importorskip("triton")
    q = torch.zeros(5, 4, 16, dtype=torch.float16)
    arguments = (q, q, q, flatten([((0, 5), (0, 5))]), None)
    assert attention_over_ranges.chosen(*arguments) == "definition"
    with (
        forced("triton"),
        pytest.raises(SamplingError, match="cannot run as triton: cpu is not a CUDA device"),
    ):
        attention_over_ranges(*arguments)
