"""A tiny model set with random weights in the layouts that real files have.

The tensors have the real names, 48 video and 64 audio latent channels, and widths of a few dozen; what they
make is noise. It is there so that every path from file to film can be walked in seconds, anywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..model.audio_vae import OobleckConfig, OobleckVAE, StackConfig
from ..model.config import BlockSpec, TransformerConfig
from ..model.text_encoder import T5GemmaConfig, T5GemmaEncoder
from ..model.transformer import JointTransformer
from ..model.turbo_decoder import TurboConfig, TurboDecoder, TurboStage
from ..model.video_vae import StageConfig, Wan22VAE, WanConfig
from ..shapes import AUDIO_CHANNELS, VIDEO_CHANNELS

HIDDEN = 64
SEED = 2026

# Per-modality weights and GELU7 at the ends, shared SwiGLU7 in between, as in the published 40 layers.
EDGE_IN, EDGE_OUT = BlockSpec(True, "gelu7", 4 * HIDDEN), BlockSpec(True, "swiglu7", 168)
SHARED = BlockSpec(False, "swiglu7", 168)
TRANSFORMER = TransformerConfig(
    hidden_size=HIDDEN,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    video_features=4 * VIDEO_CHANNELS,
    audio_features=AUDIO_CHANNELS,
    text_features=HIDDEN,
    bands=2,
    blocks=(EDGE_IN, EDGE_IN, SHARED, SHARED, SHARED, SHARED, EDGE_OUT, EDGE_OUT),
)
SPECIAL_PIECES = ("<pad>", "<eos>", "<bos>", "<unk>")
PIECES = (
    *SPECIAL_PIECES,
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "▁",
    *(chr(code) for code in range(0x21, 0x7F)),
    *"äöüéèàçœßñ。，？！、…「」",
)
TEXT_ENCODER = T5GemmaConfig(
    vocab_size=len(PIECES),
    hidden_size=HIDDEN,
    intermediate_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    sliding_layers=(True, False),
    sliding_window=4096,
    query_pre_attn_scalar=16,
    softcap=50.0,
    rope_theta=10_000.0,
    eps=1e-6,
)
VIDEO_VAE = WanConfig(
    encoder=(
        StageConfig(8, 8, 2, space=2, time=1),
        StageConfig(8, 16, 2, space=2, time=2),
        StageConfig(16, 32, 2, space=2, time=2),
        StageConfig(32, 32, 2, space=1, time=1),
    ),
    decoder=(
        StageConfig(32, 32, 3, space=2, time=2),
        StageConfig(32, 32, 3, space=2, time=2),
        StageConfig(32, 16, 3, space=2, time=1),
        StageConfig(16, 8, 3, space=1, time=1),
    ),
    latent_channels=VIDEO_CHANNELS,
    patch=2,
)
TURBO_DECODER = TurboConfig(
    latent_channels=VIDEO_CHANNELS,
    middle_blocks=2,
    stages=(
        TurboStage(32, 32, 2, doubles_space=True, doubles_time=True),
        TurboStage(32, 16, 1, doubles_space=True, doubles_time=True),
        TurboStage(16, 16, 1, doubles_space=True, doubles_time=False),
        TurboStage(16, 8, 1, doubles_space=False, doubles_time=False),
    ),
    patch=2,
)
AUDIO_VAE = OobleckConfig(
    audio_channels=2,
    latent_channels=AUDIO_CHANNELS,
    encoder=StackConfig((4, 4, 8, 16, 32, 64), (2, 4, 4, 8, 8)),
    decoder=StackConfig((64, 32, 16, 8, 4, 4), (8, 8, 4, 4, 2)),
)


def write_tiny_set(folder: str | Path, seed: int = SEED) -> list[Path]:
    """Write the set below ``folder``, laid out like ComfyUI's ``models``; returns what was written.

    Between them the parts use every layout that is read: shards with an index, single files, a prefix before
    the names, float32 where the network wants bfloat16, and the pickles of the video decoders.
    """
    folder = Path(folder)
    for name in ("diffusion_models", "text_encoders", "vae"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    transformers, vaes = folder / "diffusion_models", folder / "vae"

    def transformer(number: int) -> dict[str, Tensor]:
        return _random_state(lambda: JointTransformer(TRANSFORMER), seed + number)

    written = _write_shards(transformers / "happyhorse_tiny_base", "model", transformer(0), shards=2)
    for number, name, dtype in ((1, "distilled", None), (2, "sr_540p", torch.float32), (3, "sr_1080p", None)):
        state = transformer(number)
        if name == "sr_1080p":
            state = {f"model.diffusion_model.{key}": tensor for key, tensor in state.items()}
        state = {key: tensor.to(dtype or tensor.dtype) for key, tensor in state.items()}
        written.append(_write(transformers / f"happyhorse_tiny_{name}.safetensors", state))

    encoder = _random_state(lambda: T5GemmaEncoder(TEXT_ENCODER), seed + 4)
    text = folder / "text_encoders" / "t5gemma_tiny"
    written += _write_shards(
        text, "model", {f"model.{key}": tensor for key, tensor in encoder.items()}, shards=2
    )
    written.append(_write_json(text / "config.json", {"encoder": _text_settings()}))
    written.append(_write_json(text / "tokenizer.json", byte_tokenizer()))

    wan = _random_state(lambda: Wan22VAE(VIDEO_VAE, dtype=torch.float32), seed + 5)
    written.append(_save_pickle(vaes / "Wan2.2_VAE_tiny.pth", wan))
    turbo = _random_state(lambda: TurboDecoder(TURBO_DECODER, dtype=torch.float32), seed + 6)
    (vaes / "turbo_vae_tiny").mkdir(exist_ok=True)
    trained = {"ema_state_dict": {f"module.{key}": tensor for key, tensor in turbo.items()}, "step": 1}
    written.append(_save_pickle(vaes / "turbo_vae_tiny" / "turbo_tiny.ckpt", trained))
    written.append(_write_json(vaes / "turbo_vae_tiny" / "turbo_tiny.json", _turbo_settings()))
    audio = _random_state(lambda: OobleckVAE(AUDIO_VAE), seed + 7)
    audio = {f"pretransform.model.{key}": tensor for key, tensor in audio.items()}
    written.append(_write(vaes / "oobleck_audio_tiny.safetensors", audio))
    return written


def _random_state(make: Callable[[], nn.Module], seed: int) -> dict[str, Tensor]:
    """Seeded weights under which activations keep their size, in the dtypes of the network's parameters."""
    with torch.device("meta"):
        parameters = make().state_dict()
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, parameter in parameters.items():
        normal = torch.randn(parameter.shape, generator=generator)
        if name.endswith("rope.bands"):
            values = 10_000.0 ** (-torch.arange(len(normal)) / len(normal))
        elif name.endswith("gamma"):
            values = 1 + 0.1 * normal
        elif name.endswith("weight_g"):  # a third: the residual units add up
            values = 0.3 * (1 + 0.1 * normal.abs())
        elif parameter.ndim < 2 or parameter[0].numel() == 1:  # biases, norms, slopes of snakes
            values = 0.1 * normal
        elif name.endswith("embed_tokens.weight"):
            values = normal / math.sqrt(parameter.shape[1])
        else:
            values = normal / math.sqrt(parameter[0].numel())
        state[name] = values.to(parameter.dtype)
    return state


