"""Nodes that sample: one that does it all, its parts, and super-resolution."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io

from ..model.video_latent import normalise
from ..sampling.schedule import SHIFT, flow_sigmas
from ..sampling.streams import SeededNoise, Streams, StreamShapes
from ..sampling.super_resolution import PRESET, SuperResolution, prepare
from ..shapes import SPACE_STRIDE, check_size, super_resolution_size
from . import guider
from .latents import encode_first_frame
from .transformer import WANTS_AUDIO
from .wire import check_model, masks_of, nested, streams_of

CATEGORY = "HappyHorse/sampling"
BASE_VARIANTS = ("base", "distilled")
SOLVERS = ["renoise", "unipc", "euler", "sde"]


def shift_input():
    return io.Float.Input(
        "shift",
        default=SHIFT,
        min=0.1,
        max=100.0,
        step=0.1,
        optional=True,
        advanced=True,
        tooltip="Of the noise schedule; published: 5.",
    )


def guidance_inputs():
    return [
        io.Float.Input(
            "video_guidance",
            default=5.0,
            min=1.0,
            max=20.0,
            step=0.1,
            tooltip="base only: how strongly the picture follows the prompt; it drops to 2 in the last steps.",
        ),
        io.Float.Input(
            "audio_guidance",
            default=5.0,
            min=1.0,
            max=20.0,
            step=0.1,
            tooltip="base only: how strongly sound and speech follow the prompt.",
        ),
    ]


def preset_input():
    return io.Combo.Input(
        "preset",
        options=["distilled", "base"],
        default="distilled",
        tooltip="distilled: 8 steps, no negative prompt. base: 32 guided steps. Must fit the loaded weights.",
    )


def steps_input():
    return io.Int.Input(
        "steps", default=0, min=0, max=200, tooltip="0: the preset's own (8 distilled, 32 base)."
    )


class HappyHorseSampler(io.ComfyNode):
    """Prompt, picture and voice to a film's latents."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseSampler",
            display_name="HappyHorse Sampler",
            category=CATEGORY,
            description="Denoises video and audio together, as the model was published.",
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Latent.Input("latent"),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
                steps_input(),
                preset_input(),
                *guidance_inputs(),
                shift_input(),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Needed by the base preset; an empty text gives HappyHorse's default.",
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        latent,
        seed,
        steps,
        preset,
        video_guidance=5.0,
        audio_guidance=5.0,
        shift=SHIFT,
        negative=None,
    ) -> io.NodeOutput:
        check_model(model, "model", BASE_VARIANTS)
        masks_of(latent)  # refuses a latent or mask of another model before any work
        row = guider.preset_steps(preset, steps, shift)
        guide = guider.make_guider(model, positive, negative, preset, video_guidance, audio_guidance)
        sigmas = flow_sigmas(row.steps, row.shift)
        samples = run(guide, guider.make_solver(row.solver), sigmas, latent, seed)
        return io.NodeOutput({**latent, "samples": samples})


class HappyHorseGuider(io.ComfyNode):
    """The sampler's guidance, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseGuider",
            display_name="HappyHorse Guider",
            category=CATEGORY,
            description="Guidance for video and audio separately, with the published drop in the last steps.",
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                preset_input(),
                *guidance_inputs(),
                io.Conditioning.Input("negative", optional=True),
            ],
            outputs=[io.Guider.Output()],
        )

    @classmethod
    def execute(
        cls, model, positive, preset, video_guidance=5.0, audio_guidance=5.0, negative=None
    ) -> io.NodeOutput:
        check_model(model, "model", BASE_VARIANTS)
        return io.NodeOutput(
            guider.make_guider(model, positive, negative, preset, video_guidance, audio_guidance)
        )


class HappyHorseSolver(io.ComfyNode):
    """The sampler's step, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseSolver",
            display_name="HappyHorse Solver",
            category=CATEGORY,
            description="renoise is the distilled model's step, unipc the base model's.",
            inputs=[io.Combo.Input("solver", options=SOLVERS, default="renoise")],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, solver) -> io.NodeOutput:
        return io.NodeOutput(guider.make_solver(solver))


