"""Build on meta, adopt the tensors, name what is wrong: one way for every network.

A network is built without memory, its parameters are replaced by the file's tensors (mapped, not copied,
where the dtype is the same), and every name and shape is accounted for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from ..errors import CheckpointError
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

BF16 = PRECISIONS["bf16"]


def load_transformer(
    path: str | Path, variant: Variant | str, policy: PrecisionPolicy = BF16, *, ops=nn
) -> JointTransformer:
    """The joint transformer; its tensors do not show the variant, so it must be named."""
    row = VARIANTS[variant] if isinstance(variant, str) else variant
    checkpoint = open_kind(path, "transformer")
    config = TransformerConfig.from_shapes(checkpoint.shapes, row)
    return adopt(lambda: JointTransformer(config, ops=ops, dtype=policy.dtype), checkpoint)


def load_text_encoder(path: str | Path, policy: PrecisionPolicy = BF16, *, ops=nn) -> T5GemmaEncoder:
    """The encoder half of T5Gemma; a config.json beside the weights is read where there is one."""
    checkpoint = open_kind(path, "text_encoder")
    config = T5GemmaConfig.from_shapes(checkpoint.shapes, settings_beside(checkpoint, "num_hidden_layers"))
    return adopt(lambda: T5GemmaEncoder(config, ops=ops, dtype=policy.dtype), checkpoint)


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


def adopt(make: Callable[[], nn.Module], checkpoint: Checkpoint) -> nn.Module:
    """The network of ``make`` with the checkpoint's tensors, each in the dtype its parameter was built in."""
    with torch.device("meta"):
        network = make()
    wanted = network.state_dict()
    _check_names(wanted.keys(), checkpoint)
    shapes = checkpoint.shapes
    for name, parameter in wanted.items():
        if shapes[name] != tuple(parameter.shape):
            raise CheckpointError(
                f"{checkpoint.path}: {name} has shape {shapes[name]}; the other tensors ask for "
                f"{tuple(parameter.shape)}."
            )
    state = {name: checkpoint.tensor(name).to(parameter.dtype) for name, parameter in wanted.items()}
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


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
