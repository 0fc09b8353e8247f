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
    projections: str | None = None  # names, as a regular expression, of the weights that may be quantised
    folder: str = ""  # where a diffusers pipeline folder, one with a model_index.json, keeps it


# What some files split by modality and by use -> the tensor the parts make.
SPLITS = (
    (r"\.linear_(?P<part>[qkvg])(?:_(?P<modality>video|audio|text))?\.weight$", ".linear_qkv.weight"),
    (
        r"\.(?P<base>linear_qkv|linear_proj|up_gate_proj|down_proj)_(?P<modality>video|audio|text)\.weight$",
        r".\g<base>.weight",
    ),
)
# The order of stacked rows: [q | k | v | g] within [video | audio | text].
MODALITY_ORDER, PARTS = ("video", "audio", "text"), ("q", "k", "v", "g")

# optimum-quanto calls a quantised weight "….weight._data" and puts "….weight._scale" beside it.
QUANTO = ((r"\._data$", ""),)

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "transformer",
            "audio-video transformer",
            "adapter.video_embedder.weight",
            ("model.diffusion_model.", "diffusion_model.", ""),
            renames=QUANTO,
            projections=r"\.(linear_qkv|linear_proj|up_gate_proj|down_proj)\.weight$",
            folder="transformer",
        ),
        Kind(
            "text_encoder",
            "T5Gemma text encoder",
            "encoder.layers.0.pre_self_attn_layernorm.weight",
            ("model.", ""),
            renames=QUANTO,
            projections=r"\.(self_attn|mlp)\.\w+_proj\.weight$",
            folder="text_encoder",
            ignored=(r"decoder\.", r"lm_head\.", r"spiece_model$", r"tokenizer_json$"),
        ),
        Kind(
            "video_vae",
            "Wan 2.2 video autoencoder",
            "decoder.upsamples.0.upsamples.0.residual.2.weight",
            ("first_stage_model.", "vae.", ""),
            folder="vae",
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
            folder="audio_vae",
        ),
    )
}


def kind_of(names: Iterable[str]) -> Kind | None:
    """Which network a file's names belong to, or None."""
    names = set(names)
    return next((kind for kind in KINDS.values() if prefix_of(kind, names) is not None), None)


def map_names(kind: Kind, names: Iterable[str]) -> dict[str, str]:
    """{name in the file: name in the network}, without what the network does not have.

    Raises CheckpointError when the file is of another kind, and says which.
    """
    names = set(names)
    prefix = prefix_of(kind, names)
    if prefix is None:
        other = kind_of(names)
        what = (
            f"It is the {other.title}."
            if other
            else f"It holds {len(names)} tensors, such as {_some(names)}."
        )
        raise CheckpointError(f"This file is not the {kind.title}. {what}")
    mapped: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in sorted(names):
        if name.startswith(prefix):
            new = _renamed(kind, name[len(prefix) :])
            if not any(re.match(pattern, new) for pattern in kind.ignored):
                if new in taken:
                    raise CheckpointError(f"{taken[new]} and {name} are both the tensor {new}.")
                mapped[name], taken[new] = new, name
    return mapped


def prefix_of(kind: Kind, names: Iterable[str]) -> str | None:
    """What stands before every name of a file of this kind, or None where it is of another."""
    for prefix in kind.prefixes:
        if any(
            _renamed(kind, name[len(prefix) :]) == kind.signature for name in names if name.startswith(prefix)
        ):
            return prefix
    return None


def joined(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """{published name: the names of its parts in the order of its rows}; what is whole is its own part.

    Raises CheckpointError for a part that is missing or one too many.
    """
    whole: dict[str, tuple[str, ...]] = {}
    groups: dict[str, dict[tuple[str | None, str | None], str]] = {}
    for name in names:
        for pattern, base in SPLITS:
            if found := re.search(pattern, name):
                fields = found.groupdict()
                place = fields["modality"], fields.get("part")
                groups.setdefault(re.sub(pattern, base, name), {})[place] = name
                break
        else:
            whole[name] = (name,)
    for name, group in groups.items():
        modalities = MODALITY_ORDER if any(modality for modality, _ in group) else (None,)
        parts = PARTS if any(part for _, part in group) else (None,)
        places = [(modality, part) for modality in modalities for part in parts]
        if name in whole or set(group) != set(places):
            absent = [" ".join(filter(None, place)) for place in places if place not in group]
            raise CheckpointError(
                f"{name} is stored in parts, and "
                + (f"its part {absent[0]} is missing." if absent else "as a whole, or in parts of two kinds.")
            )
        whole[name] = tuple(group[place] for place in places)
    return whole


def _renamed(kind: Kind, name: str) -> str:
    for pattern, replacement in kind.renames:
        name = re.sub(pattern, replacement, name)
    return name


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) or "none"
