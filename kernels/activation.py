"""The two clamped activations of the feed-forward layers, both x*sigmoid(1.702 x) at heart."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 7.0
SLOPE = 1.702


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
