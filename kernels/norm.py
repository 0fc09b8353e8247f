"""RMS norm whose weights are stored as deviations from one, shared or per modality; alone, or after a sum.

The weight is [D], or [3D] with D for each modality; ``sizes`` are the rows of video, audio and text, in that order.
Letters: N rows, D entries.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

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


def _refuses(x: Tensor, weight: Tensor, sizes: Sequence[int], *others: Tensor) -> str | None:
    if x.dim() != 2 or any(tensor.stride(-1) != 1 for tensor in (x, *others)):
        return f"rows of {tuple(x.shape)} do not lie entry by entry in memory"
    if x.shape[-1] > LARGEST_ROW:
        return f"a row of {x.shape[-1]} entries is longer than {LARGEST_ROW}"
    if weight_misfit := refuses_weight(weight, x.shape[-1], x.shape[0], sizes):
        return weight_misfit
    return needs_triton(x, weight, *others)


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
