"""Blocks' weights in host memory: one slab per block, page-locked as far as the machine allows.

A slab is one flat uint8 tensor with every parameter and buffer of a block in its stored form, so that a
block crosses the link in one piece. Slabs are filled tensor by tensor and the block's own tensors are
dropped on the way: pages that were mapped from a file are replaced, not doubled. Slabs are read-only.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..kernels.pitch import whole

logger = logging.getLogger(__name__)

ALIGNMENT = 256  # bytes between tensors: what kernels ask of a weight's address
PAGE = 4096
PIECE_BYTES = 1 << 30  # locked at a time: one large lock is refused long before many small ones

Bake = Callable[[str, Tensor], Tensor | None]


class Pin(Protocol):
    """Page-locks memory in place."""

    def lock(self, piece: Tensor) -> bool:
        """Whether the piece is locked now."""

    def unlock(self, piece: Tensor) -> None:
        """Undo ``lock``."""


class CudaPin:
    """Locks pages for one CUDA device's driver."""

    def __init__(self, device: torch.device):
        self.device = device

    def lock(self, piece: Tensor) -> bool:
        # In place: torch's own pinned memory is rounded up to powers of two, half as much again for a layer.
        with torch.cuda.device(self.device):
            refused = int(torch.cuda.cudart().cudaHostRegister(piece.data_ptr(), piece.numel(), 1))
            if refused:
                # The refusal is also kept as the last error, and the next kernel would be blamed for it.
                with suppress(RuntimeError):
                    torch.zeros(1, device=self.device).add_(1).item()
        return not refused

    def unlock(self, piece: Tensor) -> None:
        torch.cuda.cudart().cudaHostUnregister(piece.data_ptr())


@dataclass(frozen=True, slots=True)
class Stowed:
    """Where one tensor of a block is in the block's slab."""

    layer: nn.Module  # its owner
    key: str  # its name there
    name: str  # its name in the network
    is_parameter: bool
    start: int  # bytes
    shape: torch.Size
    dtype: torch.dtype
    pitch: int | None = None  # entries from a row to the next, zeros between, where a product gains by it

    @property
    def nbytes(self) -> int:
        count = self.shape.numel() if self.pitch is None else self.shape[0] * self.pitch
        return count * self.dtype.itemsize

    def view(self, slab: Tensor) -> Tensor:
        if self.pitch is not None:
            return self.whole_rows(slab)[:, : self.shape[1]]
        return self._entries(slab).view(self.shape)

    def whole_rows(self, slab: Tensor) -> Tensor:
        """[M, pitch] of a tensor whose rows have zeros behind them."""
        return self._entries(slab).view(self.shape[0], self.pitch)

    def _entries(self, slab: Tensor) -> Tensor:
        return slab[self.start : self.start + self.nbytes].view(self.dtype)

    def point_at(self, slab: Tensor) -> None:
        """Make the layer use the tensor's bytes in ``slab``."""
        view = self.view(slab)
        if self.is_parameter:
            self.layer._parameters[self.key] = nn.Parameter(view, requires_grad=False)
        else:
            self.layer._buffers[self.key] = view


