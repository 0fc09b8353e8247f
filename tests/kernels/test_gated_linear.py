"""The 8-bit up-projection with its activation: definition, Triton in the interpreter, and what it compiles to."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.kernels import gated_linear as ours
from comfyui_happyhorse.kernels import quantised, registry
from comfyui_happyhorse.kernels.activation import ACTIVATIONS
from comfyui_happyhorse.kernels.registry import forced

BF16, FP8, INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8
INTERPRETED = (
    "fp8, one scale",
    "fp8, row scales, padded",
    "fp8 to fp8",
    "fp8 gelu",
    "fp8 gelu to fp8",
    "int8",
    "int8, one row",
    "int8 gelu",
    "int8, largest sums",
    "fp8, no activation",
    "int8, no activation",
    "not a number",
)


@pytest.fixture(scope="module")
def found(interpreted):
    measured = interpreted.run(Path(__file__).parent / "run_gated_linear.py")
    assert tuple(measured) == INTERPRETED
    return measured


@pytest.mark.parametrize("name", INTERPRETED)
def test_triton_is_the_definition(found, name):
    """Against float64; FP8 and float16 results are off by their own rounding.

    The interpreter cuts float32 to FP8 where a card rounds it: its error is up to twice the definition's.
    """
    measured = found[name]
    to_fp8 = "to fp8" in name
    limit = 3e-2 if to_fp8 else 3e-4 if name == "int8, one row" else 1e-6
    assert measured["definition"] <= limit
    assert measured["error"] <= (2 if to_fp8 else 1.001) * measured["definition"] + 2e-7
    assert measured["behind"] == 0, "columns after M are zero"
    assert measured["lost"] == measured["definition lost"]
    assert measured["repeats"]


def test_the_cases_reach_the_clamps(found):
    assert found["int8"]["largest"] > 40
    assert found["fp8 gelu"]["largest"] > 6.9


def test_what_is_not_a_number_is_not_hidden(found):
    """The sampler stops a run by it; a clamp in the kernel must not turn it into 7."""
    assert found["not a number"]["lost"] == [[3, column] for column in range(20)]


# --- compiled, without a card ----------------------------------------------------------------------------

UNITS = {
    (FP8, 89): "QMMA",
    (FP8, 90): "QGMMA",
    (FP8, 100): "UTCQMMA",
    (FP8, 120): "QMMA",
    (INT8, 80): "IMMA",
    (INT8, 86): "IMMA",
    (INT8, 89): "IMMA",
    (INT8, 90): "IGMMA",
    (INT8, 120): "IMMA",
}


def planned(stored, kind, result, capability):
    """The launch at the published sizes, 4110 tokens: 5120 inputs; 27,304 rows and 13,696 columns, 20,480, or q|k|v."""
    from comfyui_happyhorse.kernels.triton.gated_linear import plan

    tall, width = {"swiglu7": (27304, 13696), "gelu7": (20480, 20480), "none": (7208, 7216)}[kind]
    with torch.device("meta"):
        x, weight = torch.empty(4110, 5120, dtype=stored), torch.empty(tall, 5120, dtype=stored)
        scale, scales = torch.empty(1 if stored == FP8 else 4110), torch.empty(tall)
    return plan(x, weight, scale, scales, kind, result, width, 1.0, divmod(capability, 10))[0]


@pytest.mark.parametrize(
    ("stored", "kind", "result", "capability"),
    [
        *((FP8, "swiglu7", FP8, capability) for capability in (89, 90, 100, 120)),
        *((INT8, "swiglu7", BF16, capability) for capability in (80, 86, 89, 90, 100, 120)),
        (FP8, "gelu7", FP8, 90),
        *((FP8, "none", BF16, capability) for capability in (89, 90, 120)),
        *((INT8, "none", BF16, capability) for capability in (80, 90)),
    ],
)
def test_it_compiles_for_every_card(aot, tmp_path, stored, kind, result, capability):
    """Spills, shared memory and the matrix unit, from the machine code."""
    code = aot.compile_launch(planned(stored, kind, result, capability), capability, tmp_path)
    assert code.shared <= aot.SHARED[capability]
    assert (code.stack, code.spills) == (0, 0), f"{code.registers} registers"
    stores = {name for name in code.instructions if name.startswith("STG")}
    assert not stores & {"STG.E", "STG.E.U16", "STG.E.U8"}, "in vectors"
    if (stored, capability) in UNITS:
        assert code.count(UNITS[stored, capability]) > 0, sorted(code.instructions)


# --- what chooses it, and its errors ---------------------------------------------------------------------


def relative(found, wanted) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def numbers(rows, inputs, columns, kind, seed=0):
    """x with eight loud channels, which INT8 would not survive unrotated, and a weight."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=random)
    x[:, ::32] *= 4
    tall = columns * ours.ROWS_PER_COLUMN[kind]
    weight = torch.randn(tall, inputs, generator=random) / inputs**0.5 / 4
    return x.to(BF16), weight.to(BF16)


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize(
    ("quantise", "gate"), [(quantised.quantise_fp8, 4.5e-2), (quantised.quantise_int8, 1.6e-2)]
)
def test_error_gates(kind, quantise, gate):
    """The product against float64 of what was not quantised; the activation joins two such errors for SwiGLU7."""
    x, weight = numbers(48, 1024, 96, kind)
    stored = quantise(weight)
    data, scale = ours._quantise_rows(x, stored)
    up = (
        (data.double() @ stored.data.double().T)
        * scale.double()
        * stored.scales["weight_scale"].double().reshape(-1)
    )
    exact = x.double() @ weight.double().T
    assert relative(up, exact) <= gate
    found = ours.gated_linear(x, stored, kind, torch.float32)
    assert relative(found, float64_activation(exact, kind)) <= 1.5 * gate
    assert relative(found, float64_activation(up, kind)) <= 1e-6, (
        "the definition, of the same quantised numbers"
    )


