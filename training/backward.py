"""The pack's networks made differentiable: operations without a backward pass give way to their definitions.

The pack runs inference only: its operations are ``custom_op``s without a gradient, and the Turbo decoder's norm
writes into a buffer. What they compute is plain torch, which has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..kernels.registry import Op
from ..model import layers, turbo_layers


def channel_norm(x: Tensor, eps: float) -> Tensor:
    """``turbo_layers.channel_norm`` with a gradient."""
    return (x.float() * torch.rsqrt(x.float().square().mean(1, keepdim=True) + eps)).to(x.dtype)


@contextmanager
def differentiable() -> Iterator[None]:
    """Within it the networks of ``model`` can be trained on one thread; not while anything else runs them."""
    replaced = [(layers, name, op.definition) for name, op in vars(layers).items() if isinstance(op, Op)]
    replaced.append((turbo_layers, "channel_norm", channel_norm))
    before = [getattr(module, name) for module, name, _ in replaced]
    for module, name, plain in replaced:
        setattr(module, name, plain)
    try:
        # On a CPU the other kernels' backward pass is many times slower at these sizes.
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for (module, name, _), kept in zip(replaced, before, strict=True):
            setattr(module, name, kept)
