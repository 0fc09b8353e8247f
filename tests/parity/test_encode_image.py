"""A picture file's pixels to its video latent: crop, Lanczos, encoder, against the reference's."""

import pytest
import torch

from comfyui_happyhorse.conditioning.image import first_frame
from comfyui_happyhorse.model.video_vae import Wan22VAE, WanConfig


@pytest.mark.golden("wan22_vae", without=("full_keys",))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@torch.inference_mode()
def test_picture_to_latent(golden, dtype, close, within_bf16, device):
    if "encode_image" not in golden.json:
        pytest.skip(f"{golden.name} has no encode_image")
    height, width = golden["encode_image"]["target_hw"]
    pixels = first_frame(golden.tensors["in.encode_image.rgb_uint8"], width, height)

    weights = golden.weights()
    config = WanConfig.from_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()})
    network = Wan22VAE(config, dtype=dtype)
    network.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()})
    latent = network.to(device).encode(pixels.to(device))

    assert list(latent.shape) == golden["encode_image"]["latent"]
    if dtype == torch.float32:
        close(latent, golden.tensors["out.encode_image.fp32.latent"], 5e-6)
    else:
        distance = golden["bf16_vs_fp32"]["encode_image"]
        within_bf16(latent, golden.tensors["out.encode_image.bf16.latent"], distance)
