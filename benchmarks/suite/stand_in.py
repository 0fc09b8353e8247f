"""A small ``rearrange`` for machines where einops cannot be installed: all that the networks ask of it."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from math import prod
from types import ModuleType

from torch import Tensor


def provide_einops() -> None:
    """Puts the stand-in where einops is missing; nothing where it is there."""
    if "einops" not in sys.modules and find_spec("einops") is None:
        module = ModuleType("einops")
        module.rearrange = rearrange
        sys.modules["einops"] = module


def rearrange(x: Tensor, pattern: str, **sizes: int) -> Tensor:
    """ "b (h p) w -> b h (p w)" and the like: axes by name, groups in brackets, one unknown size a group."""
    left, right = (_groups(side) for side in pattern.split("->"))
    shape = []
    for group, total in zip(left, x.shape, strict=True):
        known = prod(sizes[name] for name in group if name in sizes)
        for name in group:
            sizes.setdefault(name, total // known)
            shape.append(sizes[name])
    names = [name for group in left for name in group]
    moved = x.reshape(shape).permute([names.index(name) for group in right for name in group])
    return moved.reshape([prod(sizes[name] for name in group) for group in right])


def _groups(side: str) -> list[list[str]]:
    return [found.strip("()").split() for found in re.findall(r"\([^)]*\)|\w+", side)]
