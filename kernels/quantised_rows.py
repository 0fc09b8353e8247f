"""Rows of activations in 8 bits, each with its scale, as the operation before a product writes them.

An 8-bit product otherwise reads rows in bfloat16 twice, to find the scale and to round, and writes them once more.
Here norm and gate round their float32 results themselves, so a row is read once and written as 8 bits. INT8 needs
the Hadamard rotation first; the matrix is regular, so powers of four of it are sums (``rotated``), and a kernel does
them in registers. What comes out is one rounding nearer to the numbers than rows that were bfloat16 in between.

Letters: N rows of K entries, W entries as stored: K, and zeros up to whole groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FP8 = torch.float8_e4m3fn
LIMITS = {FP8: 448.0, torch.int8: 127.0}  # the largest stored number


@dataclass(frozen=True, slots=True)
class RowForm:
    """The rows that a layer with 8-bit products takes."""

    stored: torch.dtype  # FP8 e4m3 or INT8
    width: int  # W
    group: int = 0  # entries that a Hadamard matrix rotates together, a power of four; 0: none
    scale: Tensor | None = None  # the layer's own for all rows; None: a row's largest entry decides


@dataclass(frozen=True, slots=True)
class QuantisedRows:
    """[N, W] 8-bit ``values`` that stand for values * scales, rotated where the layer wants it."""

    values: Tensor
    scales: Tensor  # [N, 1] float32
    dtype: torch.dtype  # that they would have as numbers, and that a product of them has

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def device(self) -> torch.device:
        return self.values.device

    def split(self, sizes: Sequence[int]) -> list[QuantisedRows]:
        """Runs of rows."""
        runs = zip(self.values.split(list(sizes)), self.scales.split(list(sizes)), strict=True)
        return [QuantisedRows(values, scales, self.dtype) for values, scales in runs]


def quantise_rows(
    x: Tensor, stored: torch.dtype, width: int, group: int, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[N, K] -> (values [N, width], scales [N, 1]), computed in float32 and rounded once, half to even.

    With ``scale``, what lies beyond it is cut off. Rows of zeros have scale 1. A row with a number that is none has
    a scale that is none, because INT8 cannot say so.
    """
    limit = LIMITS[stored]
    x = F.pad(x.float(), (0, width - x.shape[1]))
    x = rotated(x, group) if group else x
    if scale is None:
        largest = x.abs().amax(1, keepdim=True)
        scales = torch.where(largest == 0, 1.0, largest / limit)
    else:
        scales = scale.float().reshape(1, 1).repeat(len(x), 1)
    x = (x / scales).clamp(-limit, limit)
    return (x.round().nan_to_num() if stored == torch.int8 else x).to(stored), scales


def rotated(x: Tensor, group: int) -> Tensor:
    """[.., W] -> each ``group`` of entries times the regular Hadamard matrix H of its size, whose inverse it is.

    H of four is E/2 - J, with E all ones and J the reversal; H of 4^n is its n-fold Kronecker product.
    """
    shape, stages = x.shape, round(math.log(group, 4))
    x = x.unflatten(-1, (-1, *[4] * stages))
    for axis in range(-stages, 0):
        x = x.sum(axis, keepdim=True) / 2 - x.flip(axis)
    return x.reshape(shape)


def empty_rows(like: Tensor, count: int, stored: torch.dtype, width: int) -> tuple[Tensor, Tensor]:
    """(values, scales) without numbers, on the device of ``like``."""
    values = like.new_empty((count, width), dtype=stored)
    return values, like.new_empty((count, 1), dtype=torch.float32)


def refuses_form(size: int, stored: torch.dtype, width: int, group: int) -> str | None:
    """Why a kernel cannot quantise rows of ``size`` entries so; None where it can."""
    if stored not in LIMITS:
        return f"it writes FP8 e4m3 or INT8, not {stored}"
    if group not in (0, 4, 16, 64, 256) or width < size or width % max(group, 1):
        return f"{size} entries, stored as {width}, are no whole groups of {group}"
    return None
