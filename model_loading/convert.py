"""Any checkpoint to one safetensors file in ComfyUI's format, a few rows at a time.

The checkpoint is never mapped and no tensor of it is held whole, so the memory needed does not depend on its size.
The file grows under another name beside the target, with a journal of what is finished: a run that was stopped goes
on where it was. When all is written, it is read back and compared with the journal, and only then takes the target's
name. How a weight is written is in ``recipes``, the file itself in ``safetensors_file``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..model.config import VARIANTS, TransformerConfig
from .builder import check_weights
from .checkpoint import Checkpoint, open_checkpoint
from .find import part_folder
from .inspect import NETWORKS
from .keys import Kind, kind_of, map_names
from .layouts import METADATA, published
from .lora_file import read_lora
from .recipes import PACKAGES, TARGETS, Recipe, Rows, plain, recipe
from .safetensors_file import OnProgress, Places, UnfinishedFile

# Ending of a tokeniser's file -> ComfyUI's name of the tensor, and how the content begins.
TOKENIZERS = {".model": ("spiece_model", b"\n"), ".json": ("tokenizer_json", b"{")}
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
    room on the disk does not do, and HappyHorseError where a package is missing; where it is interrupted, the
    unfinished file stays for the next run, and an older file at ``target`` as it was.
    """
    source, target = part_folder(source, "transformer"), Path(target)
    checkpoint = open_checkpoint(source)
    adapters = [(open_checkpoint(path), strength) for path, strength in loras]
    _check_target(
        target, [source, *_files(checkpoint), *(file for lora, _ in adapters for file in _files(lora))]
    )
    kind = kind_of(checkpoint.names)
    if kind is None:
        raise CheckpointError(f"{source} is no part of this model; nothing was written.")
    _check_precision(precision, kind)
    try:
        view = published(checkpoint.renamed(map_names(kind, checkpoint.names)))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    with torch.device("meta"):
        network = NETWORKS[kind.name](view)
    check_weights(network, view)
    patches, unmatched = _patches(kind, view, adapters)
    recipes = {
        name: recipe(name, parameter, view, kind, precision, is_patched=name in patches)
        for name, parameter in network.state_dict().items()
    }
    rows = {
        name: Rows(name, shape, lambda a, b, name=name: view.rows(name, a, b), patches.get(name, ()))
        for name, shape in view.shapes.items()
    }
    embedded = _tokenizers(kind, checkpoint, tokenizer)
    for name, content in embedded.items():
        recipes[name] = plain(name, torch.uint8, tuple(content.shape))
        rows[name] = Rows(name, tuple(content.shape), lambda a, b, content=content: content[a:b])
    places = Places.of({name: made.entries for name, made in recipes.items()}, _metadata(recipes, precision))
    file = UnfinishedFile(target, places, _job(checkpoint, adapters, embedded))
    try:
        resumed = file.begin()
        for name, made in recipes.items():
            if name not in resumed:
                file.write(name, made.pieces(rows[name]))
            if on_progress:
                on_progress("writing", file.bytes_done, places.bytes)
        file.verify(on_progress)
        moved = file.finish()
        return Conversion(target, target.stat().st_size, len(places.entries), len(resumed), unmatched, moved)
    except OSError as error:  # a disk that is full, a network drive that went away
        raise CheckpointError(
            f"{target.name} could not be written: {error.strerror or error}"
            f"{f' ({error.filename})' if error.filename else ''}. What is finished stays in {file.path.name}; "
            "run the same command again to go on."
        ) from None


def _files(checkpoint: Checkpoint) -> list[Path]:
    """The files that its tensors lie in."""
    return sorted({checkpoint.source_of(name)[0].path for name in checkpoint.names})


