"""Build on meta, adopt the tensors, name what is wrong: one way for every network.

A network is built without memory, its parameters are replaced by the file's tensors (mapped, not copied,
where the dtype is the same), and every name and shape is accounted for. Projections that a precision policy
quantises become layers that hold their weight in its stored form.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..kernels.quantised import QuantisedWeight, can_cut_rows
from ..model.audio_vae import OobleckConfig, OobleckVAE
from ..model.config import VARIANTS, TransformerConfig, Variant
from ..model.text_encoder import T5GemmaConfig, T5GemmaEncoder
from ..model.transformer import JointTransformer
from ..model.turbo_decoder import TurboConfig, TurboDecoder
from ..model.video_vae import Wan22VAE, WanConfig
from .checkpoint import Checkpoint, open_checkpoint
from .find import part_folder
from .header import read_json
from .keys import KINDS, map_names
from .layouts import published
from .precision import PRECISIONS, PrecisionPolicy
from .quantised_layers import QuantisedEmbedding, QuantisedLinear

AUTO, BF16 = PRECISIONS["auto"], PRECISIONS["bf16"]
EMBEDDING = "encoder.embed_tokens.weight"


def load_transformer(
    path: str | Path, variant: Variant | str, policy: PrecisionPolicy = AUTO, *, ops=nn
) -> JointTransformer:
    """The joint transformer; its tensors do not show the variant, so it must be named."""
    row = VARIANTS[variant] if isinstance(variant, str) else variant
    checkpoint = open_kind(path, "transformer")
    config = TransformerConfig.from_shapes(checkpoint.shapes, row)
    return adopt(
        lambda: JointTransformer(config, ops=ops, dtype=policy.dtype), checkpoint, policy, "transformer"
    )


def load_text_encoder(path: str | Path, policy: PrecisionPolicy = AUTO, *, ops=nn) -> T5GemmaEncoder:
    """The encoder half of T5Gemma; a config.json beside the weights is read where there is one."""
    checkpoint = open_kind(path, "text_encoder")
    config = text_encoder_config(checkpoint)
    # As in ComfyUI, a text encoder is never multiplied with quantised activations: it runs once a prompt.
    policy = replace(policy, products="weights")
    return adopt(
        lambda: T5GemmaEncoder(config, ops=ops, dtype=policy.dtype), checkpoint, policy, "text_encoder"
    )


def text_encoder_config(checkpoint: Checkpoint) -> T5GemmaConfig:
    """The encoder's sizes by its tensors and, where there is one, the config.json beside them."""
    return T5GemmaConfig.from_shapes(checkpoint.shapes, settings_beside(checkpoint, "num_hidden_layers"))


def load_video_vae(path: str | Path, policy: PrecisionPolicy = BF16, *, ops=nn) -> Wan22VAE:
    """The Wan 2.2 video autoencoder."""
    checkpoint = open_kind(path, "video_vae")
    config = WanConfig.from_shapes(checkpoint.shapes)
    return adopt(lambda: Wan22VAE(config, ops=ops, dtype=policy.dtype), checkpoint)


def load_turbo_decoder(path: str | Path, policy: PrecisionPolicy = BF16, *, ops=nn) -> TurboDecoder:
    """The Turbo video decoder; its windows come from the config JSON beside it where there is one."""
    checkpoint = open_kind(path, "turbo_decoder")
    config = TurboConfig.from_shapes(checkpoint.shapes, settings_beside(checkpoint, "first_chunk_size"))
    return adopt(lambda: TurboDecoder(config, ops=ops, dtype=policy.dtype), checkpoint)


def load_audio_vae(path: str | Path) -> OobleckVAE:
    """The Oobleck audio autoencoder, always in float32."""
    checkpoint = open_kind(path, "audio_vae")
    config = OobleckConfig.from_shapes(checkpoint.shapes)
    return adopt(lambda: OobleckVAE(config), checkpoint)


