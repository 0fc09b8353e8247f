"""Run by ComfyUI's interpreter, not by pytest: HappyHorseDecodeToVideo beside HappyHorseDecode and the mux.

Prints one JSON object of measurements; ``test_decode.py`` holds the expectations.
"""

import json
from types import SimpleNamespace

from host import OURS, WORK, difference, ours, report, room  # first: it sets ComfyUI up

# isort: split
import comfy.ldm.wan.vae2_2 as stock_wan
import comfy.model_management
import comfy.nested_tensor
import folder_paths
import torch
from comfy_extras.nodes_video import GetVideoComponents

OUTPUT = WORK / "output"
OUTPUT.mkdir()
folder_paths.set_output_directory(str(OUTPUT))
folder_paths.set_temp_directory(str(WORK / "temp"))
autoencoders, decoding = room("nodes.autoencoders"), room("nodes.decoding")
read_film = room("media.read").read_film
PINNED = {"filename_prefix": "film", "format": "mkv-ffv1-flac", "quality": 80}
NODES = ("HappyHorseDecodeToVideo", "HappyHorseMux")
for node in NODES:
    OURS[node].hidden = SimpleNamespace(prompt={"1": {}}, extra_pnginfo={"workflow": {"nodes": []}})


def load(precision="float32"):
    parts = {
        name: ours("HappyHorseVideoDecoderLoader", decoder_name=file, precision=precision)[0]
        for name, file in (("turbo", "turbo_vae_tiny/turbo_tiny.ckpt"), ("wan", "Wan2.2_VAE_tiny.pth"))
    }
    parts["audio"] = ours("HappyHorseAudioVAELoader", vae_name="oobleck_audio_tiny.safetensors")[0]
    return parts


def film_latent(frames=33, batch=1, rows=2, columns=4):
    generator = torch.Generator().manual_seed(5)
    video = torch.randn(batch, 48, (frames - 1) // 4 + 1, rows, columns, generator=generator)
    video = room("model.video_latent").denormalise(video)
    audio = torch.randn(batch, 64, frames, generator=generator)
    return {"samples": comfy.nested_tensor.NestedTensor((video, audio))}


def direct(latent, decoder, audio_vae, **settings):
    """(the film read back, the VIDEO)"""
    video, path = ours(
        "HappyHorseDecodeToVideo",
        **{"latent": latent, "video_vae": decoder, "audio_vae": audio_vae, **PINNED, **settings},
    )
    return read_film(path), video


def by_frames(latent, decoder, audio_vae, **settings):
    """The same film through IMAGE, AUDIO and the mux."""
    frames, sound = ours("HappyHorseDecode", latent=latent, video_vae=decoder, audio_vae=audio_vae)
    joined = torch.cat(list(sound["waveform"]), dim=-1)[None]
    settings = {"audio": {**sound, "waveform": joined}, **PINNED, **settings}
    _, path = ours("HappyHorseMux", images=frames, frame_rate=25.0, **settings)
    return read_film(path)


def apart(one, other):
    """Numbers of unequal pixels, samples and tags; the shapes are equal or it raises."""
    pictures = [film.decode_frames() for film in (one, other)]
    sounds = [film.decode_waveform() for film in (one, other)]
    assert pictures[0].shape == pictures[1].shape and sounds[0].shape == sounds[1].shape
    return {
        "frames": len(pictures[0]),
        "pixels": int((pictures[0] != pictures[1]).sum()),
        "samples": int((sounds[0] != sounds[1]).sum()),
        "tags": int(one.metadata != other.metadata),
    }


def out_of_memory(parts):
    """The first window's decoding runs out of memory once: the same film in smaller pieces."""
    latent, turbo = film_latent(), parts["turbo"]
    whole, _ = direct(latent, turbo, parts["audio"])
    network = turbo.first_stage_model.network
    before, original, tries = network.piece_bytes, network._pixels, []

    def pixels(*arguments):
        tries.append(network.piece_bytes)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*arguments)

    network._pixels = pixels
    again, _ = direct(latent, turbo, parts["audio"])
    network._pixels, network.piece_bytes = original, before
    return {"apart": apart(whole, again), "quarter": tries[1] * 4 == tries[0]}


def films(parts):
    found = {}
    latent = film_latent()
    for name in ("turbo", "wan"):
        made = direct(latent, parts[name], parts["audio"])[0]
        found[name] = apart(made, by_frames(latent, parts[name], parts["audio"]))
    half = load("bf16")
    made = direct(latent, half["turbo"], half["audio"])[0]
    found["bf16"] = apart(made, by_frames(latent, half["turbo"], half["audio"]))
    two = film_latent(17, batch=2)
    made = direct(two, parts["turbo"], parts["audio"])[0]
    found["batch"] = apart(made, by_frames(two, parts["turbo"], parts["audio"]))
    fine = {"bit_depth": "10"}
    made = direct(latent, parts["turbo"], parts["audio"], **fine)[0]
    found["10 bits"] = apart(made, by_frames(latent, parts["turbo"], parts["audio"], **fine))
    own = {"waveform": torch.rand(1, 2, 44_100) - 0.5, "sample_rate": 44_100}
    others = {"loudness": "-23 LUFS", "languages": "ko,de", "tracks": {"track_0": own}, "audio": own}
    made = direct(latent, parts["turbo"], parts["audio"], **others)[0]
    found["recording"] = apart(made, by_frames(latent, parts["turbo"], parts["audio"], **others))
    return found


