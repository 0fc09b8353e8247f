"""Tensor names in GGUF files of a T5Gemma encoder, in Hugging Face's or llama.cpp's style, as the published ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import CheckpointError
from .gguf_header import Entry

# A tensor of one layer, and what llama.cpp and its relatives call it.
LAYER = {
    "self_attn.q_proj": ("attn_q",),
    "self_attn.k_proj": ("attn_k",),
    "self_attn.v_proj": ("attn_v",),
    "self_attn.o_proj": ("attn_o", "attn_output"),
    "mlp.gate_proj": ("ffn_gate",),
    "mlp.up_proj": ("ffn_up",),
    "mlp.down_proj": ("ffn_down",),
    "pre_self_attn_layernorm": ("attn_norm",),
    "post_self_attn_layernorm": ("attn_post_norm", "post_attention_norm"),
    "pre_feedforward_layernorm": ("ffn_norm",),
    "post_feedforward_layernorm": ("ffn_post_norm", "post_ffw_norm"),
}
OUTSIDE = {"embed_tokens": ("token_embd",), "norm": ("output_norm",)}
# In order: (what the file says, the published name); the first pattern that takes the whole name decides.
RENAMES = (
    *(
        (rf"(?:enc\.)?blk\.(\d+)\.{theirs}\.weight", rf"encoder.layers.\1.{ours}.weight")
        for ours, spellings in LAYER.items()
        for theirs in spellings
    ),
    *(
        (rf"(?:enc\.)?{theirs}\.weight", f"encoder.{ours}.weight")
        for ours, spellings in OUTSIDE.items()
        for theirs in spellings
    ),
    (r"enc\.(.+)", r"encoder.\1"),  # not known: reported as such
    (r"blk\.(.+)", r"encoder.\1"),
    (r"dec\.(.+)", r"decoder.\1"),
    (r"output\.weight", "lm_head.weight"),
    (r"(?:model\.)?(.+)", r"\1"),
)


def published_tensors(path: Path, tensors: Mapping[str, Entry], fields: Mapping) -> dict[str, Entry]:
    """The tensors by their published names, if they are those of one whole T5Gemma encoder."""
    found: dict[str, str] = {}
    for name in tensors:
        new = published_name(name)
        if new in found:
            raise CheckpointError(
                f"{path} holds {new[:80]} twice, as {found[new][:80]} and as {name[:80]}; take another file."
            )
        found[new] = name
    have = {name for name in found if name.startswith("encoder.")}
    layers = {match[1] for name in have if (match := re.match(r"encoder\.layers\.(\d+)\.", name))}
    wanted = {f"encoder.{name}.weight" for name in OUTSIDE}
    wanted |= {f"encoder.layers.{i}.{name}.weight" for i in range(max(len(layers), 1)) for name in LAYER}
    missing, unknown = sorted(wanted - have), sorted(found[name] for name in have - wanted)
    architecture = fields.get("general.architecture", "not named")
    if missing or unknown:
        parts = fields.get("split.count", 0)
        advice = (
            f"It is one of {parts} parts: join them with llama-gguf-split --merge."
            if isinstance(parts, int) and parts > 1
            else "Take a GGUF file of google/t5gemma-9b-9b-ul2 with all of its encoder."
        )
        raise CheckpointError(
            f"{path} is not a whole T5Gemma encoder. Its architecture is {architecture!r}; {len(missing)} of the "
            f"encoder's tensors are missing (first: {missing[0] if missing else '-'}) and {len(unknown)} are not known "
            f"(first: {unknown[0][:80] if unknown else '-'}); it holds {', '.join(name[:80] for name in list(tensors)[:3]) or 'none'}. {advice}"
        )
    told = (path.name, architecture, fields.get("general.name", ""), fields.get("general.basename", ""))
    is_told = any("t5gemma" in re.sub(r"[^a-z0-9]", "", str(text).lower()) for text in told)
    if "blk.0.attn_q.weight" in tensors and not is_told:
        raise CheckpointError(
            f"{path} has the tensors of a Gemma 2 language model (architecture {architecture!r}), and a T5Gemma "
            "encoder has the same. If it is the encoder, put 't5gemma' into the file's name; a Gemma model "
            "cannot take its place."
        )
    return {new: tensors[old] for new, old in found.items()}


def published_name(name: str) -> str:
    """The Hugging Face name, without "model.", of a tensor under either style's name."""
    for pattern, new in RENAMES:
        if match := re.fullmatch(pattern, name, re.DOTALL):
            return match.expand(new)
    return name


def is_llama_style(names: Iterable[str]) -> bool:
    return any(re.match(r"(enc\.)?blk\.\d", name) for name in names)
