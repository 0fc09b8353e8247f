"""What can be measured of any film: black, frozen and cut pictures, flicker, loudness, clipping, silence, lips.

Each measure has a verdict – good, look, bad, or none where there is nothing to judge by – and says in a line
what to do. The limits are rules of thumb of broadcasting and of this model's films, named beside each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .audio import check_finite
from .lip_sync import SURE, LipSync, lip_sync
from .loudness import integrated_loudness, true_peaks

Level = Literal["good", "look", "bad", "none"]

WIDTH = 224  # pixels that the picture is reduced to before it is measured
BLACK = 0.04  # mean brightness below which a frame is black
STILL = 2e-4  # mean change of brightness below which a frame is a copy of the one before
CUT_RATIO, CUT_LEAST = 6.0, 0.08  # a cut changes this many times the median, and at least this much
FLICKER_SPAN = 9  # frames over which slow changes of light are taken out
QUIET = -60.0  # dB below full scale, of a window of 20 ms
WINDOW = 0.02  # seconds


@dataclass(frozen=True, slots=True)
class PictureMeasures:
    """Of frames [F, H, W, 3]; brightness is from 0 to 1."""

    frames: int
    seconds: float
    black: float  # seconds, the longest run
    frozen: float  # seconds, the longest run
    cuts: tuple[int, ...]  # frames that begin a new picture
    change: float  # mean change of brightness a frame
    flicker: float  # dB: what brightness does beside its slow course, against full scale
    brightness_drift: float  # last third minus first third
    sharpness_drift: float  # last third over first third, of the mean gradient
    burnt: float  # share of pixels at full white
    crushed: float  # share at full black


@dataclass(frozen=True, slots=True)
class SoundMeasures:
    """Of a waveform [C, S]; levels in dB are against full scale."""

    seconds: float
    loudness: float  # LUFS
    true_peak: float  # dB
    clipped: int  # samples in runs of three or more at the highest level
    offset: float  # the mean: 0 in a sound recording
    silence: float  # share of windows below -60 dB
    noise_floor: float  # dB, the quietest tenth of windows
    bandwidth: float  # Hz below which 99.5 % of the energy lies


@dataclass(frozen=True, slots=True)
class Verdict:
    """One measure in words."""

    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Quality:
    """A film's measures."""

    picture: PictureMeasures
    sound: SoundMeasures | None
    sync: LipSync | None
    fps: float

    def verdicts(self) -> tuple[Verdict, ...]:
        """Every measure, judged, the picture's first."""
        return (
            *_of_picture(self.picture),
            *(
                _of_sound(self.sound, self.picture)
                if self.sound
                else (Verdict("none", "Sound: there is none."),)
            ),
            _of_sync(self.sync, self.fps),
        )

    def report(self) -> str:
        """The verdicts, a line each."""
        return "\n".join(f"[{verdict.level}] {verdict.text}" for verdict in self.verdicts())


def measure(frames: Tensor, waveform: Tensor | None, sample_rate: int, fps: float) -> Quality:
    """Measure frames [F, H, W, 3] (float in [0, 1] or uint8) and a waveform [C, S] float32 or None.

    Raises MediaError for sound that is not finite numbers.
    """
    sound = sync = None
    if waveform is not None and waveform.numel():
        check_finite(waveform, "The sound")
        sound = sound_measures(waveform, sample_rate)
        sync = lip_sync(frames, waveform, sample_rate, fps)
    return Quality(picture_measures(frames, fps), sound, sync, fps)


