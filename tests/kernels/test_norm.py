"""RMS norm against the sum written out in float64."""

import math

import pytest
import torch

from comfyui_happyhorse.kernels import add_norm, norm_rows, rms_norm

EPSILON = 1e-6


@pytest.fixture
def literal():
    """x / sqrt(mean(x^2) + eps) * (1 + w), entry by entry, with the weights of each row's modality."""

    def norm(x, weight, modality):
        size = x.shape[-1]
        out = torch.empty(x.shape, dtype=torch.float64)
        for row in range(x.shape[0]):
            vectors = x[row].reshape(-1, size).tolist()
            weights = weight[modality[row] * size : (modality[row] + 1) * size].tolist()
            normed = []
            for vector in vectors:
                root = math.sqrt(sum(value * value for value in vector) / size + EPSILON)
                normed.append([value / root * (1 + w) for value, w in zip(vector, weights, strict=True)])
            out[row] = torch.tensor(normed, dtype=torch.float64).reshape(x.shape[1:])
        return out

    return norm


@pytest.mark.parametrize("shape", [(1, 4), (5, 7), (3, 2, 6)])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 300.0])
def test_one_weight_vector(close, literal, shape, scale):
    torch.manual_seed(0)
    x, weight = torch.randn(shape) * scale, torch.randn(shape[-1])
    close(rms_norm(x, weight), literal(x.double(), weight.double(), [0] * shape[0]), 1e-6)


@pytest.mark.parametrize("sizes", [(2, 3, 4), (5, 0, 1), (0, 1, 0)])
@pytest.mark.parametrize("inner", [(), (3,)])
def test_one_weight_vector_per_modality(close, literal, sizes, inner):
    """Rows come video, audio, text; so do the runs of the weight, and heads share them."""
    torch.manual_seed(1)
    x, weight = torch.randn(sum(sizes), *inner, 5), torch.randn(15)
    modality = [0] * sizes[0] + [1] * sizes[1] + [2] * sizes[2]
    close(rms_norm(x, weight, sizes), literal(x.double(), weight.double(), modality), 1e-6)


def test_the_epsilon_is_felt_by_faint_rows(close, literal):
    torch.manual_seed(2)
    x, weight = torch.randn(4, 8) * 1e-3, torch.zeros(8)  # mean square about 1e-6: halved by the epsilon
    close(rms_norm(x, weight), literal(x.double(), weight.double(), [0] * 4), 1e-6)
    assert rms_norm(torch.zeros(2, 8), weight).tolist() == torch.zeros(2, 8).tolist()


def test_bfloat16_rows_are_normed_in_float32(close, literal):
    torch.manual_seed(3)
    x, weight = torch.randn(6, 8).bfloat16(), torch.randn(8)
    out = rms_norm(x, weight)
    assert out.dtype == torch.float32
    close(out, literal(x.double(), weight.double(), [0] * 6), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [1, 3])
def test_rows_are_rounded_once_behind_the_norm(close, literal, dtype, parts):
    """With one set of weights the sizes say nothing; with three they choose."""
    torch.manual_seed(4)
    x, branch, weight = torch.randn(6, 5), torch.randn(6, 5).to(dtype), torch.randn(5 * parts)
    kinds = [0, 0, 1, 2, 2, 2] if parts == 3 else [0] * 6
    found = norm_rows(x, weight, [2, 1, 3], dtype)
    assert found.dtype == dtype
    assert torch.equal(found, rms_norm(x, weight, [2, 1, 3] if parts == 3 else None).to(dtype))
    close(norm_rows(x, weight, [2, 1, 3], torch.float32), literal(x.double(), weight.double(), kinds), 1e-6)
    total, normed = add_norm(x, branch, weight, [2, 1, 3], dtype)
    assert torch.equal(total, x + branch.float())
    assert torch.equal(normed, norm_rows(total, weight, [2, 1, 3], dtype))
