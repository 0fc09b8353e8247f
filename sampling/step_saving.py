"""Passes that are not computed: where a velocity has hardly changed since it was computed, that one is taken again.

How far the velocity has moved is foretold from how far the latents have moved, both relative to their size, with the
ratio that the last two computed passes showed (as in EasyCache, arXiv 2507.02860). The network is neither asked nor
entered. Each guidance branch keeps a velocity of its own, so that a step's own guidance scale applies to it; all
branches of a step are computed or none, because guidance would multiply what sets them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SamplingError
from .streams import Streams

FIRST, LAST = 4, 2  # steps that are always computed: the plan of the film, and its finest detail
IN_A_ROW = 3  # steps at most that take the same velocity
FEWEST_STEPS = 16  # with fewer, neighbours are too far apart


class Saved(NamedTuple):
    """What came of it. Errors are estimates, relative to the velocity, of each branch before guidance."""

    computed: int
    reused: int
    largest: float  # error of any one velocity that was taken again
    error: float  # accumulated: errors of all steps, each weighted by its share of the way from noise to film

    def __str__(self) -> str:
        if not self.reused:
            return f"Step saving: all {self.computed} steps were computed; a larger threshold saves some."
        return (
            f"Step saving: {self.computed} steps computed, {self.reused} reused; estimated relative error "
            f"{self.error:.2%}, {self.largest:.2%} at most in one step, before guidance."
        )


def check_step_saving(threshold: float, name: str, steps: int, saves_steps: bool) -> None:
    """Raise SamplingError for a threshold that is none, and for a preset or so few steps that leave nothing to save."""
    if not 0 <= threshold <= 1:
        raise SamplingError(
            f"A step-saving threshold of {threshold:g} is not a relative error; use 0 (off) to 1, such as 0.1."
        )
    if threshold and not saves_steps:
        raise SamplingError(
            f"Step saving is for the base model, whose 32 steps are much alike. The {name} model takes few ({steps} "
            "here), each unlike the one before: none can be left out. Set step saving to 0."
        )
    if threshold and steps < FEWEST_STEPS:
        raise SamplingError(
            f"Step saving needs {FEWEST_STEPS} steps or more, and this run has {steps}, which are too far apart to "
            "stand for each other. Use 32 steps, or set step saving to 0."
        )


class StepSaver:
    """The memory of one run over ``sigmas`` (n + 1 levels, falling): decides at each level, for all branches at once.

    ``threshold``: the largest relative error of a velocity, by its estimate, that is accepted.
    """

    def __init__(self, threshold: float, sigmas: Sequence[float]):
        self.threshold, self.sigmas = threshold, [float(sigma) for sigma in sigmas]
        self._branches: dict[Hashable, _Branch] = {}
        self._sigma = math.nan  # that the last decision was made for
        self._is_reused = False
        self._in_a_row = 0
        self._computed = 0
        self._errors: list[tuple[float, float]] = []  # (error, share of the way) of each reused step

    @property
    def saved(self) -> Saved:
        """Until now."""
        errors = [error for error, _ in self._errors]
        whole = sum(error * share for error, share in self._errors)
        return Saved(self._computed, len(errors), max(errors, default=0.0), whole)

    def __call__(
        self, sigma: float, inputs: Mapping[Hashable, Streams], compute: Callable[[], Sequence[Streams]]
    ) -> list[Streams]:
        """Velocities for ``inputs`` {branch: latents [B, ...]} at a level: remembered ones, or ``compute()``'s.

        A level's branches may come in one call or in several.
        """
        found = self.recall(sigma, inputs)
        if found is None:
            found = list(compute())
            self.keep(inputs, found)
        return found

    def recall(self, sigma: float, inputs: Mapping[Hashable, Streams]) -> list[Streams] | None:
        """The first half of a call: None where the velocities are to be computed, and then given to ``keep``."""
        if sigma != self._sigma:
            self._decide(sigma, inputs)
        if self._is_reused and all(self._has(branch, x) for branch, x in inputs.items()):
            return [self._branches[branch].velocity for branch in inputs]
        return None

    def keep(self, inputs: Mapping[Hashable, Streams], velocities: Sequence[Streams]) -> None:
        """The second half: what was computed for ``inputs``."""
        for (branch, x), velocity in zip(inputs.items(), velocities, strict=True):
            before = self._branches[branch] if self._has(branch, x) else None
            self._branches[branch] = _Branch.after(before, x, velocity)

    def _has(self, branch: Hashable, x: Streams) -> bool:
        kept = self._branches.get(branch)
        return kept is not None and _shapes(kept.x) == _shapes(x)

    def _decide(self, sigma: float, inputs: Mapping[Hashable, Streams]) -> None:
        steps = len(self.sigmas) - 1
        # A level between two steps counts as the later one: samplers of higher order ask there.
        step = sum(level > sigma for level in self.sigmas)
        x = next(iter(inputs.values()))  # the latents of a step are the same in every branch
        error = max((kept.error_at(x) for kept in self._branches.values()), default=math.inf)
        self._is_reused = (
            FIRST <= step < steps - LAST and self._in_a_row < IN_A_ROW and error <= self.threshold
        )
        if self._is_reused:
            below = max((level for level in self.sigmas if level < sigma), default=0.0)
            self._errors.append((error, (sigma - below) / (self.sigmas[0] - self.sigmas[-1])))
            self._in_a_row += 1
        else:
            self._computed += 1
            self._in_a_row = 0
        self._sigma = sigma


class _Branch(NamedTuple):
    """The last computed pass of a guidance branch."""

    x: Streams
    velocity: Streams
    rate: float | None  # relative change of the velocity for each of the latents; None after the first pass

    @classmethod
    def after(cls, before: _Branch | None, x: Streams, velocity: Streams) -> _Branch:
        # Copies: a host may write into what it lent.
        x, velocity = (Streams(*(part.clone() for part in streams)) for streams in (x, velocity))
        if before is None:
            return cls(x, velocity, None)
        moved, changed = _change(x, before.x), _change(velocity, before.velocity)
        if moved:
            return cls(x, velocity, changed / moved)
        return cls(x, velocity, math.inf if changed else 0.0)

    def error_at(self, x: Streams) -> float:
        """The relative error of taking the velocity again for these latents."""
        if self.rate is None or _shapes(x) != _shapes(self.x):
            return math.inf
        moved = _change(x, self.x)
        return self.rate * moved if moved else 0.0


def _change(new: Streams, old: Streams) -> float:
    """|new - old| / |old|, of the stream and the sample [B, ...] where it is largest."""
    return torch.stack([_relative(*pair) for pair in zip(new, old, strict=True)]).max().item()


def _relative(new: Tensor, old: Tensor) -> Tensor:
    change, size = ((part.float().flatten(1).norm(dim=1)) for part in (new - old, old))
    return (change / size.clamp_min(torch.finfo(size.dtype).tiny)).max()


def _shapes(streams: Streams) -> tuple[torch.Size, ...]:
    return tuple(part.shape for part in streams)
