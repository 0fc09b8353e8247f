"""Step saving in ComfyUI: wrappers around a run and around each call of the network, and nothing inside it.

A call that is saved enters no block, so none is streamed for it, whoever manages the memory. The state is the run's
and is gone with it; the host's name of a guidance branch is the key in it.
"""

from __future__ import annotations

import logging
from functools import partial

import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..model.config import VARIANTS
from ..sampling import super_resolution
from ..sampling.joint import PRESETS
from ..sampling.step_saving import StepSaver, check_step_saving
from ..sampling.streams import Streams
from .loaders import CATEGORY
from .wire import check_model

logger = logging.getLogger(__name__)

KEY = "happyhorse_step_saver"  # of our wrappers, and in the host's transformer_options of a run


class HappyHorseStepSaving(io.ComfyNode):
    """Leaves out passes of the base model that would hardly differ."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseStepSaving",
            display_name="HappyHorse Step Saving",
            category=CATEGORY,
            description="Makes the base model faster: a step whose result would hardly differ from one before takes "
            "that result again. The film becomes a little different; the log says by how much, by estimate.",
            search_aliases=["easycache", "teacache", "first block cache", "speed", "skip steps"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The base model, from HappyHorse Model Loader or a node after it."
                ),
                io.Float.Input(
                    "threshold",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="By how much a step's result may differ from the one that is taken again, relatively and "
                    "by estimate. 0 is off, and exact; more is faster, and another film. 12 of 32 steps are computed "
                    "at least.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, threshold) -> io.NodeOutput:
        variant = check_model(model, "model", tuple(VARIANTS)).variant
        preset = PRESETS.get(variant, super_resolution.PRESET)
        check_step_saving(threshold, variant, preset.steps, preset.saves_steps)
        return io.NodeOutput(saving(model, threshold))


def saving(model, threshold: float):
    """A clone of a MODEL that saves steps; of one that does, with this threshold instead."""
    patched = model.clone()
    around = {WrappersMP.OUTER_SAMPLE: partial(_run, threshold), WrappersMP.DIFFUSION_MODEL: _call}
    for kind, wrapper in around.items():
        patched.remove_wrappers_with_key(kind, KEY)
        if threshold:
            patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


def _run(threshold: float, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """One sampling run, with a memory of its own."""
    check_step_saving(threshold, "base", len(sigmas) - 1, saves_steps=True)
    saver, guider = StepSaver(threshold, sigmas.tolist()), executor.class_obj
    before = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(before)
    guider.model_options.setdefault("transformer_options", {})[KEY] = saver
    try:
        out = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    finally:
        guider.model_options = before
    logger.info("%s", saver.saved)
    return out


# Compiled are the passes: what decides on them has numbers that change with every step.
_recall, _keep = torch.compiler.disable(StepSaver.recall), torch.compiler.disable(StepSaver.keep)


@torch.compiler.disable(recursive=False)
def _call(executor, x, timestep, context, options, *args, **kwargs):
    """Velocities of all branches in a call, x = [video [B, ...], audio [B, ...]] with the branches one after another."""
    saver = options.get(KEY)
    if saver is None:
        return executor(x, timestep, context, options, *args, **kwargs)
    branches = options["uuids"]
    inputs = dict(zip(branches, _parts(x, len(branches)), strict=True))
    found = _recall(saver, options["sigmas"].flatten()[0].item(), inputs)
    if found is None:
        found = _parts(executor(x, timestep, context, options, *args, **kwargs), len(branches))
        _keep(saver, inputs, found)
    return [torch.cat(streams) for streams in zip(*found, strict=True)]


def _parts(streams, count: int) -> list[Streams]:
    """Both streams of each branch."""
    return [Streams(*part) for part in zip(*(stream.chunk(count) for stream in streams), strict=True)]


NODES = [HappyHorseStepSaving]
