"""Pictures for an encoder: frames in 8 bits or in [0, 1], one at a time, in the pixel format it takes.

Letters: n frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import av
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from torch import Tensor

from ..errors import MediaError
from .frames import to_levels

# Codes of H.273
BT709 = 1  # primaries, transfer and matrix alike
RGB = 0  # the matrix of pictures that are stored as they are

# Flags of swscale, as numbers because older PyAV has no names for the last two. Without accurate rounding it
# shifts chroma by -0.16 levels, and the way back darkens by 1.3 of 255 (means over 1024 random colours,
# FFmpeg 8.1); with it both means are below 0.04.
BILINEAR, BICUBIC, FULL_CHROMA, ACCURATE_ROUNDING = 0x2, 0x4, 0x2000, 0x40000
TO_YUV = BILINEAR | ACCURATE_ROUNDING
TO_RGB = BICUBIC | FULL_CHROMA | ACCURATE_ROUNDING

# White of swscale's 16-bit RGB: it takes 8 bits shifted by 8 for the scale. Fed 65535, a film is too bright
# by 1.7 of 1023 on average and its white lies 3 above the code for white (FFmpeg 8.1).
WHITE_16 = 255 << 8
WHITE_10 = 1023


def pictures(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The chunks [n, H, W, 3], each checked as it comes: uint8 or floats without NaN, all of one size.

    Raises MediaError for the first that is not.
    """
    count, size = 0, None
    for chunk in chunks:
        known = chunk.dtype == torch.uint8 or chunk.is_floating_point()
        if not known or chunk.ndim != 4 or chunk.shape[-1] != 3 or not chunk.numel():
            raise MediaError(
                f"Frames must be [n, H, W, 3] in 8 bits or in floats from 0 to 1, "
                f"not {list(chunk.shape)} in {chunk.dtype}."
            )
        size = size or chunk.shape[1:3]
        if chunk.shape[1:3] != size:
            raise MediaError(
                f"Frame {count} is {chunk.shape[2]}x{chunk.shape[1]}, "
                f"but the film began with {size[1]}x{size[0]}."
            )
        lost = int(chunk.isnan().sum()) if chunk.is_floating_point() else 0
        if lost:
            raise MediaError(
                f"Of frames {count} to {count + len(chunk) - 1}, {lost} of {chunk.numel()} pixel values are not "
                "numbers (NaN). Decode the video in bfloat16 or float32; float16 overflows."
            )
        yield chunk
        count += len(chunk)


class Picture:
    """The way from a frame [H, W, 3] to one pixel format; values beyond [0, 1] are clamped.

    YUV is BT.709 in limited range. RGB is kept to the bit: 8 bits as they are, floats at the nearest level.
    """

    def __init__(self, pixel_format: str, bit_depth: int):
        self.pixel_format, self.bit_depth = pixel_format, bit_depth
        self.is_rgb = not pixel_format.startswith("yuv")
        self.matrix = RGB if self.is_rgb else BT709
        self.range = ColorRange.JPEG if self.is_rgb else ColorRange.MPEG
        self.reformatter = VideoReformatter()

    def frame(self, pixels: Tensor) -> av.VideoFrame:
        if self.bit_depth == 8:
            levels = pixels if pixels.dtype == torch.uint8 else to_levels(pixels.float())
            frame = av.VideoFrame.from_ndarray(levels.contiguous().numpy(), format="rgb24")
        else:
            unit = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float().clamp(0, 1)
            levels = (unit * (WHITE_10 if self.is_rgb else WHITE_16)).round().to(torch.uint16)
            frame = av.VideoFrame.from_ndarray(
                levels.contiguous().numpy(), format=self.pixel_format if self.is_rgb else "rgb48le"
            )
        if self.is_rgb:
            frame = self.reformatter.reformat(frame, format=self.pixel_format)
        else:
            frame = self.reformatter.reformat(
                frame,
                format=self.pixel_format,
                dst_colorspace=Colorspace.ITU709,  # the default is the matrix of BT.601
                dst_color_range=ColorRange.MPEG,
                interpolation=TO_YUV,
            )
        # ProRes writes what the frame says, the other encoders what their context says.
        frame.color_primaries = frame.color_trc = BT709
        frame.colorspace, frame.color_range = self.matrix, self.range
        return frame
