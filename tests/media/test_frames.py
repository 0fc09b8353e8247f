"""8 bits, sizes and picture files, in numbers."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_happyhorse.errors import MediaError
from comfyui_happyhorse.media.frames import load_image, resize_frames, save_image, to_uint8


@pytest.mark.parametrize("offset", [-0.45, 0.0, 0.45])
def test_levels_are_rounded_to_the_nearest(offset):
    levels = torch.arange(256.0)
    pixels = ((levels + offset).clamp(0, 255) / 255 * 2 - 1).expand(3, 1, 1, 256)
    assert torch.equal(to_uint8(pixels)[0, 0, :, 0], levels.to(torch.uint8))


def test_truncation_is_the_references():
    pixels = torch.tensor([126.9, 127.1, 254.9]).expand(3, 1, 1, 3) / 255 * 2 - 1
    assert to_uint8(pixels, rounding="truncate")[0, 0, :, 0].tolist() == [126, 127, 254]
    assert to_uint8(pixels)[0, 0, :, 0].tolist() == [127, 127, 255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_frames_are_turned_and_clamped(dtype):
    pixels = torch.linspace(-1.5, 1.5, 3 * 2 * 4 * 5).reshape(3, 2, 4, 5).to(dtype)
    frames = to_uint8(pixels)
    expected = ((pixels.double() + 1) * 127.5).clamp(0, 255).round().permute(1, 2, 3, 0)
    assert frames.shape == (2, 4, 5, 3)
    assert frames.is_contiguous()
    assert (frames.double() - expected).abs().max() <= (1 if dtype == torch.bfloat16 else 0)
    assert torch.equal(to_uint8(pixels[None]), frames)


def test_pixels_that_are_not_numbers():
    pixels = torch.zeros(3, 1, 2, 2)
    pixels[0, 0, 0] = float("nan")
    with pytest.raises(MediaError, match="2 of 12"):
        to_uint8(pixels)


@pytest.mark.parametrize("shape", [(2, 3, 1, 4, 4), (1, 4, 4, 3), (3, 4, 4)])
def test_shapes_that_are_no_film(shape):
    with pytest.raises(MediaError, match=str(shape[0])):
        to_uint8(torch.zeros(shape))


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_the_same_size_changes_nothing(mode):
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, -1, -1, 3)
    assert torch.equal(resize_frames(frames, 16, 16, mode), frames)


def test_bicubic_overshoot_is_clamped():
    edge = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    edge[:, :, 4:] = 255
    row = resize_frames(edge, 8, 32, "bicubic")[0, 0, :, 0].int()
    assert (row.diff() >= 0).all()
    assert (row[0], row[-1]) == (0, 255)


def test_doubling_in_between():
    frames = torch.tensor([0, 100], dtype=torch.uint8).reshape(1, 1, 2, 1).expand(-1, -1, -1, 3)
    assert resize_frames(frames, 1, 4, "bilinear")[0, 0, :, 0].tolist() == [0, 25, 75, 100]
    assert resize_frames(frames, 1, 4, "nearest")[0, 0, :, 0].tolist() == [0, 0, 100, 100]


def test_resizing_refuses():
    frames = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    with pytest.raises(MediaError, match="0x4"):
        resize_frames(frames, 4, 0)
    with pytest.raises(MediaError, match=r"torch\.float32"):
        resize_frames(frames.float(), 8, 8)


@pytest.fixture
def picture():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (5, 7, 3), generator=generator, dtype=torch.uint8)


def test_picture_files_come_back(tmp_path, picture):
    save_image(tmp_path / "picture.png", picture)
    assert torch.equal(load_image(tmp_path / "picture.png"), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path, picture, orientation):
    turns = {
        1: lambda p: p,
        2: lambda p: p.flip(1),
        3: lambda p: p.flip(0, 1),
        4: lambda p: p.flip(0),
        5: lambda p: p.transpose(0, 1),
        6: lambda p: p.rot90(-1),
        7: lambda p: p.transpose(0, 1).flip(0, 1),
        8: lambda p: p.rot90(1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture.numpy()).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(load_image(tmp_path / "turned.png"), turns[orientation](picture))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_pictures_of_every_kind_are_rgb(tmp_path, picture, mode):
    image = Image.fromarray(picture.numpy()).convert(mode)
    ending = "tif" if mode == "CMYK" else "png"
    image.save(tmp_path / f"picture.{ending}")
    expected = torch.from_numpy(np.array(image.convert("RGB")))
    assert torch.equal(load_image(tmp_path / f"picture.{ending}"), expected)


def test_sixteen_bits_are_scaled(tmp_path):
    grey = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert load_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, about what it skips
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_pictures(tmp_path, form):
    """Cut at any length or with any bytes changed, a file is a picture or a MediaError, nothing else."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form)
    whole, path = buffer.getvalue(), tmp_path / "damaged"
    refused = 0
    for seed in range(120):
        dice = random.Random(seed)
        content = bytearray(whole[: dice.randrange(len(whole))] if seed % 2 else whole)
        for _ in range(dice.randrange(1, 4)):
            if content:
                content[dice.randrange(min(len(content), 200))] = dice.randrange(256)
        path.write_bytes(content)
        try:
            assert load_image(path).dtype == torch.uint8
        except MediaError:
            refused += 1
    assert refused >= 30


@pytest.mark.parametrize("content", [None, b"", b"text"])
def test_what_is_no_picture(tmp_path, content):
    if content is not None:
        (tmp_path / "picture.png").write_bytes(content)
    with pytest.raises(MediaError, match=r"picture\.png"):
        load_image(tmp_path / "picture.png")


@pytest.mark.parametrize("name", ["picture", "picture.xyz"])
def test_endings_that_are_no_format(tmp_path, picture, name):
    with pytest.raises(MediaError, match=r"\.png or \.jpg"):
        save_image(tmp_path / name, picture)
