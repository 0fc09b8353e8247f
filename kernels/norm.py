"""RMS norm whose weights are stored as deviations from one, shared or per modality; alone, or after a sum.

Both also come as 8-bit rows with their scales, for layers that multiply those (``quantised_rows``).

The weight is [D], or [3D] with D for each modality; ``sizes`` are the rows of video, audio and text, in that order.
Letters: N rows, D entries.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .cuda.compiler import needs_nvrtc
from .quantised_rows import FP8, QuantisedRows, RowForm, empty_rows, quantise_rows, refuses_form
from .registry import needs_triton, operation

EPSILON = 1e-6
MODALITIES = 3
LARGEST_ROW = 16384  # entries that a program of the Triton kernel keeps in registers


def rms_norm(x: Tensor, weight: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-6) * (1 + weight), in and out float32.

    x is [L, D] or [L, H, D]. ``weight`` is [D]; with ``sizes``, the row counts of the modalities in
    order, it is [M*D] and each run of rows has its own D weights.
    """
    x = x.float()
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
    if sizes is None:
        return y * (1 + weight.float())
    scales = (1 + weight.float()).view(len(sizes), -1)
    return torch.cat([rows * scale for rows, scale in zip(y.split(list(sizes)), scales, strict=True)])


def norm_by_weight(x: Tensor, weight: Tensor, sizes: Sequence[int]) -> Tensor:
    """``rms_norm`` with shared weights where there are D of them, else with those of each row's modality."""
    return rms_norm(x, weight, None if weight.numel() == x.shape[-1] else sizes)


@operation(fake=lambda x, weight, sizes, dtype: x.new_empty(x.shape, dtype=dtype))
def norm_rows(x: Tensor, weight: Tensor, sizes: list[int], dtype: torch.dtype) -> Tensor:
    """[N, D] float32 -> the norm of its rows, rounded once to ``dtype``."""
    return norm_by_weight(x, weight, sizes).to(dtype)


