"""Runs CUDA kernels on the CPU: their text compiled by g++ behind cuda_on_host.h, in place of the driver's library.

Only what a card alone can do is exchanged: NVRTC, the driver's functions and ``source.HARDWARE``. Plans, packed arguments
and texts are those of a card. Every tensor that a plan makes ends at a page that may not be touched and is NaN before.
"""

import ctypes
import mmap
import subprocess
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from unittest.mock import patch

import torch

from comfyui_happyhorse.kernels.cuda import driver, launch
from comfyui_happyhorse.kernels.cuda.source import PRELUDE

SHIM = Path(__file__).with_suffix(".h")
COMPILER = "g++"
# A vector that does not lie as it must is no error on this CPU, but on a card: it is trapped.
FLAGS = (
    *("-std=c++17", "-O1", "-g0", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused"),
    *("-fsanitize=alignment,bounds", "-fno-sanitize-recover=all"),
)
_kept = []  # memory that tensors look into


def laid(values: torch.Tensor, *strides: int) -> torch.Tensor:
    """The same values at these strides, or as they would lie alone, up to a page that may not be touched."""
    strides = strides or values.contiguous().stride()
    extent = 1 + sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
    flat = _guarded(extent if values.numel() else 0, values.dtype)
    return flat.as_strided(values.shape, strides).copy_(values)


def _guarded(count: int, dtype: torch.dtype) -> torch.Tensor:
    if count == 0:
        return torch.empty(0, dtype=dtype)
    used, page = count * dtype.itemsize, mmap.PAGESIZE
    inner = -(-used // page) * page
    memory = mmap.mmap(-1, inner + 2 * page)
    memory[page : page + inner] = b"\xff" * inner  # no number, in every format
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for edge in (start, start + page + inner):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(edge), ctypes.c_size_t(page), 0) == 0
    _kept.append(memory)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=page + inner - used)


def _new_empty(self, size, *, dtype=None):
    return _guarded(prod(size), dtype or self.dtype).view(size)


@contextmanager
def recording():
    """Within it launches are not run but noted: {(kernel, constants)}, in order."""
    noted = {}

    def note(self):
        noted[self.kernel, tuple(self.constants.items())] = None

    with ExitStack() as patches:
        patches.enter_context(patch.object(launch.Launch, "run", note))
        patches.enter_context(patch.object(torch.Tensor, "new_empty", _new_empty))
        yield noted


class Host:
    """Kernels that were noted, compiled into one library."""

    def __init__(self, noted, folder: Path):
        self.names = {key: f"{key[0].name}_{index}" for index, key in enumerate(noted)}
        source, library = folder / "kernels.cpp", folder / "kernels.so"
        source.write_text("\n".join([f'#include "{SHIM}"', PRELUDE, *map(self._variant, noted)]))
        command = [COMPILER, *FLAGS, str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:4000]}"
        self.library = ctypes.CDLL(str(library))

    def _variant(self, key) -> str:
        (kernel, constants), name = key, self.names[key]
        lines = [f"namespace of_{name} {{", f"#define {kernel.name} {name}"]
        lines += [launch.declared(*each) for each in constants]
        return "\n".join(
            [*lines, kernel.body, f'host::Registered entry("{name}", {name});', f"#undef {kernel.name}", "}"]
        )

    @contextmanager
    def running(self, *, backwards: bool = False):
        """Within it launches run here, the threads of a block in order or backwards."""

        def function(kernel, constants, device):
            return driver.load(b"", self.names[kernel, constants], device)

        self.library.host_reverse(int(backwards))
        with ExitStack() as patches:
            for place, name, mine in (
                (driver, "driver", lambda: self.library),
                (launch, "_function", function),
                (launch, "_stream", lambda device: 0),
                (torch.Tensor, "new_empty", _new_empty),
            ):
                patches.enter_context(patch.object(place, name, mine))
            yield
