"""A film that no browser plays has a preview that one does, from the same frames in the same pass."""

import pytest
import torch

from comfyui_happyhorse.errors import MediaError
from comfyui_happyhorse.media.formats import FilmFormat
from comfyui_happyhorse.media.mux import write_film
from comfyui_happyhorse.media.read import read_film
from comfyui_happyhorse.media.soundtrack import Track

ARCHIVE = FilmFormat("mkv", "ffv1", "flac", bit_depth=10)


def ramp(frames, height=65, width=67):
    """[F, H, W, 3] in [0, 1] with stripes of 2 pixels, a little brighter with every frame."""
    across = torch.linspace(0, 0.7, width) + 0.2 * (torch.arange(width) // 2 % 2)
    return (
        across[None, None, :, None]
        + torch.arange(frames)[:, None, None, None].expand(-1, height, -1, 3) / 100
    )


@pytest.fixture
def sound():
    return 0.4 * torch.sin(2 * torch.pi * 440 * torch.arange(12 * 1764) / 44100).expand(2, -1)


def test_both_show_the_same(tmp_path, sound):
    seen = []

    def frames():
        for chunk in ramp(12).split(5):
            seen.append(len(chunk))
            yield chunk

    tracks = [Track(-sound, 44100, "deu")]
    place = tmp_path / "temp" / "preview.mp4"
    place.parent.mkdir()
    info = write_film(
        tmp_path / "film.mkv",
        frames(),
        sound,
        format=ARCHIVE,
        tracks=tracks,
        loudness=-16,
        metadata={"workflow": "{}"},
        preview=place,
    )
    assert seen == [5, 5, 2]
    assert info.preview == place
    film, preview = read_film(info.path), read_film(place)
    assert (film.width, film.height, film.pixel_format) == (67, 65, "gbrp10le")
    assert (preview.width, preview.height, preview.pixel_format) == (66, 64, "yuv420p")
    assert (preview.video_codec, preview.audio_codec, len(preview.tracks)) == ("h264", "aac", 1)
    assert (film.frames, preview.frames) == (12, 12)
    assert (film.audio_seconds, preview.audio_seconds) == (pytest.approx(0.48), pytest.approx(0.48))
    apart = film.decode_frames()[:, :64, :66].float() - preview.decode_frames().float()
    assert apart.abs().mean() < 2
    heard = film.decode_waveform(), preview.decode_waveform()
    assert (heard[0] - heard[1]).square().mean().sqrt() < 0.01
    assert float(heard[0].square().mean()) == pytest.approx(float(heard[1].square().mean()), rel=0.02)


def test_a_preview_alone_changes_nothing_in_the_film(tmp_path, sound):
    for name, preview in (("with", tmp_path / "preview.mp4"), ("without", None)):
        write_film(tmp_path / f"{name}.mp4", [ramp(12, 64, 64)], sound, preview=preview)
    assert (tmp_path / "with.mp4").read_bytes() == (tmp_path / "without.mp4").read_bytes()
    assert (tmp_path / "with.mp4").read_bytes() == (tmp_path / "preview.mp4").read_bytes()


WORDS = {"size": "Frame 3", "nan": "not numbers", "sound": "longer than the picture", "place": "missing"}


@pytest.mark.parametrize("bad", WORDS)
def test_nothing_stays_of_either(tmp_path, sound, bad):
    chunks = [ramp(3), ramp(3)]
    if bad == "size":
        chunks[1] = chunks[1][:, :60]
    if bad == "nan":
        chunks[1] = torch.full_like(chunks[1], float("nan"))
    place = tmp_path / ("missing/preview.mp4" if bad == "place" else "preview.mp4")
    with pytest.raises(MediaError, match=WORDS[bad]):
        write_film(
            tmp_path / "film.mkv",
            iter(chunks),
            sound,
            format=ARCHIVE,
            fit="pad" if bad == "sound" else "exact",
            metadata={"workflow": "{}"},
            preview=place,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_preview_in_the_films_own_place(tmp_path, sound):
    with pytest.raises(MediaError, match=r"film\.mp4 .* places of their own"):
        write_film(tmp_path / "film.mp4", [ramp(3, 64, 64)], sound, preview=tmp_path / "film.mp4")
    assert list(tmp_path.iterdir()) == []
