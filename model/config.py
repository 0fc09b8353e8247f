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
        """Read every size off the tensors' shapes (layout A's names, see ``model_loading.keys``).

        Raises CheckpointError where a tensor is missing or its shape contradicts the others.
        """
        read = _Reader(shapes)
        hidden = read("adapter.video_embedder.weight", 2)[0]
        layers = sorted(
            {int(found[1]) for name in shapes if (found := re.match(r"block\.layers\.(\d+)\.", name))}
        )
        if not layers or layers != list(range(len(layers))):
            raise CheckpointError(
                f"The transformer's layers are numbered {_short(layers)}; 0 to {len(layers) - 1} are expected. "
                "A shard may be missing."
            )
        blocks = tuple(_block_spec(read, layer, hidden, variant) for layer in layers)
        parts = MODALITIES if blocks[0].per_modality else 1
        head_dim = read("block.layers.0.attention.q_norm.weight", 1)[0] // parts
        heads = read("block.layers.0.attention.linear_proj.weight", 2)[1] // head_dim
        rows = read("block.layers.0.attention.linear_qkv.weight", 2)[0] // parts
        kv_heads, rest = divmod(rows - heads * (head_dim + 1), 2 * head_dim)
        if rest or kv_heads < 1 or heads % kv_heads:
            raise CheckpointError(
                f"block.layers.0.attention.linear_qkv.weight has {rows} rows per modality, which is not q, k, v "
                f"and one gate for each of {heads} heads of {head_dim} entries."
            )
        return cls(
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            video_features=read("adapter.video_embedder.weight", 2)[1],
            audio_features=read("adapter.audio_embedder.weight", 2)[1],
            text_features=read("adapter.text_embedder.weight", 2)[1],
            bands=read("adapter.rope.bands", 1)[0],
            blocks=blocks,
            coordinates=variant.coordinates,
            window=variant.window,
        )


class _Reader:
    """Shapes by name, with an error that names what is missing or has the wrong number of axes."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = shapes

    def __call__(self, name: str, axes: int) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None:
            raise CheckpointError(f"The tensor {name} is missing from the transformer's weights.")
        if len(shape) != axes:
            raise CheckpointError(f"{name} has shape {tuple(shape)}; {axes} axes are expected.")
        return tuple(shape)


def _block_spec(read: _Reader, layer: int, hidden: int, variant: Variant) -> BlockSpec:
    prefix = f"block.layers.{layer}"
    norm = read(f"{prefix}.attention.pre_norm.weight", 1)[0]
    if norm not in (hidden, MODALITIES * hidden):
        raise CheckpointError(
            f"{prefix}.attention.pre_norm.weight has {norm} entries; {hidden} (shared) or "
            f"{MODALITIES * hidden} (per modality) are expected."
        )
    parts = norm // hidden
    up = read(f"{prefix}.mlp.up_gate_proj.weight", 2)[0] // parts
    inner = read(f"{prefix}.mlp.down_proj.weight", 2)[1]
    activation = {inner: "gelu7", 2 * inner: "swiglu7"}.get(up)
    if activation is None:
        raise CheckpointError(
            f"{prefix}.mlp.up_gate_proj.weight makes {up} features and down_proj reads {inner}; "
            "they should be equal (GELU7) or two to one (SwiGLU7)."
        )
    is_local = variant.global_layers is not None and layer not in variant.global_layers
    return BlockSpec(parts == MODALITIES, activation, inner, is_local)


def _short(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    return f"{shown}, …" if len(numbers) > 6 else shown or "not at all"
