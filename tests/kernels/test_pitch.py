"""Weights whose rows have zeros behind them: the same numbers, the same products, and layers that land on a card."""

import pytest
import torch
import torch.nn.functional as F

from comfyui_happyhorse.kernels import pitch, quantised
from comfyui_happyhorse.kernels.quantised import (
    QuantisedWeight,
    dequantise,
    linear,
    modality_linear,
    row_range,
)
from comfyui_happyhorse.model import layers
from comfyui_happyhorse.model.config import BlockSpec, TransformerConfig
from comfyui_happyhorse.model.layers import Context, FeedForward, PerModalityLinear, PitchedLinear
from comfyui_happyhorse.model_loading import quantised_layers
from comfyui_happyhorse.model_loading.precision import precision
from comfyui_happyhorse.model_loading.quantised_layers import QuantisedLinear

BF16, FP8, INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8
PUBLISHED, PITCHED = 13652, 13696


def whole_numbers(*shape, seed=0, largest=3):
    """Whose products and sums are exact in float32, in any order."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=random).float()


@pytest.mark.parametrize("dtype", [torch.float32, BF16, FP8, INT8])
@pytest.mark.parametrize("inputs", [PUBLISHED, 1, 63, 65])
def test_spread_rows_keep_their_numbers(dtype, inputs):
    weight = whole_numbers(5, inputs).to(dtype)
    view = pitch.spread(weight)
    found = pitch.wide(view)
    assert view.shape == weight.shape and view.dtype == dtype
    assert torch.equal(view.float(), weight.float())
    assert found.shape == (5, -(-inputs // 64) * 64) and found.is_contiguous()
    assert not found[:, inputs:].float().any(), "zeros behind"
    assert found.data_ptr() == view.data_ptr(), "the same memory"
    assert torch.equal(pitch.wide(view[2:4]).float(), found[2:4].float())


def test_whole_rows_and_tight_ones_stay_as_they_are():
    for inputs in (64, 5120):
        weight = whole_numbers(3, inputs)
        assert pitch.spread(weight) is weight and pitch.wide(weight) is weight
    tight = whole_numbers(3, 50)
    assert pitch.wide(tight) is tight
    assert pitch.wide(whole_numbers(3, 70)[:, :50]).shape == (3, 50), "columns of a wider matrix"
    assert (pitch.whole(PUBLISHED), pitch.whole(0), pitch.whole(64)) == (PITCHED, 0, 64)


def test_rows_are_made_to_fit():
    x = whole_numbers(2, 3, 10)
    assert pitch.fitting(x, 10).data_ptr() == x.data_ptr()
    assert torch.equal(pitch.fitting(x, 12), F.pad(x, (0, 2)))
    assert torch.equal(pitch.fitting(F.pad(x, (0, 2)), 10), x)


def padded(weight: QuantisedWeight) -> QuantisedWeight:
    data = pitch.wide(pitch.spread(weight.data))
    return QuantisedWeight(weight.format, data, weight.shape, weight.scales, weight.settings)


def stored_as(name, matrix):
    """Without rounding: the numbers are the format's own."""
    scale = torch.tensor(0.5) if name != "int8 rows" else torch.full((len(matrix), 1), 0.25)
    kind = {"fp8": "float8_e4m3fn", "e5m2": "float8_e5m2"}.get(name, "int8_tensorwise")
    dtype = {"fp8": FP8, "e5m2": torch.float8_e5m2}.get(name, INT8)
    # With a scale of its own, or rows would be rounded by their largest.
    scales = {
        "weight_scale": scale,
        "input_scale": torch.ones(()),
    }
    return QuantisedWeight(kind, matrix.to(dtype), tuple(matrix.shape), scales)


