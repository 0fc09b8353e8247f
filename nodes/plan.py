"""The node that says what a film takes before anything is loaded."""

from __future__ import annotations

import comfy.model_management
from comfy_api.latest import io, ui

from ..model_loading.film_size import FilmSize
from ..model_loading.machine import DESKTOP, Machine, described_machine, this_machine, with_memory
from ..model_loading.plan_report import report
from ..model_loading.planner import plan
from ..model_loading.precision import PRECISIONS
from ..model_loading.weights import Model, read_model
from ..shapes import FPS, GRID, MIN_FRAMES, MIN_SIDE, TIME_STRIDE
from .latents import MAX_SIDE
from .loaders import files_and_folders, full_path

CATEGORY = "HappyHorse"
PUBLISHED = "published size"  # in place of a file's name
MAX_FRAMES = 4_097
COMMON_GB = 16.0  # where there is no card and none is described


class HappyHorsePlan(io.ComfyNode):
    """Memory and time of a film, from the headers of its files."""

    @classmethod
    def define_schema(cls):
        models = [PUBLISHED, *files_and_folders("diffusion_models")]
        return io.Schema(
            node_id="HappyHorsePlan",
            display_name="HappyHorse Plan",
            category=CATEGORY,
            description="Says what a film takes in memory and time, how it is made to fit, or what would fit "
            "instead. Reads the headers of files and loads nothing.",
            search_aliases=["vram", "memory", "estimate"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=models,
                    tooltip="A file or a sharded folder in models/diffusion_models; published size plans without one.",
                ),
                io.Combo.Input(
                    "super_resolution_name",
                    options=models,
                    tooltip="The same for the super-resolution stage, where there is one.",
                ),
                io.Combo.Input(
                    "text_encoder_name",
                    options=[PUBLISHED, *files_and_folders("text_encoders")],
                    tooltip="A file or a sharded folder in models/text_encoders.",
                ),
                io.Combo.Input(
                    "variant",
                    options=["distilled", "base"],
                    default="distilled",
                    tooltip="distilled takes 8 steps of one pass, base 32 steps of two.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    tooltip="How the large weights are kept; auto is as the files have them.",
                ),
                io.Int.Input(
                    "width",
                    default=448,
                    min=MIN_SIDE,
                    max=MAX_SIDE,
                    step=GRID,
                    tooltip="Pixels of the film before super-resolution.",
                ),
                io.Int.Input(
                    "height",
                    default=256,
                    min=MIN_SIDE,
                    max=MAX_SIDE,
                    step=GRID,
                    tooltip="Pixels of the film before super-resolution.",
                ),
                io.Int.Input(
                    "length",
                    default=125,
                    min=MIN_FRAMES,
                    max=MAX_FRAMES,
                    step=TIME_STRIDE,
                    tooltip=f"Frames, 4k+1, at {FPS} a second: 125 is 5 s.",
                ),
                io.Combo.Input(
                    "super_resolution",
                    options=["none", "540p", "1080p"],
                    default="none",
                    tooltip="The stage after the film: 540p is 896x512, 1080p is 1920x1088 of a 448x256 film.",
                ),
                io.Float.Input(
                    "gpu_memory_gb",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=1.0,
                    optional=True,
                    advanced=True,
                    tooltip="Plan for a card of this memory; 0 is this machine's card.",
                ),
            ],
            outputs=[io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(
        cls,
        model_name,
        super_resolution_name,
        text_encoder_name,
        variant,
        precision,
        width,
        height,
        length,
        super_resolution,
        gpu_memory_gb=0.0,
    ) -> io.NodeOutput:
        film = FilmSize(width, height, length, variant, super_resolution)
        files = {
            part: full_path(kind, name)
            for part, kind, name in (
                ("transformer", "diffusion_models", model_name),
                ("super_resolution", "diffusion_models", super_resolution_name),
                ("text_encoder", "text_encoders", text_encoder_name),
            )
            if name != PUBLISHED
        }

        def model_in(chosen: str) -> Model:
            return read_model(files, chosen, variant, super_resolution)

        machine = described_machine(gpu_memory_gb) if gpu_memory_gb else host_machine()
        lines = []
        if machine is None:
            machine = described_machine(COMMON_GB)
            lines = [f"There is no CUDA card here; the plan is for a card of {COMMON_GB:g} GB.", ""]
        text = "\n".join([*lines, *report(plan(machine, model_in(precision), film), model_in)])
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def host_machine() -> Machine | None:
    """The host's card; what its other models hold counts as free, because it makes room. None without CUDA."""
    device = comfy.model_management.get_torch_device()
    machine = this_machine(device) if device.type == "cuda" else None
    return machine and with_memory(machine, machine.vram_total - DESKTOP)


NODES = [HappyHorsePlan]
