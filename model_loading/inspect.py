"""What a weight file is, from its headers: kind, layout, precision, variant, completeness and the memory it needs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import CheckpointError
from ..model.audio_vae import OobleckConfig, OobleckVAE
from ..model.config import VARIANTS, TransformerConfig
from ..model.text_encoder import T5GemmaConfig, T5GemmaEncoder
from ..model.transformer import JointTransformer
from ..model.turbo_decoder import TurboConfig, TurboDecoder
from ..model.video_vae import Wan22VAE, WanConfig
from .builder import settings_beside
from .checkpoint import INDEX_SUFFIX, Checkpoint, open_checkpoint
from .find import is_pipeline, part_folder, variant_and_name
from .gguf_file import NORM_NOTE
from .keys import Kind, kind_of, map_names, prefix_of
from .layouts import Layout, read_layout
from .lora_names import split_key
from .stored import bytes_of

LAYOUTS = {
    "A": "shards with an index",
    "B": "one file with the published names",
    "C": "FP8 without scales",
    "D": "FP8 with __fp8_scale tensors",
    "E": "weights split by use and modality",
    "F": "diffusers shards",
    "G": "a diffusers pipeline folder",
    "H": "ComfyUI's names and scales",
}
NETWORKS: dict[str, Callable[[Checkpoint], nn.Module]] = {
    "transformer": lambda c: JointTransformer(TransformerConfig.from_shapes(c.shapes, VARIANTS["base"])),
    "text_encoder": lambda c: T5GemmaEncoder(
        T5GemmaConfig.from_shapes(c.shapes, settings_beside(c, "num_hidden_layers"))
    ),
    "video_vae": lambda c: Wan22VAE(WanConfig.from_shapes(c.shapes), dtype=torch.bfloat16),
    "turbo_decoder": lambda c: TurboDecoder(
        TurboConfig.from_shapes(c.shapes, settings_beside(c, "first_chunk_size")), dtype=torch.bfloat16
    ),
    "audio_vae": lambda c: OobleckVAE(OobleckConfig.from_shapes(c.shapes)),
}
VARIANT_NAMES = tuple(VARIANTS)
# The published names, for a transformer that is too incomplete to read its sizes from.
OUTER_NAMES = (
    *(f"adapter.{m}_embedder.{field}" for m in ("video", "text", "audio") for field in ("weight", "bias")),
    "adapter.rope.bands",
    *(f"final_{part}_{m}.weight" for part in ("norm", "linear") for m in ("video", "audio")),
)
LAYER_NAMES = (
    *(f"attention.{part}.weight" for part in ("pre_norm", "linear_qkv", "linear_proj", "q_norm", "k_norm")),
    *(f"mlp.{part}.weight" for part in ("pre_norm", "up_gate_proj", "down_proj")),
)
LORA_PREFIXES = (
    r"^(?:base_model\.model\.)?(?:model\.diffusion_model\.|diffusion_model\.|transformer\.|lora_unet_"
    r"|lora_transformer_|lycoris_)?"
)
LORA_TARGET = (
    r"block.layers.\d+.(?:attention.(?:linear_(?:qkv|proj|[qkvg])(?:_video|_audio|_text)?|(?:pre|q|k)_norm)"
    r"|mlp.(?:(?:up_gate|down)_proj(?:_video|_audio|_text)?|pre_norm))"
    r"|adapter.(?:video|audio|text)_embedder|final_(?:linear|norm)_(?:video|audio)"
)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found; ``layout`` and ``variant`` only where there are any."""

    kind: str  # dit, text_encoder, video_vae, turbo_decoder, audio_vae, lora
    title: str
    layout: str | None
    precision: str
    variant: str | None
    why: str | None  # the name that says the variant
    parameters: int
    tensors: int
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    memory_bytes: int
    targets: int | None = None  # layers that a LoRA changes
    problem: str | None = None  # why it cannot be loaded, beyond missing and unknown names
    note: str | None = None  # what was decided by the numbers, of a GGUF's norm weights


def inspect_file(path: str | Path) -> Inspection:
    """Recognise a file or a folder of shards. Raises CheckpointError for what is broken or not ours."""
    path = part_folder(path, "transformer")
    checkpoint = open_checkpoint(path)
    kind = kind_of(checkpoint.names)
    if kind is None:
        return _inspect_lora(path, checkpoint)
    try:
        plain = checkpoint.renamed(map_names(kind, checkpoint.names))
        layout = read_layout(plain)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: this is the {kind.title}, and it cannot be read. {error}") from None
    return _inspect_network(kind, path, checkpoint, plain, layout)


