"""``inspect`` on the command line: one sentence first, JSON with fixed keys, refusals with status 1."""

import json

import pytest
import torch
from safetensors.torch import save_file

from comfyui_happyhorse.cli.main import main

KEYS = ["kind", "layout", "precision", "variant", "parameters", "missing", "unknown", "memory_bytes"]


def test_sentences(tiny_models, capsys):
    assert main(["inspect", str(tiny_models / "diffusion_models" / "happyhorse_tiny_base")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "happyhorse_tiny_base is the audio-video transformer, layout A (shards with an index), in bf16, "
        "base by its name: complete."
    )
    assert "because of the name 'happyhorse_tiny_base'" in lines[1]
    assert lines[2] == "Parameters: 759,618 in 75 tensors."
    assert lines[3] == "Memory: 1.60 MB for the weights once loaded."
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("file", "kind", "layout", "precision", "variant"),
    [
        ("diffusion_models/happyhorse_tiny_sr_1080p.safetensors", "dit", "H", "bf16", "sr_1080p"),
        ("text_encoders/t5gemma_tiny", "text_encoder", None, "bf16", None),
        ("vae/turbo_vae_tiny/turbo_tiny.ckpt", "turbo_decoder", None, "float32", None),
    ],
)
def test_json(tiny_models, capsys, file, kind, layout, precision, variant):
    assert main(["inspect", "--json", str(tiny_models / file)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == KEYS
    assert [found[key] for key in KEYS[:4]] == [kind, layout, precision, variant]
    assert found["missing"] == found["unknown"] == []
    assert found["memory_bytes"] >= 2 * found["parameters"] > 0


def test_what_is_missing_is_said(tmp_path, capsys):
    """Two tensors of the nineteen that a network of one layer has."""
    names = ("adapter.video_embedder.weight", "block.layers.0.mlp.pre_norm.weight")
    save_file({name: torch.zeros(4, 4) for name in names}, tmp_path / "x.safetensors")
    assert main(["inspect", str(tmp_path / "x.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "not usable as it is." in out.splitlines()[0]
    assert "Variant: no name says; choose one of base, distilled, sr_540p, sr_1080p." in out
    assert "Missing: 17 (first: adapter.audio_embedder.bias)." in out


def test_a_lora_and_a_stranger(tmp_path, capsys):
    save_file({"final_linear_video.lora_A.weight": torch.zeros(4, 4)}, tmp_path / "x.safetensors")
    assert main(["inspect", str(tmp_path / "x.safetensors")]) == 0
    assert "x.safetensors is a LoRA for the audio-video transformer" in capsys.readouterr().out
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert main(["inspect", str(tmp_path / "x.safetensors")]) == 1
    assert "no part of this model and no LoRA" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "nowhere.safetensors")]) == 1
    assert "does not exist" in capsys.readouterr().err
