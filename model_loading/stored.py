"""Tensors as a network wants them, made from what a file stores when they are asked for, and only those.

A weight is one stored tensor or several that are stacked; each is numbers, or numbers and scales in one of the
formats of ``kernels.quantised``. It can be had de-quantised (float32(stored) * float32(scale)), a range of its rows
at a time, or in its stored form where the pieces share one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..kernels import nf4
from ..kernels.quantised import BY_BLOCK, QuantisedWeight, can_cut_rows, dequantise
from .checkpoint import Checkpoint
from .header import Stored


@dataclass(frozen=True, slots=True)
class Piece:
    """One stored tensor and what makes numbers of it."""

    name: str
    dtype: str  # as it is to be read
    shape: tuple[int, ...]  # of what it stands for: packed and padded tensors have another
    format: str | None = None  # of kernels.quantised; None for plain numbers
    scales: Mapping[str, str] = field(default_factory=dict)  # {ComfyUI's name: the file's}
    settings: Mapping[str, object] = field(default_factory=dict)
    factor: float = 1.0  # of the scale


def published_view(checkpoint: Checkpoint, weights: Mapping[str, tuple[Piece, ...]]) -> Checkpoint:
    """The checkpoint under the names of ``weights``."""
    source = _Made(checkpoint, weights)
    return Checkpoint(checkpoint.path, dict.fromkeys(weights, source), checkpoint.metadata)


class _Made:
    """A source of tensors made from their pieces."""

    def __init__(self, checkpoint: Checkpoint, weights: Mapping[str, tuple[Piece, ...]]):
        self._checkpoint, self._weights = checkpoint, weights

    def stored(self, name: str) -> Stored:
        pieces = self._weights[name]
        dtypes = {"float32" if piece.format else piece.dtype for piece in pieces}
        first = pieces[0].shape
        rows = (sum(piece.shape[0] for piece in pieces), *first[1:]) if len(pieces) > 1 else first
        return Stored(dtypes.pop() if len(dtypes) == 1 else "float32", rows)

    def raw(self, name: str) -> bytes:
        return bytes(self.tensor(name).flatten().view(torch.uint8).tolist())

    def tensor(self, name: str) -> Tensor:
        parts = [self._numbers(piece) for piece in self._weights[name]]
        return parts[0] if len(parts) == 1 else self._stacked(name, parts)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of ``tensor(name)``, read without mapping the file or holding more of it."""
        parts, first = [], 0
        for piece in self._weights[name]:
            height = piece.shape[0] if piece.shape else 1
            low, high = max(start - first, 0), min(stop - first, height)
            if low < high:
                parts.append(self._numbers_of_rows(piece, low, high))
            first += height
        return parts[0] if len(parts) == 1 else self._stacked(name, parts)

    def quantised(self, name: str) -> QuantisedWeight | None:
        """The weight in its stored form; None where it is plain, or its pieces cannot be stacked as they are."""
        pieces = self._weights[name]
        if not all(piece.format and len(piece.shape) == 2 for piece in pieces):
            return None
        weights = [self._weight(piece, self._checkpoint.tensor) for piece in pieces]
        return weights[0] if len(weights) == 1 else _stack(weights)

    def _stacked(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        dtype = getattr(torch, self.stored(name).dtype)
        return torch.cat([part.to(dtype) for part in parts])

    def _numbers(self, piece: Piece) -> Tensor:
        if piece.format is None:
            return self._checkpoint.tensor(piece.name)
        if len(piece.shape) != 2:
            return self._vector(piece, self._checkpoint.tensor)
        return dequantise(self._weight(piece, self._checkpoint.tensor))

    def piece(self, name: str) -> Piece | None:
        """The one stored tensor of a weight; None where several are stacked."""
        pieces = self._weights[name]
        return pieces[0] if len(pieces) == 1 else None

    def stored_rows(self, piece: Piece, start: int, stop: int) -> QuantisedWeight:
        """Rows [start, stop) in their stored form, of a format whose rows can be cut; the file is not mapped."""
        data = _as_read(self._checkpoint.rows(piece.name, start, stop), piece)
        scales = {
            name: scale[start:stop] if scale.ndim and scale.shape[0] == piece.shape[0] > 1 else scale
            for name, scale in self._scales(piece, self._checkpoint.read).items()
        }
        return QuantisedWeight(piece.format, data, (stop - start, piece.shape[1]), scales, piece.settings)

    def _numbers_of_rows(self, piece: Piece, start: int, stop: int) -> Tensor:
        read = self._checkpoint.read
        if piece.format is None:
            return self._checkpoint.rows(piece.name, start, stop)
        if len(piece.shape) != 2:
            return self._vector(piece, read)[start:stop]
        # Otherwise it is packed without regard to rows.
        is_by_row = self._checkpoint.shapes[piece.name][0] == piece.shape[0]
        if not is_by_row or not can_cut_rows(QuantisedWeight(piece.format, torch.empty(0), piece.shape)):
            return dequantise(self._weight(piece, read))[start:stop]
        weight = self.stored_rows(piece, start, stop)
        _check_range(piece, weight.data)
        return dequantise(weight)

    def _weight(self, piece: Piece, read) -> QuantisedWeight:
        scales, settings = self._scales(piece, read), piece.settings
        if "nested_absmax" in scales:
            levels, nested = scales.pop("nested_quant_map"), scales.pop("nested_absmax")
            block, offset = settings["nested_blocksize"], settings["nested_offset"]
            scales["absmax"] = nf4.flat_absmax(scales["absmax"], levels, nested, block, offset)
        weight = QuantisedWeight(
            piece.format, _as_read(read(piece.name), piece), piece.shape, scales, settings
        )
        _check_range(piece, weight.data)
        return weight

    def _vector(self, piece: Piece, read) -> Tensor:
        """What is quantised and no matrix: numbers times one scale."""
        values = _as_read(read(piece.name), piece)
        _check_range(piece, values)
        for scale in self._scales(piece, read).values():
            values = values.float() * (scale.float() if scale.numel() == 1 else scale.float().reshape(-1))
        return values.float().reshape(piece.shape)

    def _scales(self, piece: Piece, read) -> dict[str, Tensor]:
        scales = {name: read(stored) for name, stored in piece.scales.items()}
        if "weight_scale" in scales and piece.format not in BY_BLOCK:
            scale = scales["weight_scale"].float()
            if not (scale.isfinite() & (scale >= 0)).all():
                raise CheckpointError(
                    f"{piece.scales['weight_scale']} holds a scale that is negative or not a number."
                )
            if piece.factor != 1:
                scale = scale * piece.factor
            scales["weight_scale"] = scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(())
        return scales


def _as_read(data: Tensor, piece: Piece) -> Tensor:
    dtype = getattr(torch, piece.dtype, None)
    if dtype is None or dtype == data.dtype:  # GGUF blocks have a name of their own
        return data
    return data.view(dtype)


def _check_range(piece: Piece, data: Tensor) -> None:
    """Only a scale makes weights use the whole range; cast as they are, none of them comes near it."""
    if piece.scales or piece.format not in ("float8_e4m3fn", "float8_e5m2") or not data.numel():
        return
    limit = torch.finfo(data.dtype).max
    for part in data.flatten().split(1 << 24):  # float32 copies of 64 MB
        if part.float().abs().max() >= limit:
            raise CheckpointError(
                f"{piece.name} fills the range of {piece.dtype}, so it was scaled, and its scale is missing; "
                "without it the model makes noise."
            )


def _stack(weights: Sequence[QuantisedWeight]) -> QuantisedWeight | None:
    """Rows on rows, with a scale per row; None for formats or settings that differ."""
    first = weights[0]
    if not can_cut_rows(first) or any(
        weight.format != first.format or dict(weight.settings) != dict(first.settings) for weight in weights
    ):
        return None
    names = {frozenset(weight.scales) - {"input_scale"} for weight in weights}
    if len(names) > 1:
        return None
    scales = {
        name: torch.cat([weight.scales[name].reshape(-1, 1).expand(weight.shape[0], 1) for weight in weights])
        for name in names.pop()
    }
    shape = (sum(weight.shape[0] for weight in weights), first.shape[1])
    data = torch.cat([weight.data for weight in weights])
    return QuantisedWeight(first.format, data, shape, scales, first.settings)


def bytes_of(pieces: Sequence[Piece], checkpoint: Checkpoint) -> int:
    """What the stored form of a weight takes, scales included."""
    names = [name for piece in pieces for name in (piece.name, *piece.scales.values())]
    return sum(math.prod(checkpoint.shapes[name]) * _itemsize(checkpoint.dtypes[name]) for name in names)


def _itemsize(dtype: str) -> int:
    return getattr(torch, dtype, torch.uint8).itemsize
