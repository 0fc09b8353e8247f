"""The sigmoid gate that each head has for each token, on what attention gives.

Letters: N tokens, H heads, E head entries.
"""

import torch
from torch import Tensor

from .registry import needs_triton, operation


def gate_heads(out: Tensor, gate: Tensor) -> Tensor:
    """[N, H, E] times sigmoid of [N, H], one gate per head and token; float32."""
    return out.float() * torch.sigmoid(gate.float()).unsqueeze(-1)


@operation(
    fake=lambda out, gate, dtype: out.new_empty((out.shape[0], out.shape[1] * out.shape[2]), dtype=dtype)
)
def gate_rows(out: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
    """``gate_heads`` as rows for the output projection: [N, H*E], rounded once to ``dtype``."""
    return gate_heads(out, gate).flatten(1).to(dtype)


def _refuses(out: Tensor, gate: Tensor) -> str | None:
    if out.stride(-1) != 1 or gate.stride(-1) != 1:
        return "the entries of a head, or the gates of a token, do not lie side by side in memory"
    return needs_triton(out, gate)


@gate_rows.fast("triton", refuses=lambda out, gate, dtype: _refuses(out, gate))
def _(out: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
    from .triton.gate import plan

    launch, rows = plan(out, gate, dtype)
    launch.run()
    return rows
