"""One start of a Triton kernel as a value: what runs, on how many programs, with which arguments and constants.

Each kernel's file has a function that plans its launch; the operation runs the plan, and a test without a GPU
compiles exactly what it says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Launch:
    """``arguments`` and ``constants`` by the kernel's own names; ``warps`` of 32 threads in each program."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | int | float]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 2
    options: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Start it on the device of its first tensor, whichever device is the current one."""
        if 0 in self.grid:
            return
        first = next(value for value in self.arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(first):
            self.kernel[self.grid](
                **self.arguments,
                **self.constants,
                num_warps=self.warps,
                num_stages=self.stages,
                **self.options,
            )


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below ``size``."""
    return 1 << max(size - 1, 0).bit_length()


def alignment(*sizes: int) -> int:
    """The largest power of two up to 16 that divides every size.

    Triton itself sees only multiples of 16. Rows of 7208 and of 27304 are multiples of 8: a kernel is given how many
    eights, and multiplies by the constant, or it would read them entry by entry.
    """
    return gcd(16, *sizes)