def _check_target(target: Path, read: Iterable[Path]) -> None:
    """``read`` are the files that must not be written to."""
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target} should end in .safetensors: that is what is written.")
    if not target.parent.is_dir():
        raise CheckpointError(f"The folder {target.parent} does not exist; make it, or name another.")
    if target.is_dir():
        raise CheckpointError(f"{target} is a folder; name a file.")
    written = {path.resolve() for path in UnfinishedFile.paths(target)}
    for file in read:
        if file.resolve() in written:
            raise CheckpointError(f"{file} is what is converted; name another file, so that nothing is lost.")


def _check_precision(precision: str, kind: Kind) -> None:
    if precision not in TARGETS:
        raise CheckpointError(
            f"There is no precision '{precision}' to convert to; there are {', '.join(TARGETS)}."
        )
    if precision != "bf16" and kind.projections is None:
        raise CheckpointError(f"The {kind.title} has no quantised form; convert it with --precision bf16.")
    if precision in PACKAGES:
        PACKAGES[precision]()


def _patches(kind: Kind, view: Checkpoint, adapters) -> tuple[dict, tuple[str, ...]]:
    """({weight: [(its patches, strength), …] in the order of the files}, keys that belong to nothing)"""
    patches: dict[str, list] = {}
    unmatched: list[str] = []
    for file, strength in adapters:
        if kind.name != "transformer":
            raise CheckpointError(
                f"{file.path}: a LoRA changes the transformer, and this is the {kind.title}."
            )
        lora = read_lora(file, TransformerConfig.from_shapes(view.shapes, VARIANTS["base"]))
        if lora.refusal:
            raise CheckpointError(f"{file.path}: {lora.refusal}")
        unmatched += lora.unmatched
        for target in {patch.target for patch in lora.patches}:
            patches.setdefault(target, []).append((lora.of(target), strength))
    return patches, tuple(unmatched)


def _tokenizers(kind: Kind, checkpoint: Checkpoint, file: Path | None) -> dict[str, Tensor]:
    """{tensor's name: bytes} of the tokeniser that goes into the file: the one named, else the source's own."""
    if file is None:
        return {name: checkpoint.read(name) for name, _ in TOKENIZERS.values() if name in checkpoint.names}
    if kind.name != "text_encoder":
        raise CheckpointError(
            f"{file}: a tokeniser goes into a text encoder's file, and this is the {kind.title}."
        )
    if file.suffix not in TOKENIZERS:
        raise CheckpointError(f"{file} is neither a tokenizer.json nor a sentencepiece .model.")
    name, beginning = TOKENIZERS[file.suffix]
    try:
        size = file.stat().st_size
        content = file.read_bytes() if 0 < size <= MAX_TOKENIZER_BYTES else b""
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    if not content.startswith(beginning):  # what is published is often a note of where the file lies
        raise CheckpointError(f"{file} ({size:,} bytes) is no tokeniser by its content; download it again.")
    return {name: torch.frombuffer(bytearray(content), dtype=torch.uint8)}


def _metadata(recipes: Mapping[str, Recipe], precision: str) -> dict[str, str]:
    layers = {
        name.removesuffix(".weight"): made.marker for name, made in recipes.items() if made.marker is not None
    }
    metadata = {"format": "pt", "converted_by": "ComfyUI-HappyHorse", "precision": precision}
    if layers:
        metadata[METADATA] = json.dumps({"format_version": "1.0", "layers": layers})
    return metadata


def _job(checkpoint: Checkpoint, adapters, embedded: Mapping[str, Tensor]) -> str:
    """What the unfinished file of an earlier run must agree with, beyond its header, which shows the precision."""

    def stats(read: Checkpoint):
        files = [(file.resolve(), file.stat()) for file in _files(read)]
        return [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in files]

    tokenizers = [(name, hashlib.sha256(content.numpy()).hexdigest()) for name, content in embedded.items()]
    said = stats(checkpoint), [(stats(lora), strength) for lora, strength in adapters], tokenizers
    return hashlib.sha256(repr(said).encode()).hexdigest()
