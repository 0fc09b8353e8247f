"""An operation: its plain definition, and faster ways to run it that may refuse but not differ.

To torch each is one ``custom_op`` of the library "happyhorse" with a fake implementation, so that ``torch.compile`` and
fake tensors pass through it. The first way that does not refuse runs, else the definition; a way that fails raises.
On a card the definition is slow: a warning says once why the faster ways refused.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, update_wrapper
from importlib.util import find_spec
from shutil import which
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SamplingError

logger = logging.getLogger(__name__)
DEFINITION = "definition"
OPERATIONS: dict[str, Op] = {}  # by name, in the order of their files
TRITON_CAPABILITY, FP8_CAPABILITY = (8, 0), (8, 9)
_forced: ContextVar[str | None] = ContextVar("happyhorse_kernel", default=None)


class Way(NamedTuple):
    """A fast way: ``refuses`` gives a reason in words, or None where it can run."""

    run: Callable
    refuses: Callable[..., str | None]
    launches: int  # kernels that it starts


class Op:
    """A function of tensors. Its parameters and result are annotated as ``torch.library.infer_schema`` asks."""

    def __init__(self, definition: Callable, fake: Callable):
        update_wrapper(self, definition)
        self.definition, self.ways = definition, {}
        self._said: set[str] = set()
        OPERATIONS[self.__name__] = self
        self._op = torch.library.custom_op(
            f"happyhorse::{_free_name(definition.__name__)}",
            self._run,
            mutates_args=(),
            schema=torch.library.infer_schema(definition, mutates_args=()),
        )
        self._op.register_fake(fake)

    def fast(self, name: str, refuses: Callable[..., str | None], launches: int = 1) -> Callable:
        """Decorates a faster way to run it; ways are asked in the order they are given."""

        def add(run: Callable) -> Callable:
            self.ways[name] = Way(run, refuses, launches)
            return run

        return add

    def __call__(self, *args, **kwargs):
        return self._op(*args, **kwargs)

    def explain(self, *args, **kwargs) -> dict[str, str | None]:
        """{way: why it refuses these arguments, None for what it takes}"""
        return {name: way.refuses(*args, **kwargs) for name, way in self.ways.items()}

    def chosen(self, *args, **kwargs) -> str:
        """The way that these arguments take, or "definition".

        Raises SamplingError where a way is forced that refuses.
        """
        forced = _forced.get()
        if forced == DEFINITION:
            return DEFINITION
        reasons = self.explain(*args, **kwargs)
        if forced in reasons:
            if reasons[forced] is not None:
                raise SamplingError(f"{self.__name__} cannot run as {forced}: {reasons[forced]}.")
            return forced
        return next((name for name, reason in reasons.items() if reason is None), DEFINITION)

    def _run(self, *args):
        name = self.chosen(*args)
        if name not in self._said:
            self._said.add(name)
            self._say(name, args)
        return (self.definition if name == DEFINITION else self.ways[name].run)(*args)

    def _say(self, name: str, args: tuple) -> None:
        on_card = any(isinstance(arg, Tensor) and arg.is_cuda for arg in args)
        if name != DEFINITION or _forced.get() == DEFINITION or not self.ways or not on_card:
            logger.debug("%s runs as %s", self.__name__, name)
            return
        reasons = "; ".join(f"{way}: {reason}" for way, reason in self.explain(*args).items())
        logger.warning("%s runs as its plain definition, which is slower. %s.", self.__name__, reasons)


def _free_name(name: str) -> str:
    """``name``, or with a number where another copy of the pack has it: torch would take that copy's away."""
    taken, number = name, 1
    while hasattr(torch.ops.happyhorse, taken):
        number += 1
        taken = f"{name}_{number}"
    return taken


def operation(fake: Callable) -> Callable[[Callable], Op]:
    """Decorates a definition; ``fake`` takes the same arguments and returns empty tensors like its results."""
    return lambda definition: Op(definition, fake)


@contextmanager
def forced(name: str | None) -> Iterator[None]:
    """Within it every operation that knows the way ``name`` takes it, or says why it cannot; "definition" for none."""
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def needs_triton(*tensors: Tensor, fp8: bool = False) -> str | None:
    """Why a Triton kernel cannot take these tensors, None where it can; ``fp8``: it reads or writes FP8 e4m3."""
    if find_triton() is None:
        return "Triton is not installed"
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return f"the tensors lie on {', '.join(sorted(map(str, devices)))}, not on one device"
    kinds = {tensor.dtype for tensor in tensors}
    if odd := kinds - {torch.float32, torch.float16, torch.bfloat16}:
        return f"{', '.join(sorted(map(str, odd)))} is not among the dtypes it reads"
    if tensors[0].is_meta:
        return None  # without values it stands for a tensor on a card, and nothing runs
    if not tensors[0].is_cuda:
        is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if is_interpreted else f"{tensors[0].device} is not a CUDA device"
    if not has_compiler():
        return "Triton needs a C compiler, and finds neither gcc nor clang nor one named by CC"
    return refuses_capability(tensors[0].device, fp8)


def refuses_capability(device: torch.device, fp8: bool) -> str | None:
    """Why this card cannot run a Triton kernel; None where it can, or where there is no card to ask."""
    found, wanted = _capability(device), FP8_CAPABILITY if fp8 else TRITON_CAPABILITY
    if found is None or found >= wanted:
        return None
    what = "FP8 in Triton" if fp8 else "Triton"
    return f"{what} needs compute capability {wanted[0]}.{wanted[1]} and this card has {found[0]}.{found[1]}"


@cache
def find_triton():
    """Where Triton would be imported from, None where it is not installed; nothing is imported."""
    return find_spec("triton")


@cache
def has_compiler() -> bool:
    """Whether Triton can build what starts its kernels; on Windows its wheel brings a compiler."""
    return os.name == "nt" or "CC" in os.environ or any(map(which, ("gcc", "clang")))


@cache
def _capability(device: torch.device) -> tuple[int, int] | None:
    if torch.version.hip or not torch.cuda.is_available():  # AMD counts otherwise; fake tensors have no card
        return None
    return torch.cuda.get_device_capability(device)
