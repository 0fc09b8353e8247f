"""The elementwise CUDA kernels against float64, run on the CPU, and what they refuse."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.kernels import (
    ACTIVATIONS,
    activate,
    add_norm,
    gate_rows,
    norm_rope,
    norm_rows,
    registry,
)
from comfyui_happyhorse.kernels.cuda import compiler
from comfyui_happyhorse.kernels.registry import forced

HERE = Path(__file__).parent
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = ("torch.float32", "torch.bfloat16")
MIXED = (
    "torch.float16 to torch.float16",
    "torch.bfloat16 to torch.float32",
    "torch.float32 to torch.float16",
)
NORMS = ("shared", "per modality", "no audio", "one row", "published", "several turns", "largest")
ROTATIONS = ("published", "no rest", "fours", "odd", "largest", "not rotated")
FILLED = ("published", "fours", "bare", "whole", "all padding but one", "one short")
CASES = [
    *(f"{name} {case}" for name in ("norm_rows", "add_norm") for case in NORMS),
    *(f"norm_rope {case}" for case in ROTATIONS),
    *(
        f"gate_rows {case} by {by}"
        for case in ("published", "fours", "odd", "one")
        for by in ("rows", "heads")
    ),
    *(f"activate {kind} {case}" for kind in ACTIVATIONS for case in FILLED),
]


@pytest.fixture(scope="module")
def measured():
    """What cuda_cases.py measured, in a process of its own: a fault there is no fault of this one."""
    if shutil.which("g++") is None:
        pytest.skip(
            "the kernels' text is run on the CPU by g++, which is not installed (Debian: apt install g++)"
        )
    place = importlib.util.spec_from_file_location("happyhorse_tests_interpreted", HERE / "interpreted.py")
    interpreted = importlib.util.module_from_spec(place)
    place.loader.exec_module(interpreted)
    return interpreted.run(HERE / "cuda_cases.py")


def kinds_of(case):
    return [*DTYPES, *MIXED] if "published" in case else DTYPES


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_is_the_definition(measured, case):
    for kinds in kinds_of(case):
        found = measured[f"{case} {kinds}"]
        assert found["same"], (
            f"{kinds}: threads in reverse give other numbers, so one reads what another has not written"
        )
        assert found["dtypes"] and found["layout"], (kinds, found)
        if kinds.endswith("float32"):  # a unit in the last place is 1.2e-7
            assert found["error"] <= 1.3e-7, (kinds, found)
        else:  # rounded once, and from float32, so that of a hundred numbers one may go the other way
            assert found["exact"] >= (0.999 if "published" in case else 0.98), (kinds, found)
            assert found["error"] <= 1.001 * found["definition"], (kinds, found)


def test_every_case_is_judged(measured):
    wanted = {f"{case} {kinds}" for case in CASES for kinds in kinds_of(case)}
    odd = {name for name in measured if name.startswith("odd ")}
    assert measured.keys() == wanted | odd | {"variants", "unknown"}


def test_every_variant_of_a_text_is_run(measured):
    """Vectors of each width, one turn and several, rows of each length, sums and none."""
    found = measured["variants"]
    assert found["norm_kernel"]["VECTOR"] == ["1", "2", "4"]
    assert found["norm_kernel"]["THREADS"] == ["1024", "128", "256", "32"]
    assert set(found["norm_kernel"]["TURNS"]) > {"1", "2", "4"}
    assert found["norm_rope_kernel"]["VECTOR"] == ["1", "2", "4", "8"]
    assert set(found["norm_rope_kernel"]["LANES"]) >= {"8", "16", "32"}
    assert found["gate_kernel"]["VECTOR"] == found["activation_kernel"]["VECTOR"] == ["1", "2", "4", "8"]
    for kernel, constant in (("norm_kernel", "ADDS"), ("activation_kernel", "IS_GATED")):
        assert found[kernel][constant] == ["False", "True"]
    for kernel in ("norm_kernel", "norm_rope_kernel"):
        assert found[kernel]["PER_MODALITY"] == ["False", "True"]


def test_odd_numbers(measured):
    assert measured["odd swiglu7"]["nan"] == [[1, 3]]
    assert measured["odd gelu7"]["nan"] == [[1, 7]]
    assert measured["odd norm_rows"]["nan"] == [[1, column] for column in range(40)]
    assert measured["odd payload"]["nan"] == [[0, 0], [0, 1]], "rounding carries none into infinity or zero"
    assert measured["odd no rows"]["shape"] == [0, 5]
    assert measured["odd nothing to activate"]["shape"] == [0, 4]
    for dtype in (FP16, BF16):
        assert measured[f"odd ties {dtype}"]["exact"] == 1


def test_a_fault_of_the_driver_is_said(measured):
    assert measured["unknown"] == (
        "The CUDA driver could not find no_such_kernel: named symbol not found (500)."
    )


@pytest.fixture
def no_triton(monkeypatch):
    """As on most machines with Windows: the CUDA kernels are what is left."""
    monkeypatch.setattr(compiler, "needs_triton", lambda *tensors: "Triton is not installed")


def meta(*shape, dtype=FP32):
    return torch.empty(shape, dtype=dtype, device="meta")


def test_it_comes_after_triton(monkeypatch):
    """And is asked for all the same where a benchmark forces it."""
    monkeypatch.setattr(compiler, "needs_triton", lambda *tensors: None)
    arguments = (meta(6, 8), meta(8), [], BF16)
    assert list(norm_rows.ways) == ["triton", "cuda"]
    assert norm_rows.explain(*arguments)["cuda"] == "Triton is there and comes first"
    with forced("cuda"):
        assert norm_rows.chosen(*arguments) == "cuda"


@pytest.mark.usefixtures("no_triton")
def test_it_runs_where_triton_is_missing(monkeypatch):
    monkeypatch.setattr(registry, "find_triton", lambda: None)
    q, k, head, table = meta(6, 4, 8), meta(6, 2, 8), meta(8), meta(6, 6)
    for operation, *arguments in (
        (norm_rows, meta(6, 8), meta(8), [], BF16),
        (add_norm, meta(6, 8), meta(6, 8, dtype=BF16), meta(24), [1, 2, 3], BF16),
        (norm_rope, q, k, head, head, [], table, BF16),
        (gate_rows, q, meta(6, 4), BF16),
        (activate, meta(6, 8), "swiglu7", BF16, 16),
    ):
        assert operation.chosen(*arguments) == "cuda"
        assert operation.ways["cuda"].launches == 1


@pytest.mark.usefixtures("no_triton")
def test_refusals():
    def reason(operation, *arguments):
        return operation.explain(*arguments)["cuda"]

    x, weight = meta(6, 8), meta(8)
    assert "entry by entry" in reason(norm_rows, meta(8, 6).t(), weight, [], BF16)
    assert "torch.float64" in reason(norm_rows, x.double(), weight, [], BF16)
    assert "torch.float64" in reason(norm_rows, x, weight, [], torch.float64)
    assert "entry by entry" in reason(add_norm, x, meta(8, 6).t(), weight, [], BF16)
    assert "torch.float8_e4m3fn is not among" in reason(activate, x, "gelu7", torch.float8_e4m3fn, 8)
    assert "entry by entry" in reason(activate, x[:, ::2], "gelu7", BF16, 4)
    q, k, head, table = meta(6, 4, 8), meta(6, 2, 8), meta(8), meta(6, 6)
    assert "q and k of torch.float32 and torch.bfloat16" in reason(
        norm_rope, q, k.bfloat16(), head, head, [], table, BF16
    )
    assert "heads of 300" in reason(norm_rope, *[meta(6, 1, 300)] * 2, *[meta(300)] * 2, [], table, BF16)
    assert "side by side" in reason(gate_rows, q, meta(4, 6).t(), BF16)


@pytest.mark.usefixtures("no_triton")
def test_refusals_of_machines(monkeypatch):
    cpu = torch.ones(2, 4)
    assert compiler.needs_nvrtc(cpu, dtype=BF16) == "cpu is not a CUDA device"
    with (
        forced("cuda"),
        pytest.raises(SamplingError, match="norm_rows cannot run as cuda: cpu is not a CUDA"),
    ):
        norm_rows(cpu, torch.zeros(4), [], BF16)
    with FakeTensorMode():
        card = torch.empty(2, device="cuda")
        assert compiler.needs_nvrtc(card, torch.empty(2), dtype=BF16) == (
            "the tensors lie on cpu, cuda:0, not on one device"
        )
        monkeypatch.setattr(compiler, "_capability", lambda device: None)
        assert compiler.needs_nvrtc(card, dtype=BF16) == "torch finds no card"
        monkeypatch.setattr(torch.version, "hip", "6.4")
        assert compiler.needs_nvrtc(card, dtype=BF16) == "AMD cards have no NVRTC"


def test_refusals_of_cards(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(compiler, "find_compiler", lambda cuda: None)
    assert compiler.refuses_card((7, 0)) == "it needs compute capability 7.5 and this card has 7.0"
    assert compiler.refuses_card((8, 6)) == "no NVRTC library of CUDA 12.4 is found beside torch"
    known = compiler.Compiler(None, (12, 4), (75, 80, 86, 89, 90))
    monkeypatch.setattr(compiler, "find_compiler", lambda cuda: known)
    assert compiler.refuses_card((8, 6)) is None
    assert compiler.refuses_card((12, 0)) == "NVRTC 12.4 does not know compute capability 12.0"
