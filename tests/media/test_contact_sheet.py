"""The contact sheet shows the right frames, and sound where there is sound."""

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_happyhorse.errors import MediaError
from comfyui_happyhorse.media.contact_sheet import CHANNEL_INKS, PAPER, SheetRow, contact_sheet


def sheet(tmp_path, *rows):
    contact_sheet(tmp_path / "sheet.png", rows)
    return np.array(Image.open(tmp_path / "sheet.png"))


def columns_of(picture, colour):
    """The columns in which a colour stands, and how many pixels of it each has."""
    rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return (picture == rgb).all(-1).sum(0)


def film(frames, height=8, width=8):
    """Frame k has red 2k and no green, in every pixel."""
    pixels = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
    pixels[..., 0] = 2 * torch.arange(frames)[:, None, None]
    pixels[..., 2] = 255
    return pixels


@pytest.mark.parametrize(("frames", "shown"), [(101, [0, 20, 40, 60, 80, 100]), (3, [0, 1, 2]), (1, [0])])
@pytest.mark.parametrize("size", [(8, 8), (64, 64), (256, 448), (448, 256), (300, 500)])
def test_six_evenly_spaced_frames(tmp_path, frames, shown, size):
    picture = sheet(tmp_path, SheetRow("film", film(frames, *size)))
    own = (picture[..., 1] == 0) & (picture[..., 2] == 255)
    seen, areas = np.unique(picture[own][:, 0], return_counts=True)
    assert seen.tolist() == [2 * number for number in shown]
    assert len(set(areas)) == 1
    assert areas[0] >= 190 * 100


def test_sound_is_drawn_when_it_sounds(tmp_path):
    waveform = torch.zeros(2, 4 * 44100)
    waveform[0, 44100 : 2 * 44100] = 0.9 * torch.tensor([1.0, -1.0]).repeat(22050)
    waveform[1, 3 * 44100 :] = 0.3 * torch.tensor([1.0, -1.0]).repeat(22050)
    picture = sheet(tmp_path, SheetRow("film", film(100), waveform))
    wide = picture.shape[1] - 2 * 28
    for ink, quarter, half_height in zip(CHANNEL_INKS, (1, 3), (0.9 * 21, 0.3 * 21), strict=True):
        heights = columns_of(picture, ink)[28 : 28 + wide]
        loud = heights > 4
        assert np.flatnonzero(loud)[[0, -1]] == pytest.approx(
            [quarter * wide / 4, (quarter + 1) * wide / 4], abs=2
        )
        assert heights[loud].mean() == pytest.approx(2 * half_height + 1, abs=2)
        assert (heights[~loud] <= 1).all()


def test_films_lie_one_below_the_other(tmp_path):
    one = sheet(tmp_path, SheetRow("one", film(25), torch.zeros(2, 44100)))
    silent = sheet(tmp_path, SheetRow("two", film(25)))
    both = sheet(tmp_path, SheetRow("one", film(25), torch.zeros(2, 44100)), SheetRow("two", film(25)))
    assert np.array_equal(both[: len(one) - 28], one[:-28])
    assert np.array_equal(both[len(one) - 28 :], silent)


def test_long_titles_stay_on_the_sheet(tmp_path):
    picture = sheet(tmp_path, SheetRow("a very long title\n" * 50, film(25), note="and a note " * 60))
    paper = [int(PAPER[at : at + 2], 16) for at in (1, 3, 5)]
    assert (picture[:, -28:] == paper).all()


def test_what_it_refuses(tmp_path):
    with pytest.raises(MediaError, match="at least one film"):
        contact_sheet(tmp_path / "sheet.png", [])
    with pytest.raises(MediaError, match="8 bits"):
        contact_sheet(tmp_path / "sheet.png", [SheetRow("film", film(3).float())])
    with pytest.raises(MediaError, match=r"'film'.* 1 are not numbers"):
        contact_sheet(
            tmp_path / "sheet.png", [SheetRow("film", film(3), torch.tensor([[0.0, float("nan")]]))]
        )
    assert list(tmp_path.iterdir()) == []
