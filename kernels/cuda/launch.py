"""One start of a CUDA kernel as a value: which text, with which constants and arguments, on how many blocks.

Each kernel's file has a function that plans its launch; the operation runs the plan, and tests without a GPU compile
exactly its text, for cards and for the CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from . import driver
from .compiler import find_compiler
from .source import HARDWARE, PRELUDE

NAMES = {torch.float32: "float", torch.float16: "fp16", torch.bfloat16: "bf16"}
WIDEST = 16  # bytes that a thread reads or writes at once
Constant = torch.dtype | bool | int


@dataclass(frozen=True, slots=True)
class Kernel:
    """The text of one ``extern "C" __global__`` function of this name."""

    name: str
    body: str


@dataclass(frozen=True, slots=True)
class Launch:
    """``arguments`` and ``constants`` by the kernel's own names, the arguments in its order."""

    kernel: Kernel
    grid: tuple[int, int]
    threads: int
    arguments: dict[str, Tensor | int | float]
    constants: dict[str, Constant]

    def text(self) -> str:
        """The whole of what is compiled."""
        return _text(self.kernel, tuple(self.constants.items()))

    def run(self) -> None:
        """Start it on the device of its first tensor, whichever device is the current one."""
        if 0 in self.grid:
            return
        first = next(value for value in self.arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(first):
            device = first.get_device()
            function = _function(self.kernel, tuple(self.constants.items()), device)
            values = tuple(self.arguments.values())
            driver.start(
                function, self.kernel.name, self.grid, self.threads, values, device, _stream(first.device)
            )


def declared(name: str, value: Constant) -> str:
    """A constant in C++: a dtype becomes a type, a number a constant."""
    if isinstance(value, torch.dtype):
        return f"using {name} = {NAMES[value]};"
    if isinstance(value, bool):
        return f"constexpr bool {name} = {str(value).lower()};"
    return f"constexpr int {name} = {value};"


def entries_at_once(most: int, sizes: Sequence[int], *tensors: tuple[Tensor, int]) -> int:
    """How many entries a thread can take at once, up to ``most``: a power of two.

    It divides every one of ``sizes``. Of each tensor (t, n) n times as many entries are taken at once, so that pointers
    and strides have to be multiples of so many bytes, or of 16: a card does not read across.
    """
    count = most
    while count > 1 and not (
        all(size % count == 0 for size in sizes)
        and all(_is_aligned(tensor, count * times) for tensor, times in tensors)
    ):
        count //= 2
    return count


def _is_aligned(tensor: Tensor, entries: int) -> bool:
    size = tensor.element_size()
    step = min(WIDEST, entries * size)
    return tensor.data_ptr() % step == 0 and all(stride * size % step == 0 for stride in tensor.stride()[:-1])


def _text(kernel: Kernel, constants: tuple[tuple[str, Constant], ...]) -> str:
    return "\n".join([HARDWARE, PRELUDE, *(declared(*each) for each in constants), kernel.body])


@cache  # 0.1 to 0.2 s for each kernel, dtype and width that a process meets
def _function(kernel: Kernel, constants: tuple[tuple[str, Constant], ...], device: int) -> ctypes.c_void_p:
    compiler = find_compiler(torch.version.cuda)
    architecture = compiler.architecture(torch.cuda.get_device_capability(device))
    cubin = compiler.compile(_text(kernel, constants), kernel.name, architecture)
    return driver.load(cubin, kernel.name, device)


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream
