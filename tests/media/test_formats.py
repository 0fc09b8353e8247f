"""Every pair on offer is written, decoded and compared in numbers; every other is refused in words."""

import os
import subprocess
import sys
from itertools import product

import av
import numpy as np
import pytest
import torch

from comfyui_happyhorse.errors import MediaError
from comfyui_happyhorse.media.codecs import AUDIO_CODECS, CONTAINERS, VIDEO_CODECS
from comfyui_happyhorse.media.formats import FilmFormat, available_formats, check_encoders, formats
from comfyui_happyhorse.media.mux import write_film
from comfyui_happyhorse.media.read import read_film

FRAMES = 30
FLASHES = (7, 21)
# Levels of 255 that a flat patch may be off at quality 75; FFV1 keeps each level.
TOLERANCE = {"h264": 4, "h265": 4, "av1": 5, "vp9": 4, "prores": 1.5, "ffv1": 0.501}
# Of the tone's amplitude: what a lossy encoder changes, and 24 bits do not.
LEVEL = {"aac": 0.01, "opus": 0.02, "flac": 1e-5, "pcm": 1e-5}


def named(film_format):
    return (
        f"{film_format.container}-{film_format.video_codec}-{film_format.audio_codec}-{film_format.bit_depth}"
    )


@pytest.fixture(scope="module")
def patches():
    """[8, 8, 3] in [0, 1]: black, white, the pure colours and random ones."""
    colours = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(0))
    colours[0] = torch.tensor([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)])
    return colours


@pytest.fixture(scope="module")
def picture(patches):
    """[30, 128, 128, 3]: the patches, and two white flashes between black frames in the middle of them."""
    frames = patches.repeat_interleave(16, 0).repeat_interleave(16, 1).repeat(FRAMES, 1, 1, 1)
    frames[5:] = 0
    for flash in FLASHES:
        frames[flash] = 1
    return frames


@pytest.fixture(scope="module")
def sound():
    """440 Hz at half scale for 1.2 s on the left, and clicks with the flashes on the right."""
    left = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(FRAMES * 1764, dtype=torch.float64) / 44100)
    right = torch.zeros_like(left)
    for flash in FLASHES:
        burst = torch.arange(441, dtype=torch.float64)
        right[flash * 1764 : flash * 1764 + 441] = 0.8 * torch.sin(2 * torch.pi * 2000 * burst / 44100)
    return torch.stack([left, right]).float()


def pitch_and_amplitude(channel, rate):
    window = torch.hann_window(len(channel), periodic=True, dtype=torch.float64)
    spectrum = torch.fft.rfft(channel.double() * window, n=16 * len(channel)).abs()
    peak = int(spectrum.argmax())
    return peak * rate / (16 * len(channel)), float(spectrum[peak] * 2 / window.sum())


