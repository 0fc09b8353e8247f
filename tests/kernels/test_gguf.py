"""GGML's block formats against the gguf library, bit for bit in float32."""

import builtins

import numpy as np
import pytest
import torch

from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.kernels.gguf_blocks import BLOCK_TYPES, block_size, dequantise

gguf = pytest.importorskip("gguf")

# Bytes of a block at which a float16 begins.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
# Zeros of both signs, the smallest and the largest subnormal, the largest numbers; of both signs.
SPECIAL = np.array(
    [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x7BFF, 0xFBFF, 0x3C00, 0xBC00], np.uint16
)
RARE = {"IQ2_XXS": (0,), "IQ3_S": (0,), "IQ1_S": (0,), "TQ1_0": (52,), "TQ2_0": (64,), "MXFP4": ()}


def random_blocks(kind, rows, blocks, seed=0, halves=HALVES):
    """[rows, bytes]: any bits at all, but finite scales, the special ones among them."""
    chance = np.random.default_rng(seed)
    size = block_size(kind)[1]
    data = chance.integers(0, 256, (rows * blocks, size), np.uint8)
    for first in halves[kind]:
        scale = (
            chance.integers(0, 0x7C00, rows * blocks, np.uint16)
            | chance.integers(0, 2, rows * blocks, np.uint16) << 15
        )
        special = chance.random(rows * blocks) < 0.2
        scale[special] = chance.choice(SPECIAL, special.sum())
        data[:, first : first + 2] = scale[:, None].view(np.uint8)
    return data.reshape(rows, blocks * size)


def by_the_library(data, kind):
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])


def same_bits(actual, expected):
    assert actual.dtype == torch.float32
    assert tuple(actual.shape) == expected.shape
    assert np.isfinite(expected).all() and expected.any()
    assert np.array_equal(actual.numpy().view(np.uint32), expected.view(np.uint32))


def test_the_sizes_are_the_librarys():
    theirs = {kind.name: tuple(sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {kind: theirs[kind] for kind in BLOCK_TYPES} == BLOCK_TYPES
    assert HALVES.keys() == BLOCK_TYPES.keys()


@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (1, 5), (7, 1), (40, 13)])
@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_random_blocks(kind, rows, blocks):
    data = random_blocks(kind, rows, blocks, seed=rows)
    before = data.copy()
    same_bits(dequantise(torch.from_numpy(data), kind), by_the_library(data, kind))
    assert np.array_equal(data, before)  # what works in place works on its own numbers


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_every_special_scale(kind):
    data = random_blocks(kind, len(SPECIAL), 1)
    for first in HALVES[kind]:
        data[:, first : first + 2] = SPECIAL[:, None].view(np.uint8)
    actual, expected = dequantise(torch.from_numpy(data), kind), by_the_library(data, kind)
    same_bits(actual, expected)
    assert not actual[:2].any()  # both zeros
    assert actual[2].any()  # a subnormal scale is not flushed


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_chosen_rows_as_an_embedding_takes_them(kind):
    data = torch.from_numpy(random_blocks(kind, 30, 3))
    ids = torch.tensor([[4, 4, 29], [0, 17, 5]])
    whole = dequantise(data, kind)
    assert torch.equal(dequantise(data[ids], kind), whole[ids])
    assert torch.equal(dequantise(data[3:20:2], kind), whole[3:20:2])  # rows that do not follow one another
    assert torch.equal(dequantise(data[9], kind), whole[9])
    unaligned = torch.cat([torch.zeros(1, dtype=torch.uint8), data[1]])[1:]
    assert torch.equal(dequantise(unaligned, kind), whole[1])
    one = block_size(kind)[1]  # of a single block a slice counts as contiguous, wherever it begins
    assert torch.equal(dequantise(unaligned[:one], kind), whole[1][: block_size(kind)[0]])
    assert dequantise(data[:0], kind).shape == (0, whole.shape[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_rounded_once_from_float32(dtype):
    data = torch.from_numpy(random_blocks("Q6_K", 4, 2))
    out = dequantise(data, "Q6_K", dtype)
    assert out.dtype == dtype
    assert torch.equal(out, dequantise(data, "Q6_K").to(dtype))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_numbers_come_back(kind):
    """Against the numbers themselves: within half a step of a block's range (a whole one at Q4_0's clipped end)."""
    numbers = np.random.default_rng(1).standard_normal((6, 96), np.float32)
    packed = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[kind])
    out = dequantise(torch.from_numpy(packed), kind).numpy()
    steps = {"Q4_0": 8, "Q4_1": 15, "Q5_0": 16, "Q5_1": 31, "Q8_0": 127}[kind]
    span = (
        np.ptp(numbers.reshape(6, 3, 32), axis=2)
        if kind.endswith("1")
        else abs(numbers.reshape(6, 3, 32)).max(2)
    )
    step = (span / steps).repeat(32, 1).reshape(6, 96)
    limit = {"Q4_0": 1.01, "Q5_0": 1.01}.get(kind, 0.53)
    assert (abs(out - numbers) <= limit * step).all()


@pytest.mark.parametrize("kind", RARE)
def test_rare_types_are_left_to_the_library(kind):
    data = random_blocks(kind, 3, 2, halves=RARE)
    if kind == "MXFP4":
        data[:, ::17] %= 200  # its scale is an exponent
    same_bits(dequantise(torch.from_numpy(data), kind), by_the_library(data, kind))


@pytest.mark.parametrize("kind", ["Q8_K", "Q8_1", "Q9_X"])
def test_types_that_nobody_de_quantises(kind):
    with pytest.raises(CheckpointError, match=f"GGUF type {kind} cannot be de-quantised.*Q6_K"):
        dequantise(torch.zeros(1, 292, dtype=torch.uint8), kind)


def test_bytes_that_are_no_blocks():
    with pytest.raises(CheckpointError, match=r"Q6_K takes bytes in blocks of 210 and was given \[2, 211\]"):
        dequantise(torch.zeros(2, 211, dtype=torch.uint8), "Q6_K")
    with pytest.raises(CheckpointError, match=r"torch\.float32"):
        dequantise(torch.zeros(2, 210), "Q6_K")


def test_the_library_is_needed_for_rare_types_only(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    data = random_blocks("Q6_K", 2, 2)
    expected = by_the_library(data, "Q6_K")
    block_size.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    same_bits(dequantise(torch.from_numpy(data), "Q6_K"), expected)
    with pytest.raises(
        CheckpointError, match=r"type IQ2_S needs the Python package 'gguf'.*pip install gguf"
    ):
        dequantise(torch.zeros(1, 82, dtype=torch.uint8), "IQ2_S")
