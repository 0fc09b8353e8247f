"""How much a model's weights take, by part and by block, from headers or from the published sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..errors import CheckpointError
from ..kernels.nf4 import BLOCK
from ..kernels.pitch import whole
from ..kernels.quantised import GROUPS
from ..model.audio_vae import OobleckConfig, OobleckVAE
from ..model.config import VARIANTS, TransformerConfig
from ..model.text_encoder import T5GemmaConfig, T5GemmaEncoder
from ..model.transformer import JointTransformer
from ..model.turbo_decoder import TurboConfig, TurboDecoder
from ..model.video_vae import Wan22VAE, WanConfig
from . import published
from .builder import settings_beside
from .checkpoint import Checkpoint, open_checkpoint
from .find import part_folder
from .host_weights import ALIGNMENT, aligned
from .keys import KINDS, map_names
from .layouts import read_layout
from .live_bytes import Stored
from .precision import PRECISIONS, precision
from .stored import Piece, bytes_of

# What a policy makes of a projection; "auto" is not among them, because there the file says it.
STORED: Mapping[str, Stored] = {
    "bf16": "plain",
    "fp8": "fp8",
    "fp8_rows": "fp8",
    "fp8_fast": "fp8_fast",
    "int8": "int8",
    "int8_weights": "int8_plain",
    "nf4": "decoded",
    "float32": "plain",
}
BY_FORMAT: Mapping[str, Stored] = {
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "int8_tensorwise": "int8_plain",
}
_BLOCK = re.compile(r"block\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Weights:
    """One network's weights in memory, in bytes."""

    title: str
    nbytes: int
    stored: Stored = "plain"  # of its projections
    itemsize: int = 2  # of what passes between projections
    is_made: bool = False  # in the host's memory, because the file has them otherwise; else they are mapped


@dataclass(frozen=True, slots=True)
class Network(Weights):
    """A transformer's, block by block."""

    config: TransformerConfig | None = None
    blocks: tuple[int, ...] = ()

    @property
    def outside(self) -> int:
        """Of the adapter and the heads, which are never swapped."""
        return self.nbytes - sum(self.blocks)


@dataclass(frozen=True, slots=True)
class Model:
    """The parts a film is made with; ``precision`` is what was asked for."""

    precision: str
    transformer: Network
    super_resolution: Network | None
    text_encoder: Weights
    video_vae: Weights
    turbo_decoder: Weights
    audio_vae: Weights
    turbo: TurboConfig = published.TURBO
    text: T5GemmaConfig = published.TEXT_ENCODER
    audio: OobleckConfig = published.OOBLECK


def published_model(chosen: str, variant: str = "distilled", super_resolution: str = "none") -> Model:
    """The published model in this precision; "auto" is bf16, as it was published."""
    return read_model({}, chosen, variant, super_resolution)


def read_model(
    files: Mapping[str, str | Path | None],
    chosen: str = "auto",
    variant: str = "distilled",
    super_resolution: str = "none",
) -> Model:
    """The sizes of these files, from their headers; a part without a file has its published size.

    ``files`` has the names of Model's parts. Raises CheckpointError for a file that is not that part.
    """
    precision(chosen)
    sr = None
    if super_resolution != "none":
        sr = _network(files.get("super_resolution"), f"sr_{super_resolution}", chosen)
    text, text_config = _text_encoder(files.get("text_encoder"), chosen)
    dtype = torch.float32 if chosen == "float32" else torch.bfloat16
    turbo = _config(
        files.get("turbo_decoder"),
        "turbo_decoder",
        TurboConfig.from_shapes,
        published.TURBO,
        "first_chunk_size",
    )
    wan = _config(files.get("video_vae"), "video_vae", WanConfig.from_shapes, published.WAN)
    audio = _config(files.get("audio_vae"), "audio_vae", OobleckConfig.from_shapes, published.OOBLECK)
    size = dtype.itemsize
    return Model(
        chosen,
        _network(files.get("transformer"), variant, chosen),
        sr,
        text,
        Weights("Wan VAE", _built(lambda: Wan22VAE(wan, dtype=dtype)), itemsize=size),
        Weights("Turbo decoder", _built(lambda: TurboDecoder(turbo, dtype=dtype)), itemsize=size),
        Weights("audio VAE", _built(lambda: OobleckVAE(audio)), itemsize=4),
        turbo,
        text_config,
        audio,
    )


def without_super_resolution(model: Model) -> Model:
    """The same parts for a film of one stage."""
    return replace(model, super_resolution=None)


