"""Compiles Triton kernels for cards that are not here and reads what came out; loaded as the fixture ``aot``.

The compiler, ptxas and cuobjdump are in Triton's wheel. Nothing here asks for a driver.
"""

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Shared memory that a program may take, in bytes, by compute capability.
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
TARGETS = tuple(SHARED)
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.float8_e4m3fn: "*fp8e4nv",
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Cubin:
    """What a kernel takes of a card: per thread registers and bytes of stack, per program bytes of shared memory."""

    registers: int
    stack: int
    shared: int
    instructions: dict[str, int]  # how often each appears: HGMMA, LDL, LDG.E.128, ...
    ptx: str

    def count(self, name: str) -> int:
        """Instructions of this name with any suffix: "LDG" counts LDG.E.128 too."""
        return sum(times for found, times in self.instructions.items() if found.split(".")[0] == name)

    @property
    def spills(self) -> int:
        """Reads and writes of local memory."""
        return self.count("LDL") + self.count("STL")


def compile_launch(launch, capability: int, folder: Path) -> Cubin:
    """Compile a ``Launch`` as it would be on this card; its tensors need no values (meta)."""
    return compile_kernel(
        launch.kernel,
        launch.arguments,
        launch.constants,
        capability,
        folder,
        num_warps=launch.warps,
        num_stages=launch.stages,
        **launch.options,
    )


def compile_kernel(kernel, arguments, constants, capability: int, folder: Path, **options) -> Cubin:
    """``arguments`` are tensors and numbers by name; what Triton would find divisible by 16 is said to be."""
    signature, attributes = {}, {}
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in constants:
            signature[name] = "constexpr"
            continue
        value = arguments[name]
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        is_whole = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
        if is_whole and not parameter.do_not_specialize:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    file = folder / f"{kernel.__name__}_{capability}.cubin"
    file.write_bytes(compiled.asm["cubin"])
    command = [str(TOOLS / "cuobjdump"), "-res-usage", "-sass", str(file)]
    dump = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    registers, stack = (int(re.search(rf"{what}:(\d+)", dump)[1]) for what in ("REG", "STACK"))
    instructions = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)", dump))
    return Cubin(registers, stack, compiled.metadata.shared, instructions, compiled.asm["ptx"])
