"""Parts of a model set found in a folder by content, variants by name."""

import shutil
from pathlib import Path

import pytest

from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.model_loading.find import find_parts, the_part, variant_hint
from comfyui_happyhorse.model_loading.tiny import write_tiny_set


def test_the_tiny_set_is_found(tiny_models):
    parts = {
        (part.kind, part.variant): str(part.path.relative_to(tiny_models)) for part in find_parts(tiny_models)
    }
    assert parts == {
        ("transformer", "base"): "diffusion_models/happyhorse_tiny_base",
        ("transformer", "distilled"): "diffusion_models/happyhorse_tiny_distilled.safetensors",
        ("transformer", "sr_540p"): "diffusion_models/happyhorse_tiny_sr_540p.safetensors",
        ("transformer", "sr_1080p"): "diffusion_models/happyhorse_tiny_sr_1080p.safetensors",
        ("text_encoder", None): "text_encoders/t5gemma_tiny",
        ("video_vae", None): "vae/Wan2.2_VAE_tiny.pth",
        ("turbo_decoder", None): "vae/turbo_vae_tiny/turbo_tiny.ckpt",
        ("audio_vae", None): "vae/oobleck_audio_tiny.safetensors",
    }


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("daVinci-MagiHuman/distill/model.safetensors", "distilled"),
        ("daVinci-MagiHuman/base", "base"),
        ("540p_sr/model.safetensors.index.json", "sr_540p"),
        ("1080p_sr_merge_fp8.safetensors", "sr_1080p"),
        ("magi_human_distill_quanto_bf16_int8.safetensors", "distilled"),
        ("magi_human_sr1080_bf16.safetensors", "sr_1080p"),
        ("sr_540p/transformer/diffusion_pytorch_model.safetensors", "sr_540p"),
        ("magi_human_bf16.safetensors", None),
    ],
)
def test_names_that_people_have(name, variant):
    assert variant_hint(Path(name)) == variant


def test_none_several_and_unnamed(tiny_models, tmp_path):
    parts = find_parts(tiny_models)
    assert the_part(parts, "transformer", "base", tiny_models, "--x").name == "happyhorse_tiny_base"
    shutil.copytree(tiny_models / "diffusion_models", tmp_path / "m")
    (tmp_path / "m" / "happyhorse_tiny_distilled.safetensors").rename(tmp_path / "m" / "mystery.safetensors")
    parts = find_parts(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"No audio-video transformer \(distilled\).*mystery\.safetensors may be it.*--transformer",
    ):
        the_part(parts, "transformer", "distilled", tmp_path, "--transformer")
    shutil.copytree(tmp_path / "m" / "happyhorse_tiny_base", tmp_path / "m" / "another_base")
    with pytest.raises(CheckpointError, match=r"2 files.*another_base.*--transformer"):
        the_part(find_parts(tmp_path), "transformer", "base", tmp_path, "--transformer")
    with pytest.raises(CheckpointError, match="does not exist"):
        find_parts(tmp_path / "nowhere")


def test_broken_and_foreign_files_do_not_disturb(tiny_models, tmp_path):
    shutil.copy(tiny_models / "vae" / "oobleck_audio_tiny.safetensors", tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"not one")
    (tmp_path / "broken.ckpt").write_bytes(b"PK not one")
    assert [part.kind for part in find_parts(tmp_path)] == ["audio_vae"]


def test_linked_folders_are_looked_into(tiny_models, tmp_path):
    (tmp_path / "linked").symlink_to(tiny_models / "diffusion_models", target_is_directory=True)
    found = [(part.variant, part.path.name) for part in find_parts(tmp_path)]
    assert found == [
        ("base", "happyhorse_tiny_base"),
        ("distilled", "happyhorse_tiny_distilled.safetensors"),
        ("sr_1080p", "happyhorse_tiny_sr_1080p.safetensors"),
        ("sr_540p", "happyhorse_tiny_sr_540p.safetensors"),
    ]


def test_the_tiny_set_is_the_same_every_time(tiny_models, tmp_path):
    written = write_tiny_set(tmp_path)
    for path in written:
        if path.suffix in (".safetensors", ".json"):
            assert path.read_bytes() == (tiny_models / path.relative_to(tmp_path)).read_bytes(), path.name
    assert sum(path.stat().st_size for path in written) < 20e6
    other = write_tiny_set(tmp_path / "other", seed=1)
    assert other[0].read_bytes() != written[0].read_bytes()
