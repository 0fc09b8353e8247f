"""Block swap: blocks' weights wait in host memory and visit a few slots on the device, ahead of their use.

Two orderings carry it, and every lane keeps both:

1. A block is not read before its copy has landed.
2. A slot is not overwritten before its reader has finished.

Weights are never copied back. While blocks run nothing is allocated, freed or waited for by the host: a copy
is queued as soon as the reader before it is. The blocks that run last make room for the first ones of the
next pass, so a pass begins with its weights there.

HostWeights (host_weights.py) hold the blocks, DeviceSlots the room, a CopyLane (copy_lane.py) carries, and
the BlockSwapper decides which block is in which slot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .copy_lane import CopyLane, CudaLane, Inline, StagedLane, Token
from .host_weights import CudaPin, HostWeights, aligned

Call = Callable[[int, nn.Module, Tensor, object], Tensor]  # number, block, x [N, D], context -> [N, D]
Copy = Callable[[int, int, Sequence[Token]], Token]  # block, first byte in the slots, what to wait for


@dataclass(slots=True)
class Place:
    """A block's bytes in the slots."""

    start: int
    end: int
    copied: Token
    read: Token | None = None  # its last reader's end
    is_awaited: bool = True  # copied ahead for a reader that has not begun


class DeviceSlots:
    """Static room for weights, in slots of equal size; the blocks that fit into one share it.

    A block goes behind the one before it and never across the end of a slot: three shared layers take the
    room of one per-modality layer, and the large ones find whole slots again.
    """

    def __init__(self, slots: int, slot_bytes: int):
        self.slots, self.slot_bytes = slots, slot_bytes
        self._next = 0

    @property
    def nbytes(self) -> int:
        return self.slots * self.slot_bytes

    def room(self, nbytes: int) -> int:
        """The first byte for a block that comes next; ``take`` it to move on."""
        start = self._next
        if start % self.slot_bytes + nbytes > self.slot_bytes:
            start = aligned(start, self.slot_bytes)
        return start if start + nbytes <= self.nbytes else 0

    def take(self, start: int, nbytes: int) -> None:
        self._next = start + nbytes


class SwapOrder:
    """When each block is copied, and where to; knows bytes and tokens, not tensors.

    For each pass call ``begin``, then ``enter`` and ``leave`` around each block, in order. A pass may be left
    in the middle: the next ``begin`` starts over, with what is still in the slots.
    """

    def __init__(
        self, sizes: Sequence[int], resident: Collection[int], slots: DeviceSlots, lane: CopyLane, copy: Copy
    ):
        self._sizes, self._slots, self._lane, self._copy = sizes, slots, lane, copy
        self._swapped = [block for block, size in enumerate(sizes) if size and block not in resident]
        self._places: dict[int, Place] = {}
        self._copied = self._entered = 0  # how many of the swapped blocks, counted through the passes

    def begin(self) -> None:
        if self._swapped and self._entered % len(self._swapped):
            for place in self._places.values():
                place.is_awaited = False
            self._copied = self._entered = 0
        self._copy_ahead()

    def enter(self, block: int) -> int | None:
        """The first byte of the block's weights in the slots; None for a resident block."""
        if block not in self._swapped:
            return None
        assert self._swapped[self._entered % len(self._swapped)] == block, "blocks run in order"
        self._entered += 1
        place = self._places[block]
        try:
            self._lane.read(place.copied)
        except BaseException:
            del self._places[block]  # its bytes never came
            raise
        return place.start

    def leave(self, block: int) -> None:
        """Call when the last reader of the block has been started."""
        if block in self._places:
            place = self._places[block]
            place.read, place.is_awaited = self._lane.done(), False
            self._copy_ahead()

    def _copy_ahead(self) -> None:
        """Start every copy that has room: one whose readers-before are all known."""
        while self._swapped:
            block = self._swapped[self._copied % len(self._swapped)]
            if block in self._places:
                if self._places[block].is_awaited:
                    return  # a whole pass ahead
                self._places[block].is_awaited = True  # nobody took its room: it is not copied again
            elif not self._copy_to_room(block):
                return
            self._copied += 1

    def _copy_to_room(self, block: int) -> bool:
        size = self._sizes[block]
        start = self._slots.room(size)
        end = start + size
        before = {b: place for b, place in self._places.items() if place.start < end and start < place.end}
        if any(place.is_awaited for place in before.values()):
            return False
        for other in before:
            del self._places[other]
        readers = [place.read for place in before.values() if place.read is not None]
        copied = self._copy(block, start, readers)
        self._slots.take(start, size)
        self._places[block] = Place(start, end, copied)
        return True