def byte_tokenizer() -> dict:
    """A ``tokenizer.json`` built as Gemma's is (spaces as "▁", bytes as a fallback), with letters for pieces."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, piece in enumerate(SPECIAL_PIECES)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: number for number, piece in enumerate(PIECES)},
            "merges": [],
        },
    }


def _text_settings() -> dict:
    """The fields of a Hugging Face encoder config that tensors do not show."""
    config = TEXT_ENCODER
    return {
        "num_hidden_layers": len(config.sliding_layers),
        "head_dim": config.head_dim,
        "query_pre_attn_scalar": config.query_pre_attn_scalar,
        "sliding_window": config.sliding_window,
        "attn_logit_softcapping": config.softcap,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.eps,
        "layer_types": [
            "sliding_attention" if sliding else "full_attention" for sliding in config.sliding_layers
        ],
    }


def _turbo_settings() -> dict:
    config = TURBO_DECODER
    return {
        "first_chunk_size": config.first_chunk,
        "step_size": config.step,
        "temporal_compression_ratio": config.time_stride,
    }


def _write_shards(folder: Path, stem: str, state: dict[str, Tensor], shards: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    names, size = list(state), -(-len(state) // shards)
    weight_map, written = {}, []
    for number in range(shards):
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: state[name] for name in names[number * size : (number + 1) * size]}
        written.append(_write(folder / file, part))
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return [*written, _write_json(folder / f"{stem}.safetensors.index.json", index)]


def _write(path: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, path)
    return path


def _save_pickle(path: Path, content: dict) -> Path:
    torch.save(content, path)
    return path


def _write_json(path: Path, content: dict) -> Path:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    return path
