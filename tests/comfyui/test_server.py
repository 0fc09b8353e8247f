"""The harness itself, on stock nodes that need no model: what is reported as working works, what fails is told."""

import io
import re

import av
import numpy as np
import pytest
from PIL import Image

WIDTH, HEIGHT, FRAMES, FPS = 96, 64, 10, 25
ORANGE = 0xFF8000


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture
def film():
    """An API workflow that saves ten frames of one colour as an MP4."""
    return {
        "image": node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=FRAMES, color=ORANGE),
        "video": node("CreateVideo", images=["image", 0], fps=FPS),
        "save": node("SaveVideo", video=["video", 0], filename_prefix="film", format="auto", codec="auto"),
    }


def test_the_pack_is_imported_without_an_error(comfy):
    log, _, _ = comfy.log().partition("got prompt")  # other tests' refusals come after
    assert re.search(r"seconds.*: .*/custom_nodes/ComfyUI-HappyHorse$", log, re.MULTILINE)  # the import times
    assert "Traceback" not in log
    assert not re.search(r"IMPORT FAILED|Cannot import|Error while calling comfy_entrypoint", log)


def test_the_tiny_models_are_offered(comfy):
    assert "happyhorse_tiny_distilled.safetensors" in comfy.get("/models/diffusion_models")


def test_a_picture_comes_back(comfy):
    image = node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=1, color=ORANGE)
    entry = comfy.run(
        {"image": image, "save": node("SaveImage", images=["image", 0], filename_prefix="picture")}
    )
    (file,) = comfy.files(entry)
    with Image.open(io.BytesIO(comfy.view(**file))) as picture:
        assert (picture.size, picture.getpixel((5, 5))) == ((WIDTH, HEIGHT), (255, 128, 0))


def test_a_film_comes_back_with_its_graph_inside(comfy, film):
    (file,) = comfy.files(comfy.run(film, extra_data={"extra_pnginfo": {"workflow": {"note": "{kept}"}}}))
    with av.open(io.BytesIO(comfy.view(**file))) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == FPS
        assert "EmptyImage" in container.metadata["prompt"]
        assert "{kept}" in container.metadata["workflow"]
    assert np.shape(frames) == (FRAMES, HEIGHT, WIDTH, 3)
    assert np.abs(np.mean(frames, axis=(0, 1, 2)) - (255, 128, 0)).max() < 6  # H.264 with halved chroma


def test_uploads_arrive_unchanged(comfy):
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3))
    seconds = np.arange(48_000) / 48_000
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)[None].repeat(2, 0)
    entry = comfy.run(
        {
            "image": node("LoadImage", image=comfy.upload_image("noise.png", pixels)),
            "save": node("SaveImage", images=["image", 0], filename_prefix="noise"),
            "audio": node("LoadAudio", audio=comfy.upload_audio("tone.wav", tone, 48_000)),
            "sound": node("SaveAudio", audio=["audio", 0], filename_prefix="tone"),
        }
    )
    files = {file["filename"].partition("_")[0]: comfy.view(**file) for file in comfy.files(entry)}
    with Image.open(io.BytesIO(files["noise"])) as picture:
        np.testing.assert_array_equal(np.asarray(picture), pixels)
    with av.open(io.BytesIO(files["tone"])) as container:
        sound = [frame.to_ndarray() for frame in container.decode(audio=0)]
        assert container.streams.audio[0].rate == 48_000
    assert sum(part.size for part in sound) == tone.size


def test_a_graph_that_does_not_validate_raises_with_the_nodes_errors(comfy, film):
    film["image"]["inputs"]["width"] = 0
    with pytest.raises(RuntimeError, match=r"EmptyImage \(image\): Value 0 smaller than min of 1: width"):
        comfy.run(film)
    film["image"]["class_type"] = "NoSuchNode"
    with pytest.raises(RuntimeError, match="NoSuchNode"):
        comfy.run(film)


def test_a_node_that_fails_raises_with_its_error(comfy, film):
    film["image"]["inputs"]["width"] = 95  # H.264 with halved chroma has no odd sizes
    with pytest.raises(RuntimeError, match=r"SaveVideo \(save\): "):
        comfy.run(film)
    film["image"]["inputs"]["width"] = 98
    comfy.run(film)


def test_events_tell_of_a_run(comfy, film):
    film["image"]["inputs"]["color"] = 1  # nothing of it is in the server's cache
    with comfy.events() as events:
        prompt_id = comfy.queue(film, client_id=events.client_id)
        events.until("execution_success", prompt_id=prompt_id)
    ran = [event.data["node"] for event in events.of("executing") if event.data["node"]]
    assert ran == ["image", "video", "save"]
    assert events.of("executed")[-1].data["output"]["images"][0]["filename"].endswith(".mp4")


def test_an_event_that_does_not_come_is_not_waited_for_forever(comfy):
    with comfy.events() as events, pytest.raises(TimeoutError, match="no event executed"):
        events.until("executed", timeout=0.2)


def test_only_a_server_that_forgets_works_twice(comfy, film):
    def nodes_run():
        with comfy.events() as events:
            events.until("execution_success", prompt_id=comfy.queue(film, client_id=events.client_id))
        return [event.data["node"] for event in events.of("executing") if event.data["node"]]

    film["image"]["inputs"]["color"] = 4
    assert (nodes_run(), nodes_run()) == (["image", "video", "save"], [])
    comfy.forget()
    assert nodes_run() == ["image", "video", "save"]


def test_interrupt_stops_a_run_and_the_next_is_fine(comfy, film):
    links = 200  # of a quarter of a second each
    chain = {"0": node("EmptyImage", width=512, height=512, batch_size=1, color=2)}
    for link in range(1, links):
        chain[str(link)] = node("ImageBlur", image=[str(link - 1), 0], blur_radius=31, sigma=10.0)
    chain["end"] = node("PreviewImage", images=[str(links - 1), 0])
    with comfy.events() as events:
        prompt_id = comfy.queue(chain, client_id=events.client_id)
        events.until("executing", node="2")
        comfy.interrupt(prompt_id)
        events.until("execution_interrupted", prompt_id=prompt_id)
    assert len(events.of("executing")) < links / 10
    assert comfy.finish(prompt_id)["status"]["status_str"] == "error"
    film["image"]["inputs"]["color"] = 3
    assert comfy.run(film)["status"]["status_str"] == "success"


def test_the_server_s_memory_is_read(comfy):
    assert 100e6 < comfy.resident_memory() < 20e9
