"""HappyHorseMux on the real server: every format it offers, the workflow inside, tracks, and what it refuses."""

import io
import json
import re

import av
import numpy as np
import pytest

RATE = 44_100


@pytest.fixture(scope="module")
def sound(comfy):
    """Half a second of A4 in the server's input folder."""
    time = np.arange(RATE // 2) / RATE
    return comfy.upload_audio("a4.wav", np.stack([0.4 * np.sin(2 * np.pi * 440 * time)] * 2), RATE)


def graph(sound, *, width=96, height=64, frames=9, colour=0x3377BB, **settings):
    """Frames of one colour and a tone into the mux."""
    inputs = {
        "images": ["frames", 0],
        "audio": ["sound", 0],
        "filename_prefix": "mux/film",
        "format": "mp4-h264-aac",
        "frame_rate": 25.0,
        "quality": 80,
    } | settings
    empty = {"width": width, "height": height, "batch_size": frames, "color": colour}
    return {
        "frames": {"class_type": "EmptyImage", "inputs": empty},
        "sound": {"class_type": "LoadAudio", "inputs": {"audio": sound}},
        "mux": {"class_type": "HappyHorseMux", "inputs": inputs},
    }


def names(comfy):
    info = comfy.get("/object_info/HappyHorseMux")["HappyHorseMux"]["input"]["required"]["format"]
    return info[1]["options"] if isinstance(info[0], str) else info[0]


def newest(comfy, suffix):
    """The last film saved; the node shows a preview of those that no browser plays."""
    return max((comfy.base / "output" / "mux").glob(f"*.{suffix}"), key=lambda path: path.stat().st_mtime_ns)


def pitch(samples, rate):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 18))
    return spectrum.argmax() * rate / (1 << 18)


def test_every_format_is_written_and_read_back(comfy, sound):
    offered = names(comfy)
    assert len(offered) >= 30 and offered[0] == "mp4-h264-aac"
    codecs = {"h265": "hevc", "av1": ("av1", "libdav1d"), "prores": "prores", "pcm": "pcm"}
    for name in offered:
        container, video, audio = name.split("-")
        entry = comfy.run(graph(sound, format=name))
        path = newest(comfy, container)
        with av.open(str(path)) as film:
            picture, track = film.streams.video[0], film.streams.audio[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(picture)]
            assert len(frames) == 9, name
            assert np.abs(frames[4].mean((0, 1)) - [0x33, 0x77, 0xBB]).max() < 4, name
            assert picture.codec_context.name.startswith(codecs.get(video, video)), name
            assert track.codec_context.name.startswith(codecs.get(audio, audio)), name
        with av.open(str(path)) as film:
            heard = np.concatenate([frame.to_ndarray() for frame in film.decode(audio=0)], axis=-1)
            rate = film.streams.audio[0].rate
        heard = heard[0] if heard.shape[0] > 1 else heard[0, ::2]  # planar, or two channels in turn
        assert pitch(heard.astype(float), rate) == pytest.approx(440, rel=1e-2), name
        (shown,) = comfy.files(entry)
        assert len(comfy.view(**shown)) > 500, name
        plays = shown["filename"].rpartition(".")[2]
        assert plays in ("mp4", "webm"), name


@pytest.mark.parametrize("name", ["mp4-h264-aac", "mov-h264-aac", "webm-vp9-opus", "mkv-h264-aac"])
def test_the_workflow_is_inside(comfy, sound, name):
    workflow = {"nodes": [], "note": "a } brace, {another and :-{ — ünïcödé 🐎"}
    comfy.run(
        graph(sound, format=name, colour=0x112233), extra_data={"extra_pnginfo": {"workflow": workflow}}
    )
    path = newest(comfy, name.partition("-")[0])
    if name.startswith("mkv"):  # the page reads no MKV; the workflow lies beside it, to be dropped itself
        assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == workflow
        return
    with av.open(str(path)) as film:
        found = {key.lower(): value for key, value in film.metadata.items()}
    tags = {key: json.loads(found[key]) for key in ("workflow", "prompt")}
    assert tags["workflow"] == workflow
    assert tags["prompt"]["mux"]["inputs"]["format"] == name


