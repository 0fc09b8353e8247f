"""One film's file while it is being written: a container, the picture's encoder and one for each sound track.

Letters: H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
from torch import Tensor

from ..errors import MediaError
from .codecs import AudioCodec
from .formats import FilmFormat
from .picture import BT709, Picture
from .soundtrack import Fit, Track, language_in, section


class FilmFile:
    """The picture leads, the sound follows it frame by frame. Leaving the block lets go of the file."""

    def __init__(
        self,
        part: Path,
        film_format: FilmFormat,
        size: tuple[int, int],
        fps: Fraction,
        tags: Mapping[str, str],
        tracks: Sequence[Track],
        fit: Fit,
    ):
        self.width, self.height = size
        self.fps, self.frames = fps, 0
        film_format.check_size(*size)
        box, codec = film_format.box, film_format.video
        self.picture = Picture(film_format.pixel_format, film_format.bit_depth)
        self.container = av.open(str(part), "w", format=box.muxer, options=dict(box.options))
        self.container.metadata.update(tags)
        self.video = self.container.add_stream(
            codec.encoder, rate=fps, options=dict(codec.options(film_format.quality))
        )
        self.video.width, self.video.height, self.video.pix_fmt = *size, film_format.pixel_format
        context = self.video.codec_context
        context.color_primaries = context.color_trc = BT709
        context.colorspace, context.color_range = self.picture.matrix, self.picture.range
        if film_format.video_codec in box.fourccs:
            context.codec_tag = box.fourccs[film_format.video_codec]
        self.sounds = [_Sound(self.container, film_format.audio, track, fit) for track in tracks]
        for sound in self.sounds:
            sound.name(language_in(film_format.container, sound.track), is_default=sound is self.sounds[0])

    def __enter__(self) -> FilmFile:
        return self

    def __exit__(self, *reason) -> None:
        # An unfinished file is about to be removed: its errors would hide the reason.
        with suppress(av.FFmpegError):
            self.container.close()

    @property
    def samples(self) -> int:
        """Of each channel of the first sound; 0 without."""
        return self.sounds[0].samples if self.sounds else 0

    def add(self, pixels: Tensor) -> None:
        """Encode a frame, of which the upper left [height, width, 3] is taken, and the sound of its time."""
        with _encoder_errors():
            frame = self.picture.frame(pixels[: self.height, : self.width])
            frame.pts, frame.time_base = self.frames, 1 / self.fps
            self.container.mux(self.video.encode(frame))
            self.frames += 1
            for sound in self.sounds:
                sound.follow(self.frames / self.fps)

    def finish(self) -> None:
        """Empty the encoders and write the index."""
        with _encoder_errors():
            for packet in self.video.encode():
                # x265 gives one or two frames the decoding times that its memory happened to hold: 7 of 30 films
                # failed in the muxer (x265 in PyAV 18.1). So few come in the order in which they are shown.
                if self.frames <= 2:
                    packet.dts = packet.pts
                self.container.mux(packet)
            for sound in self.sounds:
                self.container.mux(sound.stream.encode())
            self.container.close()


class _Sound:
    """A sound track being written."""

    def __init__(self, container: av.container.OutputContainer, codec: AudioCodec, track: Track, fit: Fit):
        self.container, self.track, self.fit = container, track, fit
        self.samples = 0
        self.stream = container.add_stream(codec.encoder, rate=track.sample_rate, layout="stereo")
        self.stream.format = codec.sample_format
        if codec.bit_rate is not None:
            self.stream.bit_rate = codec.bit_rate

    def name(self, language: str, *, is_default: bool) -> None:
        """Say what a player shows, and whether it starts with this one: Matroska says "no" if nobody does."""
        if is_default:
            self.stream.disposition = av.stream.Disposition.default
        if language != "und":
            self.stream.metadata["language"] = language
        if self.track.title:
            # MP4 keeps the title as the name of the handler too, which is the one that players show.
            self.stream.metadata.update({"title": self.track.title, "handler_name": self.track.title})

    def follow(self, seconds: Fraction) -> None:
        """Bring the sound up to the end of the last frame."""
        end = int(seconds * self.track.sample_rate)
        block = section(self.track.waveform, self.samples, end, self.fit)
        if not block.shape[-1]:
            return
        frame = av.AudioFrame.from_ndarray(block.contiguous().numpy(), format="fltp", layout="stereo")
        frame.sample_rate = self.track.sample_rate
        frame.pts, frame.time_base = self.samples, Fraction(1, self.track.sample_rate)
        self.container.mux(self.stream.encode(frame))
        self.samples += block.shape[-1]


@contextmanager
def _encoder_errors() -> Iterator[None]:
    """Say what FFmpeg refuses in words of ours."""
    try:
        yield
    except av.FFmpegError as error:
        raise MediaError(f"The film could not be encoded or stored ({error}). Is the disk full?") from error
