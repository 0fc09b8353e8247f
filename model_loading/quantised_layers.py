"""Layers whose weights stay in their stored form, in the places of a network's own.

All that is stored is in plain buffers named as in ComfyUI's files (weight, weight_scale, …), so that moving,
saving and swapping a layer needs to know nothing of formats.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels.quantised import Products, QuantisedWeight, dequantise, linear, modality_linear


class _Stored(nn.Module):
    """Holds one quantised weight."""

    def __init__(self, weight: QuantisedWeight):
        super().__init__()
        self.format, self.shape, self.settings = weight.format, weight.shape, weight.settings
        self.register_buffer("weight", weight.data)
        self.scales = tuple(weight.scales)
        for name, scale in weight.scales.items():
            self.register_buffer(name, scale)

    @property
    def stored(self) -> QuantisedWeight:
        """The weight as its buffers are now."""
        scales = {name: getattr(self, name) for name in self.scales}
        return QuantisedWeight(self.format, self.weight, self.shape, scales, self.settings)

    def extra_repr(self) -> str:
        return f"{self.shape[1]} -> {self.shape[0]}, {self.format}"


class QuantisedLinear(_Stored):
    """A bias-free projection, shared or one matrix per modality."""

    def __init__(self, weight: QuantisedWeight, products: Products):
        super().__init__(weight)
        self.products = products

    def forward(self, x: Tensor, sizes=None) -> Tensor:
        """[..., K] -> [..., M]; with ``sizes``, the rows of each modality, each run has its own matrix."""
        if sizes is None:
            return linear(x, self.stored, self.products)
        return modality_linear(x, self.stored, sizes, self.products)


class QuantisedEmbedding(_Stored):
    """Rows of a table that is cut row by row and de-quantised where it is read."""

    def __init__(self, weight: QuantisedWeight, dtype: torch.dtype):
        super().__init__(weight)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """[...] ids -> [..., K]"""
        wanted = ids.flatten()
        rows = QuantisedWeight(
            self.format, self.weight[wanted], (wanted.numel(), self.shape[1]), {}, self.settings
        )
        return dequantise(rows, self.dtype).unflatten(0, ids.shape)
