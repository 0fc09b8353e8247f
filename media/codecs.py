"""Tables of what a film is made of: codecs for picture and sound, and the containers that hold them.

Only pairs that were written, read back and have players are in them. Left out although FFmpeg writes them: PCM
and FFV1 in MP4 and ProRes in Matroska (hardly a player); MOV and WebM themselves refuse the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

Options = Mapping[str, str]  # of an FFmpeg encoder or muxer


@dataclass(frozen=True, slots=True)
class VideoCodec:
    """What an encoder of pictures takes."""

    label: str
    encoder: str
    pixel_formats: Mapping[int, str]  # by bits of each colour
    options: Callable[[int], Options]  # of a quality from 0 to 100
    cell: tuple[int, int]  # pixels across and down that share one colour: sides are multiples of it
    min_side: int = 2
    browser_depths: tuple[int, ...] = ()  # bits that Chromium and Firefox both decode without hardware


@dataclass(frozen=True, slots=True)
class AudioCodec:
    """What an encoder of sound takes."""

    label: str
    encoder: str
    sample_rate: int  # Hz
    sample_format: str
    bit_rate: int | None = None  # of both channels together; None: lossless


@dataclass(frozen=True, slots=True)
class Container:
    """What a file format holds, and who reads it."""

    label: str
    muxer: str
    extension: str
    video: tuple[str, ...]
    audio: tuple[str, ...]
    options: Options
    page_reader: (
        Literal["iso", "ebml"] | None
    )  # how ComfyUI's page finds the workflow in the tags, if it does
    in_browsers: bool
    fourccs: Mapping[str, str] = field(
        default_factory=dict
    )  # where a player insists on another than FFmpeg's


def _crf(worst: int, best: int, quality: int, **others: str) -> Options:
    """A constant rate factor on the line from ``worst`` at quality 0 to ``best`` at 100."""
    return {"crf": str(round(worst + (best - worst) * quality / 100)), **others}


def _x264(quality: int) -> Options:
    # The AVX-512 code of x264's macroblock tree reads memory that nobody wrote where rows are short: 40 runs at
    # 64x64 made up to 24 different files, and 352x352 differed with the heap's content. The AVX2 code gives
    # one, as fast; without the tree a film was 3.8 times as large (x264 in PyAV 18.1).
    calm = {"x264-params": "asm=avx2"} if torch.backends.cpu.get_cpu_capability() == "AVX512" else {}
    return _crf(51, 7, quality, **calm)


def _prores(quality: int) -> Options:
    """ProRes has no rate factor but profiles, a quarter of the scale each; "apl0" is what editors look for."""
    return {"profile": ("proxy", "lt", "standard", "hq")[min(quality // 25, 3)], "vendor": "apl0"}


# The best crf is not 0: a lossless H.264 has a profile that browsers do not play. Quality 75 is crf 18 in
# H.264, visually lossless, and about that in the others.
VIDEO_CODECS = {
    "h264": VideoCodec(
        "H.264", "libx264", {8: "yuv420p", 10: "yuv420p10le"}, _x264, cell=(2, 2), browser_depths=(8,)
    ),
    "h265": VideoCodec(
        "H.265",
        "libx265",
        {8: "yuv420p", 10: "yuv420p10le"},
        partial(_crf, 51, 10, **{"x265-params": "log-level=none"}),  # it would write to the terminal itself
        cell=(2, 2),
        min_side=16,
    ),
    "av1": VideoCodec(
        "AV1",
        "libsvtav1",
        {8: "yuv420p", 10: "yuv420p10le"},
        partial(_crf, 63, 12, preset="8"),
        cell=(2, 2),
        min_side=64,  # below 16 SVT-AV1 corrupts the heap and the process dies (PyAV 19.0.2)
        browser_depths=(8, 10),
    ),
    "vp9": VideoCodec(
        "VP9",
        "libvpx-vp9",
        {8: "yuv420p"},  # PyAV's libvpx is built without high bit depth
        partial(_crf, 63, 10, b="0", **{"row-mt": "1", "cpu-used": "4"}),
        cell=(2, 2),
        browser_depths=(8,),
    ),
    "prores": VideoCodec("ProRes", "prores_ks", {10: "yuv422p10le"}, _prores, cell=(2, 1)),
    "ffv1": VideoCodec(
        "FFV1",
        "ffv1",
        {8: "bgr0", 10: "gbrp10le"},
        lambda quality: {"level": "3", "g": "1", "slicecrc": "1"},  # lossless; as archives keep it
        cell=(1, 1),
    ),
}

AUDIO_CODECS = {
    "aac": AudioCodec("AAC", "aac", 44_100, "fltp", 192_000),
    "opus": AudioCodec("Opus", "libopus", 48_000, "flt", 160_000),  # it has no 44.1 kHz
    "flac": AudioCodec("FLAC", "flac", 44_100, "s32"),  # of which it and PCM store the upper 24 bits
    "pcm": AudioCodec("PCM", "pcm_s24le", 44_100, "s32"),
}

# use_metadata_tags: without it MP4 drops tags it does not know, such as "prompt" and "workflow".
# faststart: browsers and ComfyUI's reader of workflows look for the index at the beginning.
_MOVFLAGS = {"movflags": "faststart+use_metadata_tags"}
# bitexact: otherwise Matroska numbers its tracks by chance, and no film is like the other.
_FLAGS = {"fflags": "+bitexact"}
_APPLE = {"h265": "hvc1"}  # QuickTime and Safari play no hev1

CONTAINERS = {
    "mp4": Container(
        "MP4",
        "mp4",
        ".mp4",
        ("h264", "h265", "av1", "vp9"),
        ("aac", "opus", "flac"),
        _MOVFLAGS,
        page_reader="iso",
        in_browsers=True,
        fourccs=_APPLE,
    ),
    "mov": Container(
        "MOV",
        "mov",
        ".mov",
        ("h264", "h265", "prores"),
        ("aac", "pcm"),
        _MOVFLAGS,
        page_reader="iso",
        in_browsers=False,  # Chromium guesses what it is, others do not
        fourccs=_APPLE,
    ),
    "mkv": Container(
        "MKV",
        "matroska",
        ".mkv",
        ("h264", "h265", "av1", "vp9", "ffv1"),
        ("aac", "opus", "flac", "pcm"),
        _FLAGS,
        page_reader=None,
        in_browsers=False,
    ),
    "webm": Container(
        "WebM", "webm", ".webm", ("av1", "vp9"), ("opus",), _FLAGS, page_reader="ebml", in_browsers=True
    ),
}
