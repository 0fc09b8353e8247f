"""Times cases side by side: the same process, forth and back, outputs poisoned, and the kernels that really ran.

Cases are visited A B C, C B A, A B C, so that a warming card favours none. Before every call the memory its result
will get holds NaN: what a kernel forgot to write is found. On CUDA events are read; elsewhere the clock, and those
figures mean nothing.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import HappyHorseError

PROFILED = 0.5  # seconds: what takes longer is made of parts whose kernels are in other tables
AHEAD = 300_000  # cycles the card waits so that a short kernel is queued whole before its first event


@dataclass(frozen=True, slots=True)
class Case:
    """One way to do the work: ``run(number)`` with the number of the call, by which inputs can take turns."""

    name: str
    run: Callable[[int], Any]
    setting: Callable[[], AbstractContextManager] = nullcontext  # entered around every call
    is_optional: bool = False  # a library that may not be there or not take it: its error is a refusal


@dataclass(slots=True)
class Timing:
    """What was found of one case; ``note`` says why there is nothing."""

    cold: float | None = None  # seconds of the first call, with what it compiles and plans
    seconds: list[float] = field(default_factory=list)
    working: float | None = None  # GB allocated at most, beyond what was there before
    kernels: dict[str, int] = field(default_factory=dict)
    result: Any = None  # of the last call
    lost: int = 0  # numbers of it that are none
    note: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    def share(self, part: float) -> float | None:
        """The given quantile of the seconds."""
        ordered = sorted(self.seconds)
        return ordered[min(int(part * len(ordered)), len(ordered) - 1)] if ordered else None


class Clock:
    """Measures on one device until the time it was given is over."""

    def __init__(self, device: torch.device, minutes: float):
        self.device, self.is_cuda = device, device.type == "cuda"
        self.ends = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def compare(
        self, cases: Sequence[Case], *, budget: float, most: int = 100, least: int = 2, short: bool = False
    ) -> dict[str, Timing]:
        """Visits every case at least ``least`` and at most ``most`` times, about ``budget`` seconds in all.

        ``short``: kernels so short that the card is made to wait for the queue.
        """
        found = {case.name: self._first(case, short) for case in cases}
        cases = [case for case in cases if found[case.name].note is None]
        once = sum(found[case.name].seconds[0] for case in cases)
        visits = max(least, min(most, int(min(budget, self.left()) / max(once, 1e-9))))
        for number in range(1, visits if cases else 0):
            for case in cases if number % 2 == 0 else cases[::-1]:
                self._guarded(case, found[case.name], number, short)
        for case in cases:
            self._after(case, found[case.name])
        return found

    def time_once(self, case: Case) -> Timing:
        """One call without a warm-up of its own, for what takes many seconds."""
        timing = Timing()
        before = self._reset_peak()
        self._guarded(case, timing, 0, short=False)
        timing.working = self._working(before)
        timing.lost = count_lost(timing.result)
        return timing

    def synchronise(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def _first(self, case: Case, short: bool) -> Timing:
        """Cold, then warm, which is the first figure that counts."""
        timing = Timing()
        if self.left() <= 0:
            timing.note = "not measured: the time was over"
            return timing
        before = self._reset_peak()
        started = time.perf_counter()
        self._guarded(case, timing, 0, short=False)
        self.synchronise()
        timing.cold = time.perf_counter() - started
        if timing.note is None:
            timing.seconds.clear()
            self._guarded(case, timing, 0, short)
        timing.working = self._working(before)
        return timing

    def _guarded(self, case: Case, timing: Timing, number: int, short: bool) -> None:
        """A refusal or a failure is a note of the row; the others go on."""
        try:
            self._poison(timing.result)
            timing.result = None
            with torch.inference_mode(), case.setting():
                timing.seconds.append(self._timed(case, timing, number, short))
        except torch.OutOfMemoryError:
            timing.note = "does not fit"
        except HappyHorseError as error:
            timing.note = f"refused: {error}"
        except Exception as error:  # a benchmark that nobody watches goes on and says what failed
            words = (str(error).strip().splitlines() or [""])[0]
            timing.note = f"{'refused' if case.is_optional else 'failed'}: {type(error).__name__}: {words}"
        if timing.note is not None:
            timing.seconds.clear()
            timing.result = None

    def _timed(self, case: Case, timing: Timing, number: int, short: bool) -> float:
        if not self.is_cuda:
            started = time.perf_counter()
            timing.result = case.run(number)
            return time.perf_counter() - started
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if short:
            torch.cuda._sleep(AHEAD)
        first.record()
        timing.result = case.run(number)
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    def _poison(self, like: Any) -> None:
        """Fills memory of the results' sizes with NaN and frees it: the allocator gives the same to the next call."""
        for part in tensors(like):
            if part.is_floating_point():
                torch.empty(
                    part.shape,
                    dtype=torch.uint8 if part.element_size() == 1 else part.dtype,
                    device=part.device,
                ).fill_(0xFF if part.element_size() == 1 else float("nan"))

    def _after(self, case: Case, timing: Timing) -> None:
        timing.lost = count_lost(timing.result)
        if not self.is_cuda or timing.note is not None or timing.median > PROFILED:
            return
        try:
            timing.kernels = self._kernels(case)
        except RuntimeError as error:  # where CUPTI is not allowed: the figures stand without it
            timing.kernels = {f"the profiler failed: {error}": 0}

    def _kernels(self, case: Case) -> dict[str, int]:
        """What ran on the card in one call, without copies; the calls that started it are listed beside it."""
        from torch.profiler import ProfilerActivity, profile

        with torch.inference_mode(), case.setting(), profile(activities=[ProfilerActivity.CUDA]) as seen:
            case.run(0)
            self.synchronise()
        ran = (event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA)
        return dict(Counter(event.name for event in ran if not event.name.startswith(("Memcpy", "Memset"))))

    def _reset_peak(self) -> int:
        """Bytes that are allocated now."""
        if not self.is_cuda:
            return 0
        self.synchronise()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def _working(self, before: int) -> float | None:
        return (torch.cuda.max_memory_allocated(self.device) - before) / 1e9 if self.is_cuda else None


