"""Films are written, read back by a decoder, and compared in numbers."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.errors import MediaError
from comfyui_happyhorse.media.audio import load_audio
from comfyui_happyhorse.media.formats import FilmFormat
from comfyui_happyhorse.media.mux import write_film
from comfyui_happyhorse.media.read import read_film

AAC_FRAME = 1024  # samples
FINEST = FilmFormat(quality=100)


def tone(hertz, samples, level=0.5, rate=44100):
    return level * torch.sin(2 * torch.pi * hertz * torch.arange(samples, dtype=torch.float64) / rate).float()


def pitch_and_level(channel, rate):
    """(Hz, amplitude) of the strongest tone, read where the window's leakage leaves it, to 0.1 Hz."""
    window = torch.hann_window(len(channel), periodic=True, dtype=torch.float64)
    spectrum = torch.fft.rfft(channel.double() * window, n=16 * len(channel)).abs()
    peak = int(spectrum.argmax())
    return peak * rate / (16 * len(channel)), float(spectrum[peak] * 2 / window.sum())


def moving(frames, height=48, width=64):
    """[F, H, W, 3] uint8: a colour ramp that wanders."""
    ramp = torch.arange(height)[:, None, None] * 2 + torch.arange(width)[:, None] + torch.arange(3) * 40
    return torch.stack([(ramp + 3 * frame) % 256 for frame in range(frames)]).to(torch.uint8)


@pytest.fixture
def listing(tmp_path):
    """The folder's files and their bytes, hidden ones too."""
    return lambda: {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("frames", [1, 5, 25, 26, 101])
def test_streams(tmp_path, frames):
    info = write_film(tmp_path / "film.mp4", [moving(frames)], tone(440, frames * 1764).expand(2, -1))
    film = read_film(info.path)
    assert (film.video_codec, film.audio_codec, film.pixel_format) == ("h264", "aac", "yuv420p")
    assert film.colour == (1, 1, 1, 1)
    assert (film.width, film.height, film.frames, film.fps) == (64, 48, frames, 25)
    assert (film.sample_rate, film.channels) == (44100, 2)
    assert film.video_seconds == pytest.approx(frames / 25, abs=1e-9)
    assert film.audio_seconds == pytest.approx(frames / 25, abs=1e-9)
    assert film.decode_frames().shape == (frames, 48, 64, 3)
    assert film.decode_waveform().shape == (2, frames * 1764)
    decoded = load_audio(info.path)[0].shape[-1]
    assert 0 <= decoded - frames * 1764 < AAC_FRAME
    assert (info.width, info.height, info.frames, info.fps) == (64, 48, frames, 25)
    assert (info.samples, info.sample_rate, info.duration) == (frames * 1764, 44100, frames / 25)


def test_frames_come_back_in_order(tmp_path):
    # Grey has no chroma to be halved in size. From one frame to the next it moves by 3 levels.
    grey = moving(30)[..., :1].expand(-1, -1, -1, 3)
    write_film(tmp_path / "film.mp4", grey.split(7), None, format=FINEST)
    error = (read_film(tmp_path / "film.mp4").decode_frames().int() - grey.int()).abs().float()
    assert error.mean((1, 2, 3)).max() < 0.5
    assert error.max() <= 4


def test_colours_come_back(tmp_path):
    random = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (16, 16, 3), generator=random, dtype=torch.uint8)
    colours[0, :8] = torch.tensor([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)])
    patches = colours.repeat_interleave(16, 0).repeat_interleave(16, 1)
    film = write_film(tmp_path / "film.mp4", [patches.expand(3, -1, -1, -1)], None, format=FINEST)
    error = read_film(film.path).decode_frames()[1, 8::16, 8::16].double() - colours.double()
    assert error.abs().max() <= 2
    assert error.mean((0, 1)).abs().max() < 0.15  # inexact rounding in swscale: 0.29


