"""The sigmoid gate that each head has for each token, on what attention gives; as rows, or as 8-bit rows.

Letters: N tokens, H heads, E head entries.
"""

import torch
from torch import Tensor

from .cuda.compiler import needs_nvrtc
from .quantised_rows import FP8, QuantisedRows, RowForm, empty_rows, quantise_rows, refuses_form
from .registry import needs_triton, operation

LARGEST_ROW = 16384  # entries that a program of the quantising kernel keeps in registers


def gate_heads(out: Tensor, gate: Tensor) -> Tensor:
    """[N, H, E] times sigmoid of [N, H], one gate per head and token; float32."""
    return out.float() * torch.sigmoid(gate.float()).unsqueeze(-1)


@operation(
    fake=lambda out, gate, dtype: out.new_empty((out.shape[0], out.shape[1] * out.shape[2]), dtype=dtype)
)
def gate_rows(out: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
    """``gate_heads`` as rows for the output projection: [N, H*E], rounded once to ``dtype``."""
    return gate_heads(out, gate).flatten(1).to(dtype)


@operation(fake=lambda out, gate, stored, width, group, scale: empty_rows(out, out.shape[0], stored, width))
def gate_quantised(
    out: Tensor, gate: Tensor, stored: torch.dtype, width: int, group: int, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``gate_heads`` as 8-bit rows, as ``quantise_rows`` has them: values [N, width], scales [N, 1]."""
    return quantise_rows(gate_heads(out, gate).flatten(1), stored, width, group, scale)


def quantised_gate(form: RowForm, out: Tensor, gate: Tensor, dtype: torch.dtype) -> QuantisedRows | None:
    """``gate_rows`` in 8 bits for the next layer, of rows that would have ``dtype``; None where no kernel can."""
    arguments = (out, gate, form.stored, form.width, form.group, form.scale)
    if None not in gate_quantised.explain(*arguments).values():
        return None
    return QuantisedRows(*gate_quantised(*arguments), dtype)


def _misfit(out: Tensor, gate: Tensor) -> str | None:
    if out.stride(-1) != 1 or gate.stride(-1) != 1:
        return "the entries of a head, or the gates of a token, do not lie side by side in memory"
    return None


def _refuses(out: Tensor, gate: Tensor) -> str | None:
    return _misfit(out, gate) or needs_triton(out, gate)


@gate_rows.fast("triton", refuses=lambda out, gate, dtype: _refuses(out, gate))
def _(out: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
    from .triton.gate import plan

    launch, rows = plan(out, gate, dtype)
    launch.run()
    return rows


def _refuses_quantised(
    out: Tensor, gate: Tensor, stored: torch.dtype, width: int, group: int, scale: Tensor | None
) -> str | None:
    heads, size = out.shape[1:]
    if width > LARGEST_ROW:
        return f"a row of {width} entries is longer than {LARGEST_ROW}"
    if size & (size - 1) or width != heads * size:
        # The tile of heads is a power of two in both directions, and becomes a row by being flattened.
        return f"{heads} heads of {size} entries do not lie in rows of {width} without gaps"
    if misfit := refuses_form(width, stored, width, group):
        return misfit
    beside = () if scale is None else (scale,)
    return _refuses(out, gate) or needs_triton(out, gate, *beside, fp8=stored == FP8)


@gate_quantised.fast("triton", refuses=_refuses_quantised)
def _(
    out: Tensor, gate: Tensor, stored: torch.dtype, width: int, group: int, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    from .triton.gate import plan_quantised

    launch, *rows = plan_quantised(out, gate, stored, width, group, scale)
    launch.run()
    return tuple(rows)


@gate_rows.fast(
    "cuda", refuses=lambda out, gate, dtype: _misfit(out, gate) or needs_nvrtc(out, gate, dtype=dtype)
)
def _(out: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
    from .cuda.gate import plan

    launch, rows = plan(out, gate, dtype)
    launch.run()
    return rows
