"""The Oobleck audio VAE against what the reference made, and against the real file's names."""

import pytest
import torch

from comfyui_happyhorse.model.audio_vae import OobleckConfig, OobleckVAE

LIMIT = 5e-6  # of the largest value; float32 alone costs a quarter of this


def load(golden):
    weights = golden.weights()
    config = OobleckConfig.from_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()})
    with torch.device("meta"):
        vae = OobleckVAE(config)
    vae.load_state_dict(weights, assign=True)
    return vae


def batched(tensor):
    """[C, S] as the reference takes it, or [B, C, S], to [B, C, S]."""
    return tensor.unsqueeze(0) if tensor.ndim == 2 else tensor


def check_config(config, settings):
    encoder, decoder = (settings["model"][half]["config"] for half in ("encoder", "decoder"))
    widths = [encoder["channels"] * factor for factor in (1, *encoder["c_mults"])]
    assert (list(config.encoder.widths), list(config.encoder.strides)) == (widths, encoder["strides"])
    widths = [decoder["channels"] * factor for factor in (1, *decoder["c_mults"])]
    assert list(config.decoder.widths) == widths[::-1]
    assert list(config.decoder.strides) == decoder["strides"][::-1]
    assert config.audio_channels == settings["model"]["io_channels"]
    assert config.latent_channels == settings["model"]["latent_dim"]
    assert config.samples_per_latent == settings["model"]["downsampling_ratio"]


@pytest.mark.golden("oobleck", without=["_full_keys"])
def test_sizes(golden):
    check_config(load(golden).config, golden["config"])


@pytest.mark.golden("oobleck", without=["_full_keys"])
def test_encode(golden, close):
    vae = load(golden)
    for case in golden["encode"]:
        waveform = batched(golden.tensors[f"in.enc.{case}.audio"])
        expected = {
            name: golden.tensors[f"out.enc.{case}.{name}"] for name in ("mean", "scale", "stdev", "sample")
        }
        mean, scale = vae.encode_moments(waveform)
        close(mean, expected["mean"], LIMIT, case)
        close(scale, expected["scale"], LIMIT, case)
        close(vae.encode(waveform), expected["mean"], LIMIT, case)
        close(vae.encode(waveform, golden.tensors[f"in.enc.{case}.noise"]), expected["sample"], LIMIT, case)
        deviation = vae.encode(waveform, torch.ones_like(mean)) - mean
        # A difference of two numbers: rounded at the size of the larger.
        larger = max(1.0, (expected["mean"].abs().max() / expected["stdev"].abs().max()).item())
        close(deviation, expected["stdev"], LIMIT * larger, case)


@pytest.mark.golden("oobleck", without=["_full_keys"])
def test_decode(golden, close):
    vae = load(golden)
    for case in golden["decode"]:
        waveform = vae.decode(batched(golden.tensors[f"in.dec.{case}.latent"]))
        close(waveform, golden.tensors[f"out.dec.{case}.audio"], LIMIT, case)


@pytest.mark.golden("oobleck_full_keys")
def test_names_and_shapes_of_the_real_file(golden):
    expected = {name: tuple(entry["shape"]) for name, entry in golden["keys"].items()}
    config = OobleckConfig.from_shapes(expected)
    check_config(config, golden["config"])
    with torch.device("meta"):
        vae = OobleckVAE(config)
    assert {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()} == expected
    assert len(expected) == golden["n_keys"]
    assert sum(parameter.numel() for parameter in vae.parameters()) == golden["total_parameters"]
