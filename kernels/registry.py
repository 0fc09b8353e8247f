"""An operation: its plain definition, and faster ways to run it that may refuse but not differ.

To torch each is one ``custom_op`` of the library "happyhorse" with a fake implementation, so that ``torch.compile`` and
fake tensors pass through it. The first way that does not refuse runs, else the definition; a way that fails raises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import update_wrapper
from typing import NamedTuple

import torch

from ..errors import SamplingError

logger = logging.getLogger(__name__)
DEFINITION = "definition"
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
        self._op = torch.library.custom_op(
            f"happyhorse::{definition.__name__}",
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
            logger.debug("%s runs as %s", self.__name__, name)
        return (self.definition if name == DEFINITION else self.ways[name].run)(*args)


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
