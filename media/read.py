"""Films read back: what a decoder finds in them.

Letters: F frames, H height, W width, C channels, S samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from ..errors import MediaError
from .audio import fit_samples, load_audio
from .picture import TO_RGB
from .soundtrack import ISO_639_2


@dataclass(frozen=True, slots=True)
class TrackReading:
    """What a decoder finds in a sound track."""

    codec: str
    seconds: float  # in MKV, AAC lasts up to one block of 1024 samples longer than was written
    sample_rate: int
    channels: int
    language: str  # ISO 639-2, "und" for none
    title: str
    is_default: bool


@dataclass(frozen=True, slots=True)
class FilmReading:
    """What a decoder finds in a film; the sound's values are empty where there is none."""

    path: Path
    video_codec: str
    pixel_format: str
    colour: tuple[
        int, int, int, int
    ]  # primaries, transfer, matrix, range, as codes of H.273; range 1 is limited
    width: int
    height: int
    frames: int  # counted by decoding
    fps: Fraction
    video_seconds: float
    tracks: tuple[TrackReading, ...]
    metadata: Mapping[str, str]

    @property
    def audio_codec(self) -> str:
        return self.tracks[0].codec if self.tracks else ""

    @property
    def audio_seconds(self) -> float:
        return self.tracks[0].seconds if self.tracks else 0.0

    @property
    def sample_rate(self) -> int:
        return self.tracks[0].sample_rate if self.tracks else 0

    @property
    def channels(self) -> int:
        return self.tracks[0].channels if self.tracks else 0

    def decode_frames(self) -> Tensor:
        """[F, H, W, 3] uint8, converted to RGB as the colour tags say."""
        to_rgb = VideoReformatter()
        with av.open(str(self.path)) as container:
            frames = [
                to_rgb.reformat(frame, format="rgb24", interpolation=TO_RGB).to_ndarray()
                for frame in container.decode(video=0)
            ]
        return torch.from_numpy(np.stack(frames))

    def decode_waveform(self, track: int = 0) -> Tensor:
        """[C, S] float32 as long as the file says, without what AAC adds to fill its last block."""
        waveform, sample_rate = load_audio(self.path, track)
        return fit_samples(waveform[0], round(self.tracks[track].seconds * sample_rate))


def read_film(path: str | Path) -> FilmReading:
    """Decode a film once and say what is in it. Raises MediaError for a file without a readable picture."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path} has no picture.")
            video = container.streams.video[0]
            context = video.codec_context
            counted = Counter()  # pictures of the video, samples of the sounds
            for packet in container.demux(video, *container.streams.audio):
                for frame in packet.decode():
                    counted[packet.stream] += getattr(frame, "samples", 1)
            return FilmReading(
                path=Path(path),
                video_codec=context.name,
                pixel_format=context.pix_fmt,
                colour=(context.color_primaries, context.color_trc, context.colorspace, context.color_range),
                width=context.width,
                height=context.height,
                frames=counted[video],
                fps=video.average_rate,
                video_seconds=_seconds(video, counted[video] / video.average_rate),
                tracks=tuple(_track(stream, counted[stream]) for stream in container.streams.audio),
                # Matroska shouts all names of tags.
                metadata={
                    name.lower() if "matroska" in container.format.name else name: text
                    for name, text in container.metadata.items()
                },
            )
    except av.FFmpegError as error:
        raise MediaError(f"The film {path} cannot be read ({error}).") from error


def _track(stream: av.AudioStream, samples: int) -> TrackReading:
    context = stream.codec_context
    language = stream.language or "und"
    return TrackReading(
        codec=context.name,
        seconds=_seconds(stream, Fraction(samples, context.sample_rate)),
        sample_rate=context.sample_rate,
        channels=context.channels,
        language=ISO_639_2.get(language, language),
        title=stream.metadata.get("title") or stream.metadata.get("name", ""),
        is_default=bool(stream.disposition & av.stream.Disposition.default),
    )


def _seconds(stream: av.stream.Stream, counted: Fraction) -> float:
    """What the file says, or else what was decoded: Matroska says it of the whole file only."""
    return float(stream.duration * stream.time_base if stream.duration else counted)