def test_colours_by_the_book(tmp_path):
    """The stored planes decoded by BT.709's own formula, so that two equal mistakes cannot cancel."""
    colours = torch.tensor(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 100, 50], [30, 60, 90], [255, 255, 255]]
    )
    patches = colours.to(torch.uint8).repeat_interleave(32, 0)[None, None].expand(2, 32, -1, -1)
    film = write_film(tmp_path / "film.mp4", [patches], None)
    with av.open(str(film.path)) as container:
        planes = next(container.decode(video=0)).to_ndarray().astype(float)
    luma = planes[:32].reshape(32, -1)[16, 16::32]
    blue, red = (half.reshape(16, -1)[8, 8::16] for half in (planes[32:40], planes[40:48]))
    y, pb, pr = (luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224
    r, b = y + 1.5748 * pr, y + 1.8556 * pb
    g = (y - 0.2126 * r - 0.0722 * b) / 0.7152
    assert np.abs(np.stack([r, g, b], 1) * 255 - colours.numpy()).max() <= 2


def test_tone_keeps_pitch_level_and_side(tmp_path):
    sound = torch.stack([tone(440, 44100), tone(1000, 44100, 0.25)])
    write_film(tmp_path / "film.mp4", [moving(25)], sound)
    left, right = read_film(tmp_path / "film.mp4").decode_waveform()
    assert pitch_and_level(left, 44100) == (pytest.approx(440, abs=0.2), pytest.approx(0.5, rel=0.01))
    assert pitch_and_level(right, 44100) == (pytest.approx(1000, abs=0.2), pytest.approx(0.25, rel=0.01))


@pytest.mark.parametrize(("rate", "channels"), [(48000, 1), (51200, 2), (16000, 1), (22050, 2)])
def test_other_rates_and_mono(tmp_path, rate, channels):
    sound = tone(440, rate, rate=rate).expand(channels, -1)
    write_film(tmp_path / "film.mp4", [moving(25)], sound, rate)
    film = read_film(tmp_path / "film.mp4")
    assert (film.sample_rate, film.audio_seconds) == (44100, 1.0)
    for channel in film.decode_waveform():
        assert pitch_and_level(channel, 44100) == (pytest.approx(440, abs=0.2), pytest.approx(0.5, rel=0.01))


def test_flash_and_beep_fall_together(tmp_path):
    marks = [10, 35, 60, 90]
    frames, sound = torch.zeros(101, 48, 64, 3, dtype=torch.uint8), torch.zeros(2, 101 * 1764)
    for mark in marks:
        frames[mark] = 255
        sound[:, mark * 1764 : (mark + 1) * 1764] = tone(1500, 1764)
    write_film(tmp_path / "film.mp4", frames.split(9), sound)

    with av.open(str(tmp_path / "film.mp4")) as container:
        flashes = [f.time for f in container.decode(video=0) if f.to_ndarray(format="gray").mean() > 128]
    assert flashes == pytest.approx([mark / 25 for mark in marks], abs=1e-6)

    back = read_film(tmp_path / "film.mp4").decode_waveform()
    likeness = torch.fft.irfft(torch.fft.rfft(back[0]) * torch.fft.rfft(sound[0]).conj(), back.shape[1])
    assert int(likeness.argmax()) == 0  # the lag in samples
    for mark in marks:
        onset = int((back[0, (mark - 2) * 1764 :].abs() > 0.25).nonzero()[0]) / 44100 + (mark - 2) / 25
        assert onset == pytest.approx(mark / 25, abs=0.001)


@pytest.mark.parametrize("samples", [0, 1, 5000, 5 * 1764 + 1, 50000])
def test_sound_is_trimmed_or_continued_with_silence(tmp_path, samples):
    sound = tone(440, samples).expand(2, -1)
    assert write_film(tmp_path / "film.mp4", [moving(5)], sound).samples == 5 * 1764
    back = read_film(tmp_path / "film.mp4").decode_waveform()
    assert back.shape == (2, 5 * 1764)
    expected = torch.zeros(2, 5 * 1764)
    expected[:, :samples] = sound[:, : 5 * 1764]
    assert (back - expected).square().mean().sqrt() < 0.01


def test_without_sound_there_is_no_track(tmp_path):
    info = write_film(tmp_path / "film.mp4", [moving(5)], None)
    film = read_film(info.path)
    assert (film.audio_codec, film.audio_seconds, film.channels, info.samples) == ("", 0.0, 0, 0)


@pytest.mark.parametrize(
    ("fps", "samples"), [(24, 25 * 44100 // 24), (Fraction(24000, 1001), 45983), (50, 22050)]
)
def test_other_frame_rates(tmp_path, fps, samples):
    info = write_film(tmp_path / "film.mp4", [moving(25)], tone(440, 60000).expand(2, -1), fps=fps)
    film = read_film(info.path)
    assert (film.fps, film.frames, info.samples) == (fps, 25, samples)
    assert film.video_seconds == pytest.approx(film.audio_seconds, abs=1e-3)  # MP4 counts in ms here


def test_loud_sound_is_turned_down_not_clipped(tmp_path, caplog):
    swelling = tone(440, 44100) * torch.linspace(0, 4, 44100)
    write_film(tmp_path / "film.mp4", [moving(25)], swelling.expand(2, -1))
    assert "peaks at 1.999" in caplog.text
    assert "6.5 dB" in caplog.text
    back = read_film(tmp_path / "film.mp4").decode_waveform()[0]
    gain = float(back @ swelling / (swelling @ swelling))
    assert gain == pytest.approx(0.475, rel=0.005)
    assert (back - gain * swelling).abs().max() < 0.02  # one gain for all of it


def test_sound_within_full_scale_is_left_alone(tmp_path, caplog):
    write_film(tmp_path / "film.mp4", [moving(25)], tone(440, 44100, level=0.94).expand(2, -1))
    assert not caplog.records
    back = read_film(tmp_path / "film.mp4").decode_waveform()[0]
    assert pitch_and_level(back, 44100)[1] == pytest.approx(0.94, rel=0.01)


def test_tags_come_back(tmp_path):
    tags = {
        "prompt": '{"text": "a } b :-{ \\u00e9", "seed": 7}',
        "workflow": "{" + '"x": "' + "y" * 300_000 + '"}',
        "comment": "two\nlines, 火, 🐎, = ; # \\ 'quotes'",
    }
    write_film(tmp_path / "film.mp4", [moving(5)], None, metadata=tags)
    metadata = read_film(tmp_path / "film.mp4").metadata
    assert {name: metadata[name] for name in tags} == tags
    assert "creation_time" not in metadata


def boxes(content):
    """The names of an MP4's top-level boxes in order."""
    names, at = [], 0
    while at < len(content):
        size, name = struct.unpack(">I4s", content[at : at + 8])
        names.append(name.decode())
        at += size or len(content)
    return names


def test_index_comes_first(tmp_path):
    write_film(tmp_path / "film.mp4", [moving(25)], torch.zeros(2, 44100))
    order = boxes((tmp_path / "film.mp4").read_bytes())
    assert order.index("moov") < order.index("mdat")


def test_picture_and_sound_are_interleaved(tmp_path):
    write_film(tmp_path / "film.mp4", moving(100).split(10), torch.rand(2, 100 * 1764) - 0.5)
    with av.open(str(tmp_path / "film.mp4")) as container:
        packets = [(packet.pos, packet.stream.type) for packet in container.demux() if packet.size]
    kinds = [kind for _, kind in sorted(packets)]
    runs = "".join(kind[0] for kind in kinds).replace("a", " ").split()
    assert max(map(len, runs)) < 50  # a second or two of picture at most without sound


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 64), (16, 16), (32, 160)])
def test_the_same_input_gives_the_same_bytes(tmp_path, height, width):
    sound = tone(440, 30000).expand(2, -1)
    films = set()
    for _ in range(12):
        write_film(tmp_path / "film.mp4", [moving(20, height, width)], sound, metadata={"a": "b"})
        films.add((tmp_path / "film.mp4").read_bytes())
    assert len(films) == 1