@operation(
    fake=lambda x, branch, weight, sizes, dtype: (torch.empty_like(x), x.new_empty(x.shape, dtype=dtype))
)
def add_norm(
    x: Tensor, branch: Tensor, weight: Tensor, sizes: list[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(x + branch in float32, the norm of that sum rounded once to ``dtype``); x [N, D] float32, branch [N, D]."""
    total = x + branch
    return total, norm_by_weight(total, weight, sizes).to(dtype)


@operation(
    fake=lambda x, weight, sizes, stored, width, group, scale: empty_rows(x, x.shape[0], stored, width)
)
def norm_quantised(
    x: Tensor,
    weight: Tensor,
    sizes: list[int],
    stored: torch.dtype,
    width: int,
    group: int,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """[N, D] float32 -> the norm of its rows as ``quantise_rows`` has it: values [N, width], scales [N, 1]."""
    return quantise_rows(norm_by_weight(x, weight, sizes), stored, width, group, scale)


@operation(
    fake=lambda x, branch, weight, sizes, stored, width, group, scale: (
        torch.empty_like(x),
        *empty_rows(x, x.shape[0], stored, width),
    )
)
def add_norm_quantised(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    sizes: list[int],
    stored: torch.dtype,
    width: int,
    group: int,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x + branch in float32, the norm of that sum as ``norm_quantised`` has it: values, scales)"""
    total = x + branch
    return total, *quantise_rows(norm_by_weight(total, weight, sizes), stored, width, group, scale)


def quantised_norm(
    form: RowForm, x: Tensor, weight: Tensor, sizes: Sequence[int], dtype: torch.dtype
) -> QuantisedRows | None:
    """``norm_rows`` in 8 bits for the next layer, of rows that would have ``dtype``; None where no kernel can."""
    arguments = (x, weight, sizes, form.stored, form.width, form.group, form.scale)
    if None not in norm_quantised.explain(*arguments).values():
        return None
    return QuantisedRows(*norm_quantised(*arguments), dtype)


def quantised_add_norm(
    form: RowForm, x: Tensor, branch: Tensor, weight: Tensor, sizes: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, QuantisedRows] | None:
    """``add_norm``, its norm in 8 bits for the next layer; None where no kernel can."""
    arguments = (x, branch, weight, sizes, form.stored, form.width, form.group, form.scale)
    if None not in add_norm_quantised.explain(*arguments).values():
        return None
    total, values, scales = add_norm_quantised(*arguments)
    return total, QuantisedRows(values, scales, dtype)


def _misfit(x: Tensor, weight: Tensor, sizes: Sequence[int], *others: Tensor) -> str | None:
    if x.dim() != 2 or any(tensor.stride(-1) != 1 for tensor in (x, *others)):
        return f"rows of {tuple(x.shape)} do not lie entry by entry in memory"
    if x.shape[-1] > LARGEST_ROW:
        return f"a row of {x.shape[-1]} entries is longer than {LARGEST_ROW}"
    return refuses_weight(weight, x.shape[-1], x.shape[0], sizes)


def _refuses(x: Tensor, weight: Tensor, sizes: Sequence[int], *others: Tensor) -> str | None:
    return _misfit(x, weight, sizes, *others) or needs_triton(x, weight, *others)


def _refuses_quantised(
    x: Tensor,
    weight: Tensor,
    sizes: Sequence[int],
    stored: torch.dtype,
    width: int,
    group: int,
    scale: Tensor | None,
    *others: Tensor,
) -> str | None:
    if width > LARGEST_ROW:
        return f"a row of {width} entries is longer than {LARGEST_ROW}"
    if misfit := refuses_form(x.shape[-1], stored, width, group):
        return misfit
    beside = others if scale is None else (*others, scale)
    return _refuses(x, weight, sizes, *others) or needs_triton(x, weight, *beside, fp8=stored == FP8)


def refuses_weight(weight: Tensor, size: int, count: int, sizes: Sequence[int]) -> str | None:
    """Why a kernel cannot take these norm weights for ``count`` rows of ``size`` entries; None where it can."""
    if weight.dtype != torch.float32 or not weight.is_contiguous():
        return f"norm weights are {weight.dtype}, not contiguous float32"
    if weight.numel() == size:
        return None
    if weight.numel() != MODALITIES * size or len(sizes) != MODALITIES or sum(sizes) != count:
        return f"{weight.numel()} norm weights and runs of {list(sizes)} do not fit {count} rows of {size}"
    return None


@norm_rows.fast("triton", refuses=lambda x, weight, sizes, dtype: _refuses(x, weight, sizes))
def _(x: Tensor, weight: Tensor, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    from .triton.norm import plan

    launch, _, out = plan(x, None, weight, sizes, dtype, EPSILON)
    launch.run()
    return out


@add_norm.fast("triton", refuses=lambda x, branch, weight, sizes, dtype: _refuses(x, weight, sizes, branch))
def _(x: Tensor, branch: Tensor, weight: Tensor, sizes: Sequence[int], dtype: torch.dtype):
    from .triton.norm import plan

    launch, total, out = plan(x, branch, weight, sizes, dtype, EPSILON)
    launch.run()
    return total, out


@norm_quantised.fast(
    "triton",
    refuses=lambda x, weight, sizes, stored, width, group, scale: _refuses_quantised(
        x, weight, sizes, stored, width, group, scale
    ),
)
def _(
    x: Tensor,
    weight: Tensor,
    sizes: Sequence[int],
    stored: torch.dtype,
    width: int,
    group: int,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    from .triton.norm import plan_quantised

    launch, _, *rows = plan_quantised(x, None, weight, sizes, stored, width, group, scale, EPSILON)
    launch.run()
    return tuple(rows)


@add_norm_quantised.fast(
    "triton",
    refuses=lambda x, branch, weight, sizes, stored, width, group, scale: _refuses_quantised(
        x, weight, sizes, stored, width, group, scale, branch
    ),
)
def _(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    sizes: Sequence[int],
    stored: torch.dtype,
    width: int,
    group: int,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from .triton.norm import plan_quantised

    launch, *made = plan_quantised(x, branch, weight, sizes, stored, width, group, scale, EPSILON)
    launch.run()
    return tuple(made)


@norm_rows.fast(
    "cuda",
    refuses=lambda x, weight, sizes, dtype: _misfit(x, weight, sizes) or needs_nvrtc(x, weight, dtype=dtype),
)
def _(x: Tensor, weight: Tensor, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    from .cuda.norm import plan

    launch, _, out = plan(x, None, weight, sizes, dtype, EPSILON)
    launch.run()
    return out


@add_norm.fast(
    "cuda",
    refuses=lambda x, branch, weight, sizes, dtype: (
        _misfit(x, weight, sizes, branch) or needs_nvrtc(x, branch, weight, dtype=dtype)
    ),
)
def _(x: Tensor, branch: Tensor, weight: Tensor, sizes: Sequence[int], dtype: torch.dtype):
    from .cuda.norm import plan

    launch, total, out = plan(x, branch, weight, sizes, dtype, EPSILON)
    launch.run()
    return total, out
