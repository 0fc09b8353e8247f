"""The network that ``block_swap.py`` makes a MODEL of: blocks of the engine's layers, whose weights we stream.

The host's own blocks stay in the tree, so that LoRA, merge and save nodes find their names, and are never moved or
patched there. What runs are blocks around slabs of host memory that hold the same weights in their stored form, with
the host's patches baked in.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import comfy.conds
import comfy.model_management
import comfy.ops
import comfy.quant_ops
import torch
from torch import Tensor, nn

from ..errors import CheckpointError, SamplingError
from ..kernels.quantised import QuantisedWeight
from ..model.layers import MLP_ROWS, Block
from ..model.sequence import SequenceLayout
from ..model_loading.block_swap import BlockSwapper, default_slot_bytes
from ..model_loading.host_weights import CudaPin, HostWeights, Slab
from ..model_loading.quantised_layers import QuantisedLinear
from .quantised import load_weights, stored_weight_of
from .transformer import WANTS_AUDIO, HostModel, HostTransformer, activation_bytes, run_block

logger = logging.getLogger(__name__)

SETTINGS = "happyhorse.block_swap"  # the patcher's attachment
BLOCKS, LAYERS = "diffusion_model.block.", "diffusion_model.block.layers."
ROWS = "happyhorse_text_rows"
GB = 10**9
BESIDE = ("input_scale", "pre_quant_scale")  # a stored weight's, which the host holds beside it


@dataclass(frozen=True, slots=True)
class SwapPlan:
    """What a run holds on the device."""

    resident: frozenset[int]
    slots: int
    mlp_rows: int = (
        MLP_ROWS  # of a feed-forward layer at once: here each share finds its weights on the device
    )

    def smaller(self) -> SwapPlan | None:
        """The plan after running out of memory: as only one is tried, nothing stays that can be streamed."""
        if self.resident or self.slots > 2:
            return SwapPlan(frozenset(), 2, MLP_ROWS // 8)
        return SwapPlan(frozenset(), 1, MLP_ROWS // 8) if self.slots == 2 else None

    def device_bytes(self, sizes: Sequence[int]) -> int:
        kept = sum(sizes[block] for block in self.resident)
        return kept + (self.slots * default_slot_bytes(sizes) if len(self.resident) < len(sizes) else 0)


class OwnedBlocks(nn.ModuleList):
    """The blocks as the host sees them: named, and never moved."""

    def _apply(self, fn, recurse=True):
        return self


class SwappedTransformer(HostTransformer):
    """The network with streamed blocks; all samples of a call go through a block while it is there."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.block.layers = OwnedBlocks(self.block.layers)

    def forward(
        self, x, timestep, context=None, control=None, transformer_options=None, text_rows=None, **kwargs
    ):
        options = {**(transformer_options or {}), ROWS: text_rows}
        return super().forward(x, timestep, context, control, options, **kwargs)

    @torch.compiler.disable  # weights change place under the blocks; a compiled graph would keep the old ones
    def _batch(self, x, timestep, context, options):
        try:
            return self._together(x, context, options)
        except Exception as error:
            if not comfy.model_management.is_oom(error) or not self.swap.shrink():
                raise
        comfy.model_management.soft_empty_cache()  # not before the error let go of its tensors
        return self._together(x, context, options)

    def _together(self, x, context, options):
        inputs, layouts = [], []
        for index, (video, audio) in enumerate(zip(*x, strict=True)):
            text = context[index % context.shape[0]]
            if options[ROWS] is not None:
                text = text[: options[ROWS][index % context.shape[0]]]
            layouts.append(SequenceLayout.of(video, audio, text))
            shared = self.host_context(layouts[-1], video.device, options)
            inputs.append((self.embed(video, audio, text), shared))
        need = activation_bytes(self.config, sum(stream[0].numel() for stream in x), MLP_ROWS)

        def call(number, block, h, shared):
            comfy.ops.run_every_op()  # stops here where the user has pressed stop
            return run_block(number, block, h, shared, options)

        hidden = self.swap.run(inputs, call, need)
        wants_audio = options.get(WANTS_AUDIO, True)
        out = [
            self.velocities(h, layout, wants_audio=wants_audio)
            for h, layout in zip(hidden, layouts, strict=True)
        ]
        return [torch.stack(streams) for streams in zip(*out, strict=True)]