@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(1, 19), unique=True), with_sound=st.booleans())
def test_chunks_do_not_matter(tmp_path_factory, cuts, with_sound):
    folder = tmp_path_factory.mktemp("chunks")
    frames, sound = moving(20), tone(440, 30000).expand(2, -1) if with_sound else None
    write_film(folder / "whole.mp4", [frames], sound, metadata={"a": "b"})
    write_film(folder / "cut.mp4", torch.tensor_split(frames, sorted(cuts)), sound, metadata={"a": "b"})
    assert (folder / "whole.mp4").read_bytes() == (folder / "cut.mp4").read_bytes()


def test_progress_counts_frames(tmp_path):
    counts = []
    write_film(tmp_path / "film.mp4", moving(12).split(5), None, on_frames=counts.append)
    assert counts == [5, 10, 12]


def test_frames_are_taken_as_they_are_written(tmp_path):
    log = []

    def frames():
        for number in range(3):
            log.append(f"made {number}")
            yield moving(4)

    write_film(tmp_path / "film.mp4", frames(), None, on_frames=lambda count: log.append(f"wrote {count}"))
    assert log == ["made 0", "wrote 4", "made 1", "wrote 8", "made 2", "wrote 12"]


class Cancelled(BaseException):
    """What a host raises to stop a run."""


