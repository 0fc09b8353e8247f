"""The elementwise Triton kernels against float64 in the interpreter, and what they refuse."""

from pathlib import Path

import pytest
import torch

from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.kernels import activate, add_norm, gate_rows, norm_rope, norm_rows
from comfyui_happyhorse.kernels.activation import FP8_GAIN
from comfyui_happyhorse.kernels.registry import forced

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
# Relative errors in Frobenius norm. The interpreter cuts bfloat16 off where a card rounds, and errs in FP8 where a
# rounding carries into the exponent: two units there, one half elsewhere.
LIMITS = {"float32": 2e-7, "float16": 5e-4, "bfloat16": 5e-3, "float8_e4m3fn": 7e-2}
ROUNDED = ("float16",)  # where the interpreter rounds as a card does
DTYPES = ("float32", "float16", "bfloat16")
NORMS = ("shared", "per modality", "no audio", "one row", "wide")
CASES = [
    *(f"{name} {case}" for name in ("norm_rows", "add_norm") for case in NORMS),
    *(f"norm_rope {case}" for case in ("published head", "no rest", "odd", "small")),
    *(f"gate_rows {case} {by}" for case in ("published head", "odd", "one") for by in ("rows", "heads")),
    *(f"activate {kind} {case}" for kind in FP8_GAIN for case in ("padded", "bare", "aligned")),
]


@pytest.fixture(scope="module")
def measured(interpreted):
    """What elementwise_cases.py measured in the interpreter."""
    return interpreted.run(Path(__file__).parent / "elementwise_cases.py")


def of_dtype(name):
    return [*DTYPES, "float8_e4m3fn"] if name.startswith("activate") else DTYPES


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_is_the_definition(measured, case):
    for dtype in of_dtype(case):
        found = measured[f"{case} torch.{dtype}"]
        assert found["triton"] <= LIMITS[dtype], (dtype, found)
        assert found["definition"] <= LIMITS[dtype], (dtype, found)
        assert found["dtype"] == f"torch.{dtype}"
        if dtype in ROUNDED:  # once, and from float32
            assert found["exact"] >= 0.999, (dtype, found)
        assert found.get("behind", 0) == 0, "columns behind the activation are zero"


def test_every_case_is_judged(measured):
    assert {f"{case} torch.{dtype}" for case in CASES for dtype in of_dtype(case)} == measured.keys() - {
        "odd"
    }


def test_odd_numbers(measured):
    odd = measured["odd"]
    assert odd["NaN of activate swiglu7"] == [[1, 3]]
    assert odd["NaN of activate gelu7"] == [[1, 7]]
    assert odd["NaN of norm_rows"] == [[1, column] for column in range(40)]
    assert odd["largest"] == {
        f"{kind} of {value}": 448 for kind in FP8_GAIN for value in (7.0, 1000.0, "inf")
    }
    assert odd["empty"] == [[0, 5], [0, 4]]


def test_what_a_cpu_cannot_run_is_said():
    """A forced way says why not; unforced, the definition runs."""
    if not torch.cuda.is_available():
        x = torch.randn(2, 4)
        with forced("triton"), pytest.raises(SamplingError, match="norm_rows cannot run as triton: "):
            norm_rows(x, torch.zeros(4), [], BF16)
        assert norm_rows.chosen(x, torch.zeros(4), [], BF16) == "definition"


def test_refusals_of_shapes_and_dtypes():
    pytest.importorskip("triton")

    def meta(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    def reason(operation, *arguments):
        return operation.explain(*arguments)["triton"]

    x, weight = meta(6, 8), meta(8)
    assert reason(norm_rows, x, weight, [], BF16) is None
    assert "entry by entry" in reason(norm_rows, meta(8, 6).t(), weight, [], BF16)
    assert "longer than 16384" in reason(norm_rows, meta(2, 20000), meta(20000), [], BF16)
    assert "torch.bfloat16, not contiguous float32" in reason(norm_rows, x, weight.bfloat16(), [], BF16)
    assert "24 norm weights and runs of [1, 2] do not fit 6 rows of 8" in reason(
        norm_rows, x, meta(24), [1, 2], BF16
    )
    assert "runs of [1, 2, 9] do not fit" in reason(norm_rows, x, meta(24), [1, 2, 9], BF16)
    assert "torch.float64" in reason(norm_rows, x.double(), weight, [], BF16)
    assert reason(add_norm, x, meta(6, 8, dtype=BF16), weight, [], BF16) is None
    assert "entry by entry" in reason(add_norm, x, meta(8, 6).t(), weight, [], BF16)
    q, k, head, table = meta(6, 4, 8), meta(6, 2, 8), meta(8), meta(6, 6)
    assert reason(norm_rope, q, k, head, head, [], table, BF16) is None
    assert "side by side" in reason(norm_rope, q.transpose(1, 2), k, head, head, [], table, BF16)
    assert "heads of 300 and 300" in reason(
        norm_rope, *[meta(6, 1, 300)] * 2, *[meta(300)] * 2, [], table, BF16
    )
    assert "10 torch.float32 a row does not fit" in reason(norm_rope, q, k, head, head, [], meta(6, 10), BF16)
    assert "24 norm weights for queries and 8" in reason(
        norm_rope, q, k, meta(24), head, [2, 2, 2], table, BF16
    )
    assert reason(gate_rows, q, meta(6, 4), BF16) is None
    assert "side by side" in reason(gate_rows, q, meta(4, 6).t(), BF16)
    assert reason(activate, x, "swiglu7", FP8, 4) is None
    assert "entry by entry" in reason(activate, x[:, ::2], "gelu7", BF16, 4)
