"""Any checkpoint to one safetensors file in ComfyUI's format, a few rows at a time.

Nothing is mapped and no tensor is held whole, so the memory needed does not depend on the checkpoint's size. The file
grows under another name beside the target, with a journal of what is finished: a run that was stopped goes on where it
was. When all is written, it is read back and compared with the journal, and only then takes the target's name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..kernels import nf4
from ..kernels.quantised import (
    fp8_scale,
    fp8_with_scale,
    quantise_int8,
    quantise_nf4,
    rotation_group,
)
from ..model.config import VARIANTS, TransformerConfig
from .builder import check_weights
from .checkpoint import Checkpoint, open_checkpoint
from .find import part_folder
from .inspect import NETWORKS
from .keys import Kind, kind_of, map_names
from .layouts import METADATA, published
from .lora import LoraPatch, merge_rows
from .lora_file import read_lora
from .safetensors_file import Entry, OnProgress, Places, UnfinishedFile

TARGETS = ("bf16", "fp8", "int8", "nf4")
CHUNK_ENTRIES = 1 << 22  # numbers that are worked on at once: 16 MB in float32, several times in all
MAX_TOKENIZER_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done, for a report."""

    path: Path
    bytes: int
    tensors: int
    resumed: int  # weights that an earlier run had finished
    unmatched: tuple[str, ...] = ()  # keys of LoRA files that belong to nothing
    replaced: Path | None = None  # an older file in use by another program, moved here


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of one published weight, LoRA merged, as often as they are asked for."""

    shape: tuple[int, ...]
    read: Callable[[int, int], Tensor]
    patches: Sequence[tuple[Sequence[LoraPatch], float]] = ()

    def chunks(self, multiple: int = 1) -> Iterator[Tensor]:
        """Runs of rows; all but the last have a whole multiple of ``multiple`` rows."""
        height = self.shape[0] if self.shape else 1
        width = max(1, math.prod(self.shape) // max(height, 1))
        step = max(multiple, CHUNK_ENTRIES // width // multiple * multiple)
        if any(patch.needs_whole_weight for patches, _ in self.patches for patch in patches):
            step = max(height, 1)
        for start in range(0, height, step):
            rows = self.read(start, min(start + step, height))
            for patches, strength in self.patches:
                rows = merge_rows(rows, start, patches, strength)
            yield rows


Pieces = Iterator[tuple[str, Tensor]]  # which entry, and the numbers that come next in it


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How one weight is written: its tensors, what marks them, and what makes them of its rows."""

    entries: tuple[Entry, ...]
    pieces: Callable[[_Rows], Pieces]
    marker: Mapping | None = None


def convert(
    source: str | Path,
    target: str | Path,
    precision: str,
    *,
    loras: Sequence[tuple[Path, float]] = (),
    tokenizer: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Conversion:
    """Write ``source`` as one file at ``target`` in bf16, fp8, int8 (rotated) or nf4.

    ``loras`` are (file, strength), merged in order; ``tokenizer`` (tokenizer.json or a sentencepiece model) is put
    into a text encoder's file. Raises CheckpointError before anything is written where the source, a LoRA or the
    room on the disk does not do; where it is interrupted, the unfinished file stays for the next run.
    """
    source, target = part_folder(source, "transformer"), Path(target)
    checkpoint = open_checkpoint(source)
    kind = kind_of(checkpoint.names)
    if kind is None:
        raise CheckpointError(f"{source} is no part of this model; nothing was written.")
    if precision != "bf16" and kind.projections is None:
        raise CheckpointError(f"The {kind.title} has no quantised form; convert it with --precision bf16.")
    _check_target(source, target)
    try:
        view = published(checkpoint.renamed(map_names(kind, checkpoint.names)))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    with torch.device("meta"):
        network = NETWORKS[kind.name](view)
    check_weights(network, view)
    patches, unmatched = _patches(kind, view, loras)
    recipes = {
        name: _recipe(name, parameter, view, kind, precision, name in patches)
        for name, parameter in network.state_dict().items()
    }
    rows = {
        name: _Rows(shape, lambda a, b, name=name: view.rows(name, a, b), patches.get(name, ()))
        for name, shape in view.shapes.items()
    }
    for name, content in _tokenizers(kind, checkpoint, tokenizer).items():
        recipes[name] = _plain(name, torch.uint8, tuple(content.shape))
        rows[name] = _Rows(tuple(content.shape), lambda a, b, content=content: content[a:b])
    places = Places.of(
        {name: recipe.entries for name, recipe in recipes.items()}, _metadata(recipes, precision)
    )
    file = UnfinishedFile(target, places, _job(source, checkpoint, loras))
    resumed = file.begin()
    for name, recipe in recipes.items():
        if name not in resumed:
            file.write(name, recipe.pieces(rows[name]))
        if on_progress:
            on_progress("writing", file.bytes_done, places.bytes)
    file.verify(on_progress)
    moved = file.finish()
    return Conversion(target, target.stat().st_size, len(places.entries), len(resumed), unmatched, moved)


def _check_target(source: Path, target: Path) -> None:
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target} should end in .safetensors: that is what is written.")
    if not target.parent.is_dir():
        raise CheckpointError(f"The folder {target.parent} does not exist; make it, or name another.")
    if target.is_dir():
        raise CheckpointError(f"{target} is a folder; name a file.")
    sources = (
        {source.resolve(), *(file.resolve() for file in source.glob("*"))}
        if source.is_dir()
        else {source.resolve()}
    )
    if target.resolve() in sources:
        raise CheckpointError(f"{target} is what is converted; name another file, so that nothing is lost.")