class BlockSwapper:
    """Runs a stack of blocks whose weights do not all fit on the device; bit-equal to having them there.

    ``resident`` blocks stay on the device for a run, the others share ``slots`` slots of ``slot_bytes`` (the
    largest block's, where it is not said). ``run_blocks`` stands in for the loop over the blocks::

        with swapper.resident():
            for ...: network(video, audio, text, context, run_blocks=swapper.run_blocks)
    """

    def __init__(
        self,
        host: HostWeights,
        device: torch.device | str,
        *,
        resident: Collection[int] = (),
        slots: int = 2,
        slot_bytes: int | None = None,
        lane: CopyLane | None = None,
    ):
        self.host, self.device, self.sizes = host, torch.device(device), host.sizes
        self.resident_blocks = frozenset(resident)
        self.swapped_blocks = [
            n for n, size in enumerate(self.sizes) if size and n not in self.resident_blocks
        ]
        self.slots, self.slot_bytes = slots, aligned(slot_bytes or default_slot_bytes(self.sizes))
        check_slots(self.sizes, self.resident_blocks, slots, self.slot_bytes)
        self._lane = lane or lane_for(self.device, host, self.swapped_blocks)
        self._order: SwapOrder | None = None
        self._room: Tensor | None = None
        self._kept: dict[int, Tensor] = {}  # the resident blocks' bytes
        self._fresh: list[Token] = []

    @property
    def device_bytes(self) -> int:
        """What ``resident`` holds on the device."""
        kept = sum(self.sizes[block] for block in self.resident_blocks)
        return kept + (self.slots * self.slot_bytes if self.swapped_blocks else 0)

    @contextmanager
    def resident(self) -> Iterator[BlockSwapper]:
        """Holds the resident blocks and the slots on the device; gives all back, whatever happens inside."""
        if self._order is not None:
            raise RuntimeError("This swapper is in use; leave its resident() before entering it again.")
        try:
            self._acquire()
            yield self
        finally:
            self._release()

    def run_blocks(self, x: Tensor, context, call: Call | None = None) -> Tensor:
        """[N, D] -> [N, D]: all blocks, in order. ``call`` runs one block, where a host has its own way."""
        return self.run_together([(x, context)], call)[0]

    def run_together(self, inputs: Sequence[tuple[Tensor, object]], call: Call | None = None) -> list[Tensor]:
        """All blocks for several inputs; each weight crosses the link once for all of them."""
        if self._order is None:
            raise RuntimeError("The weights are in host memory; run blocks inside `with swapper.resident()`.")
        call = call or _call
        hidden = [x for x, _ in inputs]
        contexts = [context for _, context in inputs]
        self._order.begin()
        for number, block in enumerate(self.host.blocks):
            with self._in_place(number):
                for which, context in enumerate(contexts):
                    hidden[which] = call(number, block, hidden[which], context)
        return hidden

    @contextmanager
    def _in_place(self, number: int) -> Iterator[None]:
        """Points the block at its slot, and back at the host's slab."""
        slab = self.host.slabs[number]
        start = self._order.enter(number)
        if start is None:
            yield
            return
        try:
            slab.point_at(self._room[start : start + slab.nbytes])
            yield
        finally:
            slab.point_at(slab.data)
            self._order.leave(number)

    def _acquire(self) -> None:
        with torch.inference_mode(False):  # what is made inside it could not be written from outside
            if self.swapped_blocks:
                self._room = torch.empty(self.slots * self.slot_bytes, dtype=torch.uint8, device=self.device)
            for number in sorted(self.resident_blocks):
                self._kept[number] = torch.empty(self.sizes[number], dtype=torch.uint8, device=self.device)
        self._fresh = [self._lane.done()]  # memory handed out now may still have an earlier owner's reader
        copied = None
        for number, data in self._kept.items():
            copied = self._copy(number, data, ())
            self.host.slabs[number].point_at(data)
        if copied is not None:
            self._lane.read(copied)  # the lane copies in order: the last is all
        slots = DeviceSlots(self.slots, self.slot_bytes)
        self._order = SwapOrder(self.sizes, self.resident_blocks, slots, self._lane, self._copy_to_slot)
        self._order.begin()  # the first blocks are on their way while the embedders run

    def _release(self) -> None:
        try:
            self._lane.finish()
        finally:
            for slab in self.host.slabs:
                slab.point_at(slab.data)
            self._order = self._room = None
            self._kept, self._fresh = {}, []

    def _copy_to_slot(self, number: int, start: int, after: Sequence[Token]) -> Token:
        return self._copy(number, self._room[start : start + self.sizes[number]], after)

    def _copy(self, number: int, target: Tensor, after: Sequence[Token]) -> Token:
        slab, copied = self.host.slabs[number], None
        after, self._fresh = [*self._fresh, *after], []
        for start, end in slab.pieces():
            copied = self._lane.copy(target[start:end], slab.data[start:end], after)
            after = ()
        return copied


