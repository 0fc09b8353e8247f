"""CUDA C++ text to machine code for one card, by the NVRTC library that comes with torch; nothing else is needed.

``torch.cuda._compile_kernel`` would do the same, but of torch 2.13 asks for the CUDA toolkit's folder first (its search
for headers raises OSError where no CUDA_HOME is found) and for setuptools: most Windows users have neither.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ...errors import SamplingError
from ..registry import _capability, _forced, needs_triton

LEAST_CAPABILITY = (7, 5)  # older cards are left out by CUDA 13
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LONGEST_LOG = 2000  # characters of a compiler's log in an error
OPTIONS = (b"--std=c++17", b"--generate-line-info")


@dataclass(frozen=True, slots=True)
class Compiler:
    """NVRTC of one version; ``architectures`` are those it knows, as 75, 86, ..., 120."""

    library: ctypes.CDLL
    version: tuple[int, int]
    architectures: tuple[int, ...]

    def architecture(self, capability: tuple[int, int]) -> int | None:
        """The best whose code runs on a card of this capability; None where there is none.

        Code for 8.6 runs on 8.6 and 8.9, but neither on 8.0 nor on 9.0.
        """
        least = capability[0] * 10
        most = least + capability[1]
        return max((known for known in self.architectures if least <= known <= most), default=None)

    def compile(self, text: str, name: str, architecture: int) -> bytes:
        """The cubin. Raises SamplingError with the log where the text is not understood."""
        options = [f"--gpu-architecture=sm_{architecture}".encode(), *OPTIONS]
        program = ctypes.c_void_p()
        self._check(
            self.library.nvrtcCreateProgram(
                ctypes.byref(program), text.encode(), f"{name}.cu".encode(), 0, None, None
            )
        )
        try:
            listed = (ctypes.c_char_p * len(options))(*options)
            if self.library.nvrtcCompileProgram(program, len(options), listed):
                log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
                raise SamplingError(
                    f"NVRTC {self} could not compile {name} for sm_{architecture}. "
                    f"Another version of torch may, and Triton comes before it where it is installed "
                    f"(triton-windows on Windows). The log:\n{log[:LONGEST_LOG]}"
                )
            return self._read(program, "CUBIN")
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self.library, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    def _check(self, result: int) -> None:
        if result:
            self.library.nvrtcGetErrorString.restype = ctypes.c_char_p
            words = self.library.nvrtcGetErrorString(result).decode()
            raise SamplingError(f"NVRTC {self} failed: {words}. Reinstalling torch brings it anew.")

    def __str__(self) -> str:
        return "{}.{}".format(*self.version)


def needs_nvrtc(*tensors: Tensor, dtype: torch.dtype) -> str | None:
    """Why a kernel of this folder cannot take these tensors and give ``dtype``, None where it can."""
    if _forced.get() != "cuda" and needs_triton(*tensors) is None:
        return "Triton is there and comes first"  # and NVRTC, 100 MB, is not loaded for nothing
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return f"the tensors lie on {', '.join(sorted(map(str, devices)))}, not on one device"
    if odd := {dtype, *(tensor.dtype for tensor in tensors)} - set(DTYPES):
        return f"{', '.join(sorted(map(str, odd)))} is not among the dtypes it reads and writes"
    if tensors[0].is_meta:
        return None  # without values it stands for a tensor on a card, and nothing runs
    if not tensors[0].is_cuda:
        return f"{tensors[0].device} is not a CUDA device"
    if torch.version.hip:
        return "AMD cards have no NVRTC"
    if (capability := _capability(tensors[0].device)) is None:
        return "torch finds no card"
    return refuses_card(capability)


def refuses_card(capability: tuple[int, int]) -> str | None:
    """Why nothing can be compiled for a card of this capability; None where it can."""
    card = "{}.{}".format(*capability)
    if capability < LEAST_CAPABILITY:
        return "it needs compute capability {}.{} and this card has {}".format(*LEAST_CAPABILITY, card)
    compiler = find_compiler(torch.version.cuda)
    if compiler is None:
        return f"no NVRTC library of CUDA {torch.version.cuda} is found beside torch"
    if compiler.architecture(capability) is None:
        return f"NVRTC {compiler} does not know compute capability {card}"
    return None


@cache
def find_compiler(cuda: str | None) -> Compiler | None:
    """NVRTC for torch's CUDA version ("12.8"), whose driver takes code of the same first number; None without one."""
    if cuda is None:
        return None
    for place in _places(int(cuda.partition(".")[0])):
        try:
            return open_compiler(place)
        except OSError:
            continue
    return None


def open_compiler(place: str) -> Compiler:
    """Raises OSError where there is no such library."""
    library = ctypes.CDLL(place)
    major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    library.nvrtcGetSupportedArchs(known)
    return Compiler(library, (major.value, minor.value), tuple(known))


def _places(major: int) -> Iterator[str]:
    """Where the library may be: in torch's folder (Windows), in NVIDIA's wheels, or where the system looks."""
    name = f"nvrtc64_{major}0_0.dll" if sys.platform == "win32" else f"libnvrtc.so.{major}"
    folders = [Path(torch.__file__).parent]
    if spec := find_spec("nvidia"):
        folders += [
            folder for base in spec.submodule_search_locations or () for folder in Path(base).iterdir()
        ]
    for folder in folders:
        for inner in ("lib", "bin", "bin/x86_64"):
            if (file := folder / inner / name).exists():
                yield str(file)
    yield name
