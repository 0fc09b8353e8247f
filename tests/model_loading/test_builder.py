"""Networks from files: every layout through the same code, float32 kept, faults named."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.model.transformer import JointTransformer
from comfyui_happyhorse.model_loading import builder
from comfyui_happyhorse.model_loading.checkpoint import open_checkpoint
from comfyui_happyhorse.model_loading.keys import KINDS, kind_of, map_names
from comfyui_happyhorse.model_loading.precision import PRECISIONS, precision

LOADERS = {
    "transformer": lambda path: builder.load_transformer(path, "distilled"),
    "text_encoder": builder.load_text_encoder,
    "video_vae": builder.load_video_vae,
    "turbo_decoder": builder.load_turbo_decoder,
    "audio_vae": builder.load_audio_vae,
}
FLOAT32_ENDINGS = ("_norm.weight", "final_linear_video.weight", "final_linear_audio.weight", "rope.bands")


@pytest.fixture
def files(tiny_models):
    """One file or folder of each kind."""
    return {
        "transformer": tiny_models / "diffusion_models" / "happyhorse_tiny_distilled.safetensors",
        "text_encoder": tiny_models / "text_encoders" / "t5gemma_tiny",
        "video_vae": tiny_models / "vae" / "Wan2.2_VAE_tiny.pth",
        "turbo_decoder": tiny_models / "vae" / "turbo_vae_tiny" / "turbo_tiny.ckpt",
        "audio_vae": tiny_models / "vae" / "oobleck_audio_tiny.safetensors",
    }


@pytest.mark.parametrize("kind", LOADERS)
def test_loaded_weights_are_the_files(files, kind):
    network = LOADERS[kind](files[kind])
    checkpoint = builder.open_kind(files[kind], kind)
    state = network.state_dict()
    assert set(state) == set(checkpoint.names)
    for name, tensor in state.items():
        assert torch.equal(tensor, checkpoint.tensor(name).to(tensor.dtype)), name
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_equal_dtypes_are_mapped_and_not_copied(files):
    checkpoint = builder.open_kind(files["transformer"], "transformer")
    network = builder.load_transformer(files["transformer"], "distilled")
    name = "block.layers.3.mlp.down_proj.weight"
    loaded = builder.adopt(lambda: JointTransformer(network.config), checkpoint)
    assert loaded.state_dict()[name].dtype == torch.bfloat16
    assert loaded.state_dict()[name].data_ptr() == checkpoint.tensor(name).data_ptr()


@pytest.mark.parametrize(("policy", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float16])
def test_the_float32_list_is_enforced_whatever_is_stored(files, tmp_path, policy, dtype, stored):
    state = {name: tensor.to(stored) for name, tensor in load_file(files["transformer"]).items()}
    save_file(state, tmp_path / "x.safetensors")
    network = builder.load_transformer(tmp_path / "x.safetensors", "base", PRECISIONS[policy])
    large = 0
    for name, tensor in network.state_dict().items():
        is_float32 = (
            name.startswith("adapter.") or name.endswith(FLOAT32_ENDINGS) or name.startswith("final_")
        )
        assert tensor.dtype == (torch.float32 if is_float32 else dtype), name
        large += not is_float32
    assert large == 4 * 8  # four projections in each of eight layers


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
def test_prefixes_of_a_transformer(files, tmp_path, prefix):
    state = {prefix + name: tensor for name, tensor in load_file(files["transformer"]).items()}
    if prefix:
        state["vae.of.a.whole.checkpoint"] = torch.zeros(1)
    save_file(state, tmp_path / "x.safetensors")
    network = builder.load_transformer(tmp_path / "x.safetensors", "distilled")
    assert torch.equal(network.final_norm_video.weight, state[f"{prefix}final_norm_video.weight"])


def test_prefixes_of_a_text_encoder(files, tmp_path):
    checkpoint = open_checkpoint(files["text_encoder"])
    for file in ("config.json", "tokenizer.json"):
        shutil.copy(files["text_encoder"] / file, tmp_path)
    state = {name.removeprefix("model."): checkpoint.tensor(name) for name in checkpoint.names}
    state["decoder.layers.0.self_attn.q_proj.weight"] = torch.zeros(2, 2)
    state["spiece_model"] = torch.zeros(4, dtype=torch.uint8)
    save_file(state, tmp_path / "x.safetensors")
    network = builder.load_text_encoder(tmp_path / "x.safetensors")
    assert len(network.state_dict()) == len(state) - 2


@pytest.mark.parametrize("form", ["module.decoder.", "decoder.", "module.", ""])
def test_prefixes_of_a_turbo_decoder(files, tmp_path, form):
    checkpoint = open_checkpoint(files["turbo_decoder"])
    state = {name.replace("module.decoder.", form, 1): checkpoint.tensor(name) for name in checkpoint.names}
    state["module.aligned_feature_projection_heads.0.weight" if "module" in form else "encoder.x"] = (
        torch.zeros(1)
    )
    torch.save({"ema_state_dict": state}, tmp_path / "x.ckpt")
    loaded, reference = (
        builder.load_turbo_decoder(path).state_dict()
        for path in (tmp_path / "x.ckpt", files["turbo_decoder"])
    )
    assert loaded.keys() == reference.keys()
    assert all(torch.equal(loaded[name], reference[name]) for name in loaded)


def test_both_spellings_of_weight_norm(files, tmp_path):
    state = load_file(files["audio_vae"])
    new = {
        name.replace(".weight_g", ".parametrizations.weight.original0").replace(
            ".weight_v", ".parametrizations.weight.original1"
        ): tensor
        for name, tensor in state.items()
    }
    save_file(new, tmp_path / "x.safetensors")
    loaded, reference = (
        builder.load_audio_vae(path).state_dict() for path in (tmp_path / "x.safetensors", files["audio_vae"])
    )
    assert all(torch.equal(loaded[name], reference[name]) for name in reference)


@pytest.mark.parametrize("wanted", LOADERS)
@pytest.mark.parametrize("given", LOADERS)
def test_a_file_of_another_kind_is_named(files, wanted, given):
    if wanted == given:
        return
    with pytest.raises(
        CheckpointError, match=f"not the {KINDS[wanted].title}. It is the {KINDS[given].title}"
    ):
        LOADERS[wanted](files[given])


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_told_by_names_and_map_both_ways(files, kind):
    names = open_checkpoint(files[kind]).names
    assert kind_of(names).name == kind
    mapped = map_names(KINDS[kind], names)
    assert len(set(mapped.values())) == len(mapped) == len(names)
    assert kind_of(mapped.values()).name == kind


def test_missing_and_unknown_weights_are_counted_and_named(files, tmp_path):
    state = load_file(files["transformer"])
    del state["block.layers.2.mlp.pre_norm.weight"]
    del state["final_norm_audio.weight"]
    state["block.layers.2.mlp.extra"] = torch.zeros(1)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"2 weights are missing \(first: block\.layers\.2\.mlp\.pre_norm\.weight\) and 1 are not known \(first: block\.layers\.2\.mlp\.extra\)",
    ):
        builder.load_transformer(tmp_path / "x.safetensors", "base")


@pytest.mark.parametrize(
    "name",
    [
        "block.layers.1.attention.k_norm.weight",
        "final_linear_audio.weight",
        "block.layers.4.mlp.down_proj.weight",
    ],
)
def test_a_shape_that_is_off_by_one(files, tmp_path, name):
    state = load_file(files["transformer"])
    state[name] = torch.cat([state[name], state[name][:1]]).contiguous()
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        builder.load_transformer(tmp_path / "x.safetensors", "base")


def test_a_foreign_file(tmp_path):
    save_file({"x.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"It holds 1 tensors, such as x\.weight"):
        builder.load_audio_vae(tmp_path / "x.safetensors")


def test_an_unknown_precision():
    assert precision("bf16").dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="'fp12'"):
        precision("fp12")


def test_variants_differ_in_coordinates_and_local_layers(files):
    rows = {
        name: builder.load_transformer(files["transformer"], name).config
        for name in ("base", "distilled", "sr_540p", "sr_1080p")
    }
    assert [rows[name].coordinates for name in rows] == ["v2", "v2", "v1", "v1"]
    local = {name: [i for i, block in enumerate(row.blocks) if block.is_local] for name, row in rows.items()}
    assert local == {"base": [], "distilled": [], "sr_540p": [], "sr_1080p": [0, 1, 2, 4, 5, 6]}


def test_settings_are_found_beside_the_weights_among_other_files(files, tmp_path):
    checkpoint = open_checkpoint(files["turbo_decoder"])
    torch.save({name: checkpoint.tensor(name) for name in checkpoint.names}, tmp_path / "x.ckpt")
    (tmp_path / "a_list.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text('{"num_hidden_layers": 3}')
    plain = builder.load_turbo_decoder(tmp_path / "x.ckpt").config
    assert (plain.first_chunk, plain.step) == (7, 7)
    (tmp_path / "turbo.json").write_text('{"first_chunk_size": 5, "step_size": 4}')
    found = builder.load_turbo_decoder(tmp_path / "x.ckpt").config
    assert (found.first_chunk, found.step) == (5, 4)