def picture_measures(frames: Tensor, fps: float) -> PictureMeasures:
    """Measure the picture on a reduced copy."""
    grey, burnt, crushed = _reduced(frames)
    means = grey.mean((1, 2))
    changes = np.diff(grey, axis=0)
    sizes = np.abs(changes).mean((1, 2))
    typical = float(np.median(sizes)) if len(sizes) else 0.0
    cuts = np.flatnonzero(sizes > max(CUT_RATIO * typical, CUT_LEAST)) + 1
    third = max(1, len(grey) // 3)
    sharp = np.array([np.abs(np.diff(each, axis=1)).mean() for each in grey])
    first = float(sharp[:third].mean())
    return PictureMeasures(
        frames=len(frames),
        seconds=len(frames) / fps,
        black=_longest(means < BLACK) / fps,
        frozen=_longest(sizes < STILL) / fps,
        cuts=tuple(int(cut) for cut in cuts),
        change=float(sizes.mean()) if len(sizes) else 0.0,
        flicker=_decibels(_flicker(means, cuts)),
        brightness_drift=float(means[-third:].mean() - means[:third].mean()),
        sharpness_drift=float(sharp[-third:].mean()) / first if first > 0 else 1.0,
        burnt=burnt,
        crushed=crushed,
    )


def sound_measures(waveform: Tensor, sample_rate: int) -> SoundMeasures:
    """Measure a waveform [C, S]."""
    sound = waveform.float().cpu()
    window = max(1, round(WINDOW * sample_rate))
    levels = _decibels(_windows(sound.double().square().mean(0), window).numpy() ** 0.5)
    spectrum = torch.fft.rfft(sound.double().mean(0)).abs().square().cumsum(0)
    edge = int(torch.searchsorted(spectrum, spectrum[-1] * 0.995)) if spectrum[-1] > 0 else 0
    peak = float(sound.abs().max())
    return SoundMeasures(
        seconds=sound.shape[-1] / sample_rate,
        loudness=integrated_loudness(sound, sample_rate),
        true_peak=_decibels(float(true_peaks(sound).max())),
        clipped=_flat_tops(sound, peak),
        offset=float(sound.double().mean()),
        silence=float((levels < QUIET).mean()),
        noise_floor=float(np.quantile(levels, 0.1)),
        bandwidth=edge * sample_rate / sound.shape[-1],
    )


def _of_picture(picture: PictureMeasures) -> list[Verdict]:
    cuts = ", ".join(map(str, picture.cuts[:8]))
    drift = picture.brightness_drift
    return [
        Verdict("good", f"Picture: {picture.frames} frames, {picture.seconds:.2f} s."),
        Verdict("bad", f"Black for {picture.black:.2f} s; the decoder or the latent is wrong.")
        if picture.black > 0.2
        else Verdict("good", "No black frames."),
        Verdict("bad", f"Frozen for {picture.frozen:.2f} s; describe small movements, or use more steps.")
        if picture.frozen > 0.5
        else Verdict("good", f"Moves throughout (mean change {100 * picture.change:.2f} % a frame)."),
        Verdict("look", f"{len(picture.cuts)} cuts, at frames {cuts}; the model is made for one shot.")
        if picture.cuts
        else Verdict("good", "No cuts."),
        Verdict("look", f"Brightness flickers ({picture.flicker:.0f} dB); steady light has under -45 dB.")
        if picture.flicker > -45
        else Verdict("good", f"Steady light ({picture.flicker:.0f} dB of flicker)."),
        Verdict("look", f"It grows {'brighter' if drift > 0 else 'darker'} by {100 * abs(drift):.0f} %.")
        if abs(drift) > 0.06
        else Verdict("good", "Brightness stays."),
        Verdict("look", f"Sharpness falls to {100 * picture.sharpness_drift:.0f} % of the beginning's.")
        if picture.sharpness_drift < 0.75
        else Verdict("good", "Sharpness stays."),
        Verdict(
            "look",
            f"{100 * picture.burnt:.1f} % of pixels are burnt out and {100 * picture.crushed:.1f} % black.",
        )
        if max(picture.burnt, picture.crushed) > 0.05
        else Verdict("good", "Whites and blacks keep their detail."),
    ]


def _of_sound(sound: SoundMeasures, picture: PictureMeasures) -> list[Verdict]:
    apart = 1000 * (sound.seconds - picture.seconds)
    if sound.loudness == -math.inf:
        loud = Verdict("bad", "Sound: silent throughout; quote a line or name a sound in the prompt.")
    elif not -27 <= sound.loudness <= -12:
        loud = Verdict(
            "look", f"Sound: {sound.loudness:.1f} LUFS; the web plays -16 to -14. Set a loudness in Mux."
        )
    else:
        loud = Verdict("good", f"Sound: {sound.loudness:.1f} LUFS.")
    return [
        loud,
        Verdict("look", f"Sound and picture differ in length by {apart:+.0f} ms.")
        if abs(apart) > 40
        else Verdict("good", f"Sound and picture end together ({apart:+.0f} ms)."),
        Verdict("bad", f"{sound.clipped} samples are clipped; lower the level before it is written.")
        if sound.clipped > 10
        else Verdict("look", f"True peak {sound.true_peak:.1f} dB; above -1 dB lossy formats distort.")
        if sound.true_peak > -1
        else Verdict("good", f"True peak {sound.true_peak:.1f} dB."),
        Verdict("look", f"{100 * sound.silence:.0f} % silence.")
        if sound.silence > 0.6
        else Verdict("good", f"{100 * sound.silence:.0f} % silence."),
        Verdict("look", f"Muffled: almost nothing above {sound.bandwidth:.0f} Hz.")
        if 0 < sound.bandwidth < 2_500
        else Verdict(
            "good", f"Bandwidth {sound.bandwidth:.0f} Hz, quietest parts {sound.noise_floor:.0f} dB."
        ),
        *(
            [Verdict("look", f"The sound's middle is off zero by {sound.offset:.3f}.")]
            * (abs(sound.offset) > 0.01)
        ),
    ]


def _of_sync(sync: LipSync | None, fps: float) -> Verdict:
    if sync is None:
        return Verdict("none", "Lips: no verdict; it takes 2 s of moving picture with sound.")
    if not sync.is_sure:
        return Verdict(
            "none",
            f"Lips: no verdict. The likeliest place moves with the sound no more surely than chance (p {sync.p:.2f}, "
            f"needed below {SURE}); come closer, or let somebody speak longer.",
        )
    seen = f"r {sync.correlation:.2f}, p {sync.p:.2f}"
    if abs(sync.lag) <= 2:
        return Verdict("good", f"Lips: they move with the sound ({seen}, {1000 * sync.lag / fps:+.0f} ms).")
    return Verdict("look", f"Lips: the sound is {1000 * sync.lag / fps:+.0f} ms after them ({seen}).")


def _reduced(frames: Tensor) -> tuple[np.ndarray, float, float]:
    """Brightness [F, h, w] float64, and the shares of pixels at the two ends of the range."""
    height, width = frames.shape[1:3]
    size = (max(1, round(height * min(WIDTH, width) / width)), min(WIDTH, width))
    small, burnt, crushed = [], 0.0, 0.0
    for frame in frames:  # one at a time: a film at 1080p takes gigabytes as numbers
        pixels = frame[..., :3].float() / (255 if frame.dtype == torch.uint8 else 1)
        burnt += float((pixels.amin(-1) > 0.995).float().mean())
        crushed += float((pixels.amax(-1) < 0.005).float().mean())
        small.append(F.adaptive_avg_pool2d(pixels.mean(-1)[None, None], size)[0, 0])
    return torch.stack(small).double().numpy(), burnt / len(frames), crushed / len(frames)


def _flicker(means: np.ndarray, cuts: np.ndarray) -> float:
    """Root mean square of what brightness does beside a running parabola, within each shot."""
    rest = []
    for shot in np.split(means, cuts):
        if len(shot) < FLICKER_SPAN:
            continue
        reach = FLICKER_SPAN // 2
        place = np.arange(-reach, reach + 1)
        basis = np.stack([place**0, place, place**2], 1)
        middle = np.linalg.pinv(basis)[
            0
        ]  # the fitted parabola's value in the middle: a Savitzky-Golay filter
        slow = np.convolve(shot, middle[::-1], "valid")
        rest.append(shot[reach : len(shot) - reach] - slow)
    return float(np.sqrt(np.mean(np.concatenate(rest) ** 2))) if rest else 0.0


def _windows(energy: Tensor, window: int) -> Tensor:
    """[S] -> [windows], the mean of each; a shorter rest counts with the others only if it is alone."""
    whole = len(energy) // window * window
    return energy[:whole].unflatten(0, (-1, window)).mean(-1) if whole else energy.mean()[None]


def _flat_tops(sound: Tensor, peak: float) -> int:
    """Samples in runs of at least three at the very highest level: what clipping leaves."""
    if peak < 0.5:
        return 0
    tops = torch.cat([sound, -sound]) >= peak * (1 - 1e-4)  # a run stays on one side
    triples = F.pad(tops, (2, 2))[:, None].float().unfold(-1, 3, 1).amin(-1)
    return int(F.max_pool1d(triples, 3, 1).sum())  # every sample in some three of a kind


def _longest(flags: np.ndarray) -> int:
    """The longest run of true entries."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0


def _decibels(level):
    return 20 * np.log10(np.maximum(level, 1e-9))