class TextRows(comfy.conds.CONDRegular):
    """Text features [B, N, D] that share a batch with those of other lengths, padded; ``RowCounts`` undoes it.

    Else the host calls the network once for each guidance branch, and every weight crosses the link twice.
    """

    def can_concat(self, other):
        return self.cond.shape[-1] == other.cond.shape[-1] and self.cond.device == other.cond.device

    def concat(self, others):
        texts = [self.cond, *(other.cond for other in others)]
        longest = max(text.shape[1] for text in texts)
        return torch.cat([nn.functional.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts])


class RowCounts(comfy.conds.CONDRegular):
    """How many rows of each text are real: a tuple, which the host hands on as it is."""

    def process_cond(self, batch_size, **kwargs):
        return self._copy_with(self.cond[:1] * batch_size)

    def can_concat(self, other):
        return True

    def concat(self, others):
        return sum((other.cond for other in others), self.cond)

    def size(self):
        return [1]


class SwappedModel(HostModel):
    """The MODEL of a ``SwappedPatcher``: weights of ``base``, not copied, and its own place on the device."""

    def __init__(self, base: HostModel):
        super().__init__(base.model_config, base.variant, SwappedTransformer)
        load_weights(self.diffusion_model, weights_of(base.diffusion_model))
        self.diffusion_model.requires_grad_(False)
        self.diffusion_model.swap = self.swap = BlockSwap(self.diffusion_model)
        self.shared_by_clones = ({}, {}, {}, set())  # the host's backups
        self.hook_backup, self.uuid = {}, uuid.uuid4()
        state = self.state_dict().items()
        self.rest_bytes = sum(value.nbytes for name, value in state if not name.startswith(BLOCKS))

    def extra_conds(self, **kwargs):
        out = super().extra_conds(**kwargs)
        if "c_crossattn" in out:
            text = out["c_crossattn"].cond
            out["c_crossattn"], out["text_rows"] = TextRows(text), RowCounts((text.shape[1],) * len(text))
        return out

    def memory_required(self, input_shape, cond_shapes=None):
        required = activation_bytes(self.swap.config, input_shape[-1], MLP_ROWS)
        # In a run this room has been set aside, and samples take turns in it. The host asks for half as much again
        # before it batches two guidance branches, which would part them.
        return required / 1.5 if self.swap.held_bytes else required


