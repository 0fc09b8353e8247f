"""The list of nodes that ComfyUI registers."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    attention,
    block_swap,
    decoding,
    feature_cache,
    latents,
    loaders,
    lora,
    plan,
    sampling,
    video,
)

ROOMS = (loaders, lora, block_swap, attention, feature_cache, plan, latents, sampling, decoding, video)


class HappyHorseExtension(ComfyExtension):
    """The pack, as ComfyUI asks for it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for room in ROOMS for node in room.NODES]
