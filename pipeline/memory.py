"""What a stage does about a card that is too small: blocks that are swapped, and one more try with a smaller plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..model.transformer import JointTransformer
from ..model_loading.block_swap import swap_blocks
from ..model_loading.planner import resident_blocks
from .stages import RunBlocks

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
SLOTS = 2


def once_more(stage: str, run: Callable[[bool], Result], smaller: str) -> Result:
    """``run(False)``; where memory runs out, a line that says so, and ``run(True)``, the next smaller plan.

    ``smaller`` is what that does, for the line. What the first try held is free again before the second.
    """
    try:
        return run(False)
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0][:160]
    # Outside the handler, whose traceback would keep every tensor of the failed try.
    logger.warning("%s: out of memory (%s). Going on %s.", stage, reason, smaller)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return run(True)


@contextmanager
def on_device(
    network: JointTransformer, device: torch.device, swapped: int | None, tokens: int
) -> Iterator[RunBlocks | None]:
    """The network on ``device`` with so many of its blocks streamed; None: as many as must be, by free memory.

    Gives what runs the blocks for ``JointTransformer.forward``, or None where all are on the device.
    """
    resident, slots = _plan(network, device, swapped, tokens)
    blocks = network.block.layers
    if len(resident) == len(blocks):
        network.to(device)
        yield None
        return
    for name, part in network.named_children():
        if name != "block":
            part.to(device)
    logger.info(
        "%d of %d blocks are swapped through %d slots.", len(blocks) - len(resident), len(blocks), slots
    )
    with swap_blocks(blocks, device, resident=resident, slots=slots).resident() as swapper:
        yield swapper.run_blocks


def _plan(network, device: torch.device, swapped: int | None, tokens: int) -> tuple[frozenset[int], int]:
    """(blocks that stay, slots)"""
    blocks = network.block.layers
    count = len(blocks)
    if swapped is None:
        if device.type != "cuda":
            return frozenset(range(count)), SLOTS
        torch.cuda.empty_cache()  # what earlier stages gave back to torch, it has not given back to the card
        free, _ = torch.cuda.mem_get_info(device)
        return resident_blocks(free, network.config, [_bytes(block) for block in blocks], tokens)
    if not 0 <= swapped <= count:
        raise CheckpointError(f"--blocks-to-swap {swapped}: this model has 0 to {count} blocks to swap.")
    # The large per-modality blocks, whose copies take longest for their work, go last.
    order = sorted(range(count), key=lambda number: _bytes(blocks[number]))
    return frozenset(order[swapped:]), SLOTS


def _bytes(block: nn.Module) -> int:
    tensors: Sequence[Tensor] = [*block.parameters(), *block.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
