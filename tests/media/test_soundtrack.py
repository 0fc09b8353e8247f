"""Sound tracks: how they meet the picture, which language they say, how loud they are."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.errors import MediaError
from comfyui_happyhorse.media.formats import FilmFormat
from comfyui_happyhorse.media.loudness import integrated_loudness
from comfyui_happyhorse.media.mux import write_film
from comfyui_happyhorse.media.read import read_film
from comfyui_happyhorse.media.soundtrack import Track

LOSSLESS = FilmFormat("mkv", "ffv1", "pcm")
RATE = 44100


def black(frames):
    return torch.zeros(frames, 16, 16, 3, dtype=torch.uint8)


def tone(hertz, samples, level=0.5, rate=RATE):
    return level * torch.sin(2 * torch.pi * hertz * torch.arange(samples, dtype=torch.float64) / rate).float()


def pitch(channel, rate=RATE):
    spectrum = torch.fft.rfft(channel.double() * torch.hann_window(len(channel)), n=8 * len(channel)).abs()
    return int(spectrum.argmax()) * rate / (8 * len(channel))


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 30),
    samples=st.integers(0, 60000),
    fps=st.sampled_from([24, 25, 30, Fraction(24000, 1001)]),
    fit=st.sampled_from(["exact", "pad", "trim"]),
    rest=st.booleans(),
)
def test_every_fit_does_what_it_says(tmp_path_factory, frames, samples, fps, fit, rest):
    path = tmp_path_factory.mktemp("fit") / "film.mkv"
    sound = (torch.arange(1, samples + 1) / 2**17).expand(2, -1)  # no sample is silence
    picture = int(frames * RATE / Fraction(fps))
    pieces = black(frames).split(7) if rest else iter(black(frames).split(4))

    def write():
        return write_film(path, pieces, sound, format=LOSSLESS, fps=fps, fit=fit)

    if (fit == "trim" and not samples) or (fit == "pad" and samples > frames * RATE / Fraction(fps)):
        with pytest.raises(MediaError, match="lasts" if fit == "pad" else "is empty"):
            write()
        assert list(path.parent.iterdir()) == []
        return
    length = min(samples, picture) if fit == "trim" else picture
    assert write().samples == length
    film = read_film(path)
    assert film.frames == frames
    back = film.decode_waveform()
    assert back.shape == (2, length)
    kept = min(samples, length)
    if kept:
        assert (back[:, :kept] - sound[:, :kept]).abs().max() < 2**-22
    assert not back[:, kept:].any()


def test_a_long_sound_is_refused_before_the_first_frame(tmp_path):
    def encoded(count):
        pytest.fail(f"{count} frames were encoded although the sound could not fit")

    sound = tone(440, 48000, rate=40000).expand(2, -1)
    words = r"The film's sound lasts 1\.200 s \(48000 samples at 40000 Hz\), 0\.400 s longer than .* 0\.800 s \(20 frames at 25 .*'trim' or 'exact'"
    with pytest.raises(MediaError, match=words):
        write_film(tmp_path / "film.mp4", [black(12), black(8)], sound, 40000, fit="pad", on_frames=encoded)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fit", ["pad", "exact"])
def test_an_equally_long_sound_fits(tmp_path, fit):
    sound = tone(440, 48000).expand(2, -1)
    info = write_film(tmp_path / "film.mp4", [black(25)], sound, 48000, fit=fit)
    assert info.samples == RATE


@pytest.mark.parametrize(
    ("container", "video", "audio", "chinese"),
    [
        ("mp4", "h264", "aac", "zho"),
        ("mov", "h264", "pcm", "zho"),
        ("mkv", "h264", "opus", "zho"),
        ("webm", "vp9", "opus", "zho"),
    ],
)
def test_tracks_by_language(tmp_path, container, video, audio, chinese):
    film_format = FilmFormat(container, video, audio)
    tracks = [
        Track(tone(330, 48000, rate=48000).expand(2, -1), 48000, "deu", "Deutsch ä"),
        Track(tone(550, 16000, rate=16000)[None], 16000, chinese, "中文"),
    ]
    path = tmp_path / f"film.{container}"
    write_film(path, [black(25)], tone(440, RATE)[None], format=film_format, tracks=tracks)
    film = read_film(path)
    assert [t.language for t in film.tracks] == ["und", "deu", chinese]
    assert [t.title for t in film.tracks] == ["", "Deutsch ä", "中文"]
    assert [t.is_default for t in film.tracks] == [True, False, False]
    assert [t.channels for t in film.tracks] == [2, 2, 2]
    for number, hertz in enumerate((440, 330, 550)):
        rate = film_format.audio.sample_rate
        assert film.tracks[number].seconds == pytest.approx(1.0, abs=1e-9)
        assert pitch(film.decode_waveform(number)[0], rate) == pytest.approx(hertz, abs=0.5)


def test_tracks_without_a_first_sound(tmp_path):
    track = Track(tone(440, RATE)[None], RATE, "eng", "English")
    write_film(tmp_path / "film.mp4", [black(25)], None, tracks=[track])
    (only,) = read_film(tmp_path / "film.mp4").tracks
    assert (only.language, only.title, only.is_default) == ("eng", "English", True)


def test_a_language_that_mov_cannot_say(tmp_path, caplog):
    track = Track(tone(440, RATE)[None], RATE, "yue", "廣東話")
    write_film(
        tmp_path / "film.mov", [black(5)], None, tracks=[track], format=FilmFormat("mov", "h264", "pcm")
    )
    (only,) = read_film(tmp_path / "film.mov").tracks
    assert (only.language, only.title) == ("und", "廣東話")
    assert "no name for the language 'yue'" in caplog.text


def test_each_track_reaches_the_loudness(tmp_path, caplog):
    tracks = [
        Track(tone(2000, 3 * rate, level, rate)[None], rate, language)
        for rate, level, language in ((RATE, 0.01, "eng"), (16000, 0.9, "deu"))
    ]
    for film_format in (LOSSLESS, FilmFormat("mkv", "h264", "opus")):
        write_film(tmp_path / "film.mkv", [black(75)], None, tracks=tracks, format=film_format, loudness=-16)
        film = read_film(tmp_path / "film.mkv")
        for number in (0, 1):
            sound = film.decode_waveform(number)
            assert integrated_loudness(sound, film_format.audio.sample_rate) == pytest.approx(-16, abs=0.2)
    assert not caplog.records


BAD = torch.zeros(2, 100)
BAD[0, 3] = float("nan")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (
            {"tracks": [Track(BAD, RATE, "deu", "Deutsch")]},
            "The sound track 'Deutsch' .* of 200 samples 1 are",
        ),
        ({"tracks": [Track(BAD, RATE, "deu")]}, "The sound track 'deu'"),
        ({"tracks": [Track(torch.zeros(6, 100), RATE)]}, r"\[6, 100\]"),
        ({"tracks": [Track(torch.zeros(2, 100), 0)]}, "0 samples in a second"),
        ({"tracks": [Track(torch.zeros(2, 100), RATE, "de")]}, "'de' is no language code"),
        ({"tracks": [Track(torch.zeros(2, 100), RATE, "DEU")]}, "'DEU' is no language code"),
        ({"tracks": [Track(torch.zeros(2, 100), RATE, "deu\n")]}, "is no language code"),
        ({"tracks": [Track(torch.zeros(2, 0), RATE, "deu")], "fit": "trim"}, "'deu' is empty"),
        ({"fit": "stretch"}, "'stretch' is no way to fit .* exact, pad, trim"),
        ({"loudness": 3}, "3 LUFS cannot be aimed at"),
        ({"loudness": float("nan")}, "nan LUFS cannot be aimed at"),
    ],
)
def test_wishes_it_refuses(tmp_path, wish, words):
    with pytest.raises(MediaError, match=words):
        write_film(tmp_path / "film.mp4", [black(3)], None, **wish)
    assert list(tmp_path.iterdir()) == []
