"""Our sampling as the host's GUIDER and SAMPLER objects, so that it can be taken apart and mixed."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import comfy.samplers
import comfy.utils
import torch

from ..errors import SamplingError
from ..sampling import solvers
from ..sampling.guidance import BaseGuidance, GuidanceRule
from ..sampling.joint import PRESETS
from ..sampling.streams import SeededNoise, StreamShapes
from .text_encoder import EMPTY

logger = logging.getLogger(__name__)


class HostGuider(comfy.samplers.CFGGuider):
    """Guides video, audio and single frames by a rule of their own, or not at all."""

    def __init__(self, model, positive, negative, rule: GuidanceRule | None):
        super().__init__(model)
        self.rule = rule
        if rule is None:
            self.inner_set_conds({"positive": positive})
        else:
            self.set_conds(positive, negative)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        options = dict(model_options or {})
        if self.rule is None:
            return comfy.samplers.sampling_function(
                self.inner_model,
                x,
                timestep,
                None,
                self.conds["positive"],
                1.0,
                model_options=options,
                seed=seed,
            )
        options["sampler_cfg_function"] = self._combine
        options["disable_cfg1_optimization"] = True
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            self.conds["negative"],
            self.conds["positive"],
            2.0,  # any number but 1: the rule has its own
            model_options=options,
            seed=seed,
        )

    def _combine(self, arguments):
        """x minus the guided prediction, which is what the host takes from such a function."""
        shapes = self.inner_model.latent_shapes
        sigma = float(arguments["sigma"].flatten()[0])
        positive, negative, x = (
            comfy.utils.unpack_latents(arguments[name], shapes)
            for name in ("cond_denoised", "uncond_denoised", "input")
        )
        scales = (self.rule.video(sigma, positive[0]), self.rule.audio(sigma))
        guided = [n + scale * (p - n) for p, n, scale in zip(positive, negative, scales, strict=True)]
        return comfy.utils.pack_latents([of - to for of, to in zip(x, guided, strict=True)])[0]


def make_guider(
    model, positive, negative, preset: str, video_guidance: float, audio_guidance: float
) -> HostGuider:
    """The guider of a preset; a guided one needs a negative, and an empty text there is our default."""
    check_positive(positive)
    if PRESETS[preset].guidance is None:
        if negative is not None:
            logger.info("The %s preset is not guided; its negative prompt is not used.", preset)
        return HostGuider(model, positive, None, None)
    if negative is None:
        raise SamplingError(
            f"negative: the {preset} preset is guided and nothing is connected. Connect a text encode node; left "
            "empty it gives the default negative prompt."
        )
    if _is_empty(negative):
        logger.info("The negative prompt is empty; HappyHorse's default negative prompt is used.")
    late = BaseGuidance().late_video_scale
    rule = BaseGuidance(video_guidance, min(late, video_guidance), audio_guidance)
    return HostGuider(model, positive, negative, rule)


def check_positive(positive) -> None:
    """Refuse an empty prompt: its features are those of the default negative."""
    if _is_empty(positive):
        raise SamplingError("positive: the prompt is empty; describe the film in words.")


def make_solver(name: str) -> comfy.samplers.KSAMPLER:
    """A SAMPLER around one of our solvers: "euler", "renoise", "sde" or "unipc"."""
    return comfy.samplers.KSAMPLER(_solve, extra_options={"solver": name})


def preset_steps(preset: str, steps: int, shift: float):
    """The preset with the node's numbers; 0 steps means its own."""
    row = PRESETS[preset]
    return replace(row, steps=steps or row.steps, shift=shift)


@torch.no_grad()
def _solve(model, x, sigmas, extra_args=None, callback=None, disable=None, solver="renoise"):
    """The host's form of a sampler, around one of ours.

    Noise after the first draw goes on from the seed's generator, where the host's own first draw left it.
    """
    arguments = extra_args or {}
    levels = sigmas.tolist()
    shapes = _latent_shapes(model, x)

    def velocity(sample, sigma):
        denoised = model(sample, sigmas.new_full((sample.shape[0],), sigma), **arguments)
        return (sample - denoised) / sigma

    def on_step(step, _, denoised):
        if callback is not None:
            callback(
                {
                    "i": step,
                    "denoised": denoised,
                    "x": denoised,
                    "sigma": sigmas[step],
                    "sigma_hat": sigmas[step],
                }
            )

    keywords = {"on_step": on_step}
    if solver in ("renoise", "sde"):
        source = SeededNoise(arguments.get("seed") or 0, shapes, x.device)
        source()  # what the sample began with
        keywords["noise"] = lambda: _packed(source())
    return getattr(solvers, solver)(_finite(velocity, levels), x, levels, **keywords)


def _latent_shapes(model, x) -> StreamShapes:
    """Shapes of the streams in the flat row; a plain latent is one stream with nothing beside it."""
    shapes = model.inner_model.inner_model.latent_shapes
    if shapes is None or len(shapes) != 2:
        raise SamplingError(
            f"latent_image: {1 if shapes is None else len(shapes)} stream(s) came; HappyHorse solvers work on "
            "latents that hold video and audio. Use HappyHorse Empty Latent."
        )
    video, audio = (tuple(shape) for shape in shapes)
    if math.prod(video) + math.prod(audio) != x.numel():
        raise SamplingError(f"latent_image: {x.numel()} values do not make streams of {video} and {audio}.")
    return StreamShapes(video, audio)


def _packed(streams) -> torch.Tensor:
    return comfy.utils.pack_latents(list(streams))[0]


def _finite(velocity, levels):
    """Stop at the step that made the first value that is not a number."""

    def checked(x, sigma):
        out = velocity(x, sigma)
        if not torch.isfinite(out).all():
            broken = int((~torch.isfinite(out)).sum())
            raise SamplingError(
                f"Step {levels.index(sigma) + 1} of {len(levels) - 1} (sigma {sigma:.4f}) gave {broken} values that "
                "are not numbers. Some weights are damaged, a LoRA is too strong, or an attention option overflows."
            )
        return out

    return checked


def _is_empty(conditioning) -> bool:
    return any(EMPTY in extras for _, extras in conditioning)
