"""All tables of one run, what they share, and their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .ceilings import Ceilings
from .measure import Clock
from .network import Networks, Scale

Row = dict[str, Any]
Rows = list[Row]
Say = Callable[[str], None]


@dataclass(slots=True)
class Run:
    """One run of the benchmark."""

    clock: Clock
    sizes: Scale
    networks: Networks
    ceilings: Ceilings
    is_quick: bool
    say: Say
    tables: dict[str, Rows] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.clock.device

    @property
    def clips(self) -> tuple[str, ...]:
        """Stages that are measured: a quick run leaves the largest out."""
        return ("256p", "540p") if self.is_quick else ("256p", "540p", "1080p")

    def budget(self, seconds: float) -> float:
        """Of one comparison."""
        return seconds / 500 if self.sizes.is_tiny else seconds / 4 if self.is_quick else seconds