@pytest.mark.parametrize("film_format", formats(), ids=named)
def test_every_pair_comes_back(tmp_path, film_format, picture, patches, sound):
    path = tmp_path / f"film{film_format.box.extension}"
    info = write_film(path, picture.split(8), sound, format=film_format)
    film = read_film(path)
    rate = film_format.audio.sample_rate
    samples = FRAMES * rate // 25
    assert (info.frames, info.samples, info.sample_rate) == (FRAMES, samples, rate)
    assert (film.width, film.height, film.frames, film.fps) == (128, 128, FRAMES, 25)
    assert (film.pixel_format, film.sample_rate, film.channels) == (film_format.pixel_format, rate, 2)
    assert film.colour == ((1, 1, 0, 2) if film_format.video_codec == "ffv1" else (1, 1, 1, 1))

    # Picture and sound last equally long to the sample; Matroska has no word for a part of an AAC block.
    extra = 1023 if (film_format.container, film_format.audio_codec) == ("mkv", "aac") else 0
    assert film.video_seconds == pytest.approx(FRAMES / 25, abs=1e-9)
    assert 0 <= round(film.audio_seconds * rate) - samples <= extra

    frames = film.decode_frames()
    error = (frames[2, 8::16, 8::16] - patches * 255).abs().max()
    # swscale makes 8 bits of 10-bit RGB by leaving bits out, which is this test's reading and not the file.
    reading = 1 if film_format.pixel_format == "gbrp10le" else 0
    assert error <= TOLERANCE[film_format.video_codec] + reading
    with av.open(str(path)) as container:
        white = [f.time for f in container.decode(video=0) if f.to_ndarray(format="gray")[8:].min() > 200]
    assert white == pytest.approx([flash / 25 for flash in FLASHES], abs=1e-6)  # and the film begins at 0

    left, right = film.decode_waveform()[:, :samples]
    pitch, amplitude = pitch_and_amplitude(left, rate)
    assert pitch == pytest.approx(440, abs=0.2)
    assert amplitude == pytest.approx(0.5, rel=LEVEL[film_format.audio_codec])
    if film_format.audio.bit_rate is None:
        assert (torch.stack([left, right]) - sound).abs().max() < 2**-22  # 24 bits
    for flash in FLASHES:
        before = (flash - 2) * rate // 25
        onset = before + int((right[before:].abs() > 0.25).nonzero()[0])
        assert onset / rate == pytest.approx(flash / 25, abs=0.0005)


