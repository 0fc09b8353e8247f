"""The clamped activations against their formulas, one number at a time."""

import math

import pytest
import torch

from comfyui_happyhorse.kernels import ACTIVATIONS, activate, gelu7, swiglu7
from comfyui_happyhorse.kernels.activation import FP8_GAIN

# Inside, at and far beyond each clamp, on both sides.
VALUES = [-50.0, -8.0, -7.0, -6.5, -1.0, -0.25, 0.0, 0.5, 3.0, 6.9, 7.0, 7.5, 40.0]


def literal_gelu7(x):
    x = min(x, 7.0)
    return x / (1 + math.exp(-1.702 * x))


def literal_swiglu7(gate, linear):
    return literal_gelu7(gate) * (max(-7.0, min(linear, 7.0)) + 1)


@pytest.fixture
def near():
    """Every entry to 1e-5 of itself: far below zero the results are tiny, and still have to be right."""

    def compare(actual, reference):
        assert actual.dtype == torch.float32
        reference = torch.tensor(reference, dtype=torch.float64)
        torch.testing.assert_close(actual.double(), reference, rtol=1e-5, atol=1e-30)

    return compare


def test_gelu7_at_every_clamp(near):
    near(gelu7(torch.tensor(VALUES)), [literal_gelu7(x) for x in VALUES])


def test_swiglu7_at_every_pair_of_clamps(near):
    pairs = [(gate, linear) for gate in VALUES for linear in VALUES]
    out = swiglu7(torch.tensor([value for pair in pairs for value in pair]))
    near(out, [literal_swiglu7(*pair) for pair in pairs])


def test_swiglu7_takes_gates_from_even_entries_of_each_row(near):
    torch.manual_seed(0)
    x = torch.randn(3, 2, 10, dtype=torch.float64).float() * 5
    wanted = [
        [[literal_swiglu7(*row[i : i + 2]) for i in range(0, 10, 2)] for row in rows] for rows in x.tolist()
    ]
    near(swiglu7(x), wanted)


def test_bfloat16_is_computed_in_float32(near):
    x = torch.tensor(VALUES + VALUES[:1]).bfloat16()
    near(gelu7(x), [literal_gelu7(value) for value in x.tolist()])
    near(swiglu7(x), [literal_swiglu7(*pair) for pair in zip(x.tolist()[::2], x.tolist()[1::2], strict=True)])


def test_names_of_the_table(near):
    x = torch.tensor([2.0, -3.0])
    near(ACTIVATIONS["gelu7"](x), [literal_gelu7(2.0), literal_gelu7(-3.0)])
    near(ACTIVATIONS["swiglu7"](x), [literal_swiglu7(2.0, -3.0)])
    assert sorted(ACTIVATIONS) == ["gelu7", "swiglu7"]


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_rounded_once_with_zeros_behind(kind, dtype):
    torch.manual_seed(1)
    up = (torch.randn(3, 10) * 6).to(dtype)
    values = ACTIVATIONS[kind](up).to(dtype)
    width = values.shape[1]
    assert torch.equal(activate(up, kind, dtype, width), values)
    padded = activate(up, kind, dtype, width + 3)
    assert padded.dtype == dtype and torch.equal(padded[:, :width], values) and not padded[:, width:].any()


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_fp8_is_filled_and_never_left(kind):
    """The clamps bound both activations, so one scale serves every input: largest result times gain is 448."""
    wide = torch.linspace(-100, 100, 4001)
    up = wide[:, None] if kind == "gelu7" else torch.cartesian_prod(wide[::16], wide[::16])
    exact = ACTIVATIONS[kind](up)
    assert 447 < exact.abs().max() * FP8_GAIN[kind] <= 448
    rows = activate(up, kind, torch.float8_e4m3fn, 1).float() / FP8_GAIN[kind]
    assert rows.isfinite().all()
    # Half a unit of four significant bits; below the smallest normal number half a step of 2^-9.
    limit = (exact.abs() * 2**-4).clamp(min=2**-10 / FP8_GAIN[kind])
    assert ((rows - exact).abs() <= limit).all()
    assert math.log2(FP8_GAIN[kind]).is_integer()
