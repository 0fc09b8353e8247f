"""Sizes read off a weight file's tensors, with the tensor's name in every complaint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from ..errors import CheckpointError


class TensorShapes:
    """The shapes of one network's tensors by name; a name that is not there is a CheckpointError."""

    def __init__(self, network: str, shapes: Mapping[str, Sequence[int]]):
        self.network = network
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}

    def __getitem__(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise CheckpointError(
                f"The file is not a whole {self.network}: it has no tensor '{name}' "
                f"among its {len(self._shapes)}. Use the original file, or download it again."
            )
        return self._shapes[name]

    def channels(self, name: str, rank: int) -> tuple[int, int]:
        """The first two sizes of a weight of ``rank`` dimensions."""
        shape = self[name]
        if len(shape) != rank:
            raise self.wrong(name, f"has {len(shape)} dimensions, not {rank}")
        return shape[0], shape[1]

    def has(self, prefix: str) -> bool:
        """Whether any tensor lies below ``prefix``."""
        return any(name.startswith(prefix + ".") for name in self._shapes)

    def children(self, prefix: str) -> int:
        """How many numbered modules lie below ``prefix``: the highest number and one."""
        below = (name[len(prefix) + 1 :] for name in self._shapes if name.startswith(prefix + "."))
        numbers = [int(number) for number in (name.partition(".")[0] for name in below) if number.isdecimal()]
        if not numbers:
            raise CheckpointError(f"The file is not a {self.network}: it has no tensors below '{prefix}.'.")
        return max(numbers) + 1

    def wrong(self, name: str, fault: str) -> CheckpointError:
        """The error for a tensor that is there and does not fit."""
        return CheckpointError(
            f"The file is not a {self.network} that can be run: '{name}' of shape {list(self[name])} {fault}."
        )

    def verify(self, build: Callable[[], nn.Module]) -> None:
        """Raise CheckpointError unless each tensor of the network that ``build`` makes is here in its shape."""
        with torch.device("meta"):
            expected = build().state_dict()
        for name, tensor in expected.items():
            if self[name] != tuple(tensor.shape):
                raise self.wrong(name, f"should have the shape {list(tensor.shape)}")
