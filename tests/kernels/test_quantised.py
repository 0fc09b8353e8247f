"""Products with stored weights: scales at full precision, static activation scales, rows, padding, refusals."""

import builtins

import bitsandbytes.functional as library
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from comfyui_happyhorse.errors import HappyHorseError
from comfyui_happyhorse.kernels import quantised
from comfyui_happyhorse.kernels.quantised import (
    QuantisedWeight,
    dequantise,
    linear,
    modality_linear,
    row_range,
)
from comfyui_happyhorse.model_loading import builder

FP8 = torch.float8_e4m3fn
MAKERS = {
    "fp8": quantised.quantise_fp8,
    "fp8 rows": lambda weight: quantised.quantise_fp8(weight, by_row=True),
    "int8": lambda weight: quantised.quantise_int8(weight, rotate=False),
    "int8 rotated": quantised.quantise_int8,
    "nf4": quantised.quantise_nf4,
}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [FP8, torch.int8])
@pytest.mark.parametrize("by_row", [False, True])
def test_scales_are_not_rounded(dtype, by_row):
    """1.003 is 1 in bfloat16: a rounded scale would be off by 0.3 % in every result."""
    kind = {FP8: "float8_e4m3fn", torch.int8: "int8_tensorwise"}[dtype]
    scale = torch.full((3, 1), 1.003) if by_row else torch.tensor(1.003)
    weight = QuantisedWeight(kind, torch.ones(3, 16).to(dtype), (3, 16), {"weight_scale": scale})
    x = torch.ones(2, 16)
    for products in ("weights", "stored"):
        assert linear(x, weight, products) == pytest.approx(16 * 1.003, rel=1e-6)
    assert linear(x.bfloat16(), weight, "weights").float() == pytest.approx(16 * 1.003, rel=2**-8)


def test_a_static_scale_of_activations_is_used_in_fp8_products_only():
    """With a scale of 1/448 everything above 1 is cut off, so that its use shows."""
    weight = QuantisedWeight(
        "float8_e4m3fn",
        torch.eye(16).to(FP8),
        (16, 16),
        {"weight_scale": torch.ones(()), "input_scale": torch.tensor(1 / 448)},
    )
    x = torch.full((1, 16), 2.0).bfloat16()
    assert linear(x, weight, "fast").float() == pytest.approx(1.0, rel=1e-2)
    assert linear(x, weight, "weights").float() == pytest.approx(2.0)


@pytest.mark.parametrize("name", MAKERS)
@given(rows=st.integers(1, 9), columns=st.integers(4, 300), cut=st.data())
@settings(max_examples=15, deadline=None)
def test_rows_of_a_stored_weight_are_the_rows_of_its_numbers(name, rows, columns, cut):
    columns += columns % 2 if name == "nf4" else 0  # two a byte
    weight = MAKERS[name](randn(rows, columns, seed=rows * columns))
    start = cut.draw(st.integers(0, rows - 1))
    stop = cut.draw(st.integers(start + 1, rows))
    part = row_range(weight, start, stop)
    numbers = part if isinstance(part, torch.Tensor) else dequantise(part)
    assert numbers.shape == (stop - start, columns)
    assert torch.allclose(numbers, dequantise(weight)[start:stop], atol=1e-6)
    assert isinstance(part, QuantisedWeight) == quantised.can_cut_rows(weight)


@pytest.mark.parametrize("products", ["weights", "stored", "fast"])
@pytest.mark.parametrize("name", MAKERS)
def test_each_modality_has_its_own_rows_of_a_stack(name, products):
    stack, x, sizes = randn(3 * 20, 72), randn(12, 72, seed=1).bfloat16(), (7, 2, 3)
    weight = MAKERS[name](stack)
    found = modality_linear(x, weight, sizes, products)
    parts = [row_range(weight, 20 * i, 20 * (i + 1)) for i in range(3)]
    parts = [part.to(x) if isinstance(part, torch.Tensor) else part for part in parts]
    runs = x.split(sizes)
    wanted = torch.cat([linear(run, part, products) for run, part in zip(runs, parts, strict=True)])
    assert torch.equal(found, wanted)
    exact = torch.cat([r.double() @ m.double().T for r, m in zip(runs, stack.chunk(3), strict=True)])
    assert (found.double() - exact).norm() <= 0.13 * exact.norm()


@pytest.mark.parametrize("name", ["fp8", "int8 rotated", "nf4"])
def test_any_number_of_dimensions_and_no_rows(name):
    weight = MAKERS[name](randn(8, 64))
    x = randn(2, 3, 64, seed=2)
    assert torch.equal(linear(x, weight)[1], linear(x[1], weight))
    assert linear(x[:, 0], weight).shape == (2, 8)


@pytest.mark.parametrize("columns", [5120, 13652, 20480, 300, 64, 20, 5])
def test_groups_of_rotation(columns):
    weight = quantised.quantise_int8(randn(2, columns))
    group = weight.group
    assert group == max(size for size in (4, 16, 64, 256) if size <= columns)
    assert weight.data.shape[1] == -(-columns // group) * group
    assert {13652: 13824}.get(columns, weight.data.shape[1]) == weight.data.shape[1]
    assert dequantise(weight).shape == (2, columns)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_files_as_bitsandbytes_writes_them(tiny_models, tmp_path, kind, is_nested):
    """Their own JSON, blocks of any size, scales that are themselves in 8 bits."""
    state = load_file(tiny_models / "diffusion_models" / "happyhorse_tiny_distilled.safetensors")
    name, tensors = "block.layers.0.attention.linear_qkv.weight", dict(state)
    data, about = library.quantize_4bit(
        tensors.pop(name), blocksize=128, quant_type=kind, compress_statistics=is_nested
    )
    tensors |= {f"{name}.{part}": value for part, value in about.as_dict(packed=True).items()}
    tensors[name] = data
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "x.safetensors")
    about.shape = torch.Size([state[name].numel()])
    wanted = library.dequantize_4bit(data, about).view(state[name].shape).float()
    network = builder.load_transformer(tmp_path / "x.safetensors", "distilled")
    found = dequantise(network.block.layers[0].attention.linear_qkv.stored)
    assert (found - wanted).abs().max() <= 2**-8 * wanted.abs().max()
    assert (found - state[name].float()).norm() <= 0.15 * state[name].float().norm()


@pytest.mark.parametrize(
    ("package", "name"), [("comfy_kitchen", "int8 rotated"), ("bitsandbytes.functional", "nf4")]
)
def test_a_missing_package_is_named(monkeypatch, package, name):
    weight, original = MAKERS[name](randn(4, 64)), builtins.__import__

    def without(module, *args, **kwargs):
        if module == package:
            raise ImportError(module)
        return original(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    title = {"comfy_kitchen": "comfy-kitchen", "bitsandbytes.functional": "bitsandbytes"}[package]
    with pytest.raises(HappyHorseError, match=f"'{title}', which is not installed: pip install {title}"):
        linear(randn(2, 64), weight)


def test_fp8_needs_no_package_for_weights_only(monkeypatch):
    weight, original = MAKERS["fp8"](randn(4, 64)), builtins.__import__

    def without(module, *args, **kwargs):
        if module.startswith(("comfy_kitchen", "bitsandbytes")):
            raise ImportError(module)
        return original(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert linear(randn(2, 64), weight, "weights").isfinite().all()
