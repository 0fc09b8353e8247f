"""Ways from noise to signal, given a velocity: Euler, UniPC, re-noising, and a stochastic step.

Flow convention: x = (1 - sigma)*data + sigma*noise, velocity = noise - data, so the denoised prediction is
x - sigma*velocity. A solver takes a callable and never a network; x is a tensor of any shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor]
Pin = Callable[[Tensor], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]  # step, x after it, denoised prediction before it
Advance = Callable[[int, Tensor, Tensor, float, float], Tensor]


def euler(
    velocity: Velocity,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    pin: Pin = lambda x: x,
    on_step: OnStep | None = None,
) -> Tensor:
    """Straight steps along the velocity."""

    def advance(_step, x, denoised, sigma, following):
        return denoised + following / sigma * (x - denoised)

    return _march(velocity, x, sigmas, advance, pin, on_step)


def renoise(
    velocity: Velocity,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    pin: Pin = lambda x: x,
    on_step: OnStep | None = None,
) -> Tensor:
    """x = (1 - sigma')*denoised + sigma'*fresh noise: the distilled model's step.

    Noise is drawn at the last step too, where it counts nothing, so that draws are steps.
    """

    def advance(_step, _x, denoised, _sigma, following):
        return following * noise() + (1 - following) * denoised

    return _march(velocity, x, sigmas, advance, pin, on_step)


def sde(
    velocity: Velocity,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    angles: Sequence[float] | None = None,
    *,
    pin: Pin = lambda x: x,
    on_step: OnStep | None = None,
) -> Tensor:
    """x = (1 - sigma')*denoised + sigma'*(cos(a*pi/2)*predicted noise + sin(a*pi/2)*fresh noise).

    ``angles`` a in [0, 1], one per step; by default ``sde_angles``.
    """
    angles = sde_angles(len(sigmas) - 1) if angles is None else angles

    def advance(step, x, denoised, sigma, following):
        predicted = (x - (1 - sigma) * denoised) / sigma
        angle = angles[step] * math.pi / 2
        return (1 - following) * denoised + following * (
            math.cos(angle) * predicted + math.sin(angle) * noise()
        )

    return _march(velocity, x, sigmas, advance, pin, on_step)


def sde_angles(steps: int) -> list[float]:
    """Fully fresh noise on every second step of the first three quarters, then on every third."""
    early = 3 * steps // 4
    return [float(step % 2 == 1 if step < early else step % 3 == 0) for step in range(steps)]


def unipc(
    velocity: Velocity,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    pin: Pin = lambda x: x,
    on_step: OnStep | None = None,
) -> Tensor:
    """UniPC of order 2 on denoised predictions, with corrector, first order at both ends.

    The "B2(h) = e^h - 1" variant of Zhao et al. 2023 ("UniPC"), arXiv 2302.04867.
    """
    return _march(velocity, x, sigmas, _UniPC(sigmas), pin, on_step)


class _UniPC:
    """The state of one UniPC run: corrected sample and the last predictions with their half log-SNR."""

    def __init__(self, sigmas: Sequence[float]):
        self.steps = len(sigmas) - 1
        self.corrected: Tensor | None = None
        self.sigma = math.nan
        self.order = 0
        self.past: list[tuple[float, Tensor]] = []  # (log-SNR/2, denoised), the newest last, at most two

    def __call__(self, step: int, x: Tensor, denoised: Tensor, sigma: float, following: float) -> Tensor:
        self.corrected = x if step == 0 else self._correct(denoised, sigma)
        self.past = [*self.past[-1:], (_half_log_snr(sigma), denoised)]
        self.sigma = sigma
        self.order = min(2, self.steps - step, step + 1)
        return self._predict(following)

    def _predict(self, following: float) -> Tensor:
        if following == 0:
            return self.past[-1][1]
        here, denoised = self.past[-1]
        h = _half_log_snr(following) - here
        growth = math.expm1(-h)
        out = following / self.sigma * self.corrected - (1 - following) * growth * denoised
        if self.order == 2:
            before, earlier = self.past[-2]
            ratio = (before - here) / h
            out = out - (1 - following) * growth * 0.5 / ratio * (earlier - denoised)
        return out

    def _correct(self, denoised: Tensor, sigma: float) -> Tensor:
        before, previous = self.past[-1]
        h = _half_log_snr(sigma) - before
        growth = math.expm1(-h)
        scale = (1 - sigma) * growth
        base = sigma / self.sigma * self.corrected - scale * previous
        if self.order == 1:
            return base - scale * 0.5 * (denoised - previous)
        long_before, earlier = self.past[-2]
        ratio = (long_before - before) / h
        # The two conditions rho1 + rho2 = b1 and ratio*rho1 + rho2 = b2 of the order-2 corrector.
        first = growth / -h - 1
        b1, b2 = first / growth, 2 * (first / -h - 0.5) / growth
        rho1 = (b2 - b1) / (ratio - 1)
        return base - scale * (rho1 / ratio * (earlier - previous) + (b1 - rho1) * (denoised - previous))


def _half_log_snr(sigma: float) -> float:
    if sigma >= 1:
        return -math.inf
    return math.log(1 - sigma) - math.log(sigma)


def _march(
    velocity: Velocity,
    x: Tensor,
    sigmas: Sequence[float],
    advance: Advance,
    pin: Pin,
    on_step: OnStep | None,
) -> Tensor:
    """What all solvers share. Clean latents are pinned before each step, in what the network sees and in
    what the solver goes on from, and once more at the end."""
    levels = [float(sigma) for sigma in sigmas]
    for step, (sigma, following) in enumerate(pairwise(levels)):
        x = pin(x)
        denoised = x - sigma * velocity(x, sigma)
        x = advance(step, x, denoised, sigma, following)
        if on_step is not None:
            on_step(step, x, denoised)
    return pin(x)