def test_tracks_and_languages(comfy, sound):
    workflow = graph(sound, format="mkv-h264-flac", languages="ko, deu", **{"tracks.track_0": ["sound", 0]})
    comfy.run(workflow)
    with av.open(str(newest(comfy, "mkv"))) as film:
        assert [stream.language for stream in film.streams.audio] == ["kor", "deu"]


def test_ten_bits_and_loudness(comfy, sound):
    entry = comfy.run(graph(sound, bit_depth="10", loudness="-23 LUFS"))
    path = newest(comfy, "mp4")
    with av.open(str(path)) as film:
        assert film.streams.video[0].codec_context.pix_fmt == "yuv420p10le"
        heard = np.concatenate([frame.to_ndarray() for frame in film.decode(audio=0)], axis=-1)
    # A sine on both channels at -23 LUFS has a peak of 10^((-23 + 0.691)/20) on the BS.1770 scale at 997 Hz.
    assert np.abs(heard).max() == pytest.approx(10 ** (-22.3 / 20), rel=0.15)
    (shown,) = comfy.files(entry)
    assert shown["type"] == "temp"


def test_a_stock_video_and_its_sound_pass_through(comfy, sound):
    workflow = graph(sound)
    workflow["video"] = {
        "class_type": "CreateVideo",
        "inputs": {"images": ["frames", 0], "audio": ["sound", 0], "fps": 24.0},
    }
    for name in ("images", "audio"):
        del workflow["mux"]["inputs"][name]
    workflow["mux"]["inputs"]["video"] = ["video", 0]
    comfy.run(workflow)
    with av.open(io.BytesIO(newest(comfy, "mp4").read_bytes())) as film:
        assert film.streams.video[0].average_rate == 24
        assert len(film.streams.audio) == 1
    assert "24 frames a second; HappyHorse makes 25" in comfy.log()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 97}, "97x64"),
        ({"width": 62, "format": "mp4-av1-aac"}, "sides of 64"),
        ({"languages": "kor, deu"}, "languages: 2 are named for 1 sound track"),
        ({"fit": "pad", "frames": 5}, "longer"),
        ({"languages": "klingon"}, "klingon"),
    ],
)
def test_refusals_name_the_numbers_and_leave_nothing(comfy, sound, settings, words):
    folder = comfy.base / "output" / "mux"
    before = sorted(folder.glob("*")) if folder.exists() else []
    with pytest.raises(RuntimeError, match=re.escape(words)) as refused:
        comfy.run(graph(sound, colour=0x010203, **settings))
    assert "HappyHorseMux (mux)" in str(refused.value)
    assert sorted(folder.glob("*")) == before


def test_nothing_connected_and_both_connected(comfy, sound):
    workflow = graph(sound)
    del workflow["mux"]["inputs"]["images"]
    with pytest.raises(RuntimeError, match="images/video: nothing is connected"):
        comfy.run(workflow)


def test_a_cancelled_film_leaves_no_file(comfy, sound):
    folder = comfy.base / "output" / "mux"
    before = sorted(folder.glob("*")) if folder.exists() else []
    workflow = graph(sound, width=896, height=512, frames=300, colour=0x654321, format="mkv-ffv1-flac")
    with comfy.events() as events:
        prompt = comfy.queue(workflow, client_id=events.client_id)
        events.until("progress", node="mux")
        comfy.interrupt(prompt)
        with pytest.raises(RuntimeError, match=r"interrupted in HappyHorseMux \(mux\)"):
            events.until("execution_success", prompt_id=prompt)
    assert sorted(folder.glob("*")) == before
    assert not list((comfy.base / "temp").glob("*.part"))
