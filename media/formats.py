"""Kinds of film: a container with two codecs, what that choice means, and which of them this machine can write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Literal

import av

from ..errors import MediaError
from .codecs import AUDIO_CODECS, CONTAINERS, VIDEO_CODECS, AudioCodec, Container, VideoCodec


@dataclass(frozen=True, slots=True)
class FilmFormat:
    """A container with a codec for picture and one for sound, by their keys in the tables.

    ``quality`` goes from 0 to 100; 75 looks like the original. It moves H.264's crf from 51 to 7, H.265's from
    51 to 10, AV1's from 63 to 12, VP9's from 63 to 10 and picks ProRes' profile; FFV1 is lossless.

    Raises MediaError for what does not go together, with what does.
    """

    container: str = "mp4"
    video_codec: str = "h264"
    audio_codec: str = "aac"
    quality: int = 75
    bit_depth: Literal[8, 10] = 8

    def __post_init__(self):
        for kind, name, table in (
            ("container", self.container, CONTAINERS),
            ("video codec", self.video_codec, VIDEO_CODECS),
            ("audio codec", self.audio_codec, AUDIO_CODECS),
        ):
            if name not in table:
                raise MediaError(f"'{name}' is no {kind} that can be written; choose {_either(table)}.")
        box = CONTAINERS[self.container]
        for name, held, table, kind in (
            (self.video_codec, box.video, VIDEO_CODECS, "video"),
            (self.audio_codec, box.audio, AUDIO_CODECS, "audio"),
        ):
            if name not in held:
                others = [other.label for other in CONTAINERS.values() if name in getattr(other, kind)]
                raise MediaError(
                    f"{box.label} does not hold {table[name].label}. Choose "
                    f"{_either(table[each].label for each in held)}, or write {_either(others)}."
                )
        depths = VIDEO_CODECS[self.video_codec].pixel_formats
        if self.bit_depth not in depths:
            raise MediaError(
                f"{VIDEO_CODECS[self.video_codec].label} is not written in {self.bit_depth} bits, "
                f"only in {_either(depths)}."
            )
        if not 0 <= self.quality <= 100:
            raise MediaError(f"A quality of {self.quality} does not exist; it goes from 0 to 100.")

    @property
    def box(self) -> Container:
        return CONTAINERS[self.container]

    @property
    def video(self) -> VideoCodec:
        return VIDEO_CODECS[self.video_codec]

    @property
    def audio(self) -> AudioCodec:
        return AUDIO_CODECS[self.audio_codec]

    @property
    def pixel_format(self) -> str:
        return self.video.pixel_formats[self.bit_depth]

    @property
    def plays_in_browsers(self) -> bool:
        """Whether a page shows it as it is; a film that it does not needs a preview."""
        return self.box.in_browsers and self.bit_depth in self.video.browser_depths

    def __str__(self) -> str:
        return f"{self.box.label} with {self.video.label} and {self.audio.label}"

    def check_size(self, width: int, height: int) -> None:
        """Raise MediaError for sides that the picture's codec cannot take."""
        label, (across, down), least = self.video.label, self.video.cell, self.video.min_side
        if width % across or height % down:
            needed = "even sides" if down == 2 else "an even width"
            raise MediaError(
                f"A film of {width}x{height} cannot be written: {label} in {self.pixel_format} needs "
                f"{needed}. Crop it to {width // across * across}x{height // down * down}."
            )
        if min(width, height) < least:
            raise MediaError(
                f"A film of {width}x{height} cannot be written in {label}: it needs sides of {least} pixels "
                "or more. Enlarge it, or choose another codec."
            )


def formats() -> list[FilmFormat]:
    """Every pair that is offered, in every bit depth it has."""
    return [
        FilmFormat(name, video, audio, bit_depth=depth)
        for name, box in CONTAINERS.items()
        for video, audio in product(box.video, box.audio)
        for depth in VIDEO_CODECS[video].pixel_formats
    ]


def available_formats() -> list[FilmFormat]:
    """Those of ``formats()`` whose encoders the installed PyAV has."""
    codecs = VIDEO_CODECS | AUDIO_CODECS
    has = {name: _has(codec.encoder) for name, codec in codecs.items()}
    return [each for each in formats() if has[each.video_codec] and has[each.audio_codec]]


def check_encoders(film_format: FilmFormat) -> None:
    """Raise MediaError if the installed PyAV lacks an encoder of ``film_format``."""
    for codec in (film_format.video, film_format.audio):
        if not _has(codec.encoder):
            offered = ", ".join(dict.fromkeys(map(str, available_formats())))
            raise MediaError(
                f"{codec.label} cannot be written: this PyAV ({av.__version__}) was built without "
                f"{codec.encoder}. Install PyAV's own wheel (pip install --force-reinstall av), or choose one "
                f"of: {offered or 'none'}."
            )


def _has(encoder: str) -> bool:
    try:
        return av.Codec(encoder, "w") is not None
    except av.codec.codec.UnknownCodecError:
        return False


def _either(names: Iterable) -> str:
    *others, last = map(str, names)
    return f"{', '.join(others)} or {last}" if others else last
