"""RMS norm whose weights are stored as deviations from one, shared or per modality."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-6


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
