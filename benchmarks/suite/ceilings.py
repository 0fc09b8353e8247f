"""What this card reaches today in the three things all else is made of: a large product, attention, a copy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .measure import Case, Clock

MOST = 40  # calls of each


class Ceilings(NamedTuple):
    """FLOP/s of a bf16 product, of an FP8 product (None without), of bf16 attention, and bytes/s of a copy."""

    product: float
    fp8: float | None
    attention: float
    copy: float


def measure_ceilings(clock: Clock, *, tiny: bool) -> Ceilings:
    side, tokens, nbytes = (64, 64, 1 << 16) if tiny else (8192, 16384, 1 << 30)
    return Ceilings(
        2 * side**3 / _fastest(clock, [_product(side, clock.device)]),
        _rate(2 * side**3, _fp8_seconds(clock, side)),
        4 * tokens**2 * 40 * 128 / _fastest(clock, _attention(tokens, clock.device)),
        2 * nbytes / _fastest(clock, [_copy(nbytes, clock.device)]),
    )


def _fastest(clock: Clock, cases: list[Case]) -> float:
    """Median seconds of the fastest case."""
    found = clock.compare(cases, budget=2.0, most=MOST, least=3)
    medians = [timing.median for timing in found.values() if timing.median is not None]
    if not medians:
        raise RuntimeError(f"{cases[0].name} cannot be measured: {next(iter(found.values())).note}")
    return min(medians)


def _product(side: int, device: torch.device) -> Case:
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return Case("product", lambda _: a @ b)


def _fp8_seconds(clock: Clock, side: int) -> float | None:
    if not clock.is_cuda or torch.cuda.get_device_capability(clock.device) < (8, 9):
        return None
    a, b = (torch.randn(side, side, device=clock.device).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=clock.device)

    def run(_):
        return torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    return clock.compare([Case("fp8 product", run)], budget=2.0, most=MOST)["fp8 product"].median


def _rate(work: float, seconds: float | None) -> float | None:
    return None if seconds is None else work / seconds


def _attention(tokens: int, device: torch.device) -> list[Case]:
    q, k, v = (
        torch.randn(1, heads, tokens, 128, device=device, dtype=torch.bfloat16) for heads in (40, 8, 8)
    )

    def by(backend: SDPBackend) -> Case:
        def run(_):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

        return Case(backend.name, run, lambda: sdpa_kernel(backend))

    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
    return [by(backend) for backend in (backends if device.type == "cuda" else [SDPBackend.MATH])]


def _copy(nbytes: int, device: torch.device) -> Case:
    source = torch.randint(256, (nbytes,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return Case("copy", lambda _: target.copy_(source))
