"""Films: frames and sound to one MP4 (H.264 + AAC), and a film read back.

Letters: F frames, H height, W width, C channels, S samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from torch import Tensor

from ..errors import MediaError
from ..shapes import FPS, OUTPUT_SAMPLE_RATE
from .audio import check_finite, fit_samples, load_audio, resample
from .frames import check_frames, whole_file

logger = logging.getLogger(__name__)

BT709 = 1  # in H.273: primaries, transfer and matrix alike
AUDIO_BIT_RATE = 192_000
HEADROOM = 0.95  # FFmpeg's AAC encoder turns every block with a higher peak down to this, block by block

# Flags of swscale, as numbers because older PyAV has no names for the last two. Without accurate rounding it
# shifts chroma by -0.16 levels, and the way back darkens by 1.3 of 255 (means over 1024 random colours,
# FFmpeg 8.1); with it both means are below 0.04.
BILINEAR, BICUBIC, FULL_CHROMA, ACCURATE_ROUNDING = 0x2, 0x4, 0x2000, 0x40000
TO_YUV = BILINEAR | ACCURATE_ROUNDING
TO_RGB = BICUBIC | FULL_CHROMA | ACCURATE_ROUNDING


@dataclass(frozen=True, slots=True)
class FilmInfo:
    """What was written."""

    path: Path
    width: int
    height: int
    frames: int
    fps: Fraction
    samples: int  # of each channel; 0 for a film without sound
    sample_rate: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.frames / self.fps)


@dataclass(frozen=True, slots=True)
class FilmReading:
    """What a decoder finds in a film; the sound's values are empty where there is none."""

    path: Path
    video_codec: str
    audio_codec: str
    pixel_format: str
    colour: tuple[
        int, int, int, int
    ]  # primaries, transfer, matrix, range, as codes of H.273; range 1 is limited
    width: int
    height: int
    frames: int  # counted by decoding
    fps: Fraction
    video_seconds: float
    audio_seconds: float
    sample_rate: int
    channels: int
    metadata: Mapping[str, str]

    def decode_frames(self) -> Tensor:
        """[F, H, W, 3] uint8, converted to RGB as the colour tags say."""
        to_rgb = VideoReformatter()
        with av.open(str(self.path)) as container:
            frames = [
                to_rgb.reformat(frame, format="rgb24", interpolation=TO_RGB).to_ndarray()
                for frame in container.decode(video=0)
            ]
        return torch.from_numpy(np.stack(frames))

    def decode_waveform(self) -> Tensor:
        """[C, S] float32 as long as the file says, without what AAC adds to fill its last block."""
        waveform, sample_rate = load_audio(self.path)
        return fit_samples(waveform[0], round(self.audio_seconds * sample_rate))


def write_film(
    path: str | Path,
    frames: Iterable[Tensor],
    waveform: Tensor | None,
    sample_rate: int = OUTPUT_SAMPLE_RATE,
    *,
    fps: int | Fraction = FPS,
    crf: int = 18,
    metadata: Mapping[str, str] | None = None,
    on_frames: Callable[[int], None] | None = None,
) -> FilmInfo:
    """Write an MP4 from chunks of frames [n, H, W, 3] uint8 and a waveform [C, S] of one or two channels.

    Each chunk is encoded as it comes; then ``on_frames`` is told how many frames are in. The sound lasts
    exactly as long as the picture, 1764 samples for a frame at 25 fps: trimmed, or continued with silence.
    Without a waveform there is no sound track. ``metadata`` become tags of the container. The same input
    gives the same bytes.

    The film appears at ``path`` when it is whole. If anything ends the writing early, and be it an interrupt
    raised by ``frames`` or ``on_frames``, nothing of it stays and an older file of that name is untouched.

    Raises MediaError for frames, sound, tags or a place that cannot be used.
    """
    path, fps, tags = Path(path), Fraction(fps), dict(metadata or {})
    if fps <= 0:
        raise MediaError(f"A film cannot have {fps} frames in a second; the model makes {FPS}.")
    _check_tags(tags)
    sound = None if waveform is None else _as_stereo(waveform, sample_rate)
    chunks = iter(frames)
    with whole_file(path) as part:
        first = next(chunks, None)
        if first is None:
            raise MediaError(f"{path.name} cannot be written: there are no frames.")
        film = _Film(part, first, fps, crf, tags, sound)
        try:
            for chunk in chain([first], chunks):
                film.add(chunk)
                if on_frames is not None:
                    on_frames(film.frames)
            film.finish()
        finally:
            film.close()
    return FilmInfo(
        path=path,
        width=film.width,
        height=film.height,
        frames=film.frames,
        fps=fps,
        samples=film.samples,
        sample_rate=OUTPUT_SAMPLE_RATE if film.samples else 0,
    )


