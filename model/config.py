"""What a transformer checkpoint is: sizes read off its tensors, and what its variant adds.

The tensors show every size, which layers have weights per modality and which activation they use. They
do not show the variant: base, distilled and both super-resolution checkpoints have the same names and
shapes, so coordinates and local layers come from the row of ``VARIANTS`` that the user or loader names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import CheckpointError
from .tensor_shapes import TensorShapes

_LAYER = re.compile(r"block\.layers\.(\d+)\.")
MODALITIES = 3  # video, audio, text: the order of stacked rows and of the sequence


@dataclass(frozen=True, slots=True)
class Variant:
    """What distinguishes checkpoints of equal shape."""

    name: str
    coordinates: Literal["v1", "v2"]
    global_layers: frozenset[int] | None = None  # None: no layer is local
    window: int = 11  # frames to each side that a local layer's video tokens see


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("base", "v2"),
        Variant("distilled", "v2"),
        Variant("sr_540p", "v1"),
        # Of 40 layers 3, 7, … 31 attend everywhere; the tail 32-39 is all local.
        Variant("sr_1080p", "v1", global_layers=frozenset(range(3, 32, 4))),
    )
}


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """One transformer block."""

    per_modality: bool
    activation: Literal["swiglu7", "gelu7"]
    inner_size: int  # entries between the two feed-forward layers, after the activation
    is_local: bool = False


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """The shape of the network as a value that can be printed."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    video_features: int  # per token: channels * 1 * 2 * 2
    audio_features: int
    text_features: int
    bands: int  # rotary frequencies per axis; head_dim / 8 in the published model
    blocks: tuple[BlockSpec, ...]
    coordinates: Literal["v1", "v2"] = "v2"
    window: int = 11

    @property
    def qkvg_split(self) -> tuple[int, int, int, int]:
        """Rows of q, k, v and gate in one modality's part of the fused projection."""
        keys = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, keys, keys, self.num_heads

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], variant: Variant) -> TransformerConfig:
        """Read every size off the tensors' shapes, which have the published checkpoint's names.

        Raises CheckpointError, with the tensor's name, where the sizes do not make a network. Whether each
        tensor is there in its shape shows when they are adopted.
        """
        tensors = TensorShapes("audio-video transformer", shapes)
        layers = sorted({int(found[1]) for name in shapes if (found := _LAYER.match(name))})
        if not layers or layers != list(range(len(layers))):
            raise CheckpointError(
                f"The transformer's layers are numbered {_short(layers)}; 0 to {len(layers) - 1} are expected. "
                "A shard may be missing."
            )
        hidden, video_features = tensors.channels("adapter.video_embedder.weight", 2)
        blocks = tuple(_block_spec(tensors, layer, hidden, variant) for layer in layers)
        first = "block.layers.0.attention"
        parts = MODALITIES if blocks[0].per_modality else 1
        head_dim = _part(tensors, f"{first}.q_norm.weight", parts)
        bands = _part(tensors, "adapter.rope.bands", 1)
        if 6 * bands > head_dim:
            raise tensors.wrong(
                "adapter.rope.bands", f"would rotate {6 * bands} of {head_dim} entries of a head"
            )
        heads, rest = divmod(tensors.channels(f"{first}.linear_proj.weight", 2)[1], head_dim)
        if rest or not heads:
            raise tensors.wrong(
                f"{first}.linear_proj.weight", f"does not read whole heads of {head_dim} entries"
            )
        rows = _part(tensors, f"{first}.linear_qkv.weight", parts, axes=2)
        kv_heads, rest = divmod(rows - heads * (head_dim + 1), 2 * head_dim)
        if rest or kv_heads < 1 or heads % kv_heads:
            raise tensors.wrong(
                f"{first}.linear_qkv.weight",
                f"has {rows} rows per modality, which is not q, k, v and one gate for each of {heads} heads of "
                f"{head_dim} entries",
            )
        return cls(
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            video_features=video_features,
            audio_features=tensors.channels("adapter.audio_embedder.weight", 2)[1],
            text_features=tensors.channels("adapter.text_embedder.weight", 2)[1],
            bands=bands,
            blocks=blocks,
            coordinates=variant.coordinates,
            window=variant.window,
        )


def _block_spec(tensors: TensorShapes, layer: int, hidden: int, variant: Variant) -> BlockSpec:
    prefix = f"block.layers.{layer}"
    norm = tensors[f"{prefix}.attention.pre_norm.weight"]
    if norm not in ((hidden,), (MODALITIES * hidden,)):
        raise tensors.wrong(
            f"{prefix}.attention.pre_norm.weight",
            f"is neither {hidden} (shared) nor {MODALITIES * hidden} (per modality)",
        )
    parts = norm[0] // hidden
    up = _part(tensors, f"{prefix}.mlp.up_gate_proj.weight", parts, axes=2)
    inner = tensors.channels(f"{prefix}.mlp.down_proj.weight", 2)[1]
    activation = {inner: "gelu7", 2 * inner: "swiglu7"}.get(up)
    if activation is None:
        raise tensors.wrong(
            f"{prefix}.mlp.up_gate_proj.weight",
            f"makes {up} features where down_proj reads {inner}: equal is GELU7, two to one is SwiGLU7",
        )
    is_local = variant.global_layers is not None and layer not in variant.global_layers
    return BlockSpec(parts == MODALITIES, activation, inner, is_local)


def _part(tensors: TensorShapes, name: str, parts: int, axes: int = 1) -> int:
    """Rows of one modality in a tensor that stacks ``parts`` of them."""
    rows, rest = divmod(tensors[name][0], parts)
    if len(tensors[name]) != axes or rest or not rows:
        raise tensors.wrong(name, f"does not hold {parts} equal part(s) in {axes} dimension(s)")
    return rows


def _short(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    return f"{shown}, …" if len(numbers) > 6 else shown or "not at all"