class BlockSwap:
    """The blocks' weights in host memory, what is baked into them, and the swapper of a run."""

    def __init__(self, network: SwappedTransformer):
        self.layers, self.config, self.dtype = network.block.layers, network.config, network.dtype
        self.sizes = [Slab(block).nbytes for block in self._engine_blocks({})]
        self.settings = None  # has ``slots``, ``leave_free`` and ``plan``
        self.device = torch.device("cpu")
        self._host: HostWeights | None = None
        self._baked: list[dict] = []  # of each block: {the host's key: its patches}
        self._swapper: BlockSwapper | None = None
        self._holds = ExitStack()
        self._plan: SwapPlan | None = None
        self._in_pass = self._has_shrunk = False

    @property
    def held_bytes(self) -> int:
        """On the device now."""
        return self._swapper.device_bytes if self._swapper else 0

    @property
    def slab_bytes(self) -> int:
        """In host memory now."""
        return sum(self._host.sizes) if self._host else 0

    def prepare(self, patcher) -> None:
        """Bake the patcher's patches into the slabs, where others are in them."""
        settings, device = patcher.get_attachment(SETTINGS), patcher.load_device
        if (settings, device) != (self.settings, self.device):
            self.end_run()
        if device != self.device:
            self.drop()  # pages are locked for one device
        self.settings, self.device = settings, device
        patches = [patches_under(patcher.patches, f"{LAYERS}{n}.") for n in range(len(self.layers))]
        if self._host and all(map(same_patches, self._baked, patches)):
            return
        self.end_run()
        is_done = False
        try:
            with torch.inference_mode(False), torch.no_grad():  # slabs are written again for other patches
                self._fill(patcher, patches)
            is_done = True
        finally:
            if not is_done:
                self.drop()

    def run(self, inputs, call, need: float) -> list[Tensor]:
        """All blocks for several (x [N, D], context); ``need`` bytes are kept free for a pass."""
        if self._host is None:
            raise SamplingError("The blocks' weights are not loaded; load the MODEL through ComfyUI first.")
        self._in_pass, is_done = True, False
        try:
            if self._swapper is None:
                self._acquire(need, sum(len(x) for x, _ in inputs))
            rows = self._plan.mlp_rows
            inputs = [(x, replace(context, mlp_rows=rows)) for x, context in inputs]
            out = self._swapper.run_together(inputs, call)
            is_done = True
        finally:
            self._in_pass = False
            if not is_done:
                self.release()
        return out

    def shrink(self) -> bool:
        """Whether a smaller plan is left for this run, and has been made the plan."""
        smaller = self._plan.smaller() if self._plan and not self._has_shrunk else None
        if smaller is None:
            return False
        logger.warning(
            "Out of memory with %d of %d blocks on the device, slots: %d. Going on with %d blocks, slots: %d. Swap "
            "more blocks or leave more VRAM free to avoid this.",
            len(self._plan.resident),
            len(self.sizes),
            self._plan.slots,
            len(smaller.resident),
            smaller.slots,
        )
        self.release()
        self._plan, self._has_shrunk = smaller, True
        return True

    def release(self) -> int:
        """Give the device memory back; bytes. Nothing while blocks run."""
        held = self.held_bytes
        if self._in_pass or not held:
            return 0
        self._swapper = None
        self._holds.close()
        return held

    def end_run(self) -> None:
        """Give the device memory back and forget the plan."""
        self.release()
        self._plan, self._has_shrunk = None, False

    def stand_by(self) -> None:
        """The host has unloaded the model. Slabs stay where another set of them would find room."""
        if self._in_pass:
            return
        self.end_run()
        if comfy.model_management.get_free_memory(torch.device("cpu")) < self.slab_bytes:
            self.drop()

    def drop(self) -> None:
        """Give the host memory back too."""
        self.end_run()
        self._host, self._baked = None, []

    def _acquire(self, need: float, tokens: int) -> None:
        if self._plan is None:
            free = comfy.model_management.get_free_memory(self.device)
            free -= comfy.model_management.extra_reserved_memory() + self.settings.leave_free + need
            self._plan = self.settings.plan(self.config, self._host.sizes, free, tokens)
        plan = self._plan
        swapper = BlockSwapper(self._host, self.device, resident=plan.resident, slots=plan.slots)
        self._holds.enter_context(swapper.resident())
        self._swapper = swapper
        logger.info(
            "block swap: %d of %d blocks on the device, %d streamed, slots: %d, %.2f GB of its memory",
            len(plan.resident),
            len(self.sizes),
            len(swapper.swapped_blocks),
            plan.slots if swapper.swapped_blocks else 0,
            swapper.device_bytes / GB,
        )

    def _fill(self, patcher, patches: list[dict]) -> None:
        bake = Bake(patcher)
        blocks = self._engine_blocks(patcher.patches)
        fresh = [Slab(block, f"block.layers.{number}") for number, block in enumerate(blocks)]
        if self._host and all(map(same_layout, fresh, self._host.slabs)):
            for number, slab in enumerate(self._host.slabs):
                if not same_patches(self._baked[number], patches[number]):
                    for stowed in fresh[number].tensors:
                        tensor = getattr(stowed.layer, stowed.key)
                        baked = bake(stowed.name, tensor)
                        stowed.view(slab.data).copy_(tensor if baked is None else baked)
        else:
            self._host = None  # before the next is made
            pin = CudaPin(self.device) if self.device.type == "cuda" else None
            self._host = HostWeights(blocks, bake=bake, pin=pin)
        self._baked = patches

    def _engine_blocks(self, patches) -> list[Block]:
        """Blocks of the engine's layers around the base's weights, or in the form that patches leave them in."""
        forms: dict = {}
        made = []
        for number, (layer, spec) in enumerate(zip(self.layers, self.config.blocks, strict=True)):
            with torch.device("meta"):
                block = Block(self.config, spec, dtype=self.dtype)
            for name, weight in weights_of(layer).items():
                path, _, leaf = name.rpartition(".")
                if isinstance(weight, QuantisedWeight):
                    owner = layer.get_submodule(path)
                    if f"{LAYERS}{number}.{name}" in patches:
                        weight = form_after_patch(owner, weight, forms)
                    block.set_submodule(path, QuantisedLinear(weight, owner.policy.products))
                elif leaf in block.get_submodule(path)._buffers:
                    block.get_submodule(path)._buffers[leaf] = weight
                else:
                    setattr(block.get_submodule(path), leaf, nn.Parameter(weight, requires_grad=False))
            made.append(block.eval())
        return made


