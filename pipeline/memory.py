"""What a stage does about a card that is too small: blocks that are swapped, and one more try with a smaller plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..model.config import TransformerConfig
from ..model.transformer import JointTransformer
from ..model_loading import live_bytes, planner
from ..model_loading.block_swap import swap_blocks
from .stages import Placed

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
SLOTS = 2
SHARES = [rows for rows in planner.SHARES if rows is not None]  # the largest first


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
    network: JointTransformer,
    device: torch.device,
    swapped: int | None,
    tokens: int,
    is_smaller: bool = False,
) -> Iterator[Placed]:
    """The network on ``device`` with so many of its blocks streamed; None: as many as must be, by free memory.

    ``is_smaller`` is the plan after running out of memory: all blocks streamed, and the smallest shares of rows.
    """
    blocks = network.block.layers
    if is_smaller:
        resident, slots, mlp_rows = frozenset(), SLOTS, SHARES[-1]
    elif swapped is None and device.type == "cuda":
        resident, slots, mlp_rows = _plan(network, device, tokens)
    else:
        resident, slots, mlp_rows = _kept(blocks, swapped or 0), SLOTS, SHARES[0]
    if len(resident) == len(blocks):
        network.to(device)
        yield Placed(mlp_rows=mlp_rows)
        return
    for name, part in network.named_children():
        if name != "block":
            part.to(device)
    logger.info(
        "%d of %d blocks are swapped through %d slots, %d rows of a feed-forward layer at once.",
        len(blocks) - len(resident),
        len(blocks),
        slots,
        mlp_rows,
    )
    with swap_blocks(blocks, device, resident=resident, slots=slots).resident() as swapper:
        yield Placed(swapper.run_blocks, mlp_rows, swapper.run_together)


def _plan(network: JointTransformer, device: torch.device, tokens: int) -> tuple[frozenset[int], int, int]:
    """(blocks that stay, slots, rows of a feed-forward layer at once) by the card's free memory."""
    torch.cuda.empty_cache()  # what earlier stages gave back to torch, it has not given back to the card
    free, _ = torch.cuda.mem_get_info(device)
    config, sizes = network.config, [_bytes(block) for block in network.block.layers]
    mlp_rows = next(
        (rows for rows in SHARES if _fits_streamed(free, config, sizes, tokens, rows)), SHARES[-1]
    )
    return *planner.resident_blocks(free, config, sizes, tokens, mlp_rows=mlp_rows), mlp_rows


def _fits_streamed(
    free: int, config: TransformerConfig, sizes: Sequence[int], tokens: int, mlp_rows: int
) -> bool:
    """Whether a pass in these shares fits, as definitions, where every block is streamed."""
    rows = live_bytes.Rows(tokens, 0, 0, max(1, tokens // (2 * config.window + 1)))
    live = live_bytes.network_bytes(config, rows, "plain", 2, mlp_rows, fused=False)
    return planner.with_margin(SLOTS * max(sizes), live) <= free


def _kept(blocks: Sequence[nn.Module], swapped: int) -> frozenset[int]:
    """The blocks that stay: of the streamed ones the large per-modality ones, whose copies take longest, go last."""
    count = len(blocks)
    if not 0 <= swapped <= count:
        raise CheckpointError(f"--blocks-to-swap {swapped}: this model has 0 to {count} blocks to swap.")
    order = sorted(range(count), key=lambda number: _bytes(blocks[number]))
    return frozenset(order[swapped:])


def _bytes(block: nn.Module) -> int:
    tensors: Sequence[Tensor] = [*block.parameters(), *block.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
