"""Films: frames and sound to one file.

Letters: F frames, n frames of a chunk, H height, W width, C channels, S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

from torch import Tensor

from ..errors import MediaError
from ..shapes import FPS, OUTPUT_SAMPLE_RATE
from .encoding import FilmFile
from .formats import FilmFormat, check_encoders
from .picture import pictures
from .soundtrack import Fit, Track, check_fit, check_sound, prepared
from .tags import check_tags, stored, write_sidecar
from .whole_file import whole_files

MP4 = FilmFormat()


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
    sidecar: Path | None = None  # the workflow, where the page does not read it from the film
    preview: Path | None = None

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.frames / self.fps)


def write_film(
    path: str | Path,
    frames: Iterable[Tensor],
    waveform: Tensor | None,
    sample_rate: int = OUTPUT_SAMPLE_RATE,
    *,
    format: FilmFormat = MP4,
    fps: int | Fraction = FPS,
    tracks: Sequence[Track] = (),
    fit: Fit = "exact",
    loudness: float | None = None,
    metadata: Mapping[str, str] | None = None,
    preview: str | Path | None = None,
    on_frames: Callable[[int], None] | None = None,
) -> FilmInfo:
    """Write a film from chunks of frames [n, H, W, 3] and a waveform [C, S] of one or two channels.

    Frames are uint8 or floats in [0, 1], which keep their precision in a format of 10 bits. Each chunk is
    encoded as it comes; then ``on_frames`` is told how many frames are in. The same input gives the same bytes.

    The waveform is the first sound track and ``tracks`` follow, each with its language; a player starts with
    the first. ``loudness`` in LUFS is what each track is brought to, measured over all of it. How sound meets
    picture is ``fit``:

    - exact: it lasts exactly as long, 1764 samples a frame at 25 fps: trimmed, or continued with silence.
    - pad: a shorter sound is continued with silence, a longer one is refused, before the first frame if
      ``frames`` is a sequence.
    - trim: a longer sound is trimmed, a shorter one ends before the picture.

    ``metadata`` become tags of the container. For MKV, of which ComfyUI's page reads none, the workflow also
    lies beside it as ``<name>.json``. ``preview`` is a place for the same film in H.264 and AAC in an MP4, for
    a page to show where ``format.plays_in_browsers`` is false; it loses a last odd row and column.

    All files appear when they are whole. If anything ends the writing early, and be it an interrupt raised by
    ``frames`` or ``on_frames``, nothing of them stays and older files of those names are untouched.

    Raises MediaError for frames, sound, tags, a format or a place that cannot be used.
    """
    path, fps, tags = Path(path), Fraction(fps), dict(metadata or {})
    if fps <= 0:
        raise MediaError(f"A film cannot have {fps} frames in a second; the model makes {FPS}.")
    check_encoders(format)
    check_tags(tags)
    tracks = [*([] if waveform is None else [Track(waveform, sample_rate)]), *tracks]
    check_sound(tracks, fit, loudness)
    if isinstance(frames, Sequence):
        check_fit(tracks, sum(map(len, frames)), fps, fit)
    sounds = [prepared(track, format.audio.sample_rate, loudness) for track in tracks]

    places = [path]
    sidecar = path.with_suffix(".json") if tags and format.box.page_reader is None else None
    preview = None if preview is None else Path(preview)
    places += [place for place in (sidecar, preview) if place is not None]
    if len({place.absolute() for place in places}) < len(places):
        raise MediaError(
            f"{path.name} and its preview or sidecar need places of their own; rename the preview."
        )
    chunks = pictures(frames)
    with whole_files(*places) as parts, ExitStack() as stack:
        part_of = dict(zip(places, parts, strict=True))
        first = next(chunks, None)
        if first is None:
            raise MediaError(f"{path.name} cannot be written: there are no frames.")
        height, width = first.shape[1:3]
        film = FilmFile(part_of[path], format, (width, height), fps, stored(tags, format), sounds, fit)
        files = [stack.enter_context(film)]
        if sidecar is not None:
            write_sidecar(part_of[sidecar], tags)
        if preview is not None:
            size = width // 2 * 2, height // 2 * 2
            heard = [prepared(sound, MP4.audio.sample_rate, None) for sound in sounds[:1]]
            files.append(stack.enter_context(FilmFile(part_of[preview], MP4, size, fps, {}, heard, fit)))
        for chunk in chain([first], chunks):
            for pixels in chunk.cpu():
                for file in files:
                    file.add(pixels)
            if on_frames is not None:
                on_frames(film.frames)
        check_fit(tracks, film.frames, fps, fit)
        for file in files:
            file.finish()
    return FilmInfo(
        path=path,
        width=width,
        height=height,
        frames=film.frames,
        fps=fps,
        samples=film.samples,
        sample_rate=format.audio.sample_rate if film.samples else 0,
        sidecar=sidecar,
        preview=preview,
    )
