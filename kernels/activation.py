"""The two clamped activations of the feed-forward layers, both x*sigmoid(1.702 x) at heart.

Letters: N rows, M entries after the activation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .cuda.compiler import needs_nvrtc
from .registry import needs_triton, operation

LIMIT = 7.0
SLOPE = 1.702
FP8 = torch.float8_e4m3fn
# What a result is multiplied with before it becomes FP8 e4m3: the clamps bound SwiGLU7 by 7*(7 + 1) = 56 and GELU7 by
# 7, so these powers of two fill the format's 448 without looking at the numbers, and lose nothing of them.
FP8_GAIN = {"swiglu7": 8.0, "gelu7": 64.0}


def swiglu7(x: Tensor) -> Tensor:
    """[.., 2M] -> [.., M]: g*sigmoid(1.702 g)*(l + 1), with g = min(x_even, 7) and l = clamp(x_odd, -7, 7).

    Gate and linear part are interleaved, not halves; the gate has no lower clamp. Computed in float32.
    """
    gate, linear = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    gate = gate.clamp(max=LIMIT)
    return gate * torch.sigmoid(SLOPE * gate) * (linear.clamp(-LIMIT, LIMIT) + 1)


def gelu7(x: Tensor) -> Tensor:
    """[.., M] -> [.., M]: y*sigmoid(1.702 y) with y = min(x, 7), in float32."""
    x = x.float().clamp(max=LIMIT)
    return x * torch.sigmoid(SLOPE * x)


ACTIVATIONS = {"swiglu7": swiglu7, "gelu7": gelu7}


@operation(fake=lambda up, kind, dtype, width: up.new_empty((up.shape[0], width), dtype=dtype))
def activate(up: Tensor, kind: str, dtype: torch.dtype, width: int) -> Tensor:
    """[N, M or 2M] -> [N, width]: the activation rounded once to ``dtype``, with zeros behind its M columns.

    In FP8 e4m3 the numbers are ``FP8_GAIN`` times larger: what multiplies with them has the reciprocal as scale.
    """
    values = ACTIVATIONS[kind](up)
    assert width >= values.shape[-1], f"{values.shape[-1]} columns do not fit in {width}"
    if dtype == FP8:
        values = values * FP8_GAIN[kind]
    if width > values.shape[-1]:
        values = F.pad(values, (0, width - values.shape[-1]))
    return values.to(dtype)


def _misfit(up: Tensor) -> str | None:
    if up.dim() != 2 or up.stride(-1) != 1:
        return f"rows of {tuple(up.shape)} do not lie entry by entry in memory"
    return None


@activate.fast(
    "triton",
    refuses=lambda up, kind, dtype, width: _misfit(up) or needs_triton(up, fp8=dtype == FP8),
)
def _(up: Tensor, kind: str, dtype: torch.dtype, width: int) -> Tensor:
    from .triton.activation import plan

    gain = FP8_GAIN[kind] if dtype == FP8 else 1.0
    launch, out = plan(up, kind == "swiglu7", dtype, width, gain, LIMIT, SLOPE)
    launch.run()
    return out


@activate.fast("cuda", refuses=lambda up, kind, dtype, width: _misfit(up) or needs_nvrtc(up, dtype=dtype))
def _(up: Tensor, kind: str, dtype: torch.dtype, width: int) -> Tensor:
    from .cuda.activation import plan

    launch, out = plan(up, kind == "swiglu7", dtype, width, LIMIT, SLOPE)
    launch.run()
    return out