@pytest.mark.parametrize("reason", [KeyboardInterrupt, GeneratorExit, Cancelled, RuntimeError, MediaError])
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("older", [False, True])
def test_what_ends_early_leaves_nothing(tmp_path, listing, reason, after, older):
    if older:
        (tmp_path / "film.mp4").write_bytes(b"an older film")
    before = listing()

    def frames():
        for _ in range(after):
            yield moving(10)
        raise reason("stop")

    with pytest.raises(reason, match="stop"):
        write_film(tmp_path / "film.mp4", frames(), torch.zeros(2, 44100))
    assert listing() == before


def test_cancel_from_the_progress_leaves_nothing(tmp_path, listing):
    def cancel(count):
        if count >= 20:
            raise Cancelled

    with pytest.raises(Cancelled):
        write_film(tmp_path / "film.mp4", [moving(10)] * 5, torch.zeros(2, 44100), on_frames=cancel)
    assert listing() == {}


@pytest.fixture
def small_disk():
    """Files cannot grow beyond 1000 bytes, as on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("reason", [None, Cancelled])
def test_a_full_disk(tmp_path, listing, reason):
    def frames():
        yield moving(100)  # enough that packets wait to be stored, little enough that none is yet
        if reason:
            raise reason

    with pytest.raises(reason or MediaError):
        write_film(tmp_path / "film.mp4", frames(), None)
    assert listing() == {}


GOOD = moving(3)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "no frames"),
        ([GOOD[:, :47]], "64x46"),
        ([GOOD[:, :, :63]], "62x48"),
        ([GOOD.int()], "torch.int32"),
        ([GOOD[0]], r"\[48, 64, 3\]"),
        ([GOOD[..., :1]], r"\[3, 48, 64, 1\]"),
        ([GOOD[:0]], r"\[0, 48, 64, 3\]"),
        ([GOOD, GOOD[:, :32]], "Frame 3 is 64x32"),
    ],
)
def test_frames_it_refuses(tmp_path, listing, frames, words):
    with pytest.raises(MediaError, match=words):
        write_film(tmp_path / "film.mp4", frames, None)
    assert listing() == {}


NAN = torch.zeros(2, 100)
NAN[0, 3:6], NAN[1, 7] = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("sound", "rate", "words"),
    [
        (NAN, 44100, "of 200 samples 3 are not numbers .* and 1 are infinite"),
        (torch.zeros(3, 100), 44100, r"\[3, 100\]"),
        (torch.zeros(1, 2, 100), 44100, r"\[1, 2, 100\]"),
        (torch.zeros(2, 100, dtype=torch.int16), 44100, "int16"),
        (torch.zeros(2, 100), 0, "0 samples"),
    ],
)
def test_sound_it_refuses(tmp_path, listing, sound, rate, words):
    with pytest.raises(MediaError, match=words):
        write_film(tmp_path / "film.mp4", [GOOD], sound, rate)
    assert listing() == {}


@pytest.mark.parametrize("text", [{"a": 1}, "a\0b", "\ud83d"])
def test_tags_it_refuses(tmp_path, listing, text):
    with pytest.raises(MediaError, match="'prompt'"):
        write_film(tmp_path / "film.mp4", [GOOD], None, metadata={"prompt": text})
    assert listing() == {}


def test_places_it_refuses(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.mp4").mkdir()

    def frames():
        pytest.fail("frames were asked for before the place was known to be good")
        yield

    for path in ("missing/film.mp4", "file/film.mp4", "folder.mp4"):
        with pytest.raises(MediaError, match="cannot be written"):
            write_film(tmp_path / path, frames(), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]


def test_frame_rate_it_refuses(tmp_path):
    with pytest.raises(MediaError, match="0 frames in a second"):
        write_film(tmp_path / "film.mp4", [GOOD], None, fps=0)


@pytest.mark.parametrize("content", [b"", b"not a film", None])
def test_reading_what_is_no_film(tmp_path, content):
    if content is not None:
        (tmp_path / "film.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=r"film\.mp4"):
        read_film(tmp_path / "film.mp4")
