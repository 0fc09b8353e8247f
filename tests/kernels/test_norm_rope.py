"""Queries and keys, normed and rotated: the two definitions one after the other, rounded once."""

import pytest
import torch

from comfyui_happyhorse.kernels import norm_rope, rms_norm, rotate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_modality", [False, True])
def test_queries_and_keys_have_their_own_weights(dtype, per_modality):
    torch.manual_seed(0)
    sizes, parts = [2, 0, 3], 3 if per_modality else 1
    fused = torch.randn(5, 7 * 8 + 1).to(dtype)
    q, k = fused[:, 1:33].unflatten(1, (4, 8)), fused[:, 33:57].unflatten(1, (3, 8))
    rope, weights = torch.randn(5, 6), [torch.randn(8 * parts) for _ in range(2)]
    found = norm_rope(q, k, *weights, sizes, rope, dtype)
    for x, weight, rotated in zip((q, k), weights, found, strict=True):
        wanted = rotate(rms_norm(x, weight, sizes if per_modality else None), rope)
        assert wanted.dtype == torch.float32
        assert rotated.is_contiguous() and torch.equal(rotated, wanted.to(dtype))
