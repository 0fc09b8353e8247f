"""The Turbo decoder against what the reference made, inside and out, and against the real file's names."""

import pytest
import torch

from comfyui_happyhorse.model.turbo_decoder import TurboConfig, TurboDecoder
from comfyui_happyhorse.model.video_latent import LATENT_MEAN, LATENT_STD

LIMIT = 5e-6  # of the largest value; float32 alone costs half of this
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(golden, precision):
    weights = golden.weights()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    with torch.device("meta"):
        model = TurboDecoder(TurboConfig.from_shapes(shapes, golden["config"]), dtype=DTYPES[precision])
    tensors = {name: tensor.to(DTYPES[precision]) for name, tensor in weights.items()}
    model.load_state_dict(tensors, assign=True)
    return model


def check_config(config, settings):
    """The settings list the encoder's side first; the decoder runs them backwards."""
    assert [stage.channels for stage in config.stages] == settings["decoder_block_out_channels"][::-1]
    blocks = [config.middle_blocks, *(stage.blocks for stage in config.stages)]
    assert blocks == settings["decoder_layers_per_block"][::-1]
    both = zip(settings["decoder_spatio_temporal_scaling"], settings["decoder_spatio_only"], strict=True)
    doubles = [(scales, scales and not space_only) for scales, space_only in both]
    assert [(stage.doubles_space, stage.doubles_time) for stage in config.stages] == doubles[::-1]
    assert (config.latent_channels, config.patch) == (settings["latent_channels"], settings["patch_size"])
    assert config.time_stride == settings["temporal_compression_ratio"]
    assert (config.first_chunk, config.step) == (settings["first_chunk_size"], settings["step_size"])


@pytest.mark.golden("turbo_vaed", without=["_full_keys"])
def test_sizes_and_scale(golden):
    check_config(load(golden, "fp32").config, golden["config"])
    for constants, name in ((LATENT_MEAN, "mean"), (LATENT_STD, "std")):
        assert torch.equal(torch.tensor(constants), golden.tensors[f"const.latent_{name}"].cpu())


@pytest.mark.golden("turbo_vaed", without=["_full_keys"])
@pytest.mark.parametrize("window", ["first", "later"])
def test_inside_one_window(golden, window, close):
    decoder = load(golden, "fp32").decoder
    prefix = f"out.internals_{window}."
    names = [name.removeprefix(prefix) for name in golden.tensors if name.startswith(prefix)]
    made = {}

    def keep(name):
        return lambda module, args, out: made.__setitem__(name, out)

    for name in names:
        part = decoder if name == "final" else decoder.get_submodule(name)
        part.register_forward_hook(keep(name))
    decoder(golden.tensors["in.internals.z_denormalised"], window == "first")
    assert "final" in names and made.keys() == set(names)
    for name in names:
        close(made[name], golden.tensors[prefix + name], LIMIT, name)


@pytest.mark.golden("turbo_vaed", without=["_full_keys"])
def test_float32(golden, close):
    model = load(golden, "fp32")
    for name, case in golden["cases"].items():
        calls = []
        hook = model.decoder.register_forward_pre_hook(
            lambda module, args, kept=calls: kept.append([args[0].shape[2], args[1]])
        )
        video = model.decode(golden.tensors[f"in.{name}.z"])
        hook.remove()
        close(video, golden.tensors[f"out.{name}.fp32.video"], LIMIT, name)
        assert calls == case["decoder_calls"], name


@pytest.mark.golden("turbo_vaed", without=["_full_keys"])
def test_bf16(golden, within_bf16):
    model = load(golden, "bf16")
    for name in golden["cases"]:
        video = model.decode(golden.tensors[f"in.{name}.z"])
        within_bf16(video, golden.tensors[f"out.{name}.bf16.video"], golden["bf16_vs_fp32"][name], name)
        assert video.dtype == torch.bfloat16


@pytest.mark.golden("turbo_vaed_full_keys")
def test_names_and_shapes_of_the_real_file(golden):
    expected = {name: tuple(entry["shape"]) for name, entry in golden["keys"].items()}
    config = TurboConfig.from_shapes(expected, golden["config"])
    check_config(config, golden["config"])
    with torch.device("meta"):
        model = TurboDecoder(config)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected
    assert len(expected) == golden["n_keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["total_parameters"]