def _patches(kind: Kind, view: Checkpoint, loras) -> tuple[dict, tuple[str, ...]]:
    """({weight: [(its patches, strength), …] in the order of the files}, keys that belong to nothing)"""
    patches: dict[str, list] = {}
    unmatched: list[str] = []
    for path, strength in loras:
        if kind.name != "transformer":
            raise CheckpointError(f"{path}: a LoRA changes the transformer, and this is the {kind.title}.")
        lora = read_lora(open_checkpoint(path), TransformerConfig.from_shapes(view.shapes, VARIANTS["base"]))
        if lora.refusal:
            raise CheckpointError(f"{path}: {lora.refusal}")
        unmatched += lora.unmatched
        for target in {patch.target for patch in lora.patches}:
            patches.setdefault(target, []).append((lora.of(target), strength))
    return patches, tuple(unmatched)


def _tokenizers(kind: Kind, checkpoint: Checkpoint, file: Path | None) -> dict[str, Tensor]:
    """{tensor's name: bytes} of the tokeniser that goes into the file: the one named, else the source's own."""
    names = {".model": "spiece_model", ".json": "tokenizer_json"}  # as ComfyUI names them
    if file is None:
        return {name: checkpoint.read(name) for name in names.values() if name in checkpoint.names}
    if kind.name != "text_encoder":
        raise CheckpointError(
            f"{file}: a tokeniser goes into a text encoder's file, and this is the {kind.title}."
        )
    if file.suffix not in names:
        raise CheckpointError(f"{file} is neither a tokenizer.json nor a sentencepiece .model.")
    try:
        if not 0 < file.stat().st_size <= MAX_TOKENIZER_BYTES:
            raise CheckpointError(f"{file} has {file.stat().st_size:,} bytes; that is no tokeniser.")
        return {names[file.suffix]: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)}
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None


def _recipe(
    name, parameter: Tensor, view: Checkpoint, kind: Kind, precision: str, is_patched: bool
) -> _Recipe:
    shape = tuple(parameter.shape)
    if precision == "bf16" or kind.projections is None or not re.search(kind.projections, name):
        return _plain(name, parameter.dtype, shape)
    if not is_patched and (kept := _kept(name, view, precision)):
        return kept
    return {"fp8": _fp8, "int8": _int8, "nf4": _nf4}[precision](name, shape)


