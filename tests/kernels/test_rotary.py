"""The partial, half-split rotation against its two lines in float64."""

import pytest
import torch

from comfyui_happyhorse.kernels import rotate


@pytest.fixture
def literal():
    """(x_i, x_{i+3B}) -> (x_i c_i - x_{i+3B} s_i, x_{i+3B} c_i + x_i s_i), pair by pair."""

    def rotated(x, sines, cosines):
        out, half = x.clone(), sines.shape[-1]
        for row in range(x.shape[0]):
            for head in range(x.shape[1]):
                for i in range(half):
                    a, b = x[row, head, i], x[row, head, i + half]
                    s, c = sines[row, i], cosines[row, i]
                    out[row, head, i] = a * c - b * s
                    out[row, head, i + half] = b * c + a * s
        return out

    return rotated


@pytest.mark.parametrize(("rows", "heads", "half", "size"), [(4, 3, 3, 8), (1, 1, 6, 16), (3, 2, 3, 6)])
def test_pairs_are_half_the_rotary_width_apart(close, literal, rows, heads, half, size):
    torch.manual_seed(0)
    x, angles = torch.randn(rows, heads, size), torch.randn(rows, half).double() * 3
    rope = torch.cat([angles.sin(), angles.cos()], -1).float()
    close(rotate(x, rope), literal(x.double(), angles.sin(), angles.cos()), 1e-6)


def test_a_quarter_turn_moves_the_first_half_onto_the_second():
    """Sines come first in the embedding: one sine of 1 sends x_0 to x_3 and -x_3 to x_0."""
    x = torch.tensor([[[1.0, 0, 0, 10.0, 0, 0, 5.0, 7.0]]])
    rope = torch.tensor([[1.0, 0, 0, 0, 1.0, 1.0]])
    assert rotate(x, rope).flatten().tolist() == [-10, 0, 0, 1, 0, 0, 5, 7]


def test_the_tail_passes_bit_equal():
    torch.manual_seed(1)
    x, rope = torch.randn(5, 2, 16), torch.randn(5, 12)
    assert torch.equal(rotate(x, rope)[..., 12:], x[..., 12:])


def test_bfloat16_is_rotated_in_float32(close, literal):
    torch.manual_seed(2)
    x, angles = torch.randn(4, 2, 8).bfloat16(), torch.randn(4, 3).double()
    out = rotate(x, torch.cat([angles.sin(), angles.cos()], -1).float())
    assert out.dtype == torch.float32
    close(out, literal(x.double(), angles.sin(), angles.cos()), 1e-6)
