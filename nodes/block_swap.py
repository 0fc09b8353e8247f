"""Block swap in ComfyUI: a MODEL whose blocks are streamed by us, and only by us.

The host keeps managing the embedders and heads; of the blocks (swapped_blocks.py) it only knows the device memory that
they take. That is held from the first pass of a run to its end, or until the host asks for it. Host memory is held
until the host unloads the model and memory is short, or until the last MODEL that uses it is gone.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy_api.latest import io

from ..errors import ConditioningError, SamplingError
from ..model.config import VARIANTS, TransformerConfig
from ..model_loading.block_swap import default_slot_bytes
from ..model_loading.live_bytes import Rows
from ..model_loading.machine import DEFAULT_LINK, Rates, card_named, this_machine
from ..model_loading.swap_plan import BlockCost, choose_resident
from ..model_loading.work import block_seconds
from .loaders import CATEGORY
from .swapped_blocks import BLOCKS, GB, LAYERS, SETTINGS, SwappedModel, SwapPlan
from .wire import check_model

COMPILE_KEY = "torch.compile"  # the host's key of its compile wrapper


@dataclass(frozen=True, slots=True)
class SwapSettings:
    """What the node was set to."""

    swapped: int | None  # blocks that are streamed; None: as many as must be
    leave_free: int  # bytes
    slots: int

    def plan(
        self, config: TransformerConfig, sizes: Sequence[int], free_bytes: float, tokens: int
    ) -> SwapPlan:
        """For ``free_bytes`` of device memory beside what a pass over so many tokens needs."""
        if self.swapped is not None:
            return SwapPlan(resident_beside(config, self.swapped), self.slots)
        return plan_resident(config, sizes, self.slots, free_bytes, tokens)

    def wanted_bytes(self, config: TransformerConfig, sizes: Sequence[int]) -> int:
        """What the host is to make room for; in auto for all blocks, and then what there is is used."""
        if self.swapped is None:
            return sum(sizes)
        return SwapPlan(resident_beside(config, self.swapped), self.slots).device_bytes(sizes)


def plan_resident(
    config: TransformerConfig, sizes: Sequence[int], slots: int, free_bytes: float, tokens: int
) -> SwapPlan:
    """As many blocks as fit into ``free_bytes``, beside the slots that the others need: those whose streaming would
    cost most by the planner's times for this card and its measured link."""
    if sum(sizes) <= free_bytes:
        return SwapPlan(frozenset(range(len(sizes))), slots)
    link, rates = card_and_link(comfy.model_management.get_torch_device())
    rows = Rows(tokens, 0, 0, max(1, tokens // (2 * config.window + 1)))
    costs = [
        BlockCost(size, block_seconds(config, spec, rows, "plain", 2, rates))
        for size, spec in zip(sizes, config.blocks, strict=True)
    ]
    budget = max(0, int(free_bytes) - slots * default_slot_bytes(sizes))
    return SwapPlan(choose_resident(costs, budget, slots, link), slots)


@cache
def card_and_link(device: torch.device) -> tuple[float, Rates]:
    """(bytes a second, rates), measured once; a common card's where there is no CUDA."""
    machine = this_machine(device) if device.type == "cuda" else None
    return (machine.link, machine.rates) if machine else (DEFAULT_LINK, card_named("RTX 4090").rates)


def resident_beside(config: TransformerConfig, swapped: int) -> frozenset[int]:
    """The blocks that stay where ``swapped`` do not.

    Shared layers go first, evenly spread so that each copy has time; the large per-modality ones, whose copies
    take longer than their work, go last.
    """
    edges = [number for number, spec in enumerate(config.blocks) if spec.per_modality]
    shared = [number for number, spec in enumerate(config.blocks) if not spec.per_modality]
    count = min(swapped, len(shared))
    streamed = {shared[int((n + 0.5) * len(shared) / count)] for n in range(count)}
    streamed |= set(edges[: swapped - count])
    return frozenset(range(len(config.blocks))) - streamed


class SwappedPatcher(comfy.model_patcher.ModelPatcher):
    """The host's handle on a ``SwappedModel``: loads the rest of it, and keeps its hands off the blocks.

    Of the host's plain kind on every system: what the swapper takes is real memory that the host must free for it,
    not pages that come and go. Not built, but made of a plain patcher in ``swapped``.
    """

    def model_size(self):
        swap = self.model.swap
        return self.model.rest_bytes + self.get_attachment(SETTINGS).wanted_bytes(swap.config, swap.sizes)

    def loaded_size(self):
        return super().loaded_size() + self.model.swap.held_bytes

    def partially_load(self, device_to, *args, **kwargs):
        self._refuse_what_blocks_would_miss()
        loaded = super().partially_load(device_to, *args, **kwargs)
        is_done = False
        try:
            self.model.swap.prepare(self)
            is_done = True
        finally:
            if not is_done:
                self.detach()
        return loaded

    def load(self, *args, **kwargs):
        super().load(*args, **kwargs)
        model = self.model  # a full load counts model_size, and the blocks come later
        model.model_loaded_weight_memory = min(model.model_loaded_weight_memory, model.rest_bytes)

    def partially_unload(self, device_to, memory_to_free=0, *args, **kwargs):
        freed = self.model.swap.release()
        if freed >= memory_to_free:
            return freed
        return freed + super().partially_unload(device_to, memory_to_free - freed, *args, **kwargs)

    def detach(self, unpatch_all=True):
        if unpatch_all:  # else another clone takes over
            self.model.swap.stand_by()
        return super().detach(unpatch_all)

    def cleanup(self):
        self.model.swap.end_run()
        super().cleanup()

    def patch_hooks(self, hooks):
        combined = self.get_combined_hook_patches(hooks) if hooks is not None else {}
        if any(key.startswith(LAYERS) for key in combined):
            raise SamplingError(
                "A LoRA hook changes weights while sampling, and block swap bakes them in before it. Use HappyHorse "
                "LoRA Loader instead of the hook, or take HappyHorse Block Swap out."
            )
        super().patch_hooks(hooks)

    def _load_list(self, *args, **kwargs):
        return [entry for entry in super()._load_list(*args, **kwargs) if not entry[-3].startswith(LAYERS)]

    def _refuse_what_blocks_would_miss(self):
        changed = [*self.weight_wrapper_patches, *self.object_patches]
        touched = next((name for name in changed if name.startswith(BLOCKS)), None)
        if touched is not None:
            raise SamplingError(
                f"Another node has replaced {touched.removeprefix('diffusion_model.')}, which block swap runs in its "
                "own form. Take that node or HappyHorse Block Swap out."
            )


def swapped(model, settings: SwapSettings) -> SwappedPatcher:
    """A clone of a MODEL of ours with swapped blocks; one that has them gets the new settings."""
    if isinstance(model, SwappedPatcher):
        made = model.clone()
        made.set_attachments(SETTINGS, settings)
        return made
    if model.get_wrappers(comfy.patcher_extension.WrappersMP.APPLY_MODEL, COMPILE_KEY):
        raise SamplingError(
            "model: it has been compiled, and the compiled network would be run in place of the swapped one. Put the "
            "compile node after HappyHorse Block Swap."
        )
    base = model.model
    real = base.swapped() if hasattr(base, "swapped") else None
    if real is None:
        # What is read are the weights as they came from the file, where they came from.
        comfy.model_management.unload_model_and_clones(model, unload_additional_models=False)
        real = SwappedModel(base)
        base.swapped = weakref.ref(real)
    made = model.clone(disable_dynamic=True, model_override=(real, real.shared_by_clones))
    made.__class__ = SwappedPatcher
    made.set_attachments(SETTINGS, settings)
    # For the host it is another model: nothing of what the base went through is true of it.
    made.parent, made.clone_base_uuid = None, real.uuid
    made.hook_backup, made.current_hooks, made.is_injected = real.hook_backup, None, False
    made.cached_hook_patches = {}
    if model.cached_patcher_init is not None:
        made.cached_patcher_init = (_swap_again, (model.cached_patcher_init, settings))
    return made


def _swap_again(init, settings, disable_dynamic=False):
    load, arguments, *_ = init
    return swapped(load(*arguments), settings)


class HappyHorseBlockSwap(io.ComfyNode):
    """Streams the blocks of a transformer."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseBlockSwap",
            display_name="HappyHorse Block Swap",
            category=CATEGORY,
            description="Keeps only some of the transformer's blocks on the card and streams the others while it "
            "computes. Without this node ComfyUI manages the memory by itself.",
            search_aliases=["offload", "low vram", "block swap", "magihuman"],
            inputs=[
                io.Model.Input("model", tooltip="From HappyHorse Model Loader or HappyHorse LoRA Loader."),
                io.Combo.Input(
                    "mode",
                    options=["auto", "manual"],
                    default="auto",
                    tooltip="auto keeps as many blocks on the card as fit beside the film; manual streams as many as "
                    "blocks_to_swap says.",
                ),
                io.Int.Input(
                    "blocks_to_swap",
                    default=20,
                    min=0,
                    max=40,
                    tooltip="manual only: how many of the 40 blocks are streamed. More take less VRAM; at 540p and "
                    "above all 40 cost little time.",
                ),
                io.Float.Input(
                    "vram_to_leave_free_gb",
                    default=0.5,
                    min=0.0,
                    max=128.0,
                    step=0.1,
                    tooltip="auto only: VRAM that is not used, for other programs. Raise it if the card runs out.",
                ),
                io.Int.Input(
                    "slots",
                    default=2,
                    min=2,
                    max=4,
                    optional=True,
                    advanced=True,
                    tooltip="Room for this many streamed blocks on the card, 0.4 to 1.6 GB each; more smooth out a "
                    "slow link.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, mode, blocks_to_swap, vram_to_leave_free_gb, slots=2) -> io.NodeOutput:
        config = check_model(model, "model", tuple(VARIANTS)).model_config.unet_config["config"]
        count = len(config.blocks)
        if mode == "manual" and not 0 <= blocks_to_swap <= count:
            raise ConditioningError(f"blocks_to_swap: {blocks_to_swap}; this model has 0 to {count} to swap.")
        if vram_to_leave_free_gb < 0 or slots < 1:
            raise ConditioningError(
                f"vram_to_leave_free_gb {vram_to_leave_free_gb:g} and slots {slots}: use 0 or more, and 2 to 4 slots."
            )
        number = blocks_to_swap if mode == "manual" else None
        return io.NodeOutput(swapped(model, SwapSettings(number, int(vram_to_leave_free_gb * GB), slots)))


NODES = [HappyHorseBlockSwap]
