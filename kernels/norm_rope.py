"""Queries and keys as attention takes them: RMS norm of each head, rotary embedding, and one rounding.

Both come as views into the fused projection's rows. Letters: N tokens, H query heads, G key heads, E head entries,
B rotary bands.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .cuda.compiler import needs_nvrtc
from .norm import EPSILON, norm_by_weight, refuses_weight
from .registry import needs_triton, operation
from .rotary import rotate

LARGEST_HEAD = 256  # entries


@operation(
    fake=lambda q, k, q_weight, k_weight, sizes, rope, dtype: (
        q.new_empty(q.shape, dtype=dtype),
        k.new_empty(k.shape, dtype=dtype),
    )
)
def norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    sizes: list[int],
    rope: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """q [N, H, E] and k [N, G, E], normed and rotated in float32 -> both contiguous in ``dtype``.

    Weights are [E] or [3E], as ``norm_rows`` has them; ``rope`` [N, 6B] as ``rotate`` has it.
    """
    parts = ((q, q_weight), (k, k_weight))
    q, k = (rotate(norm_by_weight(x, weight, sizes), rope).to(dtype) for x, weight in parts)
    return q, k


def _misfit(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    sizes: Sequence[int],
    rope: Tensor,
) -> str | None:
    size = q.shape[-1]
    if any(tensor.stride(-1) != 1 for tensor in (q, k, rope)):
        return "the entries of a head, or of a row of the rotary table, do not lie side by side in memory"
    if size > LARGEST_HEAD or k.shape[-1] != size:
        return f"heads of {size} and {k.shape[-1]} entries; both have to be one size up to {LARGEST_HEAD}"
    if rope.dtype != torch.float32 or rope.shape[-1] > size or rope.shape[-1] % 2:
        return f"a rotary table of {rope.shape[-1]} {rope.dtype} a row does not fit heads of {size} entries"
    if q_weight.numel() != k_weight.numel():
        return f"{q_weight.numel()} norm weights for queries and {k_weight.numel()} for keys"
    for weight in (q_weight, k_weight):
        if misfit := refuses_weight(weight, size, q.shape[0], sizes):
            return misfit
    return None


@norm_rope.fast(
    "triton",
    refuses=lambda q, k, q_weight, k_weight, sizes, rope, dtype: (
        _misfit(q, k, q_weight, k_weight, sizes, rope) or needs_triton(q, k, q_weight, k_weight, rope)
    ),
)
def _(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    sizes: Sequence[int],
    rope: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    from .triton.norm_rope import plan

    launch, q, k = plan(q, k, q_weight, k_weight, sizes, rope, dtype, EPSILON)
    launch.run()
    return q, k


def _cuda_refuses(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    sizes: Sequence[int],
    rope: Tensor,
    dtype: torch.dtype,
) -> str | None:
    if q.dtype != k.dtype:
        return f"q and k of {q.dtype} and {k.dtype} are not of one dtype"
    misfit = _misfit(q, k, q_weight, k_weight, sizes, rope)
    return misfit or needs_nvrtc(q, k, q_weight, k_weight, rope, dtype=dtype)


@norm_rope.fast("cuda", refuses=_cuda_refuses)
def _(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    sizes: Sequence[int],
    rope: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    from .cuda.norm_rope import plan

    launch, q, k = plan(q, k, q_weight, k_weight, sizes, rope, dtype, EPSILON)
    launch.run()
    return q, k