def read_film(path: str | Path) -> FilmReading:
    """Decode a film once and say what is in it. Raises MediaError for a file without a readable picture."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path} has no picture.")
            video = container.streams.video[0]
            audio = next(iter(container.streams.audio), None)
            context = video.codec_context
            return FilmReading(
                path=Path(path),
                video_codec=context.name,
                audio_codec=audio.codec_context.name if audio else "",
                pixel_format=context.pix_fmt,
                colour=(context.color_primaries, context.color_trc, context.colorspace, context.color_range),
                width=context.width,
                height=context.height,
                fps=video.average_rate,
                video_seconds=_seconds(video),
                audio_seconds=_seconds(audio) if audio else 0.0,
                sample_rate=audio.codec_context.sample_rate if audio else 0,
                channels=audio.codec_context.channels if audio else 0,
                metadata=dict(container.metadata),
                frames=sum(1 for _ in container.decode(video)),
            )
    except av.FFmpegError as error:
        raise MediaError(f"The film {path} cannot be read ({error}).") from error


class _Film:
    """An MP4 being written: the picture leads, the sound follows it frame by frame."""

    def __init__(
        self, part: Path, first: Tensor, fps: Fraction, crf: int, tags: dict[str, str], sound: Tensor | None
    ):
        _check_even(first)
        self.height, self.width = first.shape[1:3]
        self.fps, self.sound = fps, sound
        self.frames = self.samples = 0
        self.to_yuv = VideoReformatter()
        # use_metadata_tags: without it MP4 drops tags it does not know, such as "prompt" and "workflow".
        # faststart: browsers and ComfyUI's reader of workflows look for the index at the beginning.
        movflags = {"movflags": "faststart+use_metadata_tags"}
        self.container = av.open(str(part), "w", format="mp4", options=movflags)
        self.container.metadata.update(tags)
        self.video = self.container.add_stream("libx264", rate=fps, options=_x264_options(crf))
        self.video.width, self.video.height, self.video.pix_fmt = self.width, self.height, "yuv420p"
        context = self.video.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = ColorRange.MPEG
        self.audio = None
        if sound is not None:
            self.audio = self.container.add_stream("aac", rate=OUTPUT_SAMPLE_RATE, layout="stereo")
            self.audio.bit_rate = AUDIO_BIT_RATE

    def add(self, chunk: Tensor) -> None:
        """Encode frames [n, H, W, 3] and the sound that belongs to them."""
        check_frames(chunk)
        if chunk.shape[1:3] != (self.height, self.width):
            raise MediaError(
                f"Frame {self.frames} is {chunk.shape[2]}x{chunk.shape[1]}, "
                f"but the film began with {self.width}x{self.height}."
            )
        with _encoder_errors():
            for pixels in chunk.cpu().contiguous().numpy():
                frame = self.to_yuv.reformat(
                    av.VideoFrame.from_ndarray(pixels, format="rgb24"),
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,  # the default is the matrix of BT.601
                    dst_color_range=ColorRange.MPEG,
                    interpolation=TO_YUV,
                )
                frame.pts, frame.time_base = self.frames, 1 / self.fps
                self.container.mux(self.video.encode(frame))
                self.frames += 1
                self._add_sound()

    def finish(self) -> None:
        """Empty the encoders and write the index."""
        with _encoder_errors():
            self.container.mux(self.video.encode())
            if self.audio is not None:
                self.container.mux(self.audio.encode())
            self.container.close()

    def close(self) -> None:
        """Let go of the file. An unfinished one is about to be removed: its errors would hide the reason."""
        with suppress(av.FFmpegError):
            self.container.close()

    def _add_sound(self) -> None:
        """Bring the sound up to the end of the last frame."""
        if self.audio is None:
            return
        end = int(self.frames * OUTPUT_SAMPLE_RATE / self.fps)
        block = fit_samples(self.sound[:, self.samples : end], end - self.samples)
        frame = av.AudioFrame.from_ndarray(block.contiguous().numpy(), format="fltp", layout="stereo")
        frame.sample_rate = OUTPUT_SAMPLE_RATE
        frame.pts, frame.time_base = self.samples, Fraction(1, OUTPUT_SAMPLE_RATE)
        self.container.mux(self.audio.encode(frame))
        self.samples = end


def _x264_options(crf: int) -> dict[str, str]:
    options = {"crf": str(crf)}
    # The AVX-512 code of x264's macroblock tree reads memory that nobody wrote where rows are short: 40 runs at
    # 64x64 made up to 24 different files, and 352x352 differed with the heap's content. The AVX2 code gives
    # one, as fast; without the tree a film was 3.8 times as large (x264 in PyAV 18.1).
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        options["x264-params"] = "asm=avx2"
    return options


def _as_stereo(waveform: Tensor, sample_rate: int) -> Tensor:
    """[1 or 2, S] of any rate -> [2, S'] float32 at 44.1 kHz; with a peak above 1 all of it is turned down."""
    if waveform.ndim != 2 or waveform.shape[0] not in (1, 2) or not waveform.is_floating_point():
        raise MediaError(
            f"A film's sound must be [C, S] in floating point with one or two channels, "
            f"not {list(waveform.shape)} in {waveform.dtype}."
        )
    if sample_rate < 1:
        raise MediaError(f"A film's sound cannot have {sample_rate} samples in a second.")
    check_finite(waveform, "The film's sound")
    sound = resample(waveform.detach().float().cpu(), sample_rate, OUTPUT_SAMPLE_RATE).expand(2, -1)
    peak = float(sound.abs().max()) if sound.numel() else 0.0
    if peak > 1:
        logger.warning(
            "The film's sound peaks at %.3f, above full scale; all of it is turned down by %.1f dB.",
            peak,
            20 * np.log10(peak / HEADROOM),
        )
        sound = sound * (HEADROOM / peak)
    return sound


def _check_even(chunk: Tensor) -> None:
    check_frames(chunk)
    height, width = chunk.shape[1:3]
    if height % 2 or width % 2:
        raise MediaError(
            f"A film of {width}x{height} cannot be written: H.264 in yuv420p needs even sides. "
            f"Crop it to {width // 2 * 2}x{height // 2 * 2}."
        )


def _check_tags(tags: Mapping[str, str]) -> None:
    for name, text in tags.items():
        if not isinstance(text, str):
            raise MediaError(
                f"The tag '{name}' must be text, not {type(text).__name__}; write values as JSON."
            )
        # MP4 would end the text at a NUL; a lone surrogate has no UTF-8.
        if any(mark == "\0" or "\ud800" <= mark <= "\udfff" for mark in text):
            raise MediaError(f"The tag '{name}' holds a NUL or half a character pair; remove it.")


def _seconds(stream: av.stream.Stream) -> float:
    return float(stream.duration * stream.time_base) if stream.duration else 0.0


@contextmanager
def _encoder_errors() -> Iterator[None]:
    """Say what FFmpeg refuses in words of ours."""
    try:
        yield
    except av.FFmpegError as error:
        raise MediaError(f"The film could not be encoded or stored ({error}). Is the disk full?") from error