class Slab:
    """One block's weights: where its tensors are, and their bytes once ``fill`` has moved them."""

    def __init__(self, block: nn.Module, prefix: str = ""):
        self.block, self.tensors, end = block, [], 0
        for path, layer in block.named_modules(prefix=prefix):
            for group in (layer._parameters, layer._buffers):
                for key, tensor in group.items():
                    if tensor is not None:
                        stowed = _stow(layer, key, f"{path}.{key}", tensor, end)
                        self.tensors.append(stowed)
                        end = aligned(end + stowed.nbytes)
        self.nbytes = end
        self.data = _page_aligned(0)
        self.is_pinned = False

    def fill(self, bake: Bake | None = None) -> None:
        """Move the block's tensors into the slab; each is let go before the next is read."""
        self.data = _page_aligned(self.nbytes)
        for stowed in self.tensors:
            tensor = getattr(stowed.layer, stowed.key).detach()
            baked = bake(stowed.name, tensor) if bake else None
            if baked is not None and (baked.shape, baked.dtype) != (stowed.shape, stowed.dtype):
                raise CheckpointError(
                    f"{stowed.name} is {tuple(stowed.shape)} in {stowed.dtype}; what was baked into it is "
                    f"{tuple(baked.shape)} in {baked.dtype}."
                )
            if stowed.pitch is not None:
                stowed.whole_rows(self.data).view(torch.uint8).zero_()
            stowed.view(self.data).copy_(tensor if baked is None else baked)
            stowed.point_at(self.data)

    def point_at(self, data: Tensor) -> None:
        """Make the block compute with ``data``, a copy of the slab's bytes anywhere."""
        for stowed in self.tensors:
            stowed.point_at(data)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Ranges of bytes that are locked, and so copied, in one go."""
        for start in range(0, self.nbytes, PIECE_BYTES):
            yield start, min(start + PIECE_BYTES, self.nbytes)


class HostWeights:
    """One read-only slab per block; the blocks compute with them where nothing points them elsewhere.

    ``pinned`` and ``pageable`` are bytes. ``bake(name, tensor)`` may give another tensor of the same shape
    and dtype, or None, for each name (``prefix`` + number of the block + the tensor's own): a LoRA is added
    once, here. Raises CheckpointError where a block's tensors cannot be held so.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        streamed: Collection[int] | None = None,
        bake: Bake | None = None,
        pin: Pin | None = None,
        pin_limit: int | None = None,
        prefix: str = "block.layers.",
    ):
        streamed = range(len(blocks)) if streamed is None else streamed
        self.slabs = [Slab(block, f"{prefix}{number}") for number, block in enumerate(blocks)]
        limit = default_pin_limit() if pin is not None and pin_limit is None else pin_limit or 0
        self.pinned, refused = 0, False
        for number, slab in enumerate(self.slabs):
            slab.fill(bake)
            if pin is None or number not in streamed or refused:
                continue
            if self.pinned + slab.nbytes > limit or not self._lock(slab, pin):
                refused = True
            else:
                self.pinned += slab.nbytes
        self.pageable = sum(slab.nbytes for slab in self.slabs) - self.pinned
        if pin is not None:
            logger.info("weights in host memory: %.2f GB pinned, %.2f GB pageable", *self.gigabytes)
        if refused:
            logger.warning(
                "Only %.2f GB of the weights could be page-locked (limit %.2f GB); the other %.2f GB are copied "
                "by a thread. The result is the same; close other programs if steps are slow.",
                self.gigabytes[0],
                limit / 1e9,
                self.gigabytes[1],
            )

    @property
    def blocks(self) -> list[nn.Module]:
        return [slab.block for slab in self.slabs]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each block."""
        return [slab.nbytes for slab in self.slabs]

    @property
    def gigabytes(self) -> tuple[float, float]:
        """Pinned and pageable, in 10^9 bytes."""
        return self.pinned / 1e9, self.pageable / 1e9

    def _lock(self, slab: Slab, pin: Pin) -> bool:
        locked = []
        for start, end in slab.pieces():
            if not pin.lock(slab.data[start:end]):
                _unlock(pin, locked)
                return False
            locked.append(slab.data[start:end])
        slab.is_pinned = True
        # The pieces keep the memory until it is unlocked.
        weakref.finalize(self, _unlock, pin, locked).atexit = False
        return True


def aligned(nbytes: int, alignment: int = ALIGNMENT) -> int:
    """The next multiple."""
    return -(-nbytes // alignment) * alignment


def default_pin_limit(system: str = os.name, memory: int | None = None) -> int:
    """Bytes that may be page-locked: Windows refuses beyond about half, others stand still without free pages."""
    return int((0.4 if system == "nt" else 0.8) * (total_memory() if memory is None else memory))


def total_memory() -> int:
    """Bytes of memory in the machine."""
    if os.name == "nt":
        import ctypes

        # MEMORYSTATUSEX: its own length and the load in percent, then seven sizes; the first is the total.
        status = (ctypes.c_uint64 * 8)()
        status[0] = ctypes.sizeof(status)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _stow(layer: nn.Module, key: str, name: str, tensor: Tensor, start: int) -> Stowed:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
        raise CheckpointError(
            f"{name} is a {type(tensor).__name__} on {tensor.device}; only plain tensors with values can be "
            "swapped. Load the weights before swapping them."
        )
    # Layers that take rows with zeros behind them say so: their slots then hold them as a card does.
    is_spread = key == "weight" and getattr(layer, "takes_spread_weight", False)
    pitch = whole(tensor.shape[1]) if is_spread and whole(tensor.shape[1]) != tensor.shape[1] else None
    return Stowed(
        layer, key, name, isinstance(tensor, nn.Parameter), start, tensor.shape, tensor.dtype, pitch
    )


def _page_aligned(nbytes: int) -> Tensor:
    """Whole pages, so that no two locks share one."""
    memory = torch.empty(aligned(nbytes, PAGE) + PAGE, dtype=torch.uint8)
    first = -memory.data_ptr() % PAGE
    return memory[first : first + nbytes]


def _unlock(pin: Pin, pieces: list[Tensor]) -> None:
    for piece in pieces:
        pin.unlock(piece)
