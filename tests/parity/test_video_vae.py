"""The Wan 2.2 VAE against what the reference made, in float32 and bf16, and against the real file's names."""

import pytest
import torch

from comfyui_happyhorse.model.pixel_patches import unpatchify
from comfyui_happyhorse.model.video_latent import LATENT_MEAN, LATENT_STD
from comfyui_happyhorse.model.video_vae import Wan22VAE, WanConfig

LIMIT = 5e-6  # of the largest value; float32 alone costs a fifth of this
CLAMPED_LIMIT = 1e-5  # float32 rounds before the clamp, where the values are several times as large
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(golden, precision):
    weights = golden.weights()
    config = WanConfig.from_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()})
    with torch.device("meta"):
        vae = Wan22VAE(config, dtype=DTYPES[precision])
    vae.load_state_dict({name: tensor.to(DTYPES[precision]) for name, tensor in weights.items()}, assign=True)
    return vae


@pytest.mark.golden("wan22_vae", without=["_full_keys"])
def test_sizes(golden):
    config, expected = load(golden, "fp32").config, golden["config"]
    widths = [expected["dim"] * factor for factor in (1, *expected["dim_mult"])]
    assert [stage.in_channels for stage in config.encoder] == widths[:-1]
    assert [stage.channels for stage in config.encoder] == widths[1:]
    widths = [expected["dec_dim"] * factor for factor in reversed(expected["dim_mult"])]
    assert [stage.in_channels for stage in config.decoder] == [widths[0], *widths[:-1]]
    assert [stage.channels for stage in config.decoder] == widths
    assert {stage.blocks for stage in config.encoder} == {expected["num_res_blocks"]}
    assert {stage.blocks for stage in config.decoder} == {expected["num_res_blocks"] + 1}
    halves_time = [*expected["temperal_downsample"], False]
    assert [stage.time == 2 for stage in config.encoder] == halves_time
    assert [stage.time == 2 for stage in config.decoder] == [*halves_time[-2::-1], False]
    assert (config.latent_channels, config.patch) == (expected["z_dim"], expected["patch"])


@pytest.mark.golden("wan22_vae", without=["_full_keys"])
def test_latent_scale(golden):
    for constants, name in ((LATENT_MEAN, "mean"), (LATENT_STD, "std")):
        assert torch.equal(torch.tensor(constants), golden.tensors[f"const.latent_{name}"].cpu())


@pytest.mark.golden("wan22_vae", without=["_full_keys"])
def test_float32(golden, close):
    vae = load(golden, "fp32")
    for case in golden["encode"]:
        latent = vae.encode(golden.tensors[f"in.enc.{case}.pixels"])
        close(latent, golden.tensors[f"out.enc.{case}.fp32.latent"], LIMIT, case)
    for case in golden["decode"]:
        unclamped = []
        hook = vae.decoder.register_forward_hook(lambda module, args, out, kept=unclamped: kept.append(out))
        pixels = vae.decode(golden.tensors[f"in.dec.{case}.latent"])
        hook.remove()
        close(pixels, golden.tensors[f"out.dec.{case}.fp32.pixels"], CLAMPED_LIMIT, case)
        raw = torch.cat(unclamped, dim=2)
        close(
            unpatchify(raw, vae.config.patch),
            golden.tensors[f"out.dec.{case}.fp32.pixels_unclamped"],
            LIMIT,
            case,
        )


@pytest.mark.golden("wan22_vae", without=["_full_keys"])
def test_bf16(golden, within_bf16):
    vae = load(golden, "bf16")
    for case in golden["encode"]:
        latent = vae.encode(golden.tensors[f"in.enc.{case}.pixels"])
        expected = golden.tensors[f"out.enc.{case}.bf16.latent"]
        within_bf16(latent, expected, golden["bf16_vs_fp32"][f"enc.{case}"], case)
        assert latent.dtype == expected.dtype == torch.float32
    for case in golden["decode"]:
        pixels = vae.decode(golden.tensors[f"in.dec.{case}.latent"])
        expected = golden.tensors[f"out.dec.{case}.bf16.pixels"]
        within_bf16(pixels, expected, golden["bf16_vs_fp32"][f"dec.{case}"], case)


@pytest.mark.golden("wan22_vae_full_keys")
def test_names_and_shapes_of_the_real_file(golden):
    expected = {name: tuple(entry["shape"]) for name, entry in golden["keys"].items()}
    with torch.device("meta"):
        vae = Wan22VAE(WanConfig.from_shapes(expected))
    assert {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()} == expected
    assert len(expected) == golden["n_keys"]
    assert sum(parameter.numel() for parameter in vae.parameters()) == golden["total_parameters"]
    assert list(LATENT_MEAN) == golden["latent_mean"]
    assert list(LATENT_STD) == golden["latent_std"]
