"""Layers whose weights stay in their stored form, in the places of a network's own.

All that is stored is in plain buffers named as in ComfyUI's files (weight, weight_scale, …), so that moving,
saving and swapping a layer needs to know nothing of formats. On a card the rows of FP8 and plain INT8 lie in whole
multiples of 64 inputs (``kernels.pitch``); shapes stay what they are.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..kernels.gated_linear import rows_linear
from ..kernels.pitch import is_on_card, spread, wide
from ..kernels.quantised import (
    PADDED,
    Products,
    QuantisedWeight,
    dequantise,
    linear,
    modality_linear,
    stored_inputs,
)
from ..kernels.quantised_rows import QuantisedRows


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

    @property
    def stored(self) -> QuantisedWeight:
        """The weight as its buffers are now, with the zeros that ``pitch.spread`` put behind its rows."""
        stored = super().stored
        return replace(stored, data=wide(stored.data)) if self.takes_spread_weight else stored

    @property
    def input_width(self) -> int:
        """Entries of the rows that it takes without copying them: K, and zeros where its own rows have them."""
        return stored_inputs(self.stored) if self.takes_spread_weight else self.shape[1]

    def forward(self, x: Tensor | QuantisedRows, sizes=None) -> Tensor:
        """[..., K] -> [..., M]; with ``sizes``, the rows of each modality, each run has its own matrix.

        Rows may have zeros behind them up to ``input_width``, or be in the 8 bits of ``gated_linear.row_form``.
        """
        if isinstance(x, QuantisedRows):
            return rows_linear(x, self.stored, sizes)
        if sizes is None:
            return linear(x, self.stored, self.products)
        return modality_linear(x, self.stored, sizes, self.products)

    @property
    def takes_spread_weight(self) -> bool:
        """Whether its weight may be a view by ``pitch.spread``: plain rows; rotated INT8 comes in whole groups."""
        return self.format in PADDED and not self.settings.get("convrot")

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.takes_spread_weight and is_on_card(self.weight):
            self.weight = spread(self.weight)
        return self


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
