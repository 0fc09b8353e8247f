"""How attention over ranges becomes dense calls without a mask, with as few key rows copied as possible.

A softmax does not mind the order of its keys. So keys that lie in pieces (a window of frames, and the tail of audio and
text) are brought together once, in a buffer, and when the window moves on by a frame the new frame goes to the
buffer's end or takes the place of the frame that left. Rows whose keys already lie together are read in place.

For 5 s of 1920x1088 (32 frames of 2040 tokens, 526 rows of tail, window 11) 63,766 rows of k and of v are copied; a copy
laid out as [tail | frames | tail] with the 8 inner frames gathered takes 445,900.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

Range = tuple[int, int]  # half-open


class Copy(NamedTuple):
    """Rows of the keys and where in the buffer they go."""

    rows: Range
    at: int


class Step(NamedTuple):
    """One dense call: these query rows over these rows of the keys or, after the copies, of the buffer."""

    queries: Range
    keys: Range
    is_buffered: bool
    copies: tuple[Copy, ...]


class Plan(NamedTuple):
    """The calls in their order. They write each query row at most once; ``is_whole``: every row."""

    steps: tuple[Step, ...]
    capacity: int  # rows of the buffer
    is_whole: bool

    @property
    def copied(self) -> int:
        """Rows that are copied, of k and as many of v."""
        return sum(stop - start for step in self.steps for (start, stop), _ in step.copies)


def flatten(ranges: Sequence[tuple[Range, Range]]) -> tuple[int, ...]:
    """(query range, key range) pairs as four integers each, which is how an operation of torch takes them."""
    return tuple(edge for pair in ranges for part in pair for edge in part)


def pairs(flat: Sequence[int]) -> list[tuple[Range, Range]]:
    """The inverse of ``flatten``."""
    edges = iter(flat)
    return [((q0, q1), (k0, k1)) for q0, q1, k0, k1 in zip(edges, edges, edges, edges, strict=True)]


def rows_with_equal_keys(
    ranges: Sequence[tuple[Range, Range]], length: int
) -> list[tuple[Range, list[Range]]]:
    """Runs of query rows between the ranges' edges, each with its key ranges; runs without keys left out."""
    edges = sorted({edge for (start, stop), _ in ranges for edge in (start, stop)} | {0, length})
    runs = []
    for start, stop in pairwise(edges):
        keys = sorted(k for (q0, q1), k in ranges if q0 <= start and stop <= q1 and k[0] < k[1])
        joined: list[Range] = []
        for first, last in keys:
            if joined and joined[-1][1] == first:
                joined[-1] = (joined[-1][0], last)
            else:
                joined.append((first, last))
        if joined:
            runs.append(((start, stop), joined))
    return runs


@lru_cache(maxsize=8)  # made of sizes alone, and asked for by every layer: 3 ms at 32 frames
def plan(flat: tuple[int, ...], length: int) -> Plan:
    """The dense calls for ``length`` query rows and flattened ranges."""
    runs = rows_with_equal_keys(pairs(flat), length)
    scattered = [keys for _, keys in runs if len(keys) > 1]
    edges = sorted({edge for keys in scattered for piece in keys for edge in piece})
    capacity = max((_size(keys) for keys in scattered), default=0)
    steps, places = [], {}
    for queries, keys in runs:
        if len(keys) == 1:
            steps.append(Step(queries, keys[0], False, ()))
            continue
        wanted = [
            (start, stop) for start, stop in pairwise(edges) if any(a <= start and stop <= b for a, b in keys)
        ]
        moved = _moved_on(places, wanted, capacity) or _laid_out(wanted)
        copies = tuple(Copy(part, at) for part, at in moved.items() if places.get(part) != at)
        steps.append(Step(queries, _span(moved, wanted), True, _joined(copies)))
        places = moved
    covered = sum(stop - start for (start, stop), _ in runs)
    return Plan(tuple(steps), capacity, covered == length)


def _moved_on(places: dict[Range, int], wanted: list[Range], capacity: int) -> dict[Range, int] | None:
    """What the buffer holds after a move that keeps most of it, or None where ``wanted`` would not lie together."""
    stale = {part: at for part, at in places.items() if part not in wanted}
    moved, end = dict(places), max((at + _size([part]) for part, at in places.items()), default=0)
    for part in wanted:
        if part in moved:
            continue
        left = next((old for old in stale if _size([old]) == _size([part])), None)
        if left is not None:
            moved[part] = stale.pop(left)
            del moved[left]
        elif end + _size([part]) <= capacity:
            moved[part], end = end, end + _size([part])
        else:
            return None
    start, stop = _span(moved, wanted)
    return moved if stop - start == _size(wanted) else None


def _laid_out(wanted: list[Range]) -> dict[Range, int]:
    places, at = {}, 0
    for part in wanted:
        places[part], at = at, at + _size([part])
    return places


def _span(places: dict[Range, int], parts: list[Range]) -> Range:
    return min(places[part] for part in parts), max(places[part] + _size([part]) for part in parts)


def _joined(copies: tuple[Copy, ...]) -> tuple[Copy, ...]:
    """Copies of neighbours to neighbouring places as one."""
    joined: list[Copy] = []
    for (start, stop), at in copies:
        if joined and joined[-1].rows[1] == start and joined[-1].at + _size([joined[-1].rows]) == at:
            joined[-1] = Copy((joined[-1].rows[0], stop), joined[-1].at)
        else:
            joined.append(Copy((start, stop), at))
    return tuple(joined)


def _size(parts: Sequence[Range]) -> int:
    return sum(stop - start for start, stop in parts)