def projection_weight_bytes(stored: str, outputs: int, inputs: int) -> int:
    """Of a projection that a policy quantised, with its scales; ``stored`` is a precision's name."""
    count = outputs * inputs
    if stored in ("fp8", "fp8_fast", "fp8_rows"):
        return count + (4 * outputs if stored == "fp8_rows" else 4)
    if stored == "int8":
        return (count // inputs) * -(-inputs // _group(inputs)) * _group(inputs) + 4 * outputs
    if stored == "int8_weights":
        return count + 4 * outputs
    if stored == "nf4":
        return -(-count // 2) + 4 * -(-count // BLOCK) + 64
    return count * PRECISIONS[stored].dtype.itemsize


def _zeros_behind(network: nn.Module, name: str, stored: Stored, itemsize: int) -> int:
    """Bytes of the zeros behind a weight's rows where slots and cards lay them out in whole inputs."""
    layer, _, key = name.rpartition(".")
    shape = network.get_parameter(name).shape if key == "weight" else ()
    if len(shape) != 2 or not getattr(network.get_submodule(layer), "takes_spread_weight", False):
        return 0
    entry = itemsize if stored == "plain" else int(stored in _ONE_BYTE)
    return shape[0] * (whole(shape[1]) - shape[1]) * entry


def _group(inputs: int) -> int:
    return next((size for size in GROUPS if size <= inputs), GROUPS[-1])


_ONE_BYTE: tuple[Stored, ...] = ("fp8", "fp8_fast", "int8_plain")


def _network(path, variant: str, chosen: str) -> Network:
    plain, pieces, shapes = _headers(path, "transformer")
    config = (
        TransformerConfig.from_shapes(shapes, VARIANTS[variant]) if path else published.transformer(variant)
    )
    dtype = PRECISIONS[chosen].dtype
    with torch.device("meta"):
        network = JointTransformer(config, dtype=dtype)
    sizes = _sizes(network, "transformer", plain, pieces, chosen)
    blocks = [[] for _ in config.blocks]
    stored = _stored(pieces, "transformer", chosen)
    for name, nbytes in sizes.items():
        if found := _BLOCK.match(name):
            # As block swap lays them out; a quantised weight is three tensors at the most.
            parts = 2 if stored != "plain" and name.endswith("weight") and nbytes > ALIGNMENT else 0
            nbytes += _zeros_behind(network, name, stored, dtype.itemsize)
            blocks[int(found[1])].append(aligned(nbytes) + parts * ALIGNMENT)
    blocks = tuple(sum(block) for block in blocks)
    outside = sum(nbytes for name, nbytes in sizes.items() if not _BLOCK.match(name))
    return Network(
        "transformer",
        sum(blocks) + outside,
        stored,
        dtype.itemsize,
        _is_made(plain, pieces, "transformer", chosen),
        config,
        blocks,
    )


def _text_encoder(path, chosen: str) -> tuple[Weights, T5GemmaConfig]:
    plain, pieces, shapes = _headers(path, "text_encoder")
    config = published.TEXT_ENCODER
    if path:
        config = T5GemmaConfig.from_shapes(shapes, settings_beside(plain, "num_hidden_layers"))
    dtype = PRECISIONS[chosen].dtype
    with torch.device("meta"):
        network = T5GemmaEncoder(config, dtype=dtype)
    sizes = _sizes(network, "text_encoder", plain, pieces, chosen)
    stored = _stored(pieces, "text_encoder", chosen)
    # It multiplies with weights only: rotated INT8 is turned back, and FP8 is never multiplied as it is.
    stored = {"int8": "decoded", "fp8_fast": "fp8"}.get(stored, stored)
    made = _is_made(plain, pieces, "text_encoder", chosen)
    return Weights("text encoder", sum(sizes.values()), stored, dtype.itemsize, made), config


def _config(path, kind: str, read, default, *fields: str):
    """What ``read`` makes of the file's shapes, and of the JSON beside it that has one of ``fields``."""
    if not path:
        return default
    plain, _, shapes = _headers(path, kind)
    return read(shapes, *(settings_beside(plain, field) for field in fields))


def _headers(
    path, kind: str
) -> tuple[Checkpoint | None, Mapping[str, tuple[Piece, ...]], dict[str, tuple[int, ...]]]:
    """The checkpoint, what its published tensors are made of, and their shapes; nothing without a path."""
    if path is None:
        return None, {}, {}
    checkpoint = open_checkpoint(part_folder(path, kind))
    try:
        plain = checkpoint.renamed(map_names(KINDS[kind], checkpoint.names))
        layout = read_layout(plain)
        if layout.refusal:
            raise CheckpointError(layout.refusal)
        return plain, layout.weights, layout.view(plain).shapes
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _sizes(
    network: nn.Module, kind: str, plain: Checkpoint | None, pieces: Mapping, chosen: str
) -> dict[str, int]:
    """Bytes of every tensor as the builder would keep it."""
    sizes = {}
    for name, tensor in network.state_dict().items():
        nbytes = tensor.numel() * tensor.element_size()
        if re.search(KINDS[kind].projections, name):
            if chosen != "auto":
                nbytes = projection_weight_bytes(chosen, *tensor.shape)
            elif _is_quantised(pieces.get(name, ())):
                nbytes = bytes_of(pieces[name], plain)
        sizes[name] = nbytes
    return sizes


def _stored(pieces: Mapping, kind: str, chosen: str) -> Stored:
    """How most of the projections are kept."""
    if chosen != "auto":
        return STORED[chosen]
    first = next((found for name, found in pieces.items() if re.search(KINDS[kind].projections, name)), ())
    if not _is_quantised(first):
        return "plain"
    piece = first[0]
    if piece.format == "int8_tensorwise" and piece.settings.get("convrot"):
        return "int8"
    return BY_FORMAT.get(piece.format, "decoded")


def _is_made(plain: Checkpoint | None, pieces: Mapping, kind: str, chosen: str) -> bool:
    """Whether loading writes weights into the host's memory instead of mapping the file's."""
    if plain is None:
        return False  # a file that is bought for this precision
    wanted = "float32" if chosen == "float32" else "bfloat16"
    for name, found in pieces.items():
        if not re.search(KINDS[kind].projections, name):
            continue
        if len(found) > 1:
            return True  # stacked
        if _is_quantised(found):
            return chosen != "auto" and STORED[chosen] != BY_FORMAT.get(found[0].format)
        return STORED.get(chosen, "plain") != "plain" or found[0].dtype != wanted
    return False


def _is_quantised(pieces) -> bool:
    return bool(pieces) and all(piece.format for piece in pieces)


def _built(make) -> int:
    with torch.device("meta"):
        state = make().state_dict()
    return sum(math.prod(tensor.shape) * tensor.element_size() for tensor in state.values())
