"""Latents to frames and sound on the host, a few frames at a time: memory does not grow with the film's length.

A window of the film is decoded; its frames are converted on the device, copied four at a time, and encoded as
they come. On CUDA the next window is begun first, so that copying and encoding happen beside it.

The sound is decoded before the picture: its loudness and peak are measured over all of it before the first
block is encoded. Ten seconds of it are 3.5 MB, and its decoder is done before the picture's begins.

Letters: C channels, T latent frames, h and w latent cells, L audio latents, F frames of a window, n frames at
once, H and W pixels, S samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..conditioning.voice import prepare_voice
from ..media.audio import to_output_rate
from ..media.formats import FilmFormat
from ..media.frames import check_lost, to_frames
from ..media.mux import MP4, FilmInfo, write_film
from ..media.soundtrack import Fit, Track, check_fit
from ..model.audio_vae import OobleckVAE
from ..model.turbo_decoder import PIECE_BYTES
from ..shapes import FPS, LATENT_SAMPLE_RATE, OUTPUT_SAMPLE_RATE

FRAMES = 4  # carried at once: 25 MB of 1080p in 8 bits, and a chance to stop every 0.16 s of film

Carried = Any  # a carrier's own: frames under way


class Carrier(Protocol):
    """Brings frames from the device that decodes them to the host, in order."""

    ahead: int  # windows that are begun before the frames of an earlier one are read

    def mark(self) -> Any:
        """A token for the work that was queued so far."""

    def start(self, pixels: Tensor, decoded: Any, bit_depth: int) -> Carried:
        """Begin to bring pixels [1, 3, n, H, W], n at most ``FRAMES``, that are there once ``decoded`` has happened."""

    def finish(self, carried: Carried) -> Tensor:
        """[n, H, W, 3] as ``to_frames`` makes them; good until the next ``start``, of which one may have gone before."""


class PlainCarrier:
    """At once, on the thread that asks: for the CPU, and for devices without streams."""

    ahead = 0

    def mark(self) -> None:
        pass

    def start(self, pixels: Tensor, decoded: None, bit_depth: int) -> Carried:
        return pixels, bit_depth

    def finish(self, carried: Carried) -> Tensor:
        frames, lost = to_frames(*carried)
        check_lost(int(lost), frames.numel())
        return frames.cpu()


class _Copy(NamedTuple):
    frames: Tensor  # in a pinned buffer
    lost: Tensor
    landed: Any  # event


class CudaCarrier:
    """Converts and copies on a stream of its own into two pinned buffers in turn.

    ``cuda`` is torch.cuda, or what stands in for it where there is none.
    """

    ahead = 1

    def __init__(self, device: torch.device, cuda=torch.cuda):
        self.device, self.cuda = device, cuda
        self.stream = cuda.Stream(device)
        self.buffers: list[tuple[Tensor, Tensor]] = []  # frames, and how many pixel values were lost

    def mark(self) -> Any:
        return self._event(self.cuda.current_stream(self.device))

    def start(self, pixels: Tensor, decoded: Any, bit_depth: int) -> Carried:
        self.stream.wait_event(decoded)
        with self.cuda.stream(self.stream):
            frames, lost = to_frames(pixels, bit_depth)
            host, host_lost = self._buffer(frames)
            self._move(host, frames)
            self._move(host_lost, lost)
        # The window came from another stream: its memory is not to be used again before this one has read it.
        pixels.record_stream(self.stream)
        return _Copy(host, host_lost, self._event(self.stream))

    def finish(self, carried: Carried) -> Tensor:
        carried.landed.synchronize()
        check_lost(int(carried.lost), carried.frames.numel())
        return carried.frames

    def _buffer(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The one of the two that was used longer ago, as long as ``like``."""
        if len(self.buffers) < 2:
            frames = pinned((FRAMES, *like.shape[1:]), like.dtype)
            self.buffers.append((frames, pinned((), torch.int64)))
        else:
            self.buffers.reverse()
        frames, lost = self.buffers[-1]
        return frames[: len(like)], lost

    def _event(self, stream) -> Any:
        event = self.cuda.Event()
        event.record(stream)
        return event

    def _move(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)