def tensors(result: Any) -> list[Tensor]:
    """The tensors of a result: one, or a tuple of them."""
    if isinstance(result, Tensor):
        return [result]
    return [part for part in result if isinstance(part, Tensor)] if isinstance(result, tuple | list) else []


def count_lost(result: Any) -> int:
    """Entries that are not numbers."""
    return sum(
        int((~torch.isfinite(part.float())).sum()) for part in tensors(result) if part.is_floating_point()
    )


def error_of(found: Tensor, wanted: Tensor) -> float:
    """Relative Frobenius distance to a float64 reference; infinite where numbers are lost."""
    if found.shape != wanted.shape or not torch.isfinite(found.float()).all():
        return float("inf")
    return float((found.double() - wanted).norm() / wanted.norm())


def row_of(timing: Timing, baseline: Timing | None, **facts: Any) -> dict[str, Any]:
    """One line of a table: raw figures with the units in their names."""
    median = timing.median
    row = dict(facts)
    row |= {
        "ms": None if median is None else 1e3 * median,
        "p10": None if median is None else 1e3 * timing.share(0.1),
        "p90": None if median is None else 1e3 * timing.share(0.9),
        "n": len(timing.seconds),
        "times faster": baseline.median / median if baseline and median and baseline.median else None,
        "cold s": timing.cold,
        "working GB": timing.working,
        "NaN": timing.lost,
        "launches": sum(timing.kernels.values()) or None,
        "kernels": [name for name, _ in Counter(timing.kernels).most_common(4)],
        "note": timing.note,
    }
    return row