def float64_activation(up, kind):
    gate, straight = (up[:, ::2], up[:, 1::2]) if kind == "swiglu7" else (up, None)
    gate = gate.clamp(max=7)
    out = gate / (1 + torch.exp(-1.702 * gate))
    return out if straight is None else out * (straight.clamp(-7, 7) + 1)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_fp8_results_keep_to_their_fixed_scale(kind):
    """Numbers beyond every clamp: the largest is 448, nothing is clipped, and the error is FP8's rounding."""
    x, weight = numbers(64, 512, 80, kind)
    stored = quantised.quantise_fp8(weight * 40)
    found = ours.gated_linear(x, stored, kind, FP8, 96).double() / ours.FP8_GAIN[kind]
    wanted = ours.gated_linear(x, stored, kind, torch.float32).double()
    assert found.abs().max() == wanted.abs().max().round() == {"swiglu7": 56, "gelu7": 7}[kind]
    assert relative(found[:, :80], wanted) <= 3e-2
    assert not found[:, 80:].any()


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [None, (9, 5, 7)])
@pytest.mark.parametrize(
    ("quantise", "products"),
    [
        (quantised.quantise_fp8, "fast"),
        (quantised.quantise_int8, "stored"),
        (quantised.quantise_fp8, "weights"),
    ],
)
def test_feed_forward_without_triton_is_what_it_was(kind, sizes, quantise, products):
    """Bit for bit: product, activation and product as they were before there was a fused one."""
    count = 1 if sizes is None else 3
    x, up = numbers(21, 272, 68 * count, kind)
    _, down = numbers(1, 68, 32 * count, "gelu7", seed=1)
    up, down = quantise(up), quantise(down)
    found = ours.feed_forward(x, up, down, kind, sizes, products)
    if sizes is None:
        wide = ACTIVATIONS[kind](quantised.linear(x, up, products)).to(BF16)
        wanted = quantised.linear(wide, down, products)
    else:
        wide = ACTIVATIONS[kind](quantised.modality_linear(x, up, sizes, products)).to(BF16)
        wanted = quantised.modality_linear(wide, down, sizes, products)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [None, (9, 5, 7)])
