"""The list of nodes that ComfyUI registers."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import decoding, latents, loaders, lora, sampling, video


class HappyHorseExtension(ComfyExtension):
    """The pack, as ComfyUI asks for it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*loaders.NODES, *lora.NODES, *latents.NODES, *sampling.NODES, *decoding.NODES, *video.NODES]