def open_kind(path: str | Path, kind: str) -> Checkpoint:
    """A checkpoint with the network's names, shapes and values, whatever layout and precision it is stored in.

    Raises CheckpointError saying what the file is instead.
    """
    checkpoint = open_checkpoint(part_folder(path, kind))
    try:
        return published(checkpoint.renamed(map_names(KINDS[kind], checkpoint.names)))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def adopt(
    make: Callable[[], nn.Module], checkpoint: Checkpoint, policy: PrecisionPolicy = BF16, kind: str = ""
) -> nn.Module:
    """The network of ``make`` with the checkpoint's tensors, each in the dtype its parameter was built in.

    ``kind`` names the row of ``keys.KINDS`` that says which weights ``policy`` may quantise; without one, none.
    """
    with torch.device("meta"):
        network = make()
    weights = read_weights(network, checkpoint, policy, kind)
    plain = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    for name, weight in weights.items():
        if isinstance(weight, QuantisedWeight):
            _install(network, name, weight, policy)
    network.load_state_dict(plain, strict=False, assign=True)
    return network.eval().requires_grad_(False)


def read_weights(
    network: nn.Module, checkpoint: Checkpoint, policy: PrecisionPolicy = BF16, kind: str = ""
) -> dict[str, Tensor | QuantisedWeight]:
    """What each parameter of a network (built on meta) is to hold, under its name.

    Raises CheckpointError where a name is missing or unknown, or a shape is another.
    """
    check_weights(network, checkpoint)
    pattern = KINDS[kind].projections if kind else None
    return {
        name: _weight(name, parameter, checkpoint, policy, pattern)
        for name, parameter in network.state_dict().items()
    }


def check_weights(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where a name is missing or unknown, or a shape is another."""
    wanted, shapes = network.state_dict(), checkpoint.shapes
    _check_names(wanted.keys(), checkpoint)
    for name, parameter in wanted.items():
        if shapes[name] != tuple(parameter.shape):
            raise CheckpointError(
                f"{checkpoint.path}: {name} has shape {shapes[name]}; the other tensors ask for "
                f"{tuple(parameter.shape)}."
            )


def _weight(name: str, parameter: Tensor, checkpoint: Checkpoint, policy: PrecisionPolicy, pattern):
    if pattern is not None and (policy.keeps or policy.quantise) and re.search(pattern, name):
        stored = checkpoint.quantised(name)
        if stored is not None and policy.keeps is not None and policy.keeps(stored):
            return stored
        if policy.quantise is not None:
            return policy.quantise(checkpoint.tensor(name))
    elif policy.keeps and name.endswith(EMBEDDING):
        # GGUF blocks: of 256,000 rows few are read.
        stored = checkpoint.quantised(name)
        if stored is not None and not stored.scales and can_cut_rows(stored):
            return stored
    return checkpoint.tensor(name).to(parameter.dtype)


def _install(network: nn.Module, name: str, weight: QuantisedWeight, policy: PrecisionPolicy) -> None:
    path = name.removesuffix(".weight")
    is_table = name.endswith(EMBEDDING)
    layer = QuantisedEmbedding(weight, policy.dtype) if is_table else QuantisedLinear(weight, policy.products)
    network.set_submodule(path, layer)


def settings_beside(checkpoint: Checkpoint, field: str) -> dict | None:
    """The JSON object with this field (at its top or under "encoder") beside the weights, or None."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    for file in sorted(folder.glob("*.json")):
        if file.name.endswith(".index.json") or file.stat().st_size > 1_000_000:  # a tokeniser is larger
            continue
        with suppress(CheckpointError):  # what is not a JSON object is not our settings
            content = read_json(file)
            if field in content or field in (content.get("encoder") or {}):
                return content
    return None


def _check_names(wanted, checkpoint: Checkpoint) -> None:
    missing = sorted(set(wanted) - set(checkpoint.names))
    unknown = sorted(set(checkpoint.names) - set(wanted))
    if missing or unknown:
        raise CheckpointError(
            f"{checkpoint.path}: {len(missing)} weights are missing (first: {missing[0] if missing else '-'}) and "
            f"{len(unknown)} are not known (first: {unknown[0] if unknown else '-'}). "
            "The file is incomplete, or of another model."
        )
