"""Operations whose fastest way depends on the card: an order for each, as data, and one line on what runs.

Orders rest on what others have published until the benchmark has measured them; each row says on what.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SamplingError
from .registry import DEFINITION, Op, _forced

logger = logging.getLogger(__name__)
Capability = tuple[int, int]
ANY = ((0, 0), (99, 0))  # (first, last) of a Preference
LAST = "efficient"  # a way that is taken for want of a better one, with a warning


class Preference(NamedTuple):
    """The order for cards from ``first`` up to, not with, ``last``; on one system, or on any (None)."""

    first: Capability
    last: Capability
    system: str | None
    order: tuple[str, ...]
    source: str


def has_card(q: Tensor) -> bool:
    """Whether q lies on an NVIDIA card that can be asked: fake tensors only say so, and AMD's go by the same name."""
    return q.is_cuda and torch.cuda.is_available() and torch.version.hip is None


def capability(q: Tensor) -> Capability:
    """Of the card that q lies on."""
    return torch.cuda.get_device_capability(q.device)


def preferred(rows: Sequence[Preference], least: Capability, system: str) -> Preference:
    """The row for a card, and ``system`` as in sys.platform."""
    return next(row for row in rows if row.first <= least < row.last and row.system in (None, system))


class Preferred(Op):
    """An operation that asks its ways in the order of the card, and says once what runs and what that loses.

    Its last parameter is ``way``: the name of the one to take, which is an error where it refuses. It is an argument
    and not only ``registry.forced``, because torch.compile cannot trace a context variable being set.
    """

    def __init__(self, definition: Callable, fake: Callable, rows: Sequence[Preference], passes_on: bool):
        super().__init__(definition, fake)
        self.rows, self.passes_on = rows, passes_on  # ways that it does not know, to an operation inside
        self.parameters = tuple(signature(definition).parameters)

    def asked(self, *args, **kwargs) -> str | None:
        """The way that must be taken: forced, or the argument ``way``; it may be one of an inner operation's."""
        if (name := _forced.get()) in (DEFINITION, *self.ways):
            return name
        return dict(zip(self.parameters, args, strict=False)).get("way", kwargs.get("way"))

    def chosen(self, *args, **kwargs) -> str:
        name, reasons = self.asked(*args, **kwargs), {}
        if name == DEFINITION:
            return DEFINITION
        if name in self.ways:
            if (reason := self.ways[name].refuses(*args, **kwargs)) is not None:
                raise SamplingError(f"{self.__name__} cannot run as {name}: {reason}.")
            return name
        if name is not None and not self.passes_on:
            raise SamplingError(f"{self.__name__} knows no way '{name}'; it has {', '.join(self.ways)}.")
        for way in self.order(args[0]):
            reasons[way] = self.ways[way].refuses(*args, **kwargs)
            if reasons[way] is None:
                if way == LAST:
                    self._warn(way, reasons)
                return way
        if has_card(args[0]):
            self._warn(DEFINITION, reasons)
        return DEFINITION

    def order(self, q: Tensor) -> tuple[str, ...]:
        """The ways that are asked for tensors like q, first to last; those that lose something are not among them."""
        return preferred(self.rows, capability(q), sys.platform).order if has_card(q) else ()

    def _warn(self, name: str, reasons: dict[str, str | None]) -> None:
        why = "; ".join(f"{way}: {reason}" for way, reason in reasons.items() if reason)
        message = f"{self.__name__} runs as {name}, several times slower than the others ({why})."
        if message not in self._said:
            self._said.add(message)
            logger.warning("%s", message)

    def _say(self, name: str, args: tuple) -> None:
        logger.info("%s runs as %s%s", self.__name__, name, _details(name, args[0]))


def by_preference(
    fake: Callable, rows: Sequence[Preference], passes_on: bool = False
) -> Callable[[Callable], Preferred]:
    """``registry.operation`` for an operation whose order of ways depends on the card."""
    return lambda definition: Preferred(definition, fake, rows, passes_on)


def _details(name: str, q: Tensor) -> str:
    if not has_card(q):
        return f" on {q.device.type}"
    card = "sm_{}{}".format(*capability(q))
    if name == "cudnn":
        return f" {torch.backends.cudnn.version()} on {card}"
    current = getattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)
    return f" ({current() or 'FA2'}) on {card}" if name == "flash" else f" on {card}"
