"""Decoding a few frames at a time: the same film as decoding all of it, in memory that has a bound."""

import json
import subprocess
import sys
import weakref
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from comfyui_happyhorse.conditioning.voice import prepare_voice
from comfyui_happyhorse.errors import MediaError
from comfyui_happyhorse.media.formats import FilmFormat
from comfyui_happyhorse.media.frames import to_uint8
from comfyui_happyhorse.media.mux import write_film
from comfyui_happyhorse.media.read import read_film
from comfyui_happyhorse.media.soundtrack import Track
from comfyui_happyhorse.model_loading import builder
from comfyui_happyhorse.model_loading.precision import PRECISIONS
from comfyui_happyhorse.pipeline.decode import (
    FRAMES,
    CudaCarrier,
    PlainCarrier,
    decode_sound,
    delayed,
    host_frames,
    soundtrack,
    write_decoded,
)

CPU = torch.device("cpu")
LOSSLESS = FilmFormat("mkv", "ffv1", "flac")
FINE = FilmFormat("mkv", "ffv1", "flac", bit_depth=10)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def windows_of(lengths, height=16, width=32, dtype=torch.float32):
    """Random windows [1, 3, F, H, W], some of their values beyond [-1, 1]."""
    return [draw(1, 3, length, height, width, seed=n).to(dtype) for n, length in enumerate(lengths)]


def tone(frames):
    return Track(0.5 * torch.sin(torch.arange(frames * 1764) / 9).expand(2, -1), 44_100)


def unit(pixels):
    """What IMAGE holds: [F, H, W, 3] in [0, 1]."""
    return ((pixels[0].float() + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0)


def test_frames_are_those_of_the_windows():
    for dtype in (torch.float32, torch.bfloat16):
        windows = windows_of([1, 25, 4, 7], dtype=dtype)
        whole = torch.cat(windows, dim=2)
        for bit_depth, expected in ((8, to_uint8(whole)), (10, unit(whole))):
            pieces = [piece.clone() for piece in host_frames(iter(windows), CPU, bit_depth)]
            assert max(map(len, pieces)) <= FRAMES
            assert torch.equal(torch.cat(pieces), expected)


def test_lost_pixels_are_counted_in_every_depth():
    (window,) = windows_of([6])
    window[0, 1, 5, 3, 2:4] = float("nan")
    for bit_depth in (8, 10):
        frames = host_frames([window], CPU, bit_depth)
        next(frames)
        with pytest.raises(MediaError, match="2 of 3072 decoded pixel values"):
            next(frames)


def test_windows_are_decoded_when_they_are_needed_and_let_go():
    """On the CPU: the one before is gone when the next is asked for."""
    alive = weakref.WeakSet()

    def windows():
        for number in range(3):
            assert not alive, f"{len(alive)} windows are still in memory before window {number}"
            window = torch.zeros(1, 3, 9, 8, 8)
            alive.add(window.untyped_storage())
            yield window
            del window

    assert sum(len(piece) for piece in host_frames(windows(), CPU)) == 27


def test_delayed():
    log = []
    made = delayed((log.append(n) or n for n in range(4)), 1)
    assert [(item, len(log)) for item in made] == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(delayed(iter("ab"), 0)) == ["a", "b"]
    assert list(delayed(iter("a"), 3)) == ["a"]


class Event:
    def __init__(self):
        self.happened, self.behind = False, None

    def record(self, stream):
        self.behind = list(stream.queue)
        stream.cuda.log.append(("record", stream.name))

    def synchronize(self):
        for task in self.behind:
            task()


class Stream:
    """Holds its copies back until an event behind them is waited for."""

    def __init__(self, cuda, name):
        self.cuda, self.name, self.queue = cuda, name, []

    def wait_event(self, event):
        self.cuda.log.append((self.name, "waits"))


class FakeCuda:
    """torch.cuda on a machine without: as late as it may be."""

    Event = Event

    def __init__(self):
        self.log, self.main, self.copies = [], Stream(self, "main"), 0

    def Stream(self, device):
        self.side = Stream(self, "side")
        return self.side

    def current_stream(self, device):
        return self.main

    @contextmanager
    def stream(self, stream):
        yield


class LateCarrier(CudaCarrier):
    """Copies land when their event is waited for, or at once if ``early``; until then the buffer holds rubbish."""

    early = False

    def _buffer(self, like):
        host, lost = super()._buffer(like)
        host.fill_(77)
        lost.fill_(0)
        return host, lost

    def _move(self, target, source):
        done = []

        def land():
            if not done:
                target.copy_(source)
                done.append(True)

        self.stream.queue.append(land)
        if self.early:
            land()


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)  # of CUDA tensors only
    monkeypatch.setattr(
        "comfyui_happyhorse.pipeline.decode.pinned", lambda shape, dtype: torch.empty(shape, dtype=dtype)
    )
    return LateCarrier(CPU, FakeCuda())


@pytest.mark.parametrize("lengths", [[1], [4], [5], [1, 4, 4], [25, 28, 9], [3, 3, 3, 3]])
@pytest.mark.parametrize("bit_depth", [8, 10])
@pytest.mark.parametrize("early", [False, True])
def test_two_buffers_and_copies_whenever_they_land(late, early, lengths, bit_depth):
    late.early = early
    windows = windows_of(lengths)
    plain = torch.cat([piece.clone() for piece in host_frames(iter(windows), CPU, bit_depth)])
    made = [piece.clone() for piece in host_frames(iter(windows), CPU, bit_depth, late)]
    assert torch.equal(torch.cat(made), plain)
    assert len(late.buffers) <= 2
    assert late.cuda.log.count(("side", "waits")) == len(made)


