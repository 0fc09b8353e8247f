"""What the elementwise kernels of the published layer compile to, for cards that are not here."""

import pytest
import torch

from comfyui_happyhorse.kernels.activation import FP8_GAIN, LIMIT, SLOPE
from comfyui_happyhorse.kernels.norm import EPSILON

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
N, WIDTH, HEADS, KEY_HEADS, ENTRIES = 4110, 5120, 40, 8, 128
SIZES = (3584, 126, 400)


@pytest.fixture(scope="module")
def launches():
    """The launches of the published layer, per modality, on tensors without values."""
    pytest.importorskip("triton")
    from comfyui_happyhorse.kernels.triton import activation, gate, norm
    from comfyui_happyhorse.kernels.triton import norm_rope as rope

    def tensor(*shape, dtype=BF16):
        return torch.empty(shape, dtype=dtype, device="meta")

    x, weight = tensor(N, WIDTH, dtype=torch.float32), tensor(3 * WIDTH, dtype=torch.float32)
    fused = tensor(N, (HEADS + 2 * KEY_HEADS) * ENTRIES + HEADS)
    q, k, _, gates = fused.split([HEADS * ENTRIES, *[KEY_HEADS * ENTRIES] * 2, HEADS], -1)
    q, k = (part.unflatten(-1, (-1, ENTRIES)) for part in (q, k))
    table, head = tensor(N, 96, dtype=torch.float32), tensor(3 * ENTRIES, dtype=torch.float32)
    return {
        "add_norm": norm.plan(x, tensor(N, WIDTH), weight, SIZES, BF16, EPSILON)[0],
        "norm_rope": rope.plan(q, k, head, head, SIZES, table, BF16, EPSILON)[0],
        "gate_rows": gate.plan(tensor(N, HEADS, ENTRIES), gates, BF16)[0],
        "activate": activation.plan(tensor(N, 27304), True, BF16, 13696, 1.0, LIMIT, SLOPE)[0],
        "activate to FP8": activation.plan(
            tensor(N, 20480), False, FP8, 20480, FP8_GAIN["gelu7"], LIMIT, SLOPE
        )[0],
    }


# The vectors in which rows are read, 16 bytes where a thread has as many; and how numbers are rounded.
READS = {
    "add_norm": {"LDG.E.128"},
    "norm_rope": {"LDG.E.128", "LDG.E.64", "LDG.E"},
    "gate_rows": {"LDG.E.128", "LDG.E.U16"},
    "activate": {"LDG.E.128"},
    "activate to FP8": {"LDG.E.128"},
}


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("name", READS)
def test_compiled_for_each_card(aot, launches, tmp_path, name, capability):
    if name == "activate to FP8" and capability < 89:
        with pytest.raises(Exception, match="fp8e4nv not supported"):
            aot.compile_launch(launches[name], capability, tmp_path)
        return
    found = aot.compile_launch(launches[name], capability, tmp_path)
    assert found.spills == 0 and found.stack == 0
    assert found.shared <= aot.SHARED[capability]
    assert found.registers * 32 * launches[name].warps <= 65536 // 2, "two programs at a time at least"
    assert {read for read in found.instructions if read.startswith("LDG")} <= READS[name]
    rounding = "cvt.rn.satfinite.e4m3x2" if "FP8" in name else "cvt.rn.bf16"
    assert rounding in found.ptx
