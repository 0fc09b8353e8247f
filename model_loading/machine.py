"""What a plan knows of a machine: memory, the link between card and host, and how fast the card computes.

Rates are what code reaches, not data sheets: about 0.9 of the data sheet for GeForce cards and 0.8 for data-centre
cards in large products, and a third of that in convolutions. Nothing here asks for a device before it is called.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..errors import GeometryError
from ..kernels.registry import find_triton, has_compiler, refuses_capability
from .host_weights import total_memory

GB = 1 << 30  # as cards and memory are sold
GIGA, TERA = 1e9, 1e12
DESKTOP = GB // 2  # of a described card, what the screen and the driver take
PROBE_BYTES, PROBE_SIZE = 128 << 20, 4096  # the link's copy, and the side of the products
LINK_BY_GENERATION = {3: 12 * GIGA, 4: 25 * GIGA, 5: 50 * GIGA}  # bytes per second of 16 lanes, as measured
DEFAULT_LINK = LINK_BY_GENERATION[4]
MAX_GB, MAX_LINK = 4096, 1000


@dataclass(frozen=True, slots=True)
class Rates:
    """Operations per second, a multiplication with its addition as two; ``memory`` in bytes per second.

    ``fp8`` and ``int8`` are None where the card has no such units.
    """

    bf16: float
    fp8: float | None
    int8: float | None
    attention: float
    convolution: float
    memory: float

    @property
    def float32(self) -> float:
        return self.bf16 / 4


@dataclass(frozen=True, slots=True)
class Card:
    """A row of ``CARDS``."""

    name: str
    memory: int  # bytes
    rates: Rates
    link: float  # bytes per second


@dataclass(frozen=True, slots=True)
class Machine:
    """A card and its host. ``measured`` says that link or rates were measured, not looked up.

    Without Triton the operations between products run as their definitions, which take more memory and time.
    """

    name: str
    vram_total: int
    vram_free: int
    ram_total: int
    ram_free: int
    link: float
    rates: Rates
    measured: bool = False
    has_triton: bool = True


def _card(name: str, memory: int, bf16, fp8, int8, convolution, bandwidth, link) -> Card:
    rates = Rates(
        bf16 * TERA,
        fp8 and fp8 * TERA,
        int8 and int8 * TERA,
        bf16 * TERA,
        convolution * TERA,
        bandwidth * GIGA,
    )
    return Card(name, memory * GB, rates, link * GIGA)


# Memory in GB, TFLOP/s in bf16, FP8, INT8 and convolutions, GB/s of memory and link.
CARDS = (
    _card("H200", 141, 790, 1200, 1200, 400, 4300, 50),
    _card("H100", 80, 740, 1150, 1150, 380, 3000, 50),
    _card("A100", 80, 250, None, 450, 120, 1800, 25),
    _card("RTX PRO 6000", 96, 360, 620, 1000, 130, 1600, 50),
    _card("L40S", 48, 165, 300, 500, 65, 780, 25),
    _card("RTX 5090", 32, 200, 330, 560, 80, 1600, 50),
    _card("RTX 5080", 16, 105, 180, 300, 42, 860, 50),
    _card("RTX 5070 Ti", 16, 82, 140, 240, 33, 800, 50),
    _card("RTX 5070", 12, 57, 100, 170, 23, 600, 50),
    _card("RTX 5060 Ti", 16, 44, 76, 125, 17, 400, 25),
    _card("RTX 4090", 24, 150, 270, 450, 60, 900, 25),
    _card("RTX 4080", 16, 90, 160, 270, 36, 640, 25),
    _card("RTX 4070 Ti", 12, 74, 130, 220, 30, 450, 25),
    _card("RTX 4070", 12, 54, 95, 160, 21, 450, 25),
    _card("RTX 4060 Ti", 16, 40, 72, 120, 16, 260, 12.5),
    _card("RTX 4060", 8, 28, 50, 84, 11, 245, 12.5),
    _card("RTX A6000", 48, 110, None, 230, 40, 690, 25),
    _card("RTX 3090", 24, 62, None, 190, 30, 840, 25),
    _card("RTX 3080", 10, 54, None, 160, 24, 680, 25),
    _card("RTX 3060", 12, 23, None, 70, 10, 320, 25),
)
# What a card of that much memory is most likely to be, where only its memory is known.
COMMON = {8: "RTX 4060", 12: "RTX 3060", 16: "RTX 4060 Ti", 24: "RTX 4090", 32: "RTX 5090", 80: "H100"}
# What one multiprocessor does in a GHz, of the two numbers CUDA tells about every card, in TFLOP/s of bf16.
PER_UNIT_AND_GHZ = {(7, 5): 0.4, (8, 0): 1.6, (8, 6): 0.42, (8, 9): 0.47, (9, 0): 3.1, (12, 0): 0.47}
OLDEST_WITH_FP8 = (8, 9)


def card_named(name: str) -> Card | None:
    """The row whose name is in ``name``, the longest that fits."""
    found = [card for card in CARDS if re.search(rf"\b{re.escape(card.name)}\b", name, re.IGNORECASE)]
    return max(found, key=lambda card: len(card.name), default=None)


def card_of_memory(gigabytes: float) -> Card:
    """A card that has about this much memory."""
    size = min(COMMON, key=lambda size: (abs(size - gigabytes), size))
    return card_named(COMMON[size])


def described_machine(
    gpu_memory: float,
    *,
    card: str | None = None,
    ram: float | None = None,
    link: float | None = None,
    has_triton: bool = True,
) -> Machine:
    """A machine by its numbers: memory in GB, ``link`` in 10^9 bytes per second; None is this host's or usual.

    Raises GeometryError for numbers that are no machine's.
    """
    _within("the card's memory", gpu_memory, MAX_GB, "GB")
    if ram is not None:
        _within("the host's memory", ram, MAX_GB, "GB")
    if link is not None:
        _within("the link", link, MAX_LINK, "GB/s")
    row = card_named(card) if card else card_of_memory(gpu_memory)
    if row is None:
        raise GeometryError(
            f"There is no card '{card}' in the table; there are {', '.join(c.name for c in CARDS)}."
        )
    total = round(gpu_memory * GB)
    ram_total, ram_free = (total_memory(), free_memory()) if ram is None else (round(ram * GB),) * 2
    name = row.name if card else f"{gpu_memory:g} GB card, as fast as an {row.name}"
    return Machine(
        name,
        total,
        max(0, total - DESKTOP),
        ram_total,
        ram_free if ram is None else max(0, ram_free - 4 * GB),  # for the system and the browser
        row.link if link is None else link * GIGA,
        row.rates,
        has_triton=has_triton,
    )


def this_machine(device: torch.device | str = "cuda") -> Machine | None:
    """The machine with this card, its link measured; None where there is no CUDA."""
    if not torch.cuda.is_available():
        return None
    device = torch.device(device)
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    row = card_named(properties.name)
    rates = row.rates if row else measured_rates(device, properties)
    return Machine(
        properties.name,
        total,
        free,
        total_memory(),
        free_memory(),
        measured_link(device),
        rates,
        measured=True,
        has_triton=runs_triton(device),
    )


def runs_triton(device: torch.device) -> bool:
    """Whether the operations between products run as kernels of their own."""
    return bool(find_triton() and has_compiler() and refuses_capability(device, fp8=False) is None)


def measured_link(device: torch.device) -> float:
    """Bytes per second from page-locked host memory; the table's where nothing can be locked."""
    try:
        source = torch.empty(PROBE_BYTES, dtype=torch.uint8, pin_memory=True)
        target = torch.empty(PROBE_BYTES, dtype=torch.uint8, device=device)
        seconds = best_seconds(lambda: target.copy_(source, non_blocking=True), device)
    except RuntimeError:  # out of memory is one of these, and what a card that is in use says
        return DEFAULT_LINK
    return PROBE_BYTES / seconds


