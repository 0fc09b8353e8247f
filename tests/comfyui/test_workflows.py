"""Every example workflow on the real server, small and with the tiny models, and what the server gives out of the pack."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACK = "ComfyUI-HappyHorse"
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
HELP_PAGES = sorted(path.name for path in (ROOT / "web/docs").glob("*.md"))
LANGUAGES = ["en", "zh", "ja", "ko", "fr", "de"]
SMALL = {
    "HappyHorseEmptyLatent": {"width": 64, "height": 64, "length": 5},
    "HappyHorseSampler": {"steps": 2},
    "HappyHorseSuperResolution": {"steps": 1},
}
IMAGE_MODEL = {"CheckpointLoaderSimple", "EmptyLatentImage", "KSampler"}
ORANGE = 0xFF8000
VOICE_SECONDS = 0.3  # 7.5 frames, held whole by 9


@pytest.fixture(scope="module")
def uploads(comfy):
    """The picture and the voice that the workflows name, under the names the server gave them."""
    picture = comfy.upload_image("example.png", np.random.default_rng(1).integers(0, 256, (80, 120, 3)))
    time = np.arange(int(VOICE_SECONDS * 48_000)) / 48_000
    voice = comfy.upload_audio("voice.wav", 0.4 * np.sin(2 * np.pi * 440 * time)[None], 48_000)
    return {"example.png": picture, "voice.wav": voice}


def small(name: str, tiny_names: dict) -> dict:
    """The API workflow with the tiny models, few pixels and few steps, and without an image model."""
    workflow = json.loads((ROOT / f"workflows/api/{name}.json").read_text(encoding="utf-8"))
    for node in workflow.values():
        inputs = node["inputs"]
        for key, value in inputs.items():
            inputs[key] = tiny_names.get(value, value) if isinstance(value, str) else value
        if "precision" in inputs:
            inputs["precision"] = "float32"  # processors are slow in bfloat16
        inputs |= SMALL.get(node["class_type"], {})
        if node["class_type"] == "VAELoader":  # it takes full-size networks only
            node["class_type"] = "HappyHorseVideoDecoderLoader"
            node["inputs"] = {"decoder_name": inputs["vae_name"]}
        if node["class_type"] == "VAEDecode":
            node["class_type"] = "EmptyImage"
            node["inputs"] = {"width": 96, "height": 64, "batch_size": 1, "color": ORANGE}
    left_out = {number for number, node in workflow.items() if node["class_type"] in IMAGE_MODEL}
    return {
        number: node
        for number, node in workflow.items()
        if number not in left_out
        and not any(isinstance(value, list) and value[0] in left_out for value in node["inputs"].values())
    }


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_makes_its_film(comfy, uploads, tiny_names, name):
    workflow = small(name, tiny_names)
    for node in workflow.values():
        for key, value in node["inputs"].items():
            if isinstance(value, str):
                node["inputs"][key] = uploads.get(value, value)
    entry = comfy.run(workflow, extra_data={"extra_pnginfo": {"workflow": {"note": "{kept}"}}})
    films = [comfy.view(**file) for file in comfy.files(entry) if file["filename"].endswith(".mp4")]
    assert len(set(films)) == sum(node["class_type"] == "HappyHorseMux" for node in workflow.values())
    frames = 9 if name == "voice_to_film" else 5
    side = 256 if name == "text_to_film_1080p" else 64  # any size off the table is quadrupled
    for film in films:
        sound, rate = check_film(film, frames, side)
        if name == "voice_to_film":
            check_voice(sound, rate)


def check_film(content: bytes, frames: int, side: int) -> tuple[np.ndarray, int]:
    """Raise unless it is a whole film with its graph inside; returns its sound [C, S] and the rate."""
    with av.open(io.BytesIO(content)) as container:
        tags = container.metadata
        assert container.streams.video[0].average_rate == 25
        picture = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(io.BytesIO(content)) as container:
        rate = container.streams.audio[0].rate
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    assert picture.shape == (frames, side, side, 3)
    assert picture.std() > 1  # a picture, not one colour
    assert sound.shape[0] == 2
    assert 0 <= sound.shape[1] - frames / 25 * rate <= 1024  # AAC fills its last block
    assert np.abs(sound).max() > 1e-4  # a sound, not silence
    assert "HappyHorseMux" in tags["prompt"]
    assert "{kept}" in tags["workflow"]
    return sound, rate


def check_voice(sound: np.ndarray, rate: int):
    """The tone that drove the film, then the silence that fills the last frames."""
    voice, after = sound[0, : int(VOICE_SECONDS * rate)], sound[0, int((VOICE_SECONDS + 0.03) * rate) :]
    pitch = np.abs(np.fft.rfft(voice)).argmax() * rate / len(voice)
    assert pitch == pytest.approx(440, abs=1 / VOICE_SECONDS)
    assert np.abs(after).max() < 0.05


def test_the_server_lists_the_workflows_with_their_thumbnails(comfy):
    assert sorted(comfy.get("/workflow_templates")[PACK]) == WORKFLOWS
    for name in WORKFLOWS:
        served = comfy.get(f"/api/workflow_templates/{PACK}/{name}.json")
        assert served == json.loads((ROOT / f"workflows/{name}.json").read_text(encoding="utf-8"))
        assert comfy.read(f"/api/workflow_templates/{PACK}/{name}.jpg").startswith(b"\xff\xd8\xff")


def test_the_server_lists_the_blueprint(comfy):
    ours = {
        key: entry
        for key, entry in comfy.get("/global_subgraphs").items()
        if entry["name"] == "happyhorse_text_to_film"
    }
    (key,) = ours
    content = json.loads(comfy.get(f"/global_subgraphs/{key}")["data"])
    assert content["definitions"]["subgraphs"][0]["name"] == "HappyHorse Text to Film"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_server_gives_our_words(comfy, language):
    file = ROOT / f"locales/{language}/nodeDefs.json"
    words = json.loads(file.read_text(encoding="utf-8"))
    assert words.items() <= comfy.get("/i18n")[language]["nodeDefs"].items()


@pytest.mark.parametrize("page", HELP_PAGES)
def test_the_server_gives_help_pages(comfy, page):
    assert comfy.read(f"/extensions/{PACK}/docs/{page}") == (ROOT / "web/docs" / page).read_bytes()


def test_the_server_gives_the_page_our_module(comfy):
    assert f"/extensions/{PACK}/latent_badge.js" in comfy.get("/extensions")
