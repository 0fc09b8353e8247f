"""The up-projection in 8 bits with its activation in the epilogue: the wide result between them is never written.

At 65,806 tokens that result is 3.6 GB a layer, written by the product, read by the activation and read again by
what quantises for the down-projection. Both activations are bounded by their clamps (56 and 7), so a fused
product can also write FP8 with a fixed power of two as its scale, which needs no look at the numbers first.

comfy-kitchen quantises and rotates what enters as numbers, and multiplies what is not fused. Rows that come quantised
(``QuantisedRows``) are multiplied here, with both scales in the epilogue; without an activation too. Letters: N rows
of x, K inputs, R rows of the up-projection (twice M for SwiGLU7, whose gate and linear rows alternate), M columns
between the projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation import ACTIVATIONS, FP8_GAIN, activate
from .pitch import fitting
from .quantised import (
    FP8,
    FP8_ALIGNMENT,
    FP8_LIMIT,
    Products,
    QuantisedWeight,
    fp8_activations,
    fp8_product,
    kitchen_ops,
    linear,
    row_range,
    stored_inputs,
)
from .quantised_rows import QuantisedRows, RowForm
from .registry import DEFINITION, needs_triton, operation

PLAIN = "none"  # the kind of a product without an activation
ROWS_PER_COLUMN = {"swiglu7": 2, "gelu7": 1, PLAIN: 1}
STORE_ALIGNMENT = 16  # entries; what Triton sees of a row's length
OUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32, FP8)


# Fake, definition and ways take the same arguments.
def _empty(x, weight, x_scale, weight_scale, kind, dtype, width):  # noqa: ARG001
    return x.new_empty(x.shape[0], width, dtype=dtype)


@operation(fake=_empty)
def gated_product(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    kind: str,
    dtype: torch.dtype,
    width: int,
) -> Tensor:
    """x [N, K] and weight [R, K], both FP8 e4m3 or both INT8 -> activation of x @ weight.T, [N, width].

    ``kind`` is an activation's, or "none". Scales are float32, one number or one a row. Columns from M to ``width`` are zero. FP8 results are multiplied by
    ``FP8_GAIN`` and rounded. Sums are float32 here; INT8's are exact integers in a faster way.
    """
    up = (x.float() @ weight.float().T) * x_scale.float().reshape(-1, 1) * weight_scale.float().reshape(-1)
    out = up if kind == PLAIN else ACTIVATIONS[kind](up).float()
    if dtype == FP8:
        out = (out * FP8_GAIN[kind]).clamp(-FP8_LIMIT, FP8_LIMIT)
    return F.pad(out, (0, width - out.shape[1])).to(dtype)


def _triton_refuses(x, weight, x_scale, weight_scale, kind, dtype, width) -> str | None:  # noqa: ARG001
    if weight.dtype not in (FP8, torch.int8) or x.dtype != weight.dtype:
        return f"it multiplies FP8 e4m3 or INT8, not {x.dtype} by {weight.dtype}"
    if dtype not in OUT_DTYPES or (kind == PLAIN and dtype == FP8):
        return f"it does not write {dtype}" + (" of numbers without a bound" if kind == PLAIN else "")
    if x.stride(1) != 1 or weight.stride(1) != 1:
        return "the inputs of a row do not lie together"
    return needs_triton(x_scale, weight_scale, fp8=FP8 in (weight.dtype, dtype))


@gated_product.fast("triton", refuses=_triton_refuses)
def _(x, weight, x_scale, weight_scale, kind, dtype, width):
    from .triton.gated_linear import plan

    factor = FP8_GAIN[kind] if dtype == FP8 else 1.0
    capability = _capability(x.device) if x.is_cuda else None
    launch, out = plan(x, weight, x_scale, weight_scale, kind, dtype, width, factor, capability)
    launch.run()
    return out


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def gated_linear(
    x: Tensor | QuantisedRows,
    weight: QuantisedWeight,
    kind: str,
    dtype: torch.dtype | None = None,
    width: int | None = None,
) -> Tensor:
    """x [N, K] -> [N, M], or [N, width] with zeros after M: rows quantised, multiplied, activated.

    ``weight`` is FP8 or rotated INT8; ``dtype`` is x's unless given. Rows that come as numbers get one scale for FP8,
    and for INT8 each its own.
    """
    data, scale = (x.values, x.scales) if isinstance(x, QuantisedRows) else _quantise_rows(x, weight)
    columns = weight.shape[0] // ROWS_PER_COLUMN[kind]
    return gated_product(
        data,
        weight.data,
        scale,
        _weight_scale(weight),
        kind,
        x.dtype if dtype is None else dtype,
        columns if width is None else width,
    )


def rows_linear(x: QuantisedRows, weight: QuantisedWeight, sizes: Sequence[int] | None = None) -> Tensor:
    """Rows [N, K] in the form of ``row_form`` -> [N, M] in their dtype, rounded once.

    With ``sizes``, the rows of each modality in order, the weight stacks one matrix for each.
    """
    runs = [len(x)] if sizes is None else list(sizes)
    rows = weight.shape[0] // len(runs)
    # Whole vectors to store: a kernel writes rows of 7208 number by number, and of 7216 eight at a time.
    width = rows + -rows % STORE_ALIGNMENT
    done = [
        gated_linear(part, _part(weight, number, len(runs)), PLAIN, width=width)[:, :rows]
        for number, part in enumerate(x.split(runs))
    ]
    return done[0] if len(done) == 1 else torch.cat(done)


def row_form(weight: QuantisedWeight) -> RowForm | None:
    """The 8-bit rows that a fused product (``is_fused``) with this weight takes; None where it takes numbers only.

    Rotated INT8 has a scale for each row, as comfy-kitchen gives numbers one. So has FP8, where numbers would get one
    for all rows, unless the weight's file brings a scale for what enters.
    """
    if "pre_quant_scale" in weight.scales:
        return None
    return RowForm(weight.data.dtype, weight.data.shape[1], weight.group, weight.scales.get("input_scale"))


def refusal(weight: QuantisedWeight, kind: str, products: Products) -> str | None:
    """Why product and activation are taken one after the other, or None where they are fused."""
    if products == "weights" or (weight.data.dtype == FP8 and products != "fast"):
        return "only the weights are 8-bit in this precision"
    if weight.data.dtype != FP8 and not weight.group:
        return f"{weight.format} weights are not rotated INT8 and not FP8 e4m3"
    # A row of the weight stands in for x: what decides is device, dtype and layout.
    scale = _weight_scale(weight)
    arguments = (weight.data[:1], weight.data, scale, scale, kind, torch.bfloat16, weight.shape[0])
    if gated_product.chosen(*arguments) != DEFINITION:
        return None
    return gated_product.explain(*arguments)["triton"] or "the definition is asked for"


def is_fused(weight: QuantisedWeight, kind: str, products: Products) -> bool:
    """Whether ``feed_forward`` would fuse the product with this weight and its activation."""
    return refusal(weight, kind, products) is None


def feed_forward(
    x: Tensor | QuantisedRows,
    up: QuantisedWeight,
    down: QuantisedWeight,
    kind: str,
    sizes: Sequence[int] | None = None,
    products: Products = "stored",
) -> Tensor:
    """x [N, K] -> up-projection, activation, down-projection [N, D] in x's dtype.

    Quantised rows are in the form of ``row_form`` of ``up``, which then fuses. With ``sizes``, the rows of each modality in order, both weights stack one matrix for each.
    """
    runs = [len(x)] if sizes is None else list(sizes)
    done = []
    for number, rows in enumerate(x.split(runs)):
        parts = (_part(weight, number, len(runs)) for weight in (up, down))
        done.append(_feed(rows, *parts, kind, products))
    return done[0] if len(done) == 1 else torch.cat(done)


def _part(weight: QuantisedWeight, number: int, count: int) -> QuantisedWeight:
    rows = weight.shape[0] // count
    return weight if count == 1 else row_range(weight, number * rows, (number + 1) * rows)


def _feed(x: Tensor | QuantisedRows, up, down, kind: str, products: Products) -> Tensor:
    columns = up.shape[0] // ROWS_PER_COLUMN[kind]
    is_plain = not isinstance(x, QuantisedRows)
    if is_plain and (not isinstance(up, QuantisedWeight) or refusal(up, kind, products) is not None):
        return linear(activate(linear(x, up, products), kind, x.dtype, columns), down, products)
    if isinstance(down, QuantisedWeight) and down.data.dtype == FP8 and products == "fast":
        hidden = gated_linear(x, up, kind, FP8, max(columns + -columns % FP8_ALIGNMENT, stored_inputs(down)))
        scale = torch.full((), 1 / FP8_GAIN[kind], dtype=torch.float32, device=x.device)
        return fp8_product(hidden, scale, down, x.dtype)
    # With zeros up to the inputs that are stored no copy is needed to pad them.
    wide = stored_inputs(down) if isinstance(down, QuantisedWeight) else columns
    return linear(gated_linear(x, up, kind, width=wide), down, products)


def _quantise_rows(x: Tensor, weight: QuantisedWeight) -> tuple[Tensor, Tensor]:
    """(8-bit rows as wide as the stored weight, float32 scale)"""
    if weight.data.dtype == FP8:
        return fp8_activations(x, weight.scales.get("input_scale"))
    x = fitting(x, weight.data.shape[1]).contiguous()
    return kitchen_ops().quantize_int8_convrot_weight(x, weight.group)


def _weight_scale(weight: QuantisedWeight) -> Tensor:
    scale = weight.scales.get("weight_scale")
    if scale is None:
        return torch.ones((), dtype=torch.float32, device=weight.data.device)
    return scale.float().reshape(-1)
