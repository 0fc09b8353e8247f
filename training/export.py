"""The demo set as files: real names and layouts, 16 bits a weight, with a list of checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..model.text_encoder import T5GemmaConfig
from ..model.turbo_decoder import TurboConfig
from ..model_loading.demo_set import CHECKSUMS, VOCABULARY
from .scene import BACKGROUNDS, FACES
from .voice import PITCHES
from .words import WORDS

ROOT = Path(__file__).resolve().parent.parent
TRANSFORMERS = "diffusion_models/happyhorse_demo_{}.safetensors"
TEXT_ENCODER = "text_encoders/t5gemma_demo/model.safetensors"
VIDEO_VAE = "vae/wan2.2_vae_demo.safetensors"
TURBO_DECODER = "vae/turbo_vae_demo/turbo_demo.safetensors"
AUDIO_VAE = "vae/oobleck_audio_demo.safetensors"


def write_transformer(folder: Path, variant: str, network: nn.Module) -> Path:
    """bfloat16, as the published base is; the rotary frequencies, four numbers, as they are."""
    return _write(
        folder / TRANSFORMERS.format(variant), network.state_dict(), torch.bfloat16, ("rope.bands",)
    )


def write_text_encoder(folder: Path, network: nn.Module, config: T5GemmaConfig, tokenizer: bytes) -> Path:
    """Weights, the settings that tensors do not show, and the tokeniser beside them."""
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    path = _write(folder / TEXT_ENCODER, state, torch.bfloat16)
    settings = {
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
    _write_json(path.parent / "config.json", {"encoder": settings})
    (path.parent / "tokenizer.model").write_bytes(tokenizer)
    return path


def write_video_vae(folder: Path, network: nn.Module) -> Path:
    """float16: what runs in float32 keeps three bits more than in bfloat16."""
    return _write(folder / VIDEO_VAE, network.state_dict(), torch.float16)


def write_turbo_decoder(folder: Path, network: nn.Module, config: TurboConfig) -> Path:
    """With the JSON file that says how long its windows are."""
    path = _write(folder / TURBO_DECODER, network.state_dict(), torch.float16)
    settings = {
        "first_chunk_size": config.first_chunk,
        "step_size": config.step,
        "temporal_compression_ratio": config.time_stride,
    }
    _write_json(path.with_suffix(".json"), settings)
    return path


def write_audio_vae(folder: Path, network: nn.Module) -> Path:
    state = {f"pretransform.model.{name}": tensor for name, tensor in network.state_dict().items()}
    return _write(folder / AUDIO_VAE, state, torch.float16)


def finish(folder: Path) -> Path:
    """The pack's licence, what the set knows, and the checksums of all files, as ``sha256sum -c`` reads them."""
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    known = {"faces": list(FACES), "backgrounds": list(BACKGROUNDS), "voices": list(PITCHES)}
    _write_json(
        folder / VOCABULARY, known | {"languages": {name: list(words) for name, words in WORDS.items()}}
    )
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in files
    ]
    target = folder / CHECKSUMS
    target.write_text("".join(lines), encoding="utf-8")
    return target


def _write(path: Path, state: dict[str, Tensor], dtype: torch.dtype, exact: tuple[str, ...] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    limit = torch.finfo(dtype).max
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all() or tensor.abs().max() > limit:
            raise ValueError(f"{name} holds numbers that {dtype} does not.")
    kept = {
        name: (tensor if name.endswith(exact or ("\0",)) else tensor.to(dtype)).contiguous().clone()
        for name, tensor in state.items()
    }
    save_file(kept, path, metadata={"made_by": "comfyui_happyhorse.training", "licence": "Apache-2.0"})
    return path


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
