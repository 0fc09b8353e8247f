"""What a LoRA changes in the transformer's weights, and its merge into them; ``lora_file`` reads it from a file.

Letters: R rows of a target that a patch covers, C its columns, r rank. With W' = W + (alpha / r) * up @ down, a
patch of strength s makes W + s * (W' - W). DoRA (Liu et al. 2024) puts scale * W' / |W'| for W', with one norm a
row or one a column, as the shape of its scale says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError
from .lora_names import Rows


@dataclass(frozen=True, slots=True)
class LowRank:
    """up [R, r], mid [r, r] or None, down [r, C]; alpha None means r; dora_scale [R, 1] or [1, C]."""

    up: Tensor
    down: Tensor
    mid: Tensor | None = None
    alpha: float | None = None
    dora_scale: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def applied(self, weight: Tensor, rows: slice, strength: float) -> Tensor:
        """``weight`` is the part ``rows`` of the R rows."""
        up, down = self.up[rows].to(weight), self.down.to(weight)
        if self.mid is not None:
            down = self.mid.to(weight) @ down
        change = (1.0 if self.alpha is None else self.alpha / self.rank) * (up @ down)
        if self.dora_scale is None:
            return weight + strength * change
        scale = self.dora_scale if self.dora_scale.shape[1] > 1 else self.dora_scale[rows]
        return weight + strength * (decomposed(weight + change, scale) - weight)


@dataclass(frozen=True, slots=True)
class Difference:
    """What is added to the rows, in their shape."""

    values: Tensor

    def applied(self, weight: Tensor, rows: slice, strength: float) -> Tensor:
        return weight + strength * self.values[rows].to(weight)


@dataclass(frozen=True, slots=True)
class Replacement:
    """What stands in for the rows, whatever the strength."""

    values: Tensor

    def applied(self, weight: Tensor, rows: slice, strength: float) -> Tensor:
        return self.values[rows].to(weight)


@dataclass(frozen=True, slots=True)
class OtherFamily:
    """LoHa, LoKr, GLoRA, OFT and BOFT: tensors by suffix, which the host computes and ``merge`` refuses."""

    family: str
    tensors: Mapping[str, Tensor]
    alpha: float | None = None
    dora_scale: Tensor | None = None


Change = LowRank | Difference | Replacement | OtherFamily


@dataclass(frozen=True, slots=True)
class LoraPatch:
    """One change of a published tensor, or of the run ``rows`` (start, length) of it."""

    target: str
    rows: Rows | None  # None: all of them
    change: Change
    key: str  # the first of its keys in the file

    @property
    def needs_whole_weight(self) -> bool:
        """Norms of columns run over all rows of the patch: ``merge_rows`` must be given them at once."""
        scale = getattr(self.change, "dora_scale", None)
        return scale is not None and scale.shape[1] > 1


@dataclass(frozen=True, slots=True)
class Lora:
    """What a file changes, and the keys in it that belong to nothing here or are of no known kind."""

    patches: tuple[LoraPatch, ...]
    unmatched: tuple[str, ...] = ()

    def of(self, target: str) -> tuple[LoraPatch, ...]:
        """The patches of one published tensor; they share no row."""
        return tuple(patch for patch in self.patches if patch.target == target)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({p.change.rank for p in self.patches if isinstance(p.change, LowRank)}))

    @property
    def refusal(self) -> str | None:
        """Why ``merge`` cannot apply all of it, or None."""
        return next(filter(None, map(_refusal, self.patches)), None)


def merge(weight: Tensor, patches: Iterable[LoraPatch], strength: float) -> Tensor:
    """The patched weight: computed and returned in float32, or in float64 where the weight is.

    ``patches`` are a file's for this tensor; several files are merged one after another. Strength 0 changes
    nothing.
    """
    return merge_rows(weight, 0, patches, strength)


def merge_rows(weight_rows: Tensor, start: int, patches: Iterable[LoraPatch], strength: float) -> Tensor:
    """``merge`` of the rows from ``start`` alone; a patch that ``needs_whole_weight`` must lie inside them."""
    dtype = torch.float64 if weight_rows.dtype == torch.float64 else torch.float32
    out = weight_rows.to(dtype, copy=True)
    for patch in patches if strength else ():
        if refusal := _refusal(patch):
            raise CheckpointError(refusal)
        begin, length = patch.rows or (0, _rows_of(patch.change))
        first, last = max(begin, start), min(begin + length, start + len(out))
        if first < last:
            is_whole = (first, last) == (begin, begin + length)
            assert is_whole or not patch.needs_whole_weight, f"{patch.target} must be merged whole"
            inside = out[first - start : last - start]
            inside.copy_(patch.change.applied(inside, slice(first - begin, last - begin), strength))
    return out


def decomposed(merged: Tensor, scale: Tensor) -> Tensor:
    """DoRA: scale * merged / |merged|, with norms of the rows for a scale [R, 1] and of the columns for [1, C]."""
    norm = merged.norm(dim=0 if scale.shape[1] > 1 else 1, keepdim=True)
    return merged * (scale.to(merged) / (norm + torch.finfo(merged.dtype).eps))


def _refusal(patch: LoraPatch) -> str | None:
    if not isinstance(patch.change, OtherFamily):
        return None
    return (
        f"{patch.key} is of a {patch.change.family} adapter, which is not merged here. "
        "Load the file with HappyHorse LoRA Loader in ComfyUI."
    )


def _rows_of(change: Change) -> int:
    return (change.up if isinstance(change, LowRank) else change.values).shape[0]
