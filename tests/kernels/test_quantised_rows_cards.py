"""What the kernels that write 8-bit rows compile to at the published sizes, for cards that are not here."""

import pytest
import torch

from comfyui_happyhorse.kernels.norm import EPSILON

BF16, FP8, INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8
N, WIDTH, HEADS, ENTRIES = 4110, 5120, 40, 128


def planned(name, stored):
    """The launch of the published layer, per modality, on tensors without values."""
    from comfyui_happyhorse.kernels.triton import gate, norm

    def tensor(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    form = (stored, WIDTH, 256 if stored == INT8 else 0)
    if name == "gate":
        out, gates = tensor(N, HEADS, ENTRIES, dtype=BF16), tensor(N, 7208, dtype=BF16)[:, -HEADS:]
        return gate.plan_quantised(out, gates, *form, None)[0]
    static = tensor(1) if name == "static" else None
    branch = None if name == "static" else tensor(N, WIDTH, dtype=BF16)
    weight = tensor(3 * WIDTH)
    return norm.plan_quantised(tensor(N, WIDTH), branch, weight, (3584, 126, 400), *form, static, EPSILON)[0]


CARDS = (80, 86, 89, 90, 100, 120)
COMPILED = [(name, stored, card) for name in ("norm", "gate") for stored in (INT8, FP8) for card in CARDS]


@pytest.mark.parametrize(("name", "stored", "capability"), [*COMPILED, ("static", FP8, 90)])
def test_compiled_for_each_card(aot, tmp_path, name, stored, capability):
    launch = planned(name, stored)
    if stored == FP8 and capability < 89:
        with pytest.raises(Exception, match="fp8e4nv not supported"):
            aot.compile_launch(launch, capability, tmp_path)
        return
    code = aot.compile_launch(launch, capability, tmp_path)
    assert (code.spills, code.stack) == (0, 0)
    assert code.shared <= 8192
    assert code.registers * 32 * launch.warps <= 65536 // 2, "two programs at a time at least"
    # Rows are read in vectors of 16 bytes; only a gate and a static scale are single numbers.
    loads = {read for read in code.instructions if read.startswith("LDG")}
    assert loads <= {"LDG.E.128", "LDG.E.U16" if name == "gate" else "LDG.E"}
    if stored == FP8:
        assert "cvt.rn.satfinite.e4m3x2" in code.ptx
