"""Sound tracks: checked, brought to a codec's rate, to stereo and to a loudness, and held against the picture.

Letters: C channels, S samples.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from ..errors import MediaError
from .audio import check_finite, fit_samples, resample
from .loudness import check_target, to_loudness

logger = logging.getLogger(__name__)

HEADROOM = 0.95  # FFmpeg's AAC encoder turns every block with a higher peak down to this, block by block

Fit = Literal["exact", "pad", "trim"]  # what each means stands at ``write_film``
FITS = get_args(Fit)

# MOV names languages by QuickTime's own list. FFmpeg knows these terms of it by ISO 639-2's other code, and
# those of the second list by the same; any other is dropped (found by writing 105 codes, FFmpeg 8.1).
QUICKTIME_NAMES = {
    "bod": "tib", "cym": "wel", "deu": "ger", "ell": "gre", "eus": "baq", "fas": "per", "hye": "arm",
    "isl": "ice", "kat": "geo", "mkd": "mac", "msa": "may", "mya": "bur", "nld": "dut", "sqi": "alb",
    "swe": "sve", "zho": "chi",
}  # fmt: skip
ISO_639_2 = {name: term for term, name in QUICKTIME_NAMES.items()}  # the terminological codes, for reading
QUICKTIME_LANGUAGES = (
    "amh ara asm aym aze bel ben bul cat ces dan dzo eng epo est fin fra grn guj heb hin hun ind ita jav jpn "
    "kan kas kaz khm kin kir kor kur lao lat lav lit mal mar mlg mlt mol mon nep nor nya ori orm pol por pus "
    "que ron run rus san sin slk slv snd som spa swa tam tat tel tgk tgl tha tir ton tuk tur uig ukr urd uzb "
    "vie yid und"
)


@dataclass(frozen=True, slots=True)
class Track:
    """A sound of one or two channels, and how a player lists it."""

    waveform: Tensor  # [C, S], floating point
    sample_rate: int  # Hz
    language: str = "und"  # ISO 639-2, such as "deu"
    title: str = ""

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.title or self.language != "und":
            return f"The sound track '{self.title or self.language}'"
        return "The film's sound"


def check_sound(tracks: Iterable[Track], fit: Fit, loudness: float | None) -> None:
    """Raise MediaError for a sound, a language or a wish that cannot be written."""
    if fit not in FITS:
        raise MediaError(f"'{fit}' is no way to fit sound to picture; choose {', '.join(FITS)}.")
    if loudness is not None:
        check_target(loudness)
    for track in tracks:
        _check_track(track)
        if fit == "trim" and not track.waveform.shape[-1]:
            raise MediaError(f"{track.name} is empty. Leave it out, or choose the fit 'pad' for silence.")


def _check_track(track: Track) -> None:
    waveform = track.waveform
    if waveform.ndim != 2 or waveform.shape[0] not in (1, 2) or not waveform.is_floating_point():
        raise MediaError(
            f"A film's sound must be [C, S] in floating point with one or two channels, "
            f"not {list(waveform.shape)} in {waveform.dtype}."
        )
    if track.sample_rate < 1:
        raise MediaError(f"A film's sound cannot have {track.sample_rate} samples in a second.")
    check_finite(waveform, track.name)
    if not re.fullmatch("[a-z]{3}", track.language):
        raise MediaError(
            f"'{track.language}' is no language code of ISO 639-2; those have three small letters, such as "
            "'eng', 'deu' or 'zho', and 'und' for none."
        )


def prepared(track: Track, sample_rate: int, loudness: float | None) -> Track:
    """The track in stereo, in float32 on the CPU, at ``sample_rate`` and at ``loudness`` LUFS if that is given.

    Without a loudness, a peak above 1 turns all of the sound down.
    """
    sound = resample(track.waveform.detach().float().cpu(), track.sample_rate, sample_rate).expand(2, -1)
    if loudness is not None:
        sound = to_loudness(sound, sample_rate, loudness, track.name)
    peak = float(sound.abs().max()) if sound.numel() else 0.0
    if peak > 1:
        logger.warning(
            "%s peaks at %.3f, above full scale; all of it is turned down by %.1f dB.",
            track.name,
            peak,
            20 * np.log10(peak / HEADROOM),
        )
        sound = sound * (HEADROOM / peak)
    return replace(track, waveform=sound, sample_rate=sample_rate)


def check_fit(tracks: Iterable[Track], frames: int, fps: Fraction, fit: Fit) -> None:
    """Raise MediaError where ``fit`` refuses a sound beside ``frames`` frames of picture."""
    for track in tracks:
        samples, rate = track.waveform.shape[-1], track.sample_rate
        if fit == "pad" and samples * fps > frames * rate:
            sound, picture = samples / rate, float(frames / fps)
            raise MediaError(
                f"{track.name} lasts {sound:.3f} s ({samples} samples at {rate} Hz), {sound - picture:.3f} s "
                f"longer than the picture of {picture:.3f} s ({frames} frames at {float(fps):g} in a second). "
                "Choose the fit 'trim' or 'exact', or make the film longer."
            )


def section(waveform: Tensor, start: int, end: int, fit: Fit) -> Tensor:
    """[C, S] -> the samples from ``start`` that belong to a picture that lasts until ``end``."""
    block = waveform[:, start:end]
    return block if fit == "trim" else fit_samples(block, end - start)


def language_in(container: str, track: Track) -> str:
    """What the container calls the track's language."""
    if container != "mov" or track.language in QUICKTIME_LANGUAGES.split():
        return track.language
    if track.language not in QUICKTIME_NAMES:
        logger.warning("MOV has no name for the language '%s'; the track keeps its title.", track.language)
    return QUICKTIME_NAMES.get(track.language, "und")