class HappyHorseScheduler(io.ComfyNode):
    """The sampler's noise levels, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseScheduler",
            display_name="HappyHorse Scheduler",
            category=CATEGORY,
            description="The published schedule: from 0.9998 to 0, shifted towards noise.",
            inputs=[
                io.Int.Input(
                    "steps", default=8, min=1, max=200, tooltip="8 distilled, 32 base, 5 super-resolution."
                ),
                shift_input(),
            ],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(cls, steps, shift=SHIFT) -> io.NodeOutput:
        return io.NodeOutput(flow_sigmas(steps, shift))


class HappyHorseSuperResolution(io.ComfyNode):
    """The second stage: 540p or 1080p from the base stage's latents."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseSuperResolution",
            display_name="HappyHorse Super Resolution",
            category=CATEGORY,
            description="Enlarges a film in latent space with the super-resolution model; its sound stays as it is.",
            inputs=[
                io.Model.Input("sr_model", tooltip="sr_540p or sr_1080p weights."),
                io.Latent.Input("latent", tooltip="From HappyHorse Sampler."),
                io.Conditioning.Input("positive", tooltip="The same prompt as the base stage."),
                io.Combo.Input(
                    "size",
                    options=["1080p", "1080p exact", "540p"],
                    default="1080p",
                    tooltip="1080p: 1920x1088 from 448x256, the reference's own. exact: four times the base, 1792x1024.",
                ),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
                io.Int.Input("steps", default=5, min=1, max=100),
                io.Int.Input(
                    "noise",
                    default=220,
                    min=0,
                    max=999,
                    optional=True,
                    advanced=True,
                    tooltip="How far the enlarged film is noised again (entry of the noise table); published: 220.",
                ),
                io.Boolean.Input(
                    "align_corners",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="How latents are enlarged. Off may help against ghost edges at sizes that are not exact.",
                ),
                io.Image.Input(
                    "first_frame", optional=True, tooltip="The picture of the base stage, encoded again."
                ),
                io.Vae.Input("vae", optional=True, tooltip="The Wan 2.2 VAE, needed with a first frame."),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls,
        sr_model,
        latent,
        positive,
        size,
        seed,
        steps,
        noise=220,
        align_corners=True,
        first_frame=None,
        vae=None,
    ) -> io.NodeOutput:
        target, _, exact = size.partition(" ")
        check_model(sr_model, "sr_model", (f"sr_{target}",))
        guider.check_positive(positive)
        raw = streams_of(latent)
        width, height = (side * SPACE_STRIDE for side in (raw.video.shape[4], raw.video.shape[3]))
        wide, high = super_resolution_size(width, height, target, exact=bool(exact))
        check_size(wide, high)
        picture = None if first_frame is None else encode_first_frame(vae, first_frame, wide, high)

        base = Streams(normalise(raw.video.float()), raw.audio.float())
        shapes = StreamShapes(
            (*raw.video.shape[:3], high // SPACE_STRIDE, wide // SPACE_STRIDE), tuple(raw.audio.shape)
        )
        settings = SuperResolution(replace(PRESET, steps=steps), noise, align_corners=align_corners)
        start = prepare(base, *shapes.video[3:], SeededNoise(seed, shapes)(), settings)

        known = torch.zeros(shapes.video)
        masks = Streams(torch.ones_like(known[:, :1]), torch.zeros_like(raw.audio[:, :1]))
        if picture is not None:
            known[:, :, :1], masks.video[:, :, :1] = picture, 0
        stage = {**latent, "samples": nested(known, start.audio), "noise_mask": nested(*masks)}
        guide = guider.HostGuider(sr_model, positive, None, None)
        # Audio is masked in every step: what the model would make of it is dropped.
        guide.model_options = comfy.model_patcher.create_model_options_clone(guide.model_options)
        guide.model_options.setdefault("transformer_options", {})[WANTS_AUDIO] = False
        sigmas = flow_sigmas(steps, PRESET.shift)
        out = run(guide, guider.make_solver(PRESET.solver), sigmas, stage, seed, start=start)
        result = {key: value for key, value in latent.items() if key != "noise_mask"}
        # The model only listens to the sound, in a noised copy; the film keeps the base stage's.
        return io.NodeOutput({**result, "samples": nested(out.unbind()[0], raw.audio)})


def run(guide, solver, sigmas, latent: dict, seed: int, start: Streams | None = None):
    """Sample with progress, previews and interrupt; ``start`` stands in for the seed's noise."""
    samples, mask = latent["samples"], latent.get("noise_mask")
    if start is None:
        noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    else:
        noise = nested(*start)
    callback = latent_preview.prepare_callback(guide.model_patcher, len(sigmas) - 1)
    out = guide.sample(
        noise,
        samples,
        solver,
        sigmas,
        denoise_mask=mask,
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    out = out.to(comfy.model_management.intermediate_device())
    return out if mask is None else _with_known_bits(out, samples, mask)


def _with_known_bits(out, samples, mask):
    """What was known comes back bit for bit, without the rounding of the host's blending."""
    streams = zip(out.unbind(), samples.unbind(), mask.unbind(), strict=True)
    return nested(*(torch.where(kept.to(made) == 0, given.to(made), made) for made, given, kept in streams))


NODES = [
    HappyHorseSampler,
    HappyHorseGuider,
    HappyHorseSolver,
    HappyHorseScheduler,
    HappyHorseSuperResolution,
]