def packaging(path: Path, prefix: str) -> str:
    """The letter of tensors stored as published: a prefix is H's; A, B, F and G differ in their files only."""
    folder = path if path.is_dir() else path.parent
    if prefix:
        return "H"
    if is_pipeline(folder) or is_pipeline(folder.parent):
        return "G"
    names = [path.name] if path.is_file() else [file.name for file in folder.glob(f"*{INDEX_SUFFIX}")]
    if any(name.startswith("diffusion_pytorch_model") for name in names):
        return "F"
    return "B" if path.is_file() else "A"


def _inspect_network(
    kind: Kind, path: Path, checkpoint: Checkpoint, plain: Checkpoint, layout: Layout
) -> Inspection:
    view = layout.view(plain)
    shapes = view.shapes
    parameters = sum(math.prod(shape) for shape in shapes.values())
    is_transformer = kind.name == "transformer"
    problem, wanted, memory = layout.refusal, None, 2 * parameters
    if problem is None:
        try:
            with torch.device("meta"):
                state = NETWORKS[kind.name](view).state_dict()
            wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
            memory = _memory(kind, state, layout, plain)
            problem = _misfit(wanted, shapes)
        except CheckpointError as error:
            problem = str(error)
    if wanted is None:
        wanted = _published_names(shapes) if is_transformer else shapes
    variant, why = variant_and_name(_near(path)) if is_transformer else (None, None)
    return Inspection(
        kind="dit" if is_transformer else kind.name,
        title=kind.title,
        layout=(layout.letter or packaging(checkpoint.path, prefix_of(kind, checkpoint.names) or ""))
        if is_transformer
        else None,
        precision=layout.precision,
        variant=variant,
        why=why,
        parameters=parameters,
        tensors=len(checkpoint.names),
        missing=tuple(sorted(set(wanted) - set(shapes))),
        unknown=tuple(sorted(set(shapes) - set(wanted))),
        memory_bytes=memory,
        problem=problem,
        note=checkpoint.metadata.get(NORM_NOTE),
    )


def _memory(kind: Kind, state, layout: Layout, checkpoint: Checkpoint) -> int:
    """Bytes as precision "auto" keeps them: quantised projections as they are stored, all else as it is built."""
    total = 0
    for name, tensor in state.items():
        pieces = layout.weights.get(name, ())
        is_kept = bool(kind.projections and re.search(kind.projections, name)) and all(
            piece.format for piece in pieces
        )
        total += (
            bytes_of(pieces, checkpoint) if is_kept and pieces else tensor.numel() * tensor.element_size()
        )
    return total


def _misfit(wanted, shapes) -> str | None:
    for name in wanted:
        if name in shapes and shapes[name] != wanted[name]:
            return f"{name} has shape {list(shapes[name])}; the other tensors ask for {list(wanted[name])}."
    return None


def _published_names(names: Iterable[str]) -> list[str]:
    numbers = [int(found[1]) for name in names if (found := re.match(r"block\.layers\.(\d{1,4})\.", name))]
    layers = range(max(numbers, default=-1) + 1)
    return [*OUTER_NAMES, *(f"block.layers.{layer}.{name}" for layer in layers for name in LAYER_NAMES)]


def _near(path: Path) -> Path:
    """The name and those of the two folders above; further up, names have nothing to do with the file."""
    return Path(*path.absolute().parts[-3:])


def _inspect_lora(path: Path, checkpoint: Checkpoint) -> Inspection:
    names = checkpoint.names
    layers = {name: split[0] for name in names if (split := split_key(name))}
    if not layers:
        shown = ", ".join(sorted(names)[:3]) or "none"
        raise CheckpointError(
            f"{path} is no part of this model and no LoRA. It holds {len(names)} tensors, such as {shown}."
        )
    known = {layer for layer in layers.values() if _is_target(layer)}
    shapes, dtypes = checkpoint.shapes, checkpoint.dtypes
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    precision = max(dtypes, key=lambda name: sizes[name])
    unknown = [name for name in names if layers.get(name) not in known]
    variant, why = variant_and_name(_near(path))
    return Inspection(
        kind="lora",
        title="LoRA for the audio-video transformer",
        layout=None,
        precision={"bfloat16": "bf16"}.get(dtypes[precision], dtypes[precision]),
        variant=variant,
        why=why,
        parameters=sum(sizes.values()),
        tensors=len(names),
        missing=(),
        unknown=tuple(sorted(unknown)),
        memory_bytes=sum(sizes[name] * getattr(torch, dtypes[name]).itemsize for name in names),
        targets=len(known),
        problem=None if known else "None of its targets is a layer of this transformer.",
    )


def _is_target(layer: str) -> bool:
    """Whether a LoRA's layer is one of ours. In underscored names every dot is an underscore; "." matches both."""
    return bool(re.fullmatch(LORA_TARGET, re.sub(LORA_PREFIXES, "", layer.removesuffix(".weight"))))