@pytest.mark.parametrize(
    ("quantise", "products", "limit"),
    [(quantised.quantise_fp8, "fast", 4.5e-2), (quantised.quantise_int8, "stored", 1.6e-2)],
)
def test_fused_feed_forward(monkeypatch, kind, sizes, quantise, products, limit):
    """The way a card takes, with the definition in the kernel's place: no farther from float64 than the unfused."""
    count = 1 if sizes is None else 3
    x, up = numbers(21, 256, 68 * count, kind)
    _, down = numbers(1, 68, 32 * count, "gelu7", seed=1)
    stored = quantise(up), quantise(down)
    unfused = ours.feed_forward(x, *stored, kind, sizes, products)
    monkeypatch.setattr(ours, "refusal", lambda *_: None)
    fused = ours.feed_forward(x, *stored, kind, sizes, products)
    ups, downs = (weight.double().chunk(count) for weight in (up, down))
    runs = x.double().split([21] if sizes is None else list(sizes))
    wanted = torch.cat(
        [float64_activation(rows @ a.T, kind) @ b.T for rows, a, b in zip(runs, ups, downs, strict=True)]
    )
    assert fused.dtype == BF16
    assert relative(fused, wanted) <= 2 * limit
    assert relative(fused, wanted) <= 1.1 * relative(unfused, wanted)


def test_it_says_why_it_refuses(monkeypatch):
    monkeypatch.setattr(registry, "find_triton", lambda: "here")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    fp8, int8 = quantised.quantise_fp8(torch.ones(8, 256)), quantised.quantise_int8(torch.ones(8, 256))
    plain = quantised.quantise_int8(torch.ones(8, 256), rotate=False)
    assert ours.refusal(fp8, "swiglu7", "fast") == "cpu is not a CUDA device"
    assert ours.refusal(fp8, "swiglu7", "stored") == "only the weights are 8-bit in this precision"
    assert (
        ours.refusal(plain, "gelu7", "stored")
        == "int8_tensorwise weights are not rotated INT8 and not FP8 e4m3"
    )
    with forced("definition"), monkeypatch.context() as patch:
        patch.setitem(
            ours.gated_product.ways,
            "triton",
            ours.gated_product.ways["triton"]._replace(refuses=lambda *_: None),
        )
        assert ours.refusal(int8, "gelu7", "stored") == "the definition is asked for"
    with (
        forced("triton"),
        pytest.raises(SamplingError, match="cannot run as triton: cpu is not a CUDA device"),
    ):
        ours.gated_linear(torch.ones(4, 256, dtype=BF16), int8, "gelu7")
    monkeypatch.setattr(registry, "find_triton", lambda: None)
    assert ours.refusal(int8, "gelu7", "stored") == "Triton is not installed"


@pytest.mark.parametrize(("capability", "fp8"), [((8, 0), False), ((8, 6), False), ((8, 9), True)])
def test_cards_without_fp8_units(monkeypatch, capability, fp8):
    monkeypatch.setattr(registry, "find_triton", lambda: "here")
    monkeypatch.setattr(registry, "has_compiler", lambda: True)
    monkeypatch.setattr(registry, "_capability", lambda device: capability)

    def reason(stored, result=BF16):
        with FakeTensorMode():  # says it is on a card, and has no numbers
            eight = torch.empty(4, 256, dtype=stored, device="cuda")
            scale = torch.empty(4, device="cuda")
        return ours.gated_product.explain(eight, eight, scale, scale, "gelu7", result, 8)["triton"]

    major, minor = capability
    wanted = f"FP8 in Triton needs compute capability 8.9 and this card has {major}.{minor}"
    assert reason(FP8) == reason(INT8, FP8) == (None if fp8 else wanted)
    assert reason(INT8) is None
    assert "FP8 e4m3 or INT8" in reason(BF16)
    assert "does not write" in reason(INT8, torch.float64)
    with FakeTensorMode():
        eight, scale = torch.empty(4, 256, dtype=INT8, device="cuda"), torch.empty(4, device="cuda")
    plain = (eight, eight, scale, scale, "none", FP8, 8)
    assert "float8_e4m3fn of numbers without a bound" in ours.gated_product.explain(*plain)["triton"]


def test_it_traces():
    """As one node of a compiled graph; its fake result has the shape and dtype of the real one."""

    def run(x, weight, x_scale, weight_scale):
        return ours.gated_product(x, weight, x_scale, weight_scale, "swiglu7", BF16, 16) * 2

    arguments = (
        torch.ones(3, 32, dtype=INT8),
        torch.ones(20, 32, dtype=INT8),
        torch.ones(3, 1),
        torch.ones(20),
    )
    fake = run(*(part.to("meta") for part in arguments))
    assert (fake.shape, fake.dtype) == ((3, 16), BF16)
    compiled = torch.compile(run, fullgraph=True, backend="eager")(*arguments)
    assert torch.equal(compiled, run(*arguments))