def measured_rates(device: torch.device, properties=None, size: int = PROBE_SIZE) -> Rates:
    """Rates of a card that the table does not have, in well under a second; by its units where that fails."""
    try:
        a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
        product = 2 * size**3 / best_seconds(lambda: a @ a, device)
        q = torch.randn(1, 8, size, 128, dtype=torch.bfloat16, device=device)
        attend = torch.nn.functional.scaled_dot_product_attention
        attention = 4 * 8 * size**2 * 128 / best_seconds(lambda: attend(q, q, q), device)
        other = torch.empty_like(a)
        memory = 2 * a.numel() * a.element_size() / best_seconds(lambda: other.copy_(a), device)
    except RuntimeError:
        return rates_by_units(properties)
    capability = (properties.major, properties.minor) if properties is not None else (0, 0)
    fp8 = 1.7 * product if capability >= OLDEST_WITH_FP8 else None
    int8 = 2.5 * product if capability >= (7, 5) else None
    return Rates(product, fp8, int8, attention, product * 0.4, memory)


def rates_by_units(properties) -> Rates:
    """An estimate from the number of multiprocessors and the clock."""
    capability = (properties.major, properties.minor)
    known = max((row for row in PER_UNIT_AND_GHZ if row <= capability), default=min(PER_UNIT_AND_GHZ))
    clock = getattr(properties, "clock_rate", 1_700_000) / 1e6  # kHz to GHz
    bf16 = PER_UNIT_AND_GHZ[known] * properties.multi_processor_count * clock * TERA
    fp8 = 1.7 * bf16 if capability >= OLDEST_WITH_FP8 else None
    return Rates(bf16, fp8, 2.5 * bf16, bf16, bf16 * 0.4, bf16 / 150)


def best_seconds(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """The shortest of some runs after one that does not count."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return max(min(times[1:]), 1e-9)


def free_memory() -> int:
    """Bytes of memory that programs can still have."""
    if os.name == "nt":
        import ctypes

        # MEMORYSTATUSEX: its own length and the load in percent, then sizes; the second is what is free.
        status = (ctypes.c_uint64 * 8)()
        status[0] = ctypes.sizeof(status)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status[2])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return total_memory() // 2  # macOS tells it to no file


def with_memory(machine: Machine, vram_free: int) -> Machine:
    """The same machine with so many bytes free on the card."""
    return replace(machine, vram_free=vram_free, vram_total=max(machine.vram_total, vram_free))


def _within(what: str, number: float, most: float, unit: str) -> None:
    if not 0 < number <= most:  # NaN is not
        raise GeometryError(
            f"{number:g} {unit} for {what} is no machine's; give more than 0 and at most {most}."
        )
