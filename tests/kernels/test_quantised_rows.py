"""Rows in 8 bits: the definition, kernels in the interpreter, what refuses them, and a layer that uses them."""

from pathlib import Path

import pytest
import torch

from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.kernels import (
    add_norm_quantised,
    feed_forward,
    gate_heads,
    gate_quantised,
    gated_linear,
    norm_quantised,
    quantised,
    quantised_gate,
    quantised_norm,
    registry,
    rms_norm,
)
from comfyui_happyhorse.kernels.quantised_rows import QuantisedRows, RowForm, quantise_rows, rotated
from comfyui_happyhorse.kernels.registry import OPERATIONS, forced
from comfyui_happyhorse.model import layers
from comfyui_happyhorse.model.config import BlockSpec, TransformerConfig
from comfyui_happyhorse.model_loading.quantised_layers import QuantisedLinear

BF16, FP8, INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8
LIMITS = {FP8: 448, INT8: 127}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def distance(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


# --- the definition --------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [4, 16, 64, 256])
def test_rotation_is_the_regular_hadamard_matrix(group):
    four = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]).double() / 2
    whole = four
    while len(whole) < group:
        whole = torch.kron(whole, four)
    x = randn(3, 2 * group).double()
    wanted = torch.cat([part @ whole for part in x.split(group, 1)], 1)
    assert torch.allclose(rotated(x, group), wanted, atol=1e-12)
    assert torch.allclose(rotated(rotated(x, group), group), x, atol=1e-12)


