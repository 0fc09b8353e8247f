"""What the CUDA kernels of the published layer compile to, by NVRTC, for cards that are not here."""

import re
import subprocess
from collections import Counter

import pytest
import torch

from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.kernels.activation import LIMIT, SLOPE
from comfyui_happyhorse.kernels.cuda import activation, compiler, gate, norm
from comfyui_happyhorse.kernels.cuda import norm_rope as rope
from comfyui_happyhorse.kernels.cuda.launch import Kernel, Launch
from comfyui_happyhorse.kernels.norm import EPSILON

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CARDS = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
READ = ((7, 5), (12, 0))  # bfloat16 rounded by hand, and by the card
N, WIDTH, HEADS, KEY_HEADS, ENTRIES = 4110, 5120, 40, 8, 128
SIZES = (3584, 126, 400)


@pytest.fixture(scope="module")
def nvrtc():
    """NVRTC, of whichever version is installed: a wheel of 90 MB, no card needed."""
    found = (compiler.find_compiler(cuda) for cuda in (torch.version.cuda, "13.0", "12.0"))
    library = next(filter(None, found), None)
    return library or pytest.skip("NVRTC is not installed (pip install nvidia-cuda-nvrtc-cu12)")


def planned(dtype) -> dict[str, Launch]:
    """The launches of the published layer, per modality, on tensors without values."""

    def tensor(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    x, weight = tensor(N, WIDTH, dtype=FP32), tensor(3 * WIDTH, dtype=FP32)
    fused = tensor(N, (HEADS + 2 * KEY_HEADS) * ENTRIES + HEADS)
    q, k, _, gates = fused.split([HEADS * ENTRIES, *[KEY_HEADS * ENTRIES] * 2, HEADS], -1)
    q, k = (part.unflatten(-1, (-1, ENTRIES)) for part in (q, k))
    table, head = tensor(N, 96, dtype=FP32), tensor(3 * ENTRIES, dtype=FP32)
    return {
        "norm_rows": norm.plan(x, None, weight, SIZES, dtype, EPSILON)[0],
        "add_norm": norm.plan(x, tensor(N, WIDTH), weight, SIZES, dtype, EPSILON)[0],
        "norm_rope": rope.plan(q, k, head, head, SIZES, table, dtype, EPSILON)[0],
        "gate_rows": gate.plan(tensor(N, HEADS, ENTRIES), gates, dtype)[0],
        "swiglu7": activation.plan(tensor(N, 27304), True, dtype, 13696, LIMIT, SLOPE)[0],
        "gelu7": activation.plan(tensor(N, 20480), False, dtype, 20480, LIMIT, SLOPE)[0],
    }


# Reads and writes of memory in bfloat16, 16 bytes where a thread has as many; one entry only of gates and of the last,
# broken vector of a row that the activation pads.
MOVES = {
    "norm_rows": {"LDG.128", "STG.64"},
    "add_norm": {"LDG.128", "LDG.64", "STG.128", "STG.64"},
    "norm_rope": {"LDG.128", "STG.128"},
    "gate_rows": {"LDG.128", "LDG.U16", "STG.128"},
    "swiglu7": {"LDG.128", "LDG.U16", "STG.128"},
    "gelu7": {"LDG.128", "LDG.U16", "STG.128"},
}


def dump(cubin: bytes, folder, aot, *, instructions: bool) -> tuple[int, int, int, Counter]:
    """(registers, bytes of stack, bytes of shared memory, instructions) of the one kernel in it"""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    command = [str(aot.TOOLS / "cuobjdump"), "-res-usage", *["-sass"] * instructions, str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    used = [int(re.search(rf"{what}:(\d+)", text)[1]) for what in ("REG", "STACK", "SHARED")]
    return *used, Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)", text))


def moves(instructions: Counter) -> set[str]:
    """Reads and writes of memory by their width alone: LDG.E.128.CONSTANT is LDG.128."""
    parts = [name.split(".") for name in instructions if name.startswith(("LDG", "STG"))]
    widths = ("64", "128", "U16", "S16", "U8")
    return {".".join([first, *(part for part in rest if part in widths)]) for first, *rest in parts}


@pytest.mark.parametrize("card", CARDS, ids="{0[0]}.{0[1]}".format)
def test_compiled_for_each_card(nvrtc, aot, tmp_path, card):
    for name, launch in planned(BF16).items():
        cubin = nvrtc.compile(launch.text(), launch.kernel.name, nvrtc.architecture(card))
        # To disassemble takes longer than to compile: what a card of each kind shows is enough.
        is_read = card in READ
        registers, stack, shared, found = dump(cubin, tmp_path, aot, instructions=is_read)
        where = f"{name} for {card}: {registers} registers, {stack} bytes of stack, {dict(found)}"
        assert stack == 0, f"it spills; {where}"
        assert registers * launch.threads <= 65536 // 4, f"four blocks at a time at least; {where}"
        assert shared <= 48 << 10
        if is_read:
            assert moves(found) == MOVES[name], where
            unwanted = ("LDL", "STL", "DADD", "DMUL", "DFMA")
            assert not [each for each in found if each.startswith(unwanted)], where


@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_other_dtypes_compile(nvrtc, aot, tmp_path, dtype):
    for launch in planned(dtype).values():
        cubin = nvrtc.compile(launch.text(), launch.kernel.name, nvrtc.architecture((8, 6)))
        assert dump(cubin, tmp_path, aot, instructions=False)[1] == 0


def test_what_does_not_compile_shows_the_log(nvrtc):
    with pytest.raises(
        SamplingError, match=r"NVRTC \d+\.\d+ could not compile k for sm_86(?s:.*)undefined_name"
    ):
        nvrtc.compile('extern "C" __global__ void k(int* x) { *x = undefined_name; }', "k", 86)
    with pytest.raises(SamplingError, match=r"could not compile k for sm_1\.(?s:.*)triton-windows"):
        nvrtc.compile("", "k", 1)


def test_code_for_a_card_is_of_its_generation():
    known = compiler.Compiler(None, (12, 8), (75, 80, 86, 89, 90, 100, 120))
    assert [known.architecture(card) for card in CARDS] == [75, 80, 86, 89, 90, 100, 120]
    assert known.architecture((8, 7)) == 86 and known.architecture((12, 1)) == 120
    assert known.architecture((7, 0)) is None and known.architecture((11, 0)) is None
    assert compiler.Compiler(None, (12, 4), (86, 90)).architecture((8, 0)) is None


def test_kernels_are_values():
    """Equal plans share what is compiled: texts and constants are the key."""
    first, second = planned(BF16), planned(BF16)
    for name, launch in first.items():
        assert launch.kernel == Kernel(launch.kernel.name, launch.kernel.body)
        assert launch.constants == second[name].constants and launch.text() == second[name].text()
    assert len({launch.text() for launch in first.values()}) == len(first)
