"""How one weight is written in bf16, fp8, int8 or nf4: the tensors that hold it, and what makes them of its rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..kernels import nf4
from ..kernels.quantised import (
    QuantisedWeight,
    fp8_scale,
    fp8_with_scale,
    kitchen,
    quantise_int8,
    quantise_nf4,
    rotation_group,
)
from .checkpoint import Checkpoint
from .keys import Kind
from .lora import LoraPatch, merge_rows
from .safetensors_file import Entry

TARGETS = ("bf16", "fp8", "int8", "nf4")
# Packages that quantise, asked for before anything is written.
PACKAGES = {"int8": kitchen, "nf4": nf4.functional}
CHUNK_ENTRIES = 1 << 22  # numbers that are worked on at once: 16 MB in float32, several times in all

Pieces = Iterator[tuple[str, Tensor]]  # which tensor of the file, and the numbers that come next in it


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one published weight, LoRA merged, as often as they are asked for."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Tensor]  # rows [start, stop)
    patches: Sequence[tuple[Sequence[LoraPatch], float]] = ()  # each file's, and its strength

    def chunks(self, multiple: int = 1) -> Iterator[Tensor]:
        """Runs of rows; all but the last have a whole multiple of ``multiple`` rows.

        Raises CheckpointError where a number is infinite or none: no scale could be made of it.
        """
        height = self.shape[0] if self.shape else 1
        width = max(1, math.prod(self.shape) // max(height, 1))
        step = max(multiple, CHUNK_ENTRIES // width // multiple * multiple)
        if any(patch.needs_whole_weight for patches, _ in self.patches for patch in patches):
            step = max(height, 1)
        for start in range(0, height, step):
            rows = self.read(start, min(start + step, height))
            for patches, strength in self.patches:
                rows = merge_rows(rows, start, patches, strength)
            if not rows.isfinite().all():
                raise CheckpointError(
                    f"{self.name} holds numbers that are not finite, in its rows {start} to {start + len(rows) - 1}"
                    f"{' with the LoRA merged' if self.patches else ''}. The file is damaged: download it again."
                )
            yield rows


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one weight is written: its tensors, what makes them of its rows, and ComfyUI's marker of the layer."""

    entries: tuple[Entry, ...]
    pieces: Callable[[Rows], Pieces]
    marker: Mapping | None = None


def recipe(
    name: str, parameter: Tensor, view: Checkpoint, kind: Kind, precision: str, *, is_patched: bool
) -> Recipe:
    """For the weight of ``view`` that fills this parameter of the network."""
    shape = tuple(parameter.shape)
    if precision == "bf16" or kind.projections is None or not re.search(kind.projections, name):
        return plain(name, parameter.dtype, shape)
    if not is_patched and (kept := _kept(name, view, precision)):
        return kept
    return {"fp8": _fp8, "int8": _int8, "nf4": _nf4}[precision](name, shape)


def plain(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Recipe:
    """Numbers as they are."""
    entry = Entry(name, str(dtype).removeprefix("torch."), shape)
    return Recipe((entry,), lambda rows: ((name, chunk.to(dtype)) for chunk in rows.chunks()))


def _fp8(name: str, shape: tuple[int, int]) -> Recipe:
    scale_name = f"{name}_scale"

    def pieces(rows: Rows) -> Pieces:
        largest = torch.zeros(())
        for chunk in rows.chunks():
            largest = torch.maximum(largest, chunk.float().abs().amax())
        scale = fp8_scale(largest)
        yield scale_name, scale
        for chunk in rows.chunks():
            yield name, fp8_with_scale(chunk, scale).data

    entries = Entry(name, "float8_e4m3fn", shape), Entry(scale_name, "float32", ())
    # Without an input scale stock ComfyUI would cast activations to FP8 unscaled.
    return Recipe(entries, pieces, {"format": "float8_e4m3fn", "full_precision_matrix_mult": True})


def _int8(name: str, shape: tuple[int, int]) -> Recipe:
    group = rotation_group(shape[1])
    padded = (shape[0], -(-shape[1] // group) * group)

    def pieces(rows: Rows) -> Pieces:
        # The sums of a rotation are rounded in an order that depends on how many rows there are: of two sizes of
        # chunks, some numbers in a thousand differ by one step.
        for chunk in rows.chunks():
            weight = quantise_int8(chunk)
            yield name, weight.data
            yield f"{name}_scale", weight.scales["weight_scale"]

    entries = Entry(name, "int8", padded), Entry(f"{name}_scale", "float32", (shape[0], 1))
    marker = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group}
    if padded != shape:
        marker["orig_shape"] = list(shape)
    return Recipe(entries, pieces, marker)


def _nf4(name: str, shape: tuple[int, int]) -> Recipe:
    count = math.prod(shape)
    about = {"quant_type": "nf4", "blocksize": nf4.BLOCK, "dtype": "bfloat16", "shape": list(shape)}
    state = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    state_name = f"{name}.quant_state.bitsandbytes__nf4"
    # Blocks run on from row to row, so that a chunk must end where a block does.
    multiple = nf4.BLOCK // math.gcd(nf4.BLOCK, shape[1])

    def pieces(rows: Rows) -> Pieces:
        yield state_name, state
        for number, chunk in enumerate(rows.chunks(multiple)):
            weight = quantise_nf4(chunk.float())
            yield name, weight.data
            yield f"{name}.absmax", weight.scales["absmax"]
            if not number:
                yield f"{name}.quant_map", weight.scales["quant_map"]

    entries = (
        Entry(name, "uint8", (-(-count // 2), 1)),
        Entry(f"{name}.absmax", "float32", (-(-count // nf4.BLOCK),)),
        Entry(f"{name}.quant_map", "float32", (16,)),
        Entry(state_name, "uint8", tuple(state.shape)),
    )
    return Recipe(entries, pieces)


def _kept(name: str, view: Checkpoint, precision: str) -> Recipe | None:
    """The stored numbers themselves, where the source holds one piece in the form that is wanted."""
    source, stored = view.source_of(name)
    piece = source.piece(stored)
    wanted = {"fp8": "float8_e4m3fn", "int8": "int8_tensorwise"}.get(precision)
    if piece is None or piece.format != wanted or "weight_scale" not in piece.scales or len(piece.shape) != 2:
        return None
    made = _fp8(name, piece.shape) if precision == "fp8" else _int8(name, piece.shape)
    first = source.stored_rows(piece, 0, 1)
    if precision == "int8" and not _is_like(first, made):
        return None
    by_row = first.scales["weight_scale"].ndim > 0

    def pieces(_: Rows) -> Pieces:
        step = max(1, CHUNK_ENTRIES * 4 // piece.shape[1])
        for start in range(0, piece.shape[0], step):
            weight = source.stored_rows(piece, start, min(start + step, piece.shape[0]))
            yield name, weight.data
            if by_row or not start:
                yield f"{name}_scale", weight.scales["weight_scale"]

    scales = Entry(f"{name}_scale", "float32", (piece.shape[0], 1) if by_row else ())
    return Recipe((made.entries[0], scales), pieces, made.marker)


def _is_like(row: QuantisedWeight, made: Recipe) -> bool:
    """Whether a stored row is rotated in the same groups, and padded as far, as one that would be made."""
    return row.group == made.marker["convrot_groupsize"] and row.data.shape[1] == made.entries[0].shape[1]
