"""The list of nodes that ComfyUI registers."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    attention,
    block_swap,
    decoding,
    dialogue,
    feature_cache,
    latents,
    loaders,
    lora,
    plan,
    report,
    sampling,
    step_saving,
    video,
)
from .dialogue_route import add_route

ROOMS = (
    loaders,
    lora,
    block_swap,
    attention,
    feature_cache,
    plan,
    dialogue,
    latents,
    sampling,
    step_saving,
    decoding,
    video,
    report,
)


class HappyHorseExtension(ComfyExtension):
    """The pack, as ComfyUI asks for it."""

    async def on_load(self) -> None:
        add_route()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for room in ROOMS for node in room.NODES]
