"""The first picture: where it is cut, what its values become, what is refused."""

from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from comfyui_happyhorse.conditioning.image import crop_box, first_frame
from comfyui_happyhorse.errors import ConditioningError

side = st.integers(1, 3000)


@given(width=side, height=side, target_w=st.integers(1, 120), target_h=st.integers(1, 120))
def test_boxes_lie_inside_and_have_the_aspect(width, height, target_w, target_h):
    target_w, target_h = 32 * target_w, 32 * target_h
    try:
        left, top, right, bottom = crop_box(width, height, target_w, target_h)
    except ConditioningError:
        # Only where less than a pixel and a half would be left.
        assert min(Fraction(width * target_h, target_w), Fraction(height * target_w, target_h)) < 2
        return
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert (left, right) == (0, width) or (top, bottom) == (0, height)
    assert abs((left + right) - width) <= 1
    assert abs((top + bottom) - height) <= 1
    assume(height * target_w != target_h * width)
    # At most two pixels from the exact side: one by truncation, one by rounding the edges.
    if height * target_w > target_h * width:
        assert abs((bottom - top) - Fraction(width * target_h, target_w)) < 2
    else:
        assert abs((right - left) - Fraction(height * target_w, target_h)) < 2


@given(width=st.integers(1, 200), height=st.integers(1, 200), scale=st.integers(1, 9))
def test_the_right_aspect_is_not_cropped(width, height, scale):
    assert crop_box(width, height, width * scale, height * scale) == (0, 0, width, height)


def test_edges_round_half_to_even():
    # 7 pixels to 4: 1.5 and 5.5; 9 to 4: 2.5 and 6.5; half up would give 2, 6 and 3, 7.
    assert crop_box(7, 4, 32, 32) == (2, 0, 6, 4)
    assert crop_box(9, 4, 32, 32) == (2, 0, 6, 4)
    assert crop_box(4, 9, 32, 32) == (0, 2, 4, 6)
    # 5 to 2: 1.5 and 3.5, both to the even 2 and 4.
    assert crop_box(5, 2, 32, 32) == (2, 0, 4, 2)


def test_values_at_the_same_size():
    image = torch.arange(32 * 64 * 3).remainder(256).reshape(32, 64, 3).to(torch.uint8)
    frame = first_frame(image, 64, 32)
    assert frame.shape == (1, 3, 1, 32, 64)
    expected = (image.double() / 255 * 2 - 1).permute(2, 0, 1)
    assert (frame[0, :, 0].double() - expected).abs().max() < 1e-7
    assert (frame.min(), frame.max()) == (-1, 1)


def test_the_middle_is_kept():
    """White stays, the red sides go: the crop is centred and the resize mixes nothing in."""
    image = torch.full((30, 100, 3), 255, dtype=torch.uint8)
    image[:, :35, 1:], image[:, 65:, 1:] = 0, 0
    assert (first_frame(image, 64, 64) == 1).all()


@pytest.mark.parametrize("scale", [1.0, 1.0 + 1e-4, 1.0 - 1e-4])
def test_comfyui_pictures_are_the_same(scale):
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(0, 256, (37, 53, 3), generator=generator, dtype=torch.uint8)
    unit = image.float() / 255 * scale
    expected = first_frame(image, 64, 32)
    assert torch.equal(first_frame(unit, 64, 32), expected)
    assert torch.equal(first_frame(torch.stack([unit, 1 - unit]), 64, 32), expected)
    assert torch.equal(first_frame(unit.double(), 64, 32), expected)
    alpha = torch.rand(37, 53, 1, generator=generator)
    assert torch.equal(first_frame(torch.cat([unit, alpha], -1), 64, 32), expected)


def test_levels_are_rounded_not_truncated():
    image = torch.full((32, 32, 3), 127.6 / 255)
    assert first_frame(image, 32, 32)[0, 0, 0, 0, 0] == pytest.approx(128 / 255 * 2 - 1, abs=1e-7)


def test_one_channel_is_grey():
    grey = torch.arange(32 * 32).remainder(256).reshape(32, 32, 1).to(torch.uint8)
    assert torch.equal(first_frame(grey, 64, 64), first_frame(grey.expand(-1, -1, 3), 64, 64))


def test_values_beyond_the_range_are_clamped():
    image = torch.tensor([-0.5, 1.5]).repeat_interleave(512).reshape(32, 32, 1).expand(-1, -1, 3)
    assert set(first_frame(image, 32, 32).unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(0, 4, 3, dtype=torch.uint8), "empty"),
        (torch.zeros(0, 4, 4, 3), "empty"),
        (torch.zeros(3, 4, 5), r"\[3, 4, 5\]"),
        (torch.zeros(4, 4), r"\[4, 4\]"),
        (torch.zeros(4, 4, 3, dtype=torch.int32), "int32"),
        (torch.full((4, 4, 3), float("nan")), "48 of 48"),
        (torch.full((4, 4, 3), float("inf")), "48 of 48"),
        (torch.zeros(1000, 1, 3), "1x1000 is too narrow"),
    ],
)
def test_what_it_refuses(image, words):
    with pytest.raises(ConditioningError, match=words):
        first_frame(image, 64, 32)


def test_targets_it_refuses():
    with pytest.raises(ConditioningError, match="0x32"):
        first_frame(torch.zeros(4, 4, 3), 0, 32)
