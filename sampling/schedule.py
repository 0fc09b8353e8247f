"""Noise levels: the shifted flow schedule, and the signal table of the super-resolution stage."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SamplingError

SHIFT = 5.0
TRAIN_TIMESTEPS = 1000
# 1 - 1/1000 as float32 stores it: what the published schedule starts from.
SIGMA_MAX = float(torch.tensor(1.0 - 1.0 / TRAIN_TIMESTEPS, dtype=torch.float32))


def flow_sigmas(steps: int, shift: float = SHIFT) -> Tensor:
    """[steps + 1] float32 noise levels from 0.9998 (at shift 5) to 0.

    s*u/(1 + (s-1)*u) for u = sigma_max*(1 - k/steps), evaluated in float64.
    """
    return torch.cat([_shifted(steps, shift), torch.zeros(1, dtype=torch.float64)]).float()


def timesteps(steps: int, shift: float = SHIFT) -> Tensor:
    """[steps] integers: 1000*sigma without its fraction."""
    return (TRAIN_TIMESTEPS * _shifted(steps, shift)).long()


def _shifted(steps: int, shift: float) -> Tensor:
    if steps < 1:
        raise SamplingError(f"{steps} steps cannot be sampled; ask for 1 or more (8 distilled, 32 base).")
    if not shift > 0:
        raise SamplingError(f"A shift of {shift:g} is not a schedule; the published one is {SHIFT:g}.")
    u = SIGMA_MAX * (1 - torch.arange(steps, dtype=torch.float64) / steps)
    return shift * u / (1 + (shift - 1) * u)


def zero_terminal_snr() -> Tensor:
    """[1000] float32 signal coefficients, entry 0 nearly clean and entry 999 pure noise.

    The scaled-linear DDPM table, its square-rooted cumulative product moved and stretched so that it
    ends at exactly zero (Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed").
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    signal = torch.cumprod(1 - betas, 0).sqrt().float()
    return (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