def pinned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A pinned buffer, or a pageable one where the system refuses: slower, with the same result."""
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError:
        return torch.empty(shape, dtype=dtype)


def use_smaller_pieces(decoder) -> None:
    """Let a Turbo decoder hold a quarter of what it held; another decoder stays as it is."""
    if getattr(decoder, "piece_bytes", 0) is None:
        decoder.piece_bytes = PIECE_BYTES
    elif hasattr(decoder, "piece_bytes"):
        decoder.piece_bytes = max(1, decoder.piece_bytes // 4)


def host_frames(
    windows: Iterable[Tensor], device: torch.device, bit_depth: int = 8, carrier: Carrier | None = None
) -> Iterator[Tensor]:
    """Windows of pixels [1, 3, F, H, W] about [-1, 1] on ``device`` -> frames [n, H, W, 3] on the CPU.

    At most ``FRAMES`` at once, uint8 for 8 bits, else float32 in [0, 1]; good until the next are asked for.
    Raises MediaError for pixels that are not numbers.
    """
    if carrier is None:
        carrier = CudaCarrier(device) if device.type == "cuda" else PlainCarrier()
    # map() throughout: a loop's name would keep a window in memory while the next is decoded.
    begun = delayed(map(lambda window: (window, carrier.mark()), iter(windows)), carrier.ahead)  # noqa: C417
    started = map(lambda part: carrier.start(*part, bit_depth), _parts(begun))  # noqa: C417
    yield from map(carrier.finish, delayed(started, carrier.ahead))


def delayed(items: Iterator, count: int) -> Iterator:
    """The same items, each once ``count`` more of them have been made."""
    waiting = deque()
    for item in items:
        waiting.append(item)
        del item
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _parts(windows: Iterator[tuple[Tensor, Any]]) -> Iterator[tuple[Tensor, Any]]:
    """Windows and their tokens -> a few frames at a time, each with its window's token."""
    for window, decoded in windows:
        parts = deque(window.split(FRAMES, dim=2))
        del window
        while parts:
            yield parts.popleft(), decoded


def write_decoded(
    path: str | Path,
    windows: Iterable[Tensor],
    device: torch.device,
    num_frames: int,
    tracks: Sequence[Track],
    *,
    format: FilmFormat = MP4,
    fit: Fit = "exact",
    loudness: float | None = None,
    metadata: Mapping[str, str] | None = None,
    preview: str | Path | None = None,
    on_frames: Callable[[int], None] | None = None,
) -> FilmInfo:
    """``write_film`` for a film of ``num_frames`` frames whose windows are decoded on ``device`` as it is written.

    However it ends, nothing of the decoding stays in memory.
    """
    check_fit(tracks, num_frames, Fraction(FPS), fit)  # now: the mux would know after the last frame
    with closing(host_frames(windows, device, format.bit_depth)) as frames:
        return write_film(
            path,
            frames,
            None,
            format=format,
            tracks=tracks,
            fit=fit,
            loudness=loudness,
            metadata=metadata,
            preview=preview,
            on_frames=on_frames,
        )


def decode_sound(latent: Tensor, vae: OobleckVAE) -> Track:
    """[1, C, L] -> [2, 1764*L] at 44 100 Hz"""
    return Track(to_output_rate(vae.decode(latent))[0].cpu(), OUTPUT_SAMPLE_RATE)


def soundtrack(waveform: Tensor, sample_rate: int, language: str = "und") -> Track:
    """A user's own sound [.., C, S] as a film carries it.

    Mono and stereo stay as they are; more channels are mixed down as for the model.
    """
    waveform = waveform[0] if waveform.ndim == 3 else waveform
    if waveform.shape[0] > 2 or not waveform.is_floating_point():
        waveform, sample_rate = prepare_voice(waveform, sample_rate)[0], LATENT_SAMPLE_RATE
    return Track(waveform, sample_rate, language)
