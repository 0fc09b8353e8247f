"""Run by ComfyUI's interpreter, not by pytest: stock loaders' full-size VAEs and TorchCompileModel on our nodes.

ComfyUI hard-codes the sizes of the Wan 2.2 and Oobleck autoencoders, so random files of full size are written.
"""

import re

from host import MODELS, WORK, difference, ours, report, room, stock_node  # first: it sets ComfyUI up

# isort: split
import comfy.nested_tensor
import folder_paths
import torch
from safetensors.torch import load_file, save_file

builder, tiny = room("model_loading.builder"), room("model_loading.tiny")
wan, oobleck = room("model.video_vae"), room("model.audio_vae")
FLOAT32 = room("model_loading.precision").PRECISIONS["float32"]
folder_paths.add_model_folder_path("vae", str(WORK))
folder_paths.add_model_folder_path("diffusion_models", str(WORK))

STAGE = wan.StageConfig
FULL_WAN = wan.WanConfig(
    encoder=(
        STAGE(160, 160, 2, space=2, time=1),
        STAGE(160, 320, 2, space=2, time=2),
        STAGE(320, 640, 2, space=2, time=2),
        STAGE(640, 640, 2, space=1, time=1),
    ),
    decoder=(
        STAGE(1024, 1024, 3, space=2, time=2),
        STAGE(1024, 1024, 3, space=2, time=2),
        STAGE(1024, 512, 3, space=2, time=1),
        STAGE(512, 256, 3, space=1, time=1),
    ),
    latent_channels=48,
    patch=2,
)
WIDTHS, STRIDES = (128, 128, 256, 512, 1024, 2048), (2, 4, 4, 8, 8)
FULL_OOBLECK = oobleck.OobleckConfig(
    audio_channels=2,
    latent_channels=64,
    encoder=oobleck.StackConfig(WIDTHS, STRIDES),
    decoder=oobleck.StackConfig(WIDTHS[::-1], STRIDES[::-1]),
)


def stock_video_vae():
    """A full-size random Wan 2.2 file through the stock VAELoader and through our own network."""
    path = WORK / "wan_random.safetensors"
    state = tiny._random_state(lambda: wan.Wan22VAE(FULL_WAN, dtype=torch.bfloat16), 1)
    save_file(state, path)
    del state
    vae = stock_node("VAELoader", vae_name=path.name)[0]
    own = builder.load_video_vae(path, FLOAT32)
    vae.vae_dtype = torch.float32
    vae.first_stage_model.float()
    latent = ours("HappyHorseEmptyLatent", width=64, height=64, length=5)[0]
    image = torch.rand(1, 80, 70, 3, generator=torch.Generator().manual_seed(1))
    out = ours("HappyHorseImageToVideo", latent=latent, vae=vae, first_frame=image)[0]
    first = room("conditioning.image").first_frame(image, 64, 64)
    denormalise = room("model.video_latent").denormalise
    encoded = difference(out["samples"].unbind()[0][:, :, :1], denormalise(own.encode(first)))
    known = torch.randn(1, 48, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    film = {"samples": comfy.nested_tensor.NestedTensor((denormalise(known), torch.zeros(1, 64, 5)))}
    audio = ours("HappyHorseAudioVAELoader", vae_name="oobleck_audio_tiny.safetensors")[0]
    frames, _ = ours("HappyHorseDecode", latent=film, video_vae=vae, audio_vae=audio)
    decoded = difference(frames, own.decode(known)[0].movedim(0, -1) / 2 + 0.5)
    path.unlink()
    return {"first frame encoded": encoded, "film decoded": decoded}


def stock_audio_vae():
    """A full-size random Oobleck file through the stock VAELoader and through our loader."""
    path = WORK / "oobleck_random.safetensors"
    save_file(tiny._random_state(lambda: oobleck.OobleckVAE(FULL_OOBLECK), 2), path)
    stock_vae = stock_node("VAELoader", vae_name=path.name)[0]
    stock_vae.vae_dtype = torch.float32
    stock_vae.first_stage_model.float()
    own = ours("HappyHorseAudioVAELoader", vae_name=path.name)[0]
    time = torch.arange(9_000) / 44_100
    audio = {"waveform": torch.sin(2 * torch.pi * 440 * time)[None, None], "sample_rate": 44_100}
    latent = ours("HappyHorseEmptyLatent", width=64, height=64, length=9)[0]
    voices, sounds = [], []
    decoder = ours("HappyHorseVideoDecoderLoader", decoder_name="turbo_vae_tiny/turbo_tiny.ckpt")[0]
    for vae in (stock_vae, own):
        locked = ours("HappyHorseAudioToVideo", latent=latent, audio_vae=vae, audio=audio)[0]
        voices.append(locked["samples"].unbind()[1])
        _, sound = ours("HappyHorseDecode", latent=locked, video_vae=decoder, audio_vae=vae)
        sounds.append(sound)
    path.unlink()
    return {
        "voice": difference(*voices),
        "sound": difference(sounds[0]["waveform"], sounds[1]["waveform"]),
        "rates": [sound["sample_rate"] for sound in sounds],
        "samples": [sound["waveform"].shape[-1] for sound in sounds],
    }


def compiled_model():
    """Three layers of the tiny transformer under TorchCompileModel."""
    state = load_file(MODELS / "diffusion_models" / "happyhorse_tiny_distilled.safetensors")
    kept, few = {"0": "0", "2": "1", "6": "2"}, {}
    for key, tensor in state.items():
        layer = re.match(r"block\.layers\.(\d+)\.", key)
        if layer is None or layer[1] in kept:
            few[re.sub(r"(?<=layers\.)\d+", lambda number: kept[number[0]], key)] = tensor
    save_file(few, WORK / "few_layers.safetensors")
    model = ours(
        "HappyHorseModelLoader", model_name="few_layers.safetensors", variant="distilled", precision="float32"
    )[0]
    clip = ours("HappyHorseTextEncoderLoader", text_encoder_name="t5gemma_tiny")[0]
    positive = stock_node("CLIPTextEncode", clip=clip, text="A singer.")[0]

    def sampled(patcher):
        latent = ours("HappyHorseEmptyLatent", width=64, height=64, length=5)[0]
        made = ours(
            "HappyHorseSampler",
            model=patcher,
            positive=positive,
            latent=latent,
            seed=1,
            steps=2,
            preset="distilled",
        )[0]
        return made["samples"].unbind()[0]

    plain = sampled(model)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    faster = sampled(stock_node("TorchCompileModel", model=model, backend="inductor")[0])
    return {
        "difference": difference(faster, plain),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs,
    }


with torch.inference_mode():
    measured = {"video": stock_video_vae(), "audio": stock_audio_vae(), "compile": compiled_model()}
report(measured)