@pytest.mark.parametrize(
    "film_format", {(f.container, f.video_codec): f for f in formats()}.values(), ids=named
)
def test_a_cancel_leaves_nothing(tmp_path, film_format, picture):
    def frames():
        yield picture[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_film(
            tmp_path / f"film{film_format.box.extension}",
            frames(),
            torch.zeros(2, 9999),
            format=film_format,
            metadata={"prompt": "{}"},
            preview=tmp_path / "preview.mp4",
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("film_format", [f for f in formats() if f.audio_codec in ("aac", "opus")], ids=named)
def test_the_same_input_gives_the_same_bytes(tmp_path, film_format, picture, sound):
    path, films = tmp_path / f"film{film_format.box.extension}", set()
    for _ in range(3):
        write_film(path, picture[3:9].split(4), sound, format=film_format, metadata={"prompt": "{}"})
        films.add(path.read_bytes())
    assert len(films) == 1


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("codec", ["h264", "h265", "av1", "vp9"])
def test_films_of_few_frames(tmp_path, codec, container, frames):
    path = tmp_path / f"film.{container}"
    grey = (torch.arange(frames) / 4)[:, None, None, None].expand(-1, 64, 64, 3)
    write_film(path, [grey], torch.zeros(2, 9999), format=FilmFormat(container, codec, "opus"))
    with av.open(str(path)) as film:
        times = [frame.time for frame in film.decode(video=0)]
    assert times == pytest.approx([number / 25 for number in range(frames)], abs=1e-6)
    shown = read_film(path).decode_frames()[:, 32, 32, 0]
    assert shown.tolist() == pytest.approx([64 * number for number in range(frames)], abs=4)


SHORT_FILMS = """
import sys
sys.path.insert(0, sys.argv[1])
import conftest, torch
from comfyui_happyhorse.media.formats import FilmFormat
from comfyui_happyhorse.media.mux import write_film
for frames in (1, 2):
    write_film(sys.argv[2], [torch.zeros(frames, 64, 64, 3)], None, format=FilmFormat("mkv", "h265", "aac"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc fills fresh memory on request")
def test_x265_does_not_read_what_memory_held(tmp_path, root):
    command = [sys.executable, "-c", SHORT_FILMS, str(root / "tests"), str(tmp_path / "film.mkv")]
    subprocess.run(command, check=True, env={**os.environ, "MALLOC_PERTURB_": "1"})
    film = read_film(tmp_path / "film.mkv")
    assert (film.frames, film.video_seconds) == (2, 0.08)


def stored_levels(path, plane=0):
    """The levels of one plane of the first frame as they are stored."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        stored = frame.planes[plane]
        return np.frombuffer(stored, np.uint16).reshape(-1, stored.line_size // 2)[:, : stored.width]


@pytest.mark.parametrize(
    "film_format", [f for f in formats() if f.bit_depth == 10 and f.audio_codec in ("aac", "opus")], ids=named
)
def test_ten_bits_hold_more_than_256_levels(tmp_path, film_format):
    ramp = torch.linspace(0, 1, 1024)[None, None, :, None].expand(2, 64, -1, 3)
    path = tmp_path / f"film{film_format.box.extension}"
    write_film(path, [ramp], None, format=film_format)
    levels = stored_levels(path)[32]
    assert len(np.unique(levels)) > 600
    exact = np.linspace(0, 1023, 1024) if film_format.video_codec == "ffv1" else np.linspace(64, 940, 1024)
    assert np.abs(levels - exact).max() < (0.51 if film_format.video_codec == "ffv1" else 4)
    assert abs((levels - exact).mean()) < 0.3  # swscale's own white, 65280, taken for 65535: 1.7


def test_lossless_is_lossless(tmp_path):
    frames = torch.randint(0, 256, (5, 63, 65, 3), dtype=torch.uint8)
    write_film(tmp_path / "film.mkv", [frames], None, format=FilmFormat("mkv", "ffv1", "flac"))
    assert torch.equal(read_film(tmp_path / "film.mkv").decode_frames(), frames)
    with av.open(str(tmp_path / "film.mkv")) as container:
        assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)


@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_apples_players_know_the_h265(tmp_path, container):
    film_format = FilmFormat(container, "h265", "aac")
    write_film(tmp_path / "film", [torch.zeros(3, 64, 64, 3)], None, format=film_format)
    with av.open(str(tmp_path / "film")) as film:
        assert film.streams.video[0].codec_context.codec_tag == "hvc1"


def test_floats_are_rounded_in_eight_bits(tmp_path):
    levels = torch.arange(0, 256).repeat_interleave(3).float()[:, None].expand(-1, 3)
    levels = (levels + torch.tensor([-0.45, 0.0, 0.45]).repeat(256)[:, None])[None, None]
    levels = levels.expand(1, 2, -1, 3)  # below 0 and above 255 too
    film_format = FilmFormat("mkv", "ffv1", "flac")
    for dtype in (torch.float32, torch.float64):
        write_film(tmp_path / "film.mkv", [(levels / 255).to(dtype)], None, format=film_format)
        assert torch.equal(
            read_film(tmp_path / "film.mkv").decode_frames()[0], levels[0].round().clamp(0, 255).byte()
        )


@pytest.mark.parametrize("codec", VIDEO_CODECS)
def test_quality_moves_the_size(tmp_path, codec, picture):
    container = {"prores": "mov"}.get(codec, "mkv")
    depth = max(VIDEO_CODECS[codec].pixel_formats)
    noisy = (picture[:5] + torch.rand(5, 128, 128, 3) * 0.2).clamp(0, 1)
    sizes = []
    for quality in (0, 30, 60, 90, 100):
        film_format = FilmFormat(container, codec, "aac", quality=quality, bit_depth=depth)
        path = tmp_path / f"film{film_format.box.extension}"
        write_film(path, [noisy], None, format=film_format)
        sizes.append(path.stat().st_size)
    assert sizes == sorted(sizes)
    assert codec == "ffv1" or sizes[0] < 0.8 * sizes[-1]


def test_the_default_is_what_was_always_written():
    assert FilmFormat() == FilmFormat("mp4", "h264", "aac", 75, 8)
    assert FilmFormat().video.options(75)["crf"] == "18"
    assert FilmFormat().plays_in_browsers


def test_the_table_is_whole():
    pairs = {(f.container, f.video_codec, f.audio_codec) for f in formats()}
    assert len(pairs) == 12 + 6 + 20 + 2
    assert {f.video_codec for f in formats()} == set(VIDEO_CODECS)
    assert {f.audio_codec for f in formats()} == set(AUDIO_CODECS)
    assert available_formats() == formats()
    for container, video, audio in product(CONTAINERS, VIDEO_CODECS, AUDIO_CODECS):
        if (container, video, audio) not in pairs:
            with pytest.raises(MediaError, match=r"does not hold .* Choose .*, or write"):
                FilmFormat(container, video, audio)


def test_what_a_page_plays_and_reads():
    played = {named(f) for f in formats() if f.plays_in_browsers}
    assert {"mp4-h264-aac-8", "mp4-av1-opus-10", "webm-vp9-opus-8"} <= played
    assert not {"mp4-h264-aac-10", "mp4-h265-aac-8", "mov-prores-pcm-10", "mkv-h264-aac-8"} & played
    assert {name: box.page_reader for name, box in CONTAINERS.items()} == {
        "mp4": "iso", "mov": "iso", "mkv": None, "webm": "ebml"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"container": "avi"}, "'avi' is no container .* mp4, mov, mkv or webm"),
        ({"video_codec": "dnxhd"}, "'dnxhd' is no video codec"),
        ({"audio_codec": "mp3"}, "'mp3' is no audio codec"),
        ({"container": "webm", "audio_codec": "opus"}, r"WebM does not hold H\.264\. Choose AV1 or VP9, or write MP4, MOV or MKV"),
        ({"audio_codec": "pcm"}, r"MP4 does not hold PCM\. Choose AAC, Opus or FLAC, or write MOV or MKV"),
        ({"container": "mov", "video_codec": "prores"}, "ProRes is not written in 8 bits, only in 10"),
        ({"video_codec": "vp9", "bit_depth": 10}, "VP9 is not written in 10 bits, only in 8"),
        ({"bit_depth": 12}, r"H\.264 is not written in 12 bits, only in 8 or 10"),
        ({"quality": 101}, "quality of 101"),
        ({"quality": -1}, "quality of -1"),
    ],
)  # fmt: skip
def test_choices_it_refuses(choice, words):
    with pytest.raises(MediaError, match=words):
        FilmFormat(**choice)


