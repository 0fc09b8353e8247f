"""One run of a joint sample: streams in, streams out, with clean latents pinned and numbers watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import SamplingError
from . import solvers
from .guidance import BaseGuidance, Branches, GuidanceRule, StreamVelocity, guided, in_turn
from .schedule import SHIFT, flow_sigmas
from .step_saving import StepSaver, check_step_saving
from .streams import Streams, StreamShapes

OnStreamStep = Callable[[int, Streams, Streams], None]  # step, streams after it, denoised prediction


@dataclass(frozen=True, slots=True)
class SamplingPreset:
    """How a checkpoint wants to be sampled. Without ``guidance`` one pass a step, without a negative."""

    name: str
    steps: int
    solver: Literal["euler", "renoise", "sde", "unipc"]
    guidance: GuidanceRule | None
    shift: float = SHIFT
    saves_steps: bool = False  # whether its steps are so alike that some can be left out


PRESETS = {
    preset.name: preset
    for preset in (
        SamplingPreset("base", 32, "unipc", BaseGuidance(), saves_steps=True),
        SamplingPreset("distilled", 8, "renoise", None),
    )
}


def sample(
    conditional: StreamVelocity,
    unconditional: StreamVelocity | None,
    start: Streams,
    preset: SamplingPreset,
    noise: Callable[[], Streams],
    *,
    first_frame: Tensor | None = None,
    voice: Tensor | None = None,
    keep_voice: bool = True,
    on_step: OnStreamStep | None = None,
    together: Branches | None = None,
    saver: StepSaver | None = None,
) -> Streams:
    """Walk ``start`` (noise) to a sample.

    ``first_frame`` [1, C, 1, h, w] and ``voice`` [1, C, L] are clean latents: the network sees them at every
    step and they come back unchanged, whatever the preset. Without ``keep_voice`` a re-noising preset starts
    from the voice and makes another, as the reference does. ``noise`` is drawn once a step by the solvers
    that need it. ``together`` gives what both velocities give, where that takes less than one after the other.
    ``saver`` is this run's, from ``step_saver``. Raises SamplingError for shapes that do not fit and numbers that are
    not finite.
    """
    shapes = StreamShapes.of(start)
    if voice is not None and not keep_voice and preset.solver == "renoise":
        _fits("voice", voice, shapes.audio)
        start, voice = Streams(start.video, voice), None
    if preset.guidance is not None and unconditional is None:
        raise SamplingError(
            f"The preset '{preset.name}' is guided and needs a negative prompt; none was given."
        )
    velocity = conditional
    if preset.guidance is not None:
        branches = together or in_turn(conditional, unconditional)
        velocity = guided(branches if saver is None else _saving(branches, saver), preset.guidance)
    sigmas = _levels(preset)
    keywords = {
        "pin": _pin(shapes, start, first_frame, voice),
        "on_step": on_step and (lambda i, x, d: on_step(i, shapes.unpack(x), shapes.unpack(d))),
    }
    if preset.solver in ("renoise", "sde"):
        keywords["noise"] = lambda: shapes.pack(noise())
    solve = getattr(solvers, preset.solver)
    return shapes.unpack(solve(_watched(velocity, shapes, sigmas), shapes.pack(start), sigmas, **keywords))


def step_saver(preset: SamplingPreset, threshold: float) -> StepSaver | None:
    """For one run of ``preset``; None at 0. Raises SamplingError for a preset that has nothing to save."""
    check_step_saving(threshold, preset.name, preset.steps, preset.saves_steps)
    return StepSaver(threshold, _levels(preset)) if threshold else None


def _levels(preset: SamplingPreset) -> list[float]:
    return flow_sigmas(preset.steps, preset.shift).tolist()


def _saving(branches: Branches, saver: StepSaver) -> Branches:
    """What the saver remembers of both branches, or what they give."""

    def velocities(x: Streams, sigma: float) -> list[Streams]:
        return saver(sigma, {"positive": x, "negative": x}, lambda: branches(x, sigma))

    return velocities


def _pin(
    shapes: StreamShapes, start: Streams, first_frame: Tensor | None, voice: Tensor | None
) -> solvers.Pin:
    """Overwrites what is known: latent frame 0 of the video, the whole audio."""
    mask = Streams(torch.zeros_like(start.video), torch.zeros_like(start.audio))
    clean = Streams(torch.zeros_like(start.video), torch.zeros_like(start.audio))
    if first_frame is not None:
        _fits("first frame", first_frame, (*shapes.video[:2], 1, *shapes.video[3:]))
        mask.video[:, :, :1], clean.video[:, :, :1] = 1, first_frame.to(clean.video)
    if voice is not None:
        _fits("voice", voice, shapes.audio)
        mask.audio[:], clean.audio[:] = 1, voice.to(clean.audio)
    if first_frame is None and voice is None:
        return lambda x: x
    is_known, known = shapes.pack(mask).bool(), shapes.pack(clean)
    return lambda x: torch.where(is_known, known, x)


def _fits(what: str, latent: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(latent.shape) != tuple(shape):
        raise SamplingError(
            f"The {what}'s latent has shape {tuple(latent.shape)}; this film needs {tuple(shape)}. "
            "It was encoded for another size or length: encode it again for this one."
        )
    if not torch.isfinite(latent).all():
        raise SamplingError(
            f"The {what}'s latent holds NaN or infinite values; the picture, the voice or the autoencoder is damaged."
        )


def _watched(velocity: StreamVelocity, shapes: StreamShapes, sigmas: list[float]) -> solvers.Velocity:
    """Flat in, flat out; NaN stops the run at the step that made it, not after the film is decoded."""

    def flat(x: Tensor, sigma: float) -> Tensor:
        out = shapes.pack(velocity(shapes.unpack(x), sigma))
        if not torch.isfinite(out).all():
            step = sigmas.index(sigma) + 1
            video, audio = (int((~torch.isfinite(part)).sum()) for part in shapes.unpack(out))
            cause = (
                "Some weights are damaged, or were cast to a precision they do not survive: "
                "check the file, or load it with float32."
                if torch.isfinite(x).all()
                else "The latents it was given were not finite either."
            )
            raise SamplingError(
                f"Step {step} of {len(sigmas) - 1} (sigma {sigma:.4f}) gave {video} video and {audio} audio values "
                f"that are not numbers. {cause}"
            )
        return out

    return flat