def other_networks(parts):
    """The host's own Wan network, small, and a network that nobody knows."""
    torch.manual_seed(2)
    small = {"dim": 8, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, "attn_scales": []}
    network = stock_wan.WanVAE(**small, dec_dim=8, temperal_downsample=[False, True, True], dropout=0.0)
    for parameter in network.parameters():  # the host leaves them as memory was
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    vae = autoencoders.HostVideoVAE(parts["turbo"].first_stage_model.network, torch.float32)
    latent, found = film_latent(17), {}

    class Unknown(torch.nn.Module):
        def decode(self, latent):
            return network.decode(latent)

    for name, vae.first_stage_model in (("stock", network), ("unknown", Unknown())):
        lengths = [chunk.shape[2] for chunk in decoding.decoded_windows(vae, latent["samples"].unbind()[0])]
        found[f"{name} windows"] = lengths
        made = direct(latent, vae, parts["audio"])[0]
        found[name] = apart(made, by_frames(latent, vae, parts["audio"]))
    return found


def left_over():
    return sorted(path.name for path in OUTPUT.iterdir())


def endings(parts):
    """What stays of a film that is stopped or fails, and who was asked for memory."""
    found, before = {}, left_over()
    latent, turbo = film_latent(97), parts["turbo"]
    network = turbo.first_stage_model.network
    windows, asked = [], []
    real_load, real_pixels = comfy.model_management.load_models_gpu, network._pixels

    def counting_load(models, **keywords):
        asked.append((models[0] is turbo.patcher, keywords["memory_required"]))
        return real_load(models, **keywords)

    def ended(event):
        def pixels(*arguments):
            windows.append(1)
            if len(windows) == 2:
                event()
            return real_pixels(*arguments)

        network._pixels = pixels
        windows.clear()
        try:
            direct(latent, turbo, parts["audio"])
            return "accepted"
        except BaseException as error:  # the kind is what is reported
            return f"{type(error).__name__} after {len(windows)} windows"
        finally:
            network._pixels = real_pixels

    def fail():
        raise RuntimeError("broken")

    comfy.model_management.load_models_gpu = counting_load
    try:
        found["stopped"] = ended(lambda: comfy.model_management.interrupt_current_processing(True))
        found["failed"] = ended(fail)
    finally:
        comfy.model_management.load_models_gpu = real_load
    found["windows in all"] = len(list(network.config.windows(25)))
    found["files"] = [name for name in left_over() if name not in before]
    found["asked for the decoder"] = sum(mine for mine, _ in asked)
    found["bytes asked for"] = [need for mine, need in asked if mine]
    found["bytes of the estimate"] = network.working_bytes((1, 48, 25, 2, 4))
    return found


def passing_on(parts):
    """The VIDEO in the hands of the host."""
    film, video = direct(film_latent(), parts["turbo"], parts["audio"], format="mp4-h264-aac")
    components = video.get_components()
    frames = GetVideoComponents.execute(video=video).result[0]
    tags = {name: json.loads(film.metadata[name]) for name in ("prompt", "workflow")}
    return {
        "frames": list(components.images.shape),
        "fps": float(components.frame_rate),
        "sound": components.audio["sample_rate"],
        "stock frames": difference(frames, components.images),
        "tags": tags,
    }


def refusals(parts):
    latent = film_latent(9)
    long = {"waveform": torch.rand(1, 2, 44_100), "sample_rate": 44_100}
    cases = {
        "VAEs swapped": {"video_vae": parts["audio"], "audio_vae": parts["turbo"]},
        "plain latent": {"latent": {"samples": torch.zeros(1, 4, 8, 8)}},
        "too small": {"format": "mp4-av1-aac"},
        "too long": {"audio": long, "fit": "pad"},
        "languages": {"languages": "ko,de"},
    }
    answers, before = {}, left_over()
    for title, case in cases.items():
        try:
            direct(**{"latent": latent, "decoder": parts["turbo"], "audio_vae": parts["audio"], **case})
            answers[title] = "accepted"
        except Exception as error:
            answers[title] = f"{type(error).__name__}: {error}"
    answers["files"] = [name for name in left_over() if name not in before]
    return answers


with torch.inference_mode():
    parts = load()
    measured = {
        "memory": out_of_memory(parts),
        "films": films(parts),
        "other networks": other_networks(parts),
        "endings": endings(parts),
        "passing on": passing_on(parts),
        "refusals": refusals(parts),
    }
report(measured)
