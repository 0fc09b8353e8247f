"""What is said of files of every kind, layout and precision, and of those that are broken or not ours."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.model_loading import builder
from comfyui_happyhorse.model_loading.checkpoint import Checkpoint
from comfyui_happyhorse.model_loading.inspect import LAYER_NAMES, OUTER_NAMES, inspect_file

GOLDEN = Path(
    os.environ.get("HAPPYHORSE_GOLDEN") or Path(__file__).resolve().parents[3] / "shared" / "golden"
)
KINDS = {
    "text_encoder": ("text_encoders/t5gemma_tiny", "bf16"),
    "video_vae": ("vae/Wan2.2_VAE_tiny.pth", "float32"),
    "turbo_decoder": ("vae/turbo_vae_tiny/turbo_tiny.ckpt", "float32"),
    "audio_vae": ("vae/oobleck_audio_tiny.safetensors", "float32"),
}


def test_every_form_is_recognised(title, forms, state, as_stored, write_form, monkeypatch):
    form = forms[title]
    tensors, metadata, values = as_stored(state, form)
    path = write_form(tensors, metadata, form)
    read, tensor = [], Checkpoint.tensor
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name: read.append(name) or tensor(self, name))
    found = inspect_file(path)
    assert (found.kind, found.layout, found.precision) == ("dit", form.letter, form.precision)
    assert found.parameters == sum(value.numel() for value in values.values())
    assert (found.missing, found.unknown, found.problem) == ((), (), None)
    assert read == []
    network = builder.load_transformer(path, "base").state_dict()
    assert found.memory_bytes == sum(t.numel() * t.element_size() for t in network.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_kinds(tiny_models, kind):
    file, precision = KINDS[kind]
    found = inspect_file(tiny_models / file)
    assert (found.kind, found.precision, found.layout, found.variant) == (kind, precision, None, None)
    assert (found.missing, found.unknown, found.problem) == ((), (), None)
    assert found.memory_bytes >= 2 * found.parameters > 0


@pytest.mark.parametrize(
    ("name", "variant"), [("distill", "distilled"), ("base", "base"), ("sr_540p", "sr_540p"), ("mine", None)]
)
def test_the_variant_comes_from_a_name_and_says_which(state, tmp_path, name, variant):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    save_file(state, folder / f"{name}.safetensors")
    found = inspect_file(folder / f"{name}.safetensors")
    assert (found.variant, found.why) == (variant, f"{name}.safetensors" if variant else None)


def test_folders_far_above_are_no_hint(state, tmp_path):
    folder = tmp_path / "distill" / "a" / "b"
    folder.mkdir(parents=True)
    save_file(state, folder / "x.safetensors")
    assert inspect_file(folder / "x.safetensors").variant is None


@pytest.mark.parametrize(
    "name",
    [
        "final_norm_audio.weight",
        "block.layers.3.mlp.down_proj.weight",
        "block.layers.0.attention.q_norm.weight",
        "adapter.rope.bands",
        "block.layers.7.mlp.pre_norm.weight",
    ],
)
def test_missing_and_unknown_are_named(state, tmp_path, name):
    del state[name]
    state["block.layers.2.extra"] = torch.zeros(1)
    save_file(state, tmp_path / "x.safetensors")
    found = inspect_file(tmp_path / "x.safetensors")
    assert (found.missing, found.unknown) == ((name,), ("block.layers.2.extra",))


def test_a_shape_that_is_off_is_a_problem(state, tmp_path):
    state["final_linear_audio.weight"] = torch.zeros(65, 64)
    save_file(state, tmp_path / "x.safetensors")
    found = inspect_file(tmp_path / "x.safetensors")
    assert found.missing == () and "final_linear_audio.weight has shape [65, 64]" in found.problem


def test_what_cannot_be_loaded_is_still_recognised(state, forms, as_stored, write_form):
    tensors, metadata, _ = as_stored(state, forms["H int8"])
    for name in [name for name in tensors if name.endswith(".comfy_quant")]:
        tensors[name] = torch.tensor(list(json.dumps({"format": "int3_magic"}).encode()), dtype=torch.uint8)
    found = inspect_file(write_form(tensors, metadata, forms["H int8"]))
    assert (found.layout, found.precision, found.missing) == ("H", "int3_magic", ())
    assert "which is not known" in found.problem


def test_a_missing_scale_is_an_error_that_names_the_kind(state, forms, as_stored, write_form):
    tensors, metadata, _ = as_stored(state, forms["C merged from D"])
    del tensors["block.layers.1.mlp.down_proj.weight.__fp8_scale"]
    with pytest.raises(CheckpointError, match=r"is the audio-video transformer, .*layers\.1\.mlp\.down_proj"):
        inspect_file(write_form(tensors, metadata, forms["C merged from D"]))


LAYER = "block.layers.3.attention.linear_proj"
LORAS = {
    "peft": [f"transformer.{LAYER}.lora_A.weight", f"transformer.{LAYER}.lora_B.weight"],
    "peft, named": [
        f"base_model.model.{LAYER}.lora_A.default.weight",
        f"base_model.model.{LAYER}.lora_B.default.weight",
    ],
    "kohya": [
        f"lora_unet_{LAYER.replace('.', '_')}.{end}"
        for end in ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale")
    ],
    "diff": [f"diffusion_model.{LAYER}.diff", f"diffusion_model.{LAYER}.diff_b"],
    "split": ["block.layers.0.attention.linear_q_video.lora_down.weight"],
}


@pytest.mark.parametrize("form", LORAS)
def test_loras(tmp_path, form):
    other = "diffusion_model.blocks.0.cross_attn.k.lora_A.weight"
    save_file({name: torch.zeros(4, 8) for name in LORAS[form]}, tmp_path / "x.safetensors")
    found = inspect_file(tmp_path / "x.safetensors")
    assert (found.kind, found.precision, found.unknown) == ("lora", "float32", ())
    assert found.targets == 1 and found.problem is None
    assert found.parameters == 32 * len(LORAS[form])
    save_file({name: torch.zeros(4, 8) for name in [*LORAS[form], other]}, tmp_path / "x.safetensors")
    assert inspect_file(tmp_path / "x.safetensors").unknown == (other,)
    save_file({other: torch.zeros(4, 8)}, tmp_path / "x.safetensors")
    assert "None of its targets" in inspect_file(tmp_path / "x.safetensors").problem


def test_a_foreign_file(tmp_path):
    save_file({"x.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"no part of this model and no LoRA.*x\.weight"):
        inspect_file(tmp_path / "x.safetensors")


def test_the_published_header_of_30_gigabytes(tmp_path):
    """A sparse file with the real header: only its first bytes are read."""
    file = GOLDEN / "dit_full_keys.json"
    if not file.exists():
        pytest.skip(f"{file} is not there; set HAPPYHORSE_GOLDEN")
    golden = json.loads(file.read_text())
    header, end = {}, 0
    for name, entry in golden["keys"].items():
        code, size = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}[entry["dtype"]]
        first, end = end, end + size * torch.Size(entry["shape"]).numel()
        header[name] = {"dtype": code, "shape": entry["shape"], "data_offsets": [first, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "distill.safetensors"
    try:
        with path.open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            try:
                out.truncate(8 + len(text) + end)
            except OSError as error:
                pytest.skip(f"this disk has no sparse files: {error}")
        found = inspect_file(path)
    finally:
        path.unlink()
    assert (found.layout, found.precision, found.variant) == ("B", "bf16", "distilled")
    assert (found.missing, found.unknown, found.problem) == ((), (), None)
    bands = 16  # numbers that are stored, and no parameters
    assert found.parameters == golden["total_parameters"] + bands
    assert found.memory_bytes == golden["bytes_in_module_dtypes"] + 4 * bands
    expected = {*OUTER_NAMES, *(f"block.layers.{i}.{name}" for i in range(40) for name in LAYER_NAMES)}
    assert expected == set(golden["keys"])
