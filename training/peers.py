"""Processes that train one network together, each on its own share of a batch.

On a machine that is shared with other work, several processes of one thread do more than one of several: its
threads would wait for each other at every operation, these wait once a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Peers:
    """This process's place among those that train together."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, rank: int, count: int, meeting: Path) -> Peers:
        """Wait for all ``count`` at the file ``meeting``, which must not exist before."""
        if count > 1:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
        return cls(rank, count)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all peers."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def owns(self, number: int) -> bool:
        """Whether the work of this number is this process's."""
        return number % self.count == self.rank


ALONE = Peers()
