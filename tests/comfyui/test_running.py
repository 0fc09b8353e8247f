"""Films made by the running server: files, progress, previews, interrupt, memory, caching, refusals on the node."""

import copy
import io
import re

import av
import numpy as np
import pytest
from PIL import Image

FLOAT32 = {"precision": "float32"}


def film_graph(prefix="film", *, variant="distilled", steps=2, seed=1, width=96, height=64, length=9):
    """Prompt → sampler → decode → stock CreateVideo → stock SaveVideo, on the tiny set."""
    name = {"distilled": "happyhorse_tiny_distilled.safetensors", "base": "happyhorse_tiny_base"}[variant]
    graph = {
        "model": ("HappyHorseModelLoader", {"model_name": name, "variant": "auto", **FLOAT32}),
        "clip": (
            "HappyHorseTextEncoderLoader",
            {"text_encoder_name": "t5gemma_tiny", "device": "default", **FLOAT32},
        ),
        "decoder": (
            "HappyHorseVideoDecoderLoader",
            {"decoder_name": "turbo_vae_tiny/turbo_tiny.ckpt", **FLOAT32},
        ),
        "audio_vae": ("HappyHorseAudioVAELoader", {"vae_name": "oobleck_audio_tiny.safetensors"}),
        "positive": ("CLIPTextEncode", {"clip": ["clip", 0], "text": "A singer (alone) says: hello."}),
        "negative": ("CLIPTextEncode", {"clip": ["clip", 0], "text": ""}),
        "latent": (
            "HappyHorseEmptyLatent",
            {"width": width, "height": height, "length": length, "batch_size": 1},
        ),
        "sampler": (
            "HappyHorseSampler",
            {
                "model": ["model", 0],
                "positive": ["positive", 0],
                "latent": ["latent", 0],
                "seed": seed,
                "steps": steps,
                "preset": variant,
                "video_guidance": 5.0,
                "audio_guidance": 5.0,
                "shift": 5.0,
                "negative": ["negative", 0],
            },
        ),
        "decode": (
            "HappyHorseDecode",
            {"latent": ["sampler", 0], "video_vae": ["decoder", 0], "audio_vae": ["audio_vae", 0]},
        ),
        "video": ("CreateVideo", {"images": ["decode", 0], "audio": ["decode", 1], "fps": 25.0}),
        "save": (
            "SaveVideo",
            {"video": ["video", 0], "filename_prefix": prefix, "format": "auto", "codec": "auto"},
        ),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in graph.items()}


