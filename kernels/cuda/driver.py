"""Machine code to a kernel on a card, and its start: the few functions of the CUDA driver that this takes."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache

from torch import Tensor

from ...errors import SamplingError

Value = Tensor | int | float
LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"  # comes with the driver


@cache
def driver() -> ctypes.CDLL:
    """The driver's library; torch has loaded it already, where it has a card."""
    return ctypes.CDLL(LIBRARY)


def load(cubin: bytes, name: str, device: int) -> ctypes.c_void_p:
    """The kernel ``name`` on the device, which has to be the current one. It stays loaded."""
    _enter_context(device)
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _check(driver().cuModuleLoadData(ctypes.byref(module), cubin), f"load {name}")
    _check(driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode()), f"find {name}")
    return function


def start(
    function: ctypes.c_void_p,
    name: str,
    grid: tuple[int, int],
    threads: int,
    values: Sequence[Value],
    device: int,
    stream: int,
) -> None:
    """Put it on the stream: a tensor arrives as a pointer, an int as ``long long``, a float as ``float``."""
    _enter_context(device)
    held = [_as_c(value) for value in values]  # alive until the driver has copied them
    pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
    sizes = (*grid, 1, threads, 1, 1)
    shared = 0
    result = driver().cuLaunchKernel(function, *sizes, shared, ctypes.c_void_p(stream), pointers, None)
    _check(result, f"start {name} with {grid[0]} x {grid[1]} blocks of {threads} threads")


def _as_c(value: Value):
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_longlong(value) if isinstance(value, int) else ctypes.c_float(value)


def _enter_context(device: int) -> None:
    """A thread that has used torch only for memory from its cache has no context yet: it gets torch's own."""
    context = ctypes.c_void_p()
    _check(driver().cuCtxGetCurrent(ctypes.byref(context)), "ask for the context")
    if context.value is None:
        _check(driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "find the context")
        _check(driver().cuCtxSetCurrent(context), "set the context")


def _check(result: int, what: str) -> None:
    if result:
        words = ctypes.c_char_p()
        driver().cuGetErrorString(result, ctypes.byref(words))
        reason = (words.value or b"an unknown error").decode()
        raise SamplingError(f"The CUDA driver could not {what}: {reason} ({result}).")
