"""The node that measures a film."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..media.contact_sheet import SheetRow
from ..media.frames import to_levels
from ..media.quality import measure
from ..media.quality_plot import quality_plot
from ..shapes import FPS
from .latents import sound_of


class HappyHorseReport(io.ComfyNode):
    """What is right and wrong with a film, in words and as a picture."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseReport",
            display_name="HappyHorse Report",
            category="HappyHorse/video",
            description="Measures a film: black, frozen or flickering pictures, cuts, loudness, clipping, silence, and "
            "whether the lips move with the sound. Says no verdict where there is none.",
            search_aliases=["quality", "lip-sync", "lipsync", "loudness", "analyse"],
            inputs=[
                io.Image.Input("images", tooltip="The film's frames."),
                io.Audio.Input("audio", optional=True, tooltip="The film's sound."),
                io.Float.Input(
                    "fps", default=FPS, min=1.0, max=240.0, step=0.001, tooltip="Frames a second."
                ),
            ],
            outputs=[io.String.Output(display_name="report"), io.Image.Output(display_name="plot")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, fps, audio=None) -> io.NodeOutput:
        waveform, rate = (None, 0) if audio is None else sound_of(audio)
        waveform = None if waveform is None else waveform[0].float().cpu()
        quality = measure(images, waveform, rate, fps)
        row = SheetRow("Film", to_levels(images[..., :3].float()), waveform, rate, fps)
        plot = quality_plot(quality, row)[None].float() / 255
        report = quality.report()
        return io.NodeOutput(report, plot, ui=ui.PreviewText(report))


NODES = [HappyHorseReport]