def decoded(content):
    """(frames [F, H, W, 3], sound [C, S], rate) of a film's bytes."""
    with av.open(io.BytesIO(content)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(io.BytesIO(content)) as container:
        rate = container.streams.audio[0].rate
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    return frames, sound, rate


@pytest.mark.parametrize("variant", ["distilled", "base"])
def test_text_to_film_with_stock_saving(comfy, variant):
    entry = comfy.run(film_graph(f"plain_{variant}", variant=variant))
    (file,) = comfy.files(entry)
    frames, sound, rate = decoded(comfy.view(**file))
    assert frames.shape == (9, 64, 96, 3)
    assert frames.std() > 5  # a picture, not one colour
    assert rate == 44_100
    assert 0 <= sound.shape[1] - 9 * 1764 <= 1024  # AAC fills its last block
    assert np.isfinite(sound).all()


def test_picture_and_voice_through_stock_loaders(comfy):
    picture = np.linspace(0, 255, 70 * 110 * 3).reshape(70, 110, 3)
    time = np.arange(20_000) / 44_100
    graph = film_graph("chained")
    name = comfy.upload_image("first.png", picture)
    voice = comfy.upload_audio("voice.wav", 0.4 * np.sin(2 * np.pi * 440 * time)[None], 44_100)
    graph |= {
        "wan": {
            "class_type": "HappyHorseVideoDecoderLoader",
            "inputs": {"decoder_name": "Wan2.2_VAE_tiny.pth"},
        },
        "image": {"class_type": "LoadImage", "inputs": {"image": name}},
        "audio": {"class_type": "LoadAudio", "inputs": {"audio": voice}},
        "with voice": {
            "class_type": "HappyHorseAudioToVideo",
            "inputs": {"latent": ["latent", 0], "audio_vae": ["audio_vae", 0], "audio": ["audio", 0]},
        },
        "with picture": {
            "class_type": "HappyHorseImageToVideo",
            "inputs": {"latent": ["with voice", 0], "vae": ["wan", 0], "first_frame": ["image", 0]},
        },
    }
    graph["sampler"]["inputs"]["latent"] = ["with picture", 0]
    graph["video"]["inputs"]["audio"] = ["audio", 0]
    (file,) = comfy.files(comfy.run(graph))
    frames, sound, rate = decoded(comfy.view(**file))
    assert len(frames) == 13  # 0.45 s of voice need 11.3 frames, and counts are 4k+1
    spectrum = np.abs(np.fft.rfft(sound[0] * np.hanning(sound.shape[1]), 1 << 18))
    assert spectrum.argmax() * rate / (1 << 18) == pytest.approx(440, rel=5e-3)


def test_progress_and_coloured_previews(comfy):
    graph = film_graph("previewed", steps=4, seed=21)
    with comfy.events() as events:
        prompt = comfy.queue(graph, {"preview_method": "latent2rgb"}, client_id=events.client_id)
        events.until("execution_success", prompt_id=prompt)
        counts = [event.data for event in events.of("progress") if event.data.get("node") == "sampler"]
        assert [(data["value"], data["max"]) for data in counts] == [(step, 4) for step in (1, 2, 3, 4)]
        previews = events.of("preview")
        assert len(previews) == 4
        pixels = np.asarray(Image.open(io.BytesIO(previews[-1].image)).convert("RGB")).astype(float)
        assert pixels.std() > 3
        assert np.abs(pixels[..., 0] - pixels[..., 2]).max() > 10  # in colour


def test_interrupt_stops_within_a_step_and_the_next_run_is_fine(comfy):
    # Large enough that a step takes a good part of a second.
    graph = film_graph("stopped", variant="base", steps=60, seed=31, width=448, height=256, length=25)
    with comfy.events() as events:
        prompt = comfy.queue(graph, client_id=events.client_id)
        events.until("progress", node="sampler", value=2)
        comfy.interrupt(prompt)
        with pytest.raises(RuntimeError, match=r"interrupted in HappyHorseSampler \(sampler\)"):
            events.until("execution_success", prompt_id=prompt)
        reached = max(event.data["value"] for event in events.of("progress"))
        assert reached <= 3
    comfy.run(film_graph("after_stop", seed=32))


def executed(comfy, graph):
    """The nodes that did work in a run, the others being remembered."""
    with comfy.events() as events:
        prompt = comfy.queue(graph, client_id=events.client_id)
        events.until("execution_success", prompt_id=prompt)
        return {event.data["node"] for event in events.of("executing") if event.data.get("node")}


def test_a_later_seed_repeats_no_earlier_work(comfy):
    graph = film_graph("cached", seed=41)
    graph |= {
        "sr model": {
            "class_type": "HappyHorseModelLoader",
            "inputs": {"model_name": "happyhorse_tiny_sr_540p.safetensors", "variant": "auto", **FLOAT32},
        },
        "sr": {
            "class_type": "HappyHorseSuperResolution",
            "inputs": {
                "sr_model": ["sr model", 0],
                "latent": ["sampler", 0],
                "positive": ["positive", 0],
                "size": "540p",
                "seed": 1,
                "steps": 1,
                "noise": 220,
                "align_corners": True,
            },
        },
    }
    graph["decode"]["inputs"]["latent"] = ["sr", 0]
    comfy.forget()
    assert {"model", "clip", "positive", "sampler", "sr", "save"} <= executed(comfy, graph)
    again = copy.deepcopy(graph)
    again["sr"]["inputs"]["seed"] = 2
    assert executed(comfy, again) == {"sr", "decode", "video", "save"}


def test_memory_does_not_grow(comfy):
    sizes = []
    for number in range(20):
        comfy.run(film_graph("memory", seed=100 + number))
        sizes.append(comfy.resident_memory())
    assert sizes[19] <= 1.02 * sizes[4], [size // 2**20 for size in sizes]


@pytest.mark.parametrize(
    ("node", "name", "value", "words"),
    [
        ("sampler", "model", ["sr", 0], "model: a model declared as sr_540p came"),
        (
            "decode",
            "video_vae",
            ["audio_vae", 0],
            "video_vae: a VAE with 64 latent channels in 1 dimensions came",
        ),
        ("decode", "latent", ["stock latent", 0], "latent: a plain latent"),
        ("latent", "length", 10, "10 frames cannot be made"),
    ],
)
def test_a_refusal_is_shown_on_its_node(comfy, node, name, value, words):
    graph = film_graph("refused")
    graph["sr"] = {
        "class_type": "HappyHorseModelLoader",
        "inputs": {"model_name": "happyhorse_tiny_sr_540p.safetensors", "variant": "auto", **FLOAT32},
    }
    graph["stock latent"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1},
    }
    graph[node]["inputs"][name] = value
    with pytest.raises(RuntimeError, match=re.escape(words)) as refused:
        comfy.run(graph)
    assert f"({node})" in str(refused.value)


def test_the_stock_clip_loader_is_not_needed(comfy):
    """Ours lists sharded folders and files; the host's own lists stay as they are."""
    info = comfy.get("/object_info/HappyHorseTextEncoderLoader")["HappyHorseTextEncoderLoader"]
    options = info["input"]["required"]["text_encoder_name"]
    assert "t5gemma_tiny" in str(options)
    models = comfy.get("/object_info/HappyHorseModelLoader")["HappyHorseModelLoader"]["input"]["required"][
        "model_name"
    ]
    assert "happyhorse_tiny_base" in str(models) and "happyhorse_tiny_distilled.safetensors" in str(models)
    assert "model-00001-of-00002" not in str(models)