@pytest.mark.parametrize(
    ("video", "size", "words"),
    [
        ("av1", (62, 64), "AV1: it needs sides of 64 pixels"),
        ("av1", (2, 2), "AV1: it needs sides of 64"),
        ("h265", (14, 64), "H.265: it needs sides of 16"),
        ("av1", (65, 64), "even sides. Crop it to 64x64"),
        ("vp9", (64, 65), "even sides. Crop it to 64x64"),
        ("h264", (65, 65), "Crop it to 64x64"),
        ("prores", (65, 65), "an even width. Crop it to 64x65"),
    ],
)
def test_sizes_it_refuses(tmp_path, video, size, words):
    container, depth = ("mov", 10) if video == "prores" else ("mp4", 8)
    film_format = FilmFormat(container, video, "aac", bit_depth=depth)
    with pytest.raises(MediaError, match=words):
        write_film(tmp_path / "film", [torch.zeros(1, *size[::-1], 3)], None, format=film_format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["libsvtav1", "libopus"])
def test_an_encoder_that_pyav_was_built_without(tmp_path, monkeypatch, missing):
    codec = av.Codec

    def without(name, mode="r"):
        return codec("no such codec" if name == missing else name, mode)

    monkeypatch.setattr(av, "Codec", without)
    film_format = FilmFormat("webm", "av1", "opus")
    with pytest.raises(
        MediaError, match=rf"PyAV \({av.__version__}\) was built without {missing}\."
    ) as error:
        write_film(tmp_path / "film.webm", [torch.zeros(1, 64, 64, 3)], None, format=film_format)
    offered = str(error.value).split("one of: ")[1]
    assert "MP4 with H.264 and AAC" in offered
    assert ("AV1" if missing == "libsvtav1" else "Opus") not in offered
    check_encoders(FilmFormat())
    assert list(tmp_path.iterdir()) == []