@pytest.mark.parametrize("group", [64, 256])
def test_int8_rows_are_those_of_the_library(group):
    """comfy-kitchen's own of the same float32 numbers; a sum in another order may fall on a step's other side."""
    x = randn(9, 512) * 10 ** randn(9, 1)
    values, scales = quantise_rows(x, INT8, 512, group, None)
    theirs, wanted = quantised.kitchen_ops().quantize_int8_convrot_weight(x, group)
    assert torch.allclose(scales, wanted, rtol=1e-6)
    assert (values != theirs).double().mean() <= 1e-3
    assert (values.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize("stored", [FP8, INT8])
def test_numbers_by_hand(stored):
    limit = LIMITS[stored]
    x = torch.tensor([[1.0, -2.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0], [3.0, 6.0, -12.0, 1.5]])
    values, scales = quantise_rows(x, stored, 6, 0, None)
    assert scales.flatten().tolist() == pytest.approx([2 / limit, 1.0, 12 / limit])
    assert values.float().tolist() == [
        [limit / 2 if stored == FP8 else 64, -limit, 0, limit / 4 if stored == FP8 else 32, 0, 0],
        [0] * 6,
        [limit / 4 if stored == FP8 else 32, *([224, -448, 56] if stored == FP8 else [64, -127, 16]), 0, 0],
    ]
    cut, scales = quantise_rows(x, stored, 4, 0, torch.tensor(1 / limit))  # of what is beyond 1
    assert scales.flatten().tolist() == pytest.approx([1 / limit] * 3)
    assert cut.float()[2].tolist() == [limit, limit, -limit, limit]


def test_the_operations_quantise_what_they_would_give():
    x, branch, weight = randn(7, 48), randn(7, 48, seed=1), randn(48, seed=2)
    for form in ((INT8, 64, 64, None), (FP8, 48, 0, None), (FP8, 48, 0, torch.tensor(0.01))):
        found = norm_quantised(x, weight, [], *form)
        assert_same(found, quantise_rows(rms_norm(x, weight), *form))
        total, *found = add_norm_quantised(x, branch, weight, [], *form)
        assert torch.equal(total, x + branch)
        assert_same(found, quantise_rows(rms_norm(x + branch, weight), *form))
        out, gate = x.unflatten(1, (3, 16)), branch[:, :3]
        assert_same(gate_quantised(out, gate, *form), quantise_rows(gate_heads(out, gate).flatten(1), *form))


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype and torch.equal(one.float(), other.float())


@pytest.mark.parametrize(
    ("quantise", "products", "limit"),
    [(quantised.quantise_fp8, "fast", 4.5e-2), (quantised.quantise_int8, "stored", 1.6e-2)],
)
def test_fused_rows_are_no_farther_than_rounding_twice(monkeypatch, quantise, products, limit):
    """Norm, and product, against float64: beside rows that were bfloat16 before they were quantised."""
    monkeypatch.setattr(gated_linear, "refusal", lambda *_: None)
    x, weight = randn(33, 1024), randn(1024, seed=1) * 0.1
    x[:, ::128] *= 20  # which INT8 would not survive unrotated
    matrix = randn(160, 1024, seed=2) / 32
    stored = quantise(matrix)
    exact = rms_norm(x.double(), weight).double() @ matrix.double().T
    form = gated_linear.row_form(stored)
    values, scales = norm_quantised(x, weight, [], form.stored, form.width, form.group, form.scale)
    rows = QuantisedRows(values, scales, BF16)
    fused = gated_linear.rows_linear(rows, stored)
    unfused = quantised.linear(rms_norm(x, weight).to(BF16), stored, products)
    assert fused.dtype == BF16
    assert distance(fused, exact) <= limit
    assert distance(fused, exact) <= 1.02 * distance(unfused, exact)
    # The same rows in a feed-forward layer: up-projection, activation, down-projection.
    down = quantise(randn(64, 80, seed=3) / 9)
    whole = feed_forward(rows, stored, down, "swiglu7", None, products)
    plain = feed_forward(rms_norm(x, weight).to(BF16), stored, down, "swiglu7", None, products)
    numbers = quantised.dequantise(stored).double(), quantised.dequantise(down).double()
    up = (rms_norm(x.double(), weight).double() @ numbers[0].T).unflatten(1, (-1, 2))
    gate, straight = up[..., 0].clamp(max=7), up[..., 1].clamp(-7, 7)
    wanted = gate / (1 + (-1.702 * gate).exp()) * (straight + 1) @ numbers[1].T
    assert distance(whole, wanted) <= 1.05 * distance(plain, wanted)


def test_runs_of_modalities_keep_their_scales():
    """Against each run on its own, with rows whose sizes differ a thousandfold."""
    x = randn(12, 64) * torch.logspace(-2, 1, 12)[:, None]
    stack, sizes = randn(3 * 20, 64, seed=1), (7, 2, 3)
    for quantise in (quantised.quantise_int8, quantised.quantise_fp8):
        stored = quantise(stack)
        form = gated_linear.row_form(stored)
        rows = QuantisedRows(*quantise_rows(x, form.stored, form.width, form.group, None), torch.float32)
        found = gated_linear.rows_linear(rows, stored, sizes)
        exact = torch.cat(
            [r.double() @ m.double().T for r, m in zip(x.split(sizes), stack.chunk(3), strict=True)]
        )
        errors = (found.double() - exact).norm(dim=1) / exact.norm(dim=1)
        assert errors.max() <= (0.03 if form.stored == INT8 else 0.08)
        assert len(rows) == 12 and [len(part) for part in rows.split(sizes)] == list(sizes)


# --- in the interpreter ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(interpreted):
    return interpreted.run(Path(__file__).parent / "run_quantised_rows.py")


FORMS = ("torch.int8", "torch.float8_e4m3fn")
NORMS = ("groups of 4", "padded to 16", "groups of 64", "padded to 256", "published")
ALONE = ("padded to 16", "groups of 64")
GATES = tuple(
    f"gate {name} {by}" for name in ("published head", "small", "one head") for by in ("rows", "heads")
)
KERNELS = [f"add_norm {name}" for name in NORMS] + [
    f"{kind} {name}" for kind in ("norm", "static") for name in ALONE
]
KERNELS += GATES
PATH = "norm_quantised gated_product norm_rope attention gate_quantised gated_product add_norm_quantised gated_product"


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("form", FORMS)
def test_the_kernel_is_the_definition(found, name, form):
    """Scales to float32's last places; every entry the nearest number to float64's, give or take those places."""
    measured = found[f"{name} {form}"]
    for way in ("triton", "definition"):
        assert measured[way]["dtype"] == form
        assert measured[way]["scales"] <= 4e-7, way
        assert measured[way]["steps"] <= 1.001, way
        # INT8 has 127 steps to a row's largest entry, FP8 4 bits to each number.
        assert measured[way].get("error", 0) <= (1.6e-2 if form == "torch.int8" else 3.7e-2), way


@pytest.mark.parametrize("form", FORMS)
def test_odd_numbers(found, form):
    odd = found["odd"][form]
    assert odd["zeros"] == [0, 1]
    assert odd["none"] == [[False, True, False], [False, True]], "a number that is none stays to be seen"
    assert odd["numbers"]
    assert odd["empty"] == [[0, 48], [0, 1]]


@pytest.mark.parametrize("spec", ["shared", "per modality"])
@pytest.mark.parametrize("kept", ["int8", "fp8_fast"])
def test_a_layer_takes_every_fused_path(found, kept, spec):
    """And is no farther from float64 than without them; FP8 with definitions, because the interpreter errs in it."""
    measured = found[f"layer {kept} {spec}"]
    products = 3 if spec == "per modality" else 1
    wanted = [
        f"{name} {'definition' if name == 'attention' else 'triton'}"
        for name in PATH.split()
        for _ in range(products if name == "gated_product" else 1)
    ]
    assert measured["ran"] == wanted
    assert measured["defined"] <= 1.1 * measured["unfused"]
    if kept == "int8":
        assert measured["fused"] == pytest.approx(measured["defined"], rel=0.02)
    assert measured.get("shares", 0) == 0, "a row does not see the others, whatever its share"
    assert ("shares" in measured) == (kept == "int8" and spec == "shared")


# --- what chooses it -------------------------------------------------------------------------------------


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def test_refusals():
    pytest.importorskip("triton")
    x, weight = meta(6, 32), meta(32)

    def norm(*form, x=x, weight=weight):
        return norm_quantised.explain(x, weight, [], *form)["triton"]

    def gate(out, *form):
        return gate_quantised.explain(out, meta(6, out.shape[1]), *form)["triton"]

    assert norm(INT8, 32, 16, None) is None and norm(FP8, 32, 0, meta(1)) is None
    assert "32 entries, stored as 40, are no whole groups of 16" in norm(INT8, 40, 16, None)
    assert "are no whole groups of 8" in norm(INT8, 32, 8, None)
    assert "stored as 16" in norm(INT8, 16, 16, None)
    assert "FP8 e4m3 or INT8, not torch.bfloat16" in norm(BF16, 32, 0, None)
    assert "20480 entries is longer than 16384" in norm(FP8, 20480, 0, None)
    assert "entry by entry" in norm(FP8, 32, 0, None, x=meta(32, 6).t())
    assert "torch.float64" in norm(FP8, 32, 0, None, x=x.double())
    assert "64 norm weights" in norm(FP8, 32, 0, None, weight=meta(64))
    assert add_norm_quantised.explain(x, x.half(), weight, [], INT8, 32, 16, None)["triton"] is None
    assert gate(meta(6, 4, 16, dtype=BF16), INT8, 64, 64, None) is None
    assert "3 heads of 20 entries do not lie in rows of 64" in gate(meta(6, 3, 20), INT8, 64, 64, None)
    assert "3 heads of 16 entries do not lie in rows of 64" in gate(meta(6, 3, 16), INT8, 64, 64, None)
    assert "side by side" in gate(meta(6, 16, 4).transpose(1, 2), FP8, 64, 0, None)


@pytest.mark.parametrize(("capability", "fp8"), [((8, 6), False), ((8, 9), True)])
def test_cards_without_fp8(monkeypatch, capability, fp8):
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(registry, "find_triton", lambda: "here")
    monkeypatch.setattr(registry, "has_compiler", lambda: True)
    monkeypatch.setattr(registry, "_capability", lambda device: capability)
    with FakeTensorMode():
        x, weight = torch.empty(4, 32, device="cuda"), torch.empty(32, device="cuda")
        out, gate = torch.empty(4, 2, 16, device="cuda"), torch.empty(4, 2, device="cuda")
    wanted = None if fp8 else "FP8 in Triton needs compute capability 8.9 and this card has 8.6"
    assert norm_quantised.explain(x, weight, [], FP8, 32, 0, None)["triton"] == wanted
    assert gate_quantised.explain(out, gate, FP8, 32, 0, None)["triton"] == wanted
    assert norm_quantised.explain(x, weight, [], INT8, 32, 16, None)["triton"] is None


def test_without_a_kernel_rows_stay_numbers():
    """The network then quantises where it did before; forced, it says why."""
    form = RowForm(INT8, 16, 16)
    x, weight = randn(3, 16), torch.zeros(16)
    if not torch.cuda.is_available():
        assert quantised_norm(form, x, weight, [], BF16) is None
        assert quantised_gate(form, x.unflatten(1, (2, 8)), x[:, :2], BF16) is None
        with forced("triton"), pytest.raises(SamplingError, match="norm_quantised cannot run as triton: "):
            norm_quantised(x, weight, [], INT8, 16, 16, None)


def test_which_layers_take_rows(monkeypatch):
    matrix = randn(8, 64)
    int8, fp8 = quantised.quantise_int8(matrix), quantised.quantise_fp8(matrix)
    assert gated_linear.row_form(int8) == RowForm(INT8, 64, 64)
    assert gated_linear.row_form(fp8) == RowForm(FP8, 64)
    fixed = torch.tensor(0.5)
    static = quantised.QuantisedWeight(fp8.format, fp8.data, fp8.shape, {**fp8.scales, "input_scale": fixed})
    assert gated_linear.row_form(static).scale is fixed
    smooth = {**fp8.scales, "pre_quant_scale": torch.ones(64)}
    assert gated_linear.row_form(quantised.QuantisedWeight(fp8.format, fp8.data, fp8.shape, smooth)) is None
    assert quantised.quantise_int8(randn(8, 70)).data.shape[1] == 128  # which the rows are padded to
    monkeypatch.setattr(registry, "needs_triton", None)
    x = randn(2, 64)
    for weight, products, takes in (
        (int8, "stored", True),
        (int8, "weights", False),
        (fp8, "fast", True),
        (fp8, "weights", False),
        (quantised.quantise_int8(matrix, rotate=False), "weights", False),
        (quantised.quantise_nf4(matrix), "stored", False),
    ):
        layer = QuantisedLinear(weight, products)
        with monkeypatch.context() as patch:
            patch.setattr(gated_linear.gated_product, "chosen", lambda *_: "triton")
            assert (layers.form_for(layer, "none", x) is not None) == takes, (weight.format, products)
            assert layers.form_for(layer, "none", x.to("meta")) is None, "it lies elsewhere"
    assert layers.form_for(torch.nn.Linear(64, 8), "none", x) is None


def test_it_traces():
    """As nodes of a compiled graph, with fakes of the real shapes and dtypes."""

    def run(x, weight, gate):
        total, values, scales = add_norm_quantised(x, x, weight, [], INT8, 64, 64, None)
        more = gate_quantised(total.unflatten(1, (3, 16)), gate, FP8, 48, 0, None)
        return total, values, scales, *more

    arguments = randn(5, 48), randn(48, seed=1), randn(5, 3, seed=2)
    real = run(*arguments)
    fake = run(*(part.to("meta") for part in arguments))
    compiled = torch.compile(run, fullgraph=True, backend="eager")(*arguments)
    for one, two, three in zip(real, fake, compiled, strict=True):
        assert (two.shape, two.dtype) == (one.shape, one.dtype)
        assert torch.equal(one.float(), three.float())


# --- what a layer launches and moves ---------------------------------------------------------------------

N, WIDTH, HEADS, ENTRIES = 4110, 5120, 40, 128


@pytest.fixture
def count(counting, monkeypatch):
    """``count(kept, fused)``: the traffic of the published shared layer in 8 bits on a card."""
    pytest.importorskip("triton")
    monkeypatch.setattr(quantised.kitchen(), "int8_linear", library_int8)

    def run(kept, fused):
        spec = BlockSpec(False, "swiglu7", 13652)
        config = TransformerConfig(WIDTH, HEADS, 8, ENTRIES, 192, 64, 3584, 16, (spec,))
        with torch.device("meta"):
            block = layers.Block(config, spec, dtype=BF16)
        for name, module in list(block.named_modules()):
            if isinstance(module, torch.nn.Linear):
                block.set_submodule(name, QuantisedLinear(*stored_as(kept, *module.weight.shape)))
        context = layers.Context((3584, 126, 400), meta(N, 96), [], lambda q, k, v: torch.empty_like(q))
        with monkeypatch.context() as patch, torch.no_grad():
            if not fused:
                patch.setattr(layers, "is_fused", lambda *_: False)
            with own_traffic(counting)(OPERATIONS, fused=True) as traffic:
                block(meta(N, WIDTH), context)
        return traffic

    return run


def own_traffic(counting):
    """Counts what is beside the products, ours among them."""

    class Own(counting.Traffic):
        def _add(self, name, launches, touched):
            if name in ("gated_product", "_scaled_mm_v2"):
                self.products += launches
            else:
                super()._add(name, launches, touched)

    return Own


def stored_as(kept, rows, columns):
    if kept == "int8":
        data = meta(rows, columns + -columns % 256, dtype=INT8)
        turned = {"convrot": True, "convrot_groupsize": 256}
        scales = {"weight_scale": meta(rows, 1)}
        return quantised.QuantisedWeight("int8_tensorwise", data, (rows, columns), scales, turned), "stored"
    data = meta(rows, columns + -columns % 64, dtype=FP8)  # as it lies on a card
    scales = {"weight_scale": meta()}
    return quantised.QuantisedWeight("float8_e4m3fn", data, (rows, columns), scales), "fast"


def library_int8(x, weight, *_):
    """comfy-kitchen's two kernels: what quantises rows, and a product, which is not counted."""
    return x.to(INT8).new_empty((x.shape[0], weight.shape[0]), dtype=BF16)


def kilobytes(traffic):
    return traffic.moved / N / 1000


def test_a_layer_in_int8(count):
    """Norms and gate write 5 KB a token for 10 written and 10 read again, and 5 for the numbers in 8 bits."""
    fused, unfused = count("int8", True), count("int8", False)
    assert fused.names == [
        "norm_quantised", "norm_rope", "gate_quantised", "add_norm_quantised", "_to_copy", "add",
    ]  # fmt: skip
    assert fused.products == 3
    assert unfused.names == [
        "norm_rows", "_to_copy", "norm_rope", "gate_rows", "_to_copy", "add_norm", "_to_copy", "activate",
        "constant_pad_nd", "_to_copy", "add",
    ]  # fmt: skip
    assert len(fused.names) + fused.products + 1 + 1 == 11, "with the library's product and attention"
    # 31 and 61 for the norms and the sum, of which 5 are rows; 26 q and k, 15 gate, 41 what the library rounds, 51 sum.
    assert kilobytes(fused) == pytest.approx(215.0, abs=0.1)
    assert kilobytes(unfused) == pytest.approx(413.3, abs=0.1)


def test_a_layer_in_fp8(count):
    """One scale for all rows takes eleven operations and three readings of the rows before each product."""
    fused, unfused = count("fp8_fast", True), count("fp8_fast", False)
    assert fused.names == [
        "norm_quantised", "norm_rope", "gate_quantised", "add_norm_quantised", "full", "add",
    ]  # fmt: skip
    assert len(fused.names) + fused.products + 1 == 11, "with attention"
    assert unfused.names.count("quantize_fp8") == 4 and len(unfused.names) >= 50
    assert kilobytes(fused) == pytest.approx(173.5, abs=0.1)