def swap_blocks(
    blocks: Sequence[nn.Module],
    device: torch.device | str,
    *,
    resident: Collection[int] = (),
    slots: int = 2,
    slot_bytes: int | None = None,
    bake=None,
) -> BlockSwapper:
    """A swapper for these blocks, whose weights move to page-locked host memory where the device has CUDA."""
    device = torch.device(device)
    streamed = [number for number in range(len(blocks)) if number not in resident]
    pin = CudaPin(device) if device.type == "cuda" else None
    host = HostWeights(blocks, streamed=streamed, bake=bake, pin=pin)
    return BlockSwapper(host, device, resident=resident, slots=slots, slot_bytes=slot_bytes)


def lane_for(device: torch.device, host: HostWeights, streamed: Sequence[int]) -> CopyLane:
    """The lane for the device: through pinned buffers where the weights themselves are not pinned."""
    if device.type != "cuda":
        return Inline()
    lane = CudaLane(device)
    return lane if all(host.slabs[number].is_pinned for number in streamed) else StagedLane(lane)


def default_slot_bytes(sizes: Sequence[int]) -> int:
    """Room for the largest block, or for as many smaller ones as together have its weights.

    The 0.2 % are for the gaps: three shared layers have more of them than one per-modality layer.
    """
    largest = max(sizes, default=0)
    return aligned(largest + largest // 512)


def check_slots(sizes: Sequence[int], resident: Collection[int], slots: int, slot_bytes: int) -> None:
    """ValueError where the numbers do not make a swapper."""
    unknown = sorted(set(resident) - set(range(len(sizes))))
    if unknown:
        raise ValueError(f"Blocks {unknown} are to stay resident; there are blocks 0 to {len(sizes) - 1}.")
    largest = max((size for number, size in enumerate(sizes) if number not in resident), default=0)
    if slots < 1 or (largest and slot_bytes < largest):
        raise ValueError(
            f"{slots} slots of {slot_bytes:,} bytes cannot hold a block of {largest:,}; use one slot or more, "
            f"each of {largest:,} bytes or more."
        )


def _call(_: int, block: nn.Module, x: Tensor, context) -> Tensor:
    return block(x, context)