@pytest.mark.parametrize("products", ["weights", "stored", "fast"])
@pytest.mark.parametrize("name", ["fp8", "e5m2", "int8", "int8 rows"])
@pytest.mark.parametrize("inputs", [PUBLISHED, 50])
def test_zeros_change_no_product(name, products, inputs):
    """Bit for bit at the published width, from rows with and without zeros behind them."""
    x, matrix = whole_numbers(3, inputs).to(BF16), whole_numbers(6, inputs, seed=1, largest=2)
    tight = stored_as(name, matrix)
    loose = padded(tight)
    assert loose.data.shape[1] == pitch.whole(inputs)
    exact = x.double() @ matrix.double().T * tight.scales["weight_scale"].double().reshape(-1)
    wanted = linear(x, tight, products)
    assert torch.equal(wanted.double(), exact.to(BF16).double())
    for rows in (x, F.pad(x, (0, loose.data.shape[1] - inputs))):
        assert torch.equal(linear(rows, loose, products), wanted)
        runs = modality_linear(rows, loose, (1, 2), products)
        assert torch.equal(runs, torch.cat([wanted[:1, :3], wanted[1:, 3:]]))
    assert torch.equal(dequantise(loose), dequantise(tight))
    assert torch.equal(dequantise(row_range(loose, 2, 5)), dequantise(tight)[2:5])


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_plain_layers_multiply_in_whole_multiples(monkeypatch, dtype):
    """On a card; the numbers of a layer that never was on one."""
    multiplied = []
    original = F.linear
    for place in (torch.nn.functional, quantised.F):
        monkeypatch.setattr(
            place, "linear", lambda x, w: (multiplied.append((x.shape[-1], w.shape[-1])), original(x, w))[1]
        )
    shared = layers.projection(False, PUBLISHED, 6, ops=torch.nn, dtype=dtype)
    stacked = layers.projection(True, PUBLISHED, 2, ops=torch.nn, dtype=dtype)
    assert type(shared) is PitchedLinear and type(stacked) is PerModalityLinear
    assert type(layers.projection(False, 5120, 6, ops=torch.nn, dtype=dtype)) is torch.nn.Linear
    x = whole_numbers(3, PUBLISHED).to(dtype)
    for layer, sizes in ((shared, ()), (stacked, ((1, 0, 2),))):
        layer.requires_grad_(False).weight.copy_(whole_numbers(6, PUBLISHED, seed=1))
        wanted, parameter = layer(x, *sizes), layer.weight
        assert layer.input_width == PUBLISHED
        with monkeypatch.context() as patch:
            patch.setattr(layers, "is_on_card", lambda _: True)
            assert layer.to("cpu").to("cpu") is layer
        assert layer.input_width == PITCHED
        assert layer.weight is parameter and layer.weight.shape == (6, PUBLISHED)
        assert layer.state_dict()["weight"].shape == (6, PUBLISHED)
        multiplied.clear()
        assert torch.equal(layer(x, *sizes), wanted)
        assert torch.equal(layer(F.pad(x, (0, PITCHED - PUBLISHED)), *sizes), wanted)
        assert set(multiplied) == {(PITCHED, PITCHED)}


KEPT = {"bf16": 64, "fp8": 64, "fp8_rows": 64, "fp8_fast": 64, "int8_weights": 64, "int8": 44, "nf4": 44}


@pytest.mark.parametrize("spec", [BlockSpec(False, "swiglu7", 44), BlockSpec(True, "gelu7", 44)])
@pytest.mark.parametrize("kept", KEPT)
def test_a_feed_forward_layer_that_landed_on_a_card(monkeypatch, kept, spec):
    """Its activation writes the zeros, and nothing else copies rows to make them fit."""
    config = TransformerConfig(32, 4, 2, 8, 8, 4, 4, 1, (spec,))
    layer, policy = FeedForward(config, spec, dtype=BF16).requires_grad_(False), precision(kept)
    random = torch.Generator().manual_seed(0)
    for name in ("up_gate_proj", "down_proj"):
        module = getattr(layer, name)
        module.weight.copy_(torch.randn(module.weight.shape, generator=random) * 0.2)
        if policy.quantise:
            setattr(layer, name, QuantisedLinear(policy.quantise(module.weight), policy.products))
    x = torch.randn(14, 32, generator=random)
    context = Context((9, 3, 2), torch.zeros(14, 6), ())
    before, names = layer(x, context), {name: value.shape for name, value in layer.state_dict().items()}
    for place in (layers, quantised_layers):
        monkeypatch.setattr(place, "is_on_card", lambda _: True)
    layer.to("cpu")
    assert {name: value.shape for name, value in layer.state_dict().items()} == names
    widths, activate = [], layers.activate
    monkeypatch.setattr(
        layers, "activate", lambda *arguments: widths.append(arguments[3]) or activate(*arguments)
    )
    after = layer(x, context)
    assert widths == [KEPT[kept]]
    # Sums of 64 may be taken in another order than those of 44: a last place of bfloat16.
    assert (after - before).float().abs().max() <= 2**-8 * before.float().abs().max()
    if kept not in ("bf16", "nf4"):
        assert torch.equal(dequantise(layer.down_proj.stored), dequantise(layer.down_proj.to("cpu").stored))
        assert layer.down_proj.stored.shape == (32 * (3 if spec.per_modality else 1), 44)


def test_rotated_int8_is_stored_in_whole_groups_already():
    """54 groups of 256 for the published width: its own zeros, and nothing is spread."""
    weight = quantised.quantise_int8(whole_numbers(2, PUBLISHED))
    assert weight.data.shape[1] == 13824 == pitch.whole(13824)
    assert QuantisedLinear(weight, "stored").input_width == PUBLISHED
