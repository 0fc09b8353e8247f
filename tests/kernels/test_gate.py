"""The gate on attention's result, one number at a time."""

import math

import pytest
import torch

from comfyui_happyhorse.kernels import gate_heads, gate_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_head_has_its_own_gate(close, dtype):
    torch.manual_seed(0)
    out, gate = torch.randn(3, 4, 5, 2)[..., 0].to(dtype), (torch.randn(3, 4) * 5).to(dtype)
    wanted = torch.empty(3, 20, dtype=torch.float64)
    for row in range(3):
        for head in range(4):
            opened = 1 / (1 + math.exp(-float(gate[row, head])))
            for entry in range(5):
                wanted[row, head * 5 + entry] = float(out[row, head, entry]) * opened
    assert gate_heads(out, gate).dtype == torch.float32
    close(gate_heads(out, gate).flatten(1), wanted, 1e-6)
    rows = gate_rows(out, gate, dtype)
    assert rows.dtype == dtype and torch.equal(rows, gate_heads(out, gate).flatten(1).to(dtype))
