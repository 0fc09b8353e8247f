"""HappyHorseDecodeToVideo: the film of HappyHorseDecode and the mux, and how it behaves on the real server."""

import json

import av
import pytest


@pytest.fixture(scope="module")
def report(host_program):
    """Everything ``host_decode.py`` measured."""
    return host_program("host_decode.py")


@pytest.mark.parametrize(
    ("film", "frames"),
    [("turbo", 33), ("wan", 33), ("bf16", 33), ("batch", 34), ("10 bits", 33), ("recording", 33)],
)
def test_the_film_is_that_of_decode_and_mux(report, film, frames):
    assert report["films"][film] == {"frames": frames, "pixels": 0, "samples": 0, "tags": 0}


def test_out_of_memory_leads_to_smaller_pieces_and_the_same_film(report):
    assert report["memory"] == {
        "apart": {"frames": 33, "pixels": 0, "samples": 0, "tags": 0},
        "quarter": True,
    }


def test_the_stock_network_is_decoded_latent_by_latent(report):
    found = report["other networks"]
    assert found["stock windows"] == [1, 4, 4, 4, 4]
    assert sum(found["unknown windows"]) == 17
    for name in ("stock", "unknown"):
        assert found[name] == {"frames": 17, "pixels": 0, "samples": 0, "tags": 0}


def test_what_is_stopped_or_fails_ends_between_windows_and_leaves_nothing(report):
    found = report["endings"]
    assert found["stopped"] == "InterruptProcessingException after 2 windows"
    assert found["failed"] == "RuntimeError after 2 windows"
    assert found["windows in all"] == 4
    assert found["files"] == []


def test_the_host_is_asked_for_the_memory_of_a_window(report):
    found = report["endings"]
    assert found["asked for the decoder"] == 2
    assert found["bytes asked for"] == [found["bytes of the estimate"]] * 2


def test_the_video_is_the_hosts(report):
    found = report["passing on"]
    assert (found["frames"], found["fps"], found["sound"]) == ([33, 32, 64, 3], 25, 44_100)
    assert found["stock frames"] == 0
    assert found["tags"] == {"prompt": {"1": {}}, "workflow": {"nodes": []}}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("VAEs swapped", ["video_vae:", "64 latent channels", "expected 48"]),
        ("plain latent", ["latent: a plain latent (1, 4, 8, 8) came"]),
        ("too small", ["64x32", "sides of 64"]),
        ("too long", ["MediaError", "longer than the picture of 0.360 s"]),
        ("languages", ["2 are named for 1 sound track"]),
    ],
)
def test_what_cannot_be_is_refused_by_name(report, case, words):
    assert all(word in report["refusals"][case] for word in words), report["refusals"][case]
    assert report["refusals"]["files"] == []


# On the server


def graph(width=96, height=64, length=17, **settings):
    nodes = {
        "latent": (
            "HappyHorseEmptyLatent",
            {"width": width, "height": height, "length": length, "batch_size": 1},
        ),
        "turbo": (
            "HappyHorseVideoDecoderLoader",
            {"decoder_name": "turbo_vae_tiny/turbo_tiny.ckpt", "precision": "float32"},
        ),
        "oobleck": ("HappyHorseAudioVAELoader", {"vae_name": "oobleck_audio_tiny.safetensors"}),
        "film": (
            "HappyHorseDecodeToVideo",
            {
                "latent": ["latent", 0],
                "video_vae": ["turbo", 0],
                "audio_vae": ["oobleck", 0],
                "filename_prefix": "direct/film",
                "format": "mp4-h264-aac",
                "quality": 80,
            }
            | settings,
        ),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_a_film_is_shown_and_passed_on(comfy):
    workflow = graph()
    workflow["again"] = {
        "class_type": "SaveVideo",
        "inputs": {
            "video": ["film", 0],
            "filename_prefix": "direct/again",
            "format": "auto",
            "codec": "auto",
        },
    }
    note = {"nodes": [], "note": "🐎"}
    entry = comfy.run(workflow, extra_data={"extra_pnginfo": {"workflow": note}})
    shown = comfy.files(entry)
    assert {file["filename"].partition("_")[0] for file in shown} == {"film", "again"}
    for file in shown:
        with av.open(str(comfy.base / "output" / file["subfolder"] / file["filename"])) as film:
            assert sum(1 for _ in film.decode(video=0)) == 17
            assert len(film.streams.audio) == 1
            tags = {key.lower(): value for key, value in film.metadata.items()}
            assert json.loads(tags["workflow"]) == note


def test_progress_is_told_and_a_cancelled_film_leaves_no_file(comfy):
    folder = comfy.base / "output" / "direct"
    before = sorted(folder.glob("*")) if folder.exists() else []
    workflow = graph(width=448, height=256, length=249, format="mkv-ffv1-flac")
    with comfy.events() as events:
        prompt = comfy.queue(workflow, client_id=events.client_id)
        told = events.until("progress", node="film")
        assert told.data["max"] == 249
        assert told.data["value"] <= 25
        comfy.interrupt(prompt)
        with pytest.raises(RuntimeError, match=r"interrupted in HappyHorseDecodeToVideo \(film\)"):
            events.until("execution_success", prompt_id=prompt)
    assert sorted(folder.glob("*")) == before
