"""Which blocks stay on the device, by the clock: the swapper's own order of copies, with seconds for bytes.

Nothing here touches a tensor. A block's cost is its bytes and its seconds of compute in one pass (twice the
seconds where both guidance branches run while it is there); a link has bytes per second.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

from .block_swap import DeviceSlots, SwapOrder, check_slots, default_slot_bytes
from .host_weights import aligned

WARM_PASSES, PASSES = 2, 4  # the places in the slots change from pass to pass; the mean of some is steady
EXHAUSTIVE = 10  # blocks; a thousand sets


@dataclass(frozen=True, slots=True)
class BlockCost:
    """What one block takes in one pass."""

    nbytes: int
    seconds: float


class Clock:
    """A copy lane whose tokens are times: one copies, one computes, and both wait as they are told to."""

    def __init__(self):
        self.copying = self.computing = 0.0

    def copy(self, seconds: float, after: Sequence[float] = ()) -> float:
        self.copying = max(self.copying, *after, 0.0) + seconds
        return self.copying

    def read(self, copied: float) -> None:
        self.computing = max(self.computing, copied)

    def done(self) -> float:
        return self.computing


def simulate(
    costs: Sequence[BlockCost],
    resident: Collection[int],
    slots: int,
    bandwidth: float,
    slot_bytes: int | None = None,
) -> float:
    """Seconds of one pass in the steady state; ``bandwidth`` in bytes per second. ValueError as BlockSwapper."""
    sizes = [cost.nbytes for cost in costs]
    slot_bytes = aligned(slot_bytes or default_slot_bytes(sizes))
    check_slots(sizes, resident, slots, slot_bytes)
    clock = Clock()

    def copy(block: int, _start: int, after: Sequence[float]) -> float:
        return clock.copy(sizes[block] / bandwidth, after)

    order = SwapOrder(sizes, resident, DeviceSlots(slots, slot_bytes), clock, copy)
    started = 0.0
    for number in range(WARM_PASSES + PASSES):
        if number == WARM_PASSES:
            started = clock.computing
        order.begin()
        for block, cost in enumerate(costs):
            order.enter(block)
            clock.computing += cost.seconds
            order.leave(block)
    return (clock.computing - started) / PASSES


def floor_seconds(costs: Sequence[BlockCost], resident: Collection[int], bandwidth: float) -> float:
    """What no order of copies can beat: all of the compute, or all of the bytes."""
    streamed = sum(cost.nbytes for number, cost in enumerate(costs) if number not in resident)
    return max(sum(cost.seconds for cost in costs), streamed / bandwidth)


def choose_resident(
    costs: Sequence[BlockCost],
    budget_bytes: int,
    slots: int,
    bandwidth: float,
    slot_bytes: int | None = None,
) -> frozenset[int]:
    """The blocks to keep within ``budget_bytes`` (the slots not counted) for the shortest pass.

    Of up to ten blocks every set is tried. Of more, two arrangements of the blocks with most bytes per second
    of compute are improved by exchanging blocks until nothing helps, which takes under a second for the
    published 40. Where two sets take equal time, the one that streams less is kept.
    """
    if sum(cost.nbytes for cost in costs) <= budget_bytes:
        return frozenset(range(len(costs)))
    slot_bytes = slot_bytes or default_slot_bytes([cost.nbytes for cost in costs])

    def score(kept: frozenset[int]) -> tuple[float, int]:
        seconds = simulate(costs, kept, slots, bandwidth, slot_bytes)
        return round(seconds, 9), -sum(costs[number].nbytes for number in kept)

    def fits(kept: Collection[int]) -> bool:
        return sum(costs[number].nbytes for number in kept) <= budget_bytes

    if len(costs) <= EXHAUSTIVE:
        sets = (frozenset(kept) for n in range(len(costs)) for kept in combinations(range(len(costs)), n))
        return min(filter(fits, sets), key=score)
    starts = {_heaviest(costs, budget_bytes, spread) for spread in (False, True)}
    best = min(starts, key=score)
    found, total = score(best), sum(cost.nbytes for cost in costs)
    floor = max(floor_seconds(costs, range(len(costs)), bandwidth), (total - budget_bytes) / bandwidth)
    while found[0] > floor * 1.001:
        others = {other for other in _neighbours(costs, best) if fits(other)}
        others = {other for other in others if floor_seconds(costs, other, bandwidth) <= found[0]}
        better = min(((score(other), sorted(other)) for other in others), default=None)
        if better is None or better[0] >= found:
            break
        found, best = better[0], frozenset(better[1])
    return best


def _heaviest(costs: Sequence[BlockCost], budget_bytes: int, spread: bool) -> frozenset[int]:
    """Fill the budget by bytes per second of compute; equal blocks from the front, or evenly spread."""

    def weight(number: int) -> float:
        return costs[number].nbytes / max(costs[number].seconds, 1e-12)

    groups: list[list[int]] = []  # of blocks within 1 % of each other
    for number in sorted(range(len(costs)), key=lambda n: (-weight(n), n)):
        if groups and weight(number) >= 0.99 * weight(groups[-1][0]):
            groups[-1].append(number)
        else:
            groups.append([number])
    kept, left = [], budget_bytes
    for group in groups:
        group.sort()
        largest = max(costs[number].nbytes for number in group)
        count = min(len(group), left // largest if largest else len(group))
        if spread and count:
            step = len(group) / count
            group = [group[int((n + 0.5) * step)] for n in range(count)]
        for number in group[:count]:
            kept.append(number)
            left -= costs[number].nbytes
    return frozenset(kept)


def _neighbours(costs: Sequence[BlockCost], kept: frozenset[int]):
    """Sets with one block more, and with one block exchanged for another."""
    outside = [number for number in range(len(costs)) if number not in kept]
    for number in outside:
        yield kept | {number}
        for other in kept:
            yield (kept - {other}) | {number}