def _plain(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> _Recipe:
    entry = Entry(name, str(dtype).removeprefix("torch."), shape)
    return _Recipe((entry,), lambda rows: ((name, chunk.to(dtype)) for chunk in rows.chunks()))


def _fp8(name: str, shape: tuple[int, int]) -> _Recipe:
    scale_name = f"{name}_scale"

    def pieces(rows: _Rows) -> Pieces:
        largest = torch.zeros(())
        for chunk in rows.chunks():
            largest = torch.maximum(largest, chunk.float().abs().amax())
        scale = fp8_scale(largest)
        yield scale_name, scale
        for chunk in rows.chunks():
            yield name, fp8_with_scale(chunk, scale).data

    entries = Entry(name, "float8_e4m3fn", shape), Entry(scale_name, "float32", ())
    # Without an input scale stock ComfyUI would cast activations to FP8 unscaled.
    return _Recipe(entries, pieces, {"format": "float8_e4m3fn", "full_precision_matrix_mult": True})


def _int8(name: str, shape: tuple[int, int]) -> _Recipe:
    group = rotation_group(shape[1])
    padded = (shape[0], -(-shape[1] // group) * group)

    def pieces(rows: _Rows) -> Pieces:
        for chunk in rows.chunks():
            weight = quantise_int8(chunk)
            yield name, weight.data
            yield f"{name}_scale", weight.scales["weight_scale"]

    entries = Entry(name, "int8", padded), Entry(f"{name}_scale", "float32", (shape[0], 1))
    marker = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group}
    if padded != shape:
        marker["orig_shape"] = list(shape)
    return _Recipe(entries, pieces, marker)


def _nf4(name: str, shape: tuple[int, int]) -> _Recipe:
    count = math.prod(shape)
    about = {"quant_type": "nf4", "blocksize": nf4.BLOCK, "dtype": "bfloat16", "shape": list(shape)}
    state = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    state_name = f"{name}.quant_state.bitsandbytes__nf4"

    def pieces(rows: _Rows) -> Pieces:
        yield state_name, state
        for number, chunk in enumerate(rows.chunks(nf4.BLOCK // math.gcd(nf4.BLOCK, shape[1]))):
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
    return _Recipe(entries, pieces)


def _kept(name: str, view: Checkpoint, precision: str) -> _Recipe | None:
    """The stored numbers themselves, where the source holds one piece in the format that is wanted."""
    source, stored = view.source_of(name)
    piece = source.piece(stored)
    wanted = {"fp8": "float8_e4m3fn", "int8": "int8_tensorwise"}.get(precision)
    if piece is None or piece.format != wanted or "weight_scale" not in piece.scales or len(piece.shape) != 2:
        return None
    if precision == "int8" and not piece.settings.get("convrot"):
        return None
    made = _fp8(name, piece.shape) if precision == "fp8" else _int8(name, piece.shape)
    group = piece.settings.get("convrot_groupsize", 256)
    if precision == "int8" and made.marker["convrot_groupsize"] != group:
        return None
    scale = source.stored_rows(piece, 0, 1).scales["weight_scale"]
    by_row = scale.ndim > 0

    def pieces(_: _Rows) -> Pieces:
        step = max(1, CHUNK_ENTRIES * 4 // piece.shape[1])
        for start in range(0, piece.shape[0], step):
            weight = source.stored_rows(piece, start, min(start + step, piece.shape[0]))
            yield name, weight.data
            if by_row or not start:
                yield f"{name}_scale", weight.scales["weight_scale"]

    scales = Entry(f"{name}_scale", "float32", (piece.shape[0], 1) if by_row else ())
    return _Recipe((made.entries[0], scales), pieces, made.marker)


def _metadata(recipes: Mapping[str, _Recipe], precision: str) -> dict[str, str]:
    layers = {
        name.removesuffix(".weight"): recipe.marker
        for name, recipe in recipes.items()
        if recipe.marker is not None
    }
    metadata = {"format": "pt", "converted_by": "ComfyUI-HappyHorse", "precision": precision}
    if layers:
        metadata[METADATA] = json.dumps({"format_version": "1.0", "layers": layers})
    return metadata


def _job(source: Path, checkpoint: Checkpoint, loras) -> str:
    """What the unfinished file of an earlier run must agree with: the sources' names, sizes and dates."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    added = [(str(path), Path(path).stat().st_size, Path(path).stat().st_mtime_ns, s) for path, s in loras]
    return hashlib.sha256(repr((stats, added, sorted(checkpoint.names))).encode()).hexdigest()