def test_the_next_window_is_begun_before_the_frames_of_one_are_read(late):
    log = []

    def windows():
        for number, window in enumerate(windows_of([8, 8, 8])):
            log.append(f"window {number}")
            yield window

    for _ in host_frames(windows(), CPU, 8, late):
        log.append("read")
    assert log == ["window 0", "window 1", "read", "window 2", *["read"] * 5]


def test_lost_pixels_are_found_behind_late_copies(late):
    (window,) = windows_of([9])
    window[0, 1, 8, 3, 2] = float("nan")
    frames = host_frames([window], CPU, 8, late)
    assert len([next(frames), next(frames)]) == 2
    with pytest.raises(MediaError, match="1 of 1536 decoded"):
        next(frames)


# Films


@pytest.fixture
def networks(tiny_models):
    """{name: video decoder} in float32, and the audio autoencoder."""
    vae, policy = tiny_models / "vae", PRECISIONS["float32"]
    return {
        "turbo": builder.load_turbo_decoder(vae / "turbo_vae_tiny" / "turbo_tiny.ckpt", policy),
        "wan": builder.load_video_vae(vae / "Wan2.2_VAE_tiny.pth", policy),
        "audio": builder.load_audio_vae(vae / "oobleck_audio_tiny.safetensors"),
    }


@pytest.mark.parametrize("decoder", ["turbo", "wan"])
@pytest.mark.parametrize("film_format", [LOSSLESS, FINE, FilmFormat()])
def test_the_film_is_that_of_the_unbounded_path(tmp_path, networks, decoder, film_format):
    """Frame for frame where nothing is lost, and the file byte for byte in every format."""
    latent, network = draw(1, 48, 9, 2, 3), networks[decoder]
    sound = decode_sound(draw(1, 64, 33), networks["audio"])
    bounded, unbounded = (tmp_path / f"{name}{film_format.box.extension}" for name in ("a", "b"))
    write_decoded(
        bounded, network.decode_chunks(latent), CPU, 33, [sound], format=film_format, metadata={"prompt": "1"}
    )
    pixels = network.decode(latent)
    write_film(unbounded, [unit(pixels)], sound.waveform, format=film_format, metadata={"prompt": "1"})
    assert bounded.read_bytes() == unbounded.read_bytes()
    film = read_film(bounded)
    assert (film.frames, film.audio_seconds) == (33, pytest.approx(33 / 25, abs=0.03))
    if film_format is LOSSLESS:
        assert torch.equal(film.decode_frames(), to_uint8(pixels))
        quiet = sound.waveform / max(1.0, float(sound.waveform.abs().max()) / 0.95)
        assert (film.decode_waveform()[:, : 33 * 1764] - quiet).abs().max() < 2**-22


class Stopped(BaseException):
    """What a host raises to stop a run."""


@pytest.mark.parametrize("where", ["decoder", "progress"])
@pytest.mark.parametrize("reason", [Stopped, RuntimeError, torch.OutOfMemoryError])
def test_what_ends_early_leaves_no_file_and_no_memory(tmp_path, where, reason):
    alive = weakref.WeakSet()

    def decoded():
        window = torch.zeros(1, 3, 8, 64, 64)
        alive.add(window.untyped_storage())
        return window

    def windows():
        for number in range(4):
            if where == "decoder" and number == 2:
                raise reason("stop")
            yield decoded()

    def on_frames(done):
        if where == "progress" and done >= 20:
            raise reason("stop")

    with pytest.raises(reason, match="stop") as ended:
        write_decoded(tmp_path / "film.mp4", windows(), CPU, 32, [tone(32)], on_frames=on_frames)
    assert not list(tmp_path.iterdir())
    assert not alive, "an error that somebody keeps holds windows"
    assert ended.value


def test_a_sound_that_does_not_fit_is_refused_before_a_window_is_decoded(tmp_path):
    def windows():
        raise AssertionError("decoded")
        yield

    with pytest.raises(MediaError, match="longer"):
        write_decoded(tmp_path / "film.mp4", windows(), CPU, 5, [tone(6)], fit="pad")


def test_soundtracks():
    two = torch.rand(1, 2, 100)
    assert torch.equal(soundtrack(two, 48_000, "deu").waveform, two[0])
    assert soundtrack(two[0], 48_000, "deu").language == "deu"
    surround = torch.rand(6, 4_800)
    mixed = soundtrack(surround, 48_000, "kor")
    assert (mixed.sample_rate, mixed.language) == (51_200, "kor")
    assert torch.equal(mixed.waveform, prepare_voice(surround, 48_000)[0])


def test_the_plain_carrier_is_for_every_other_device():
    frames = host_frames(windows_of([5]), torch.device("mps"))
    assert len(next(frames)) == FRAMES
    assert PlainCarrier.ahead == 0


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_ten_seconds_of_1080p_take_less_than_one_and_a_half_gigabytes(tmp_path):
    """As floats the frames are 6.2 GB, as bytes 1.6."""
    stub = Path(__file__).with_name("decode_stub.py")
    command = [sys.executable, stub, tmp_path / "film.mp4", "249", "1088", "1920"]
    result = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    found = json.loads(result.stdout)
    assert found["frames"] == read_film(tmp_path / "film.mp4").frames == 249
    assert found["grew"] < 1.5e9, found
