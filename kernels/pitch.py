"""Inputs of a product in whole multiples of 64: weights whose rows have zeros behind them, and rows that fit.

The published down-projection has 13,652 inputs: a row of 27,304 bytes is no multiple of 16, which rules out the
loads that fast products are made of. Where weights land on a card their rows are laid 13,696 entries apart, with zeros
between, and the activation writes zeros behind its rows (it can): products over all of them add nothing but zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

PITCH = 64  # entries: 128 bytes of bfloat16, 64 of 8-bit numbers


def whole(inputs: int) -> int:
    """The next multiple of ``PITCH``."""
    return -(-inputs // PITCH) * PITCH


def is_on_card(tensor: Tensor) -> bool:
    """Where a product gains by it."""
    return tensor.is_cuda


def spread(weight: Tensor) -> Tensor:
    """[M, K] -> the same numbers as a view of [M, whole(K)], zeros behind each row; itself where K is whole."""
    rows, inputs = weight.shape
    if whole(inputs) == inputs:
        return weight
    room = weight.new_zeros((rows, whole(inputs)), dtype=torch.uint8 if weight.itemsize == 1 else None)
    view = room.view(weight.dtype)[:, :inputs]  # FP8 is filled as bytes: not every torch can as numbers
    return view.copy_(weight)


def wide(weight: Tensor) -> Tensor:
    """A weight of ``spread`` with its zeros, [M, whole(K)]; any other as it is.

    Only for a layer's own weight: the stride cannot tell it from columns that were cut out of a wider matrix.
    """
    rows, inputs = weight.shape
    pitch = whole(inputs)
    if pitch == inputs or weight.stride() != (pitch, 1):
        return weight
    return weight.as_strided((rows, pitch), (pitch, 1))


def fitting(x: Tensor, inputs: int) -> Tensor:
    """[.., K] -> [.., inputs]: zeros behind, or what is behind left out, because it is zeros."""
    if x.shape[-1] >= inputs:
        return x[..., :inputs]
    return torch.nn.functional.pad(x, (0, inputs - x.shape[-1]))
