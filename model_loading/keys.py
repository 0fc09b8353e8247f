"""The kinds of weight files and how their tensors' names are mapped to the network's, as data.

In memory the names are the published checkpoint's: "block.layers.0.attention.linear_qkv.weight" for the
transformer, "encoder.layers.0.…" for the text encoder, and each autoencoder's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of network: what its file is recognised by, and what its names are called elsewhere."""

    name: str
    title: str  # in messages, after "the"
    signature: str  # a tensor that no other kind has
    prefixes: tuple[str, ...]  # what may stand before every name, the longest first
    renames: tuple[tuple[str, str], ...] = ()  # regular expressions, applied after the prefix is gone
    ignored: tuple[str, ...] = ()  # names, as regular expressions, that the network does not have


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "transformer",
            "audio-video transformer",
            "adapter.video_embedder.weight",
            ("model.diffusion_model.", "diffusion_model.", ""),
        ),
        Kind(
            "text_encoder",
            "T5Gemma text encoder",
            "encoder.layers.0.pre_self_attn_layernorm.weight",
            ("model.", ""),
            ignored=(r"decoder\.", r"lm_head\.", r"spiece_model$", r"tokenizer_json$"),
        ),
        Kind(
            "video_vae",
            "Wan 2.2 video autoencoder",
            "decoder.upsamples.0.upsamples.0.residual.2.weight",
            ("first_stage_model.", "vae.", ""),
        ),
        Kind(
            "turbo_decoder",
            "Turbo video decoder",
            "decoder.up_blocks.0.resnets.0.conv1.conv.weight",
            ("module.", ""),
            renames=((r"^(?=(conv_in|mid_block|up_blocks|conv_out)\.)", "decoder."),),
            # What only training used: the encoder side and projections to a teacher's features.
            ignored=(r"(?!decoder\.)", r"decoder\.aligned_"),
        ),
        Kind(
            "audio_vae",
            "Oobleck audio autoencoder",
            "decoder.layers.1.layers.1.weight_v",
            ("pretransform.model.", "first_stage_model.", ""),
            renames=(
                (r"\.parametrizations\.weight\.original0$", ".weight_g"),
                (r"\.parametrizations\.weight\.original1$", ".weight_v"),
            ),
        ),
    )
}


def kind_of(names: Iterable[str]) -> Kind | None:
    """Which network a file's names belong to, or None."""
    names = set(names)
    return next((kind for kind in KINDS.values() if _prefix(kind, names) is not None), None)


def map_names(kind: Kind, names: Iterable[str]) -> dict[str, str]:
    """{name in the file: name in the network}, without what the network does not have.

    Raises CheckpointError when the file is of another kind, and says which.
    """
    names = set(names)
    prefix = _prefix(kind, names)
    if prefix is None:
        other = kind_of(names)
        what = (
            f"It is the {other.title}."
            if other
            else f"It holds {len(names)} tensors, such as {_some(names)}."
        )
        raise CheckpointError(f"This file is not the {kind.title}. {what}")
    mapped = {}
    for name in sorted(names):
        if name.startswith(prefix):
            new = _renamed(kind, name[len(prefix) :])
            if not any(re.match(pattern, new) for pattern in kind.ignored):
                mapped[name] = new
    return mapped


def _prefix(kind: Kind, names: set[str]) -> str | None:
    for prefix in kind.prefixes:
        if any(
            _renamed(kind, name[len(prefix) :]) == kind.signature for name in names if name.startswith(prefix)
        ):
            return prefix
    return None


def _renamed(kind: Kind, name: str) -> str:
    for pattern, replacement in kind.renames:
        name = re.sub(pattern, replacement, name)
    return name


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) or "none"