class Bake:
    """Patched tensors under their names in the engine's blocks, as the host would load them completely.

    A quantised weight is de-quantised, patched and stored in its format again, with the host's rounding: a slab keeps
    its size, and the result is the one of a MODEL without block swap that fits on the card.
    """

    def __init__(self, patcher):
        self.patcher = patcher
        self._last: tuple[str, QuantisedWeight] | None = None  # its scales come right after it

    def __call__(self, name: str, tensor: Tensor) -> Tensor | None:
        path, _, leaf = name.rpartition(".")
        layer = self.patcher.model.diffusion_model.get_submodule(path)
        is_quantised = isinstance(getattr(layer, "weight", None), comfy.quant_ops.QuantizedTensor)
        key = f"diffusion_model.{path}.weight" if is_quantised else f"diffusion_model.{name}"
        if key not in self.patcher.patches:
            return None
        if not is_quantised:
            return self._patched(key)
        if self._last is None or self._last[0] != key:
            self._last = None
            self._last = (key, stored_weight_of(layer, self._patched(key)))
        stored = self._last[1]
        return stored.data if leaf == "weight" else stored.scales[leaf]

    def _patched(self, key: str) -> Tensor:
        return self.patcher.patch_weight_to_device(key, self.patcher.load_device, return_weight=True)


def weights_of(network: nn.Module) -> dict[str, Tensor | QuantisedWeight]:
    """{name: plain tensor or stored weight} of a network of the host's layers; nothing is copied."""
    found = {}
    for path, layer in network.named_modules():
        stored = isinstance(getattr(layer, "weight", None), comfy.quant_ops.QuantizedTensor)
        for key, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
            if tensor is None or (stored and key in BESIDE):
                continue
            is_stored = isinstance(tensor, comfy.quant_ops.QuantizedTensor)
            found[f"{path}.{key}"] = stored_weight_of(layer, tensor) if is_stored else tensor.detach()
    return found


def form_after_patch(layer: nn.Module, weight: QuantisedWeight, forms: dict) -> QuantisedWeight:
    """A stand-in with the shapes that the host's patching leaves: of FP8 with a scale for each row, it makes one.

    ``forms`` keeps those that were made.
    """
    shapes = tuple((name, tuple(scale.shape)) for name, scale in weight.scales.items())
    kind = (weight.format, weight.shape, tuple(weight.data.shape), weight.group, shapes)
    if kind not in forms:
        ones = torch.ones(weight.shape, dtype=torch.float32, device=weight.data.device)
        try:
            forms[kind] = stored_weight_of(layer, layer.set_weight(ones, seed=0, return_weight=True))
        except NotImplementedError as error:
            raise CheckpointError(f"A LoRA cannot be merged into {weight.format} weights.") from error
    return forms[kind]


def patches_under(patches: dict, prefix: str) -> dict:
    """The patches of a block, in lists that the host does not add to."""
    return {key: list(values) for key, values in patches.items() if key.startswith(prefix)}


def same_patches(one: dict, other: dict) -> bool:
    """Whether the very same patches are in both; clones share them."""
    return one.keys() == other.keys() and all(
        len(one[key]) == len(other[key]) and all(a is b for a, b in zip(one[key], other[key], strict=True))
        for key in one
    )


def same_layout(one: Slab, other: Slab) -> bool:
    def layout(slab):
        return [(stowed.name, stowed.start, stowed.shape, stowed.dtype) for stowed in slab.tensors]

    return layout(one) == layout(other)
