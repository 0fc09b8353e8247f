"""The CUDA kernels on the CPU, against float64 written out here; run by interpreted.py in a process of its own.

Per case {"error": relative error, "definition": the same of the plain definition, "exact": share of results equal to
float64 rounded once, "same": whether threads in reverse give the same bits}. Sizes are odd or of the published layer,
runs of modalities may be empty, inputs are views with strides of their own that end where memory does.
"""

import importlib
import tempfile
from pathlib import Path

import interpreted
import torch
import torch.nn.functional as F

from comfyui_happyhorse import kernels
from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.kernels.cuda import driver
from comfyui_happyhorse.kernels.registry import forced

on_host = interpreted._import("cuda_on_host", Path(__file__).parent / "cuda_on_host.py")
laid = on_host.laid
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FP32, BF16)
MIXED = ((FP16, FP16), (BF16, FP32), (FP32, FP16))  # read and written, in the cases of the published layer
OPERATIONS = ("norm", "norm_rope", "gate", "activation")


def measure() -> dict:
    for name in OPERATIONS:  # a CPU would be refused
        module = importlib.import_module(f"comfyui_happyhorse.kernels.{name}")
        module.needs_nvrtc = lambda *tensors, dtype: None
    torch.manual_seed(0)
    calls = {f"{name} {dtype}": case for dtype in DTYPES for name, *case in cases(dtype, dtype)}
    for kinds in MIXED:
        mixed = (case for case in cases(*kinds) if "published" in case[0])
        calls |= {f"{name} {kinds[0]} to {kinds[1]}": case for name, *case in mixed}
    calls |= {f"odd {name}": case for name, *case in odd_ones()}
    with on_host.recording() as noted, forced("cuda"):
        for operation, arguments, _ in calls.values():
            operation(*arguments)
    with tempfile.TemporaryDirectory() as folder:
        host = on_host.Host(noted, Path(folder))
    found = {name: judged(host, *case) for name, case in calls.items()}
    return found | {"variants": variants(noted), "unknown": unknown(host)}


def judged(host, operation, arguments, wanted) -> dict:
    with forced("cuda"):
        with host.running():
            made = as_tuple(operation(*arguments))
        with host.running(backwards=True):
            again = as_tuple(operation(*arguments))
    report = {"same": all(bits_of(a) == bits_of(b) for a, b in zip(made, again, strict=True))}
    if wanted is None:
        return report | {"shape": list(made[-1].shape), "nan": made[-1].isnan().nonzero().tolist()}
    with forced("definition"):
        plain = as_tuple(operation(*arguments))
    errors = [interpreted.relative_error(a, b) for a, b in zip(made, wanted, strict=True)]
    share = [(a == b.to(a.dtype)).double().mean().item() for a, b in zip(made, wanted, strict=True)]
    return report | {
        "error": max(errors),
        "definition": max(interpreted.relative_error(a, b) for a, b in zip(plain, wanted, strict=True)),
        "exact": min(share),
        "dtypes": [str(a.dtype) for a in made] == [str(a.dtype) for a in plain],
        "layout": all(a.is_contiguous() for a in made),
    }


def as_tuple(made) -> tuple:
    return made if isinstance(made, tuple) else (made,)


def bits_of(x) -> list:
    return x.contiguous().view(-1).view(torch.uint8).tolist() if x.numel() else []


def variants(noted) -> dict:
    """{kernel: {constant: the values it took}}"""
    found = {}
    for kernel, constants in noted:
        for name, value in constants:
            found.setdefault(kernel.name, {}).setdefault(name, set()).add(str(value))
    return {kernel: {name: sorted(values) for name, values in of.items()} for kernel, of in found.items()}


def unknown(host) -> str:
    """What is said where the driver refuses."""
    try:
        with host.running():
            driver.load(b"", "no_such_kernel", 0)
    except SamplingError as error:
        return str(error)
    return ""


def cases(given, made):
    yield from norms(given, made)
    yield from rotations(given, made)
    yield from gates(given, made)
    yield from activations(given, made)


def exact_norm(x, weight, sizes):
    x, size = x.double(), x.shape[-1]
    weights = weight.double().view(-1, size)
    kinds = [kind if len(weights) > 1 else 0 for kind, rows in enumerate(sizes) for _ in range(rows)]
    scale = (x.pow(2).sum(-1, keepdim=True) / size + 1e-6).sqrt()
    return x / scale * (1 + weights[kinds].view(-1, *[1] * (x.dim() - 2), size))


def norms(given, made):
    for name, sizes, size, parts, gap in (
        ("shared", (3, 2, 4), 37, 1, 3),
        ("per modality", (3, 2, 4), 40, 3, 4),
        ("no audio", (5, 0, 2), 130, 3, 2),
        ("one row", (0, 0, 1), 5, 3, 0),
        ("published", (2, 1, 1), 5120, 3, 8),
        ("several turns", (1, 0, 1), 2051, 3, 0),
        ("largest", (1, 0, 1), 16384, 1, 0),
    ):
        count = sum(sizes)
        x = laid(torch.randn(count, size) * torch.logspace(-3, 2, count)[:, None], size + gap, 1)
        branch = laid(torch.randn(count, size).to(given), size + 2 * gap, 1)
        weight = laid(torch.randn(parts * size))
        yield f"norm_rows {name}", kernels.norm_rows, (x, weight, sizes, made), [exact_norm(x, weight, sizes)]
        total = x.double() + branch.double()
        wanted = [total, exact_norm(total, weight, sizes)]
        yield f"add_norm {name}", kernels.add_norm, (x, branch, weight, sizes, made), wanted


def rotations(given, made):
    for name, sizes, heads, groups, size, half, parts, gap in (
        ("published", (4, 1, 2), 10, 2, 128, 48, 3, 8),
        ("no rest", (3, 0, 2), 3, 1, 12, 6, 3, 2),
        ("fours", (2, 0, 1), 5, 5, 20, 8, 3, 4),
        ("odd", (2, 3, 1), 9, 9, 21, 5, 1, 1),
        ("largest", (1, 1, 1), 2, 1, 256, 127, 3, 0),
        ("not rotated", (1, 0, 1), 3, 2, 24, 0, 1, 0),
    ):
        count = sum(sizes)
        q, k = (torch.randn(count, part, size).to(given) for part in (heads, groups))
        q = laid(q, heads * (size + gap) + gap, size + gap, 1)
        k = laid(k, groups * size + 3 * gap, size, 1)
        angles = torch.randn(count, half).double() * 3
        rope = laid(torch.cat([angles.sin(), angles.cos()], 1).float(), 2 * half + gap, 1)
        weights = [laid(torch.randn(parts * size)) for _ in range(2)]
        wanted = []
        for x, weight in zip((q, k), weights, strict=True):
            y = exact_norm(x, weight, sizes)
            first, second, rest = y.split([half, half, size - 2 * half], -1)
            sine, cosine = rope.double()[:, None].split(half, -1) if half else (0, 0)
            turned = (first * cosine - second * sine, second * cosine + first * sine)
            wanted.append(torch.cat([*turned, rest], -1))
        yield f"norm_rope {name}", kernels.norm_rope, (q, k, *weights, sizes, rope, made), wanted


def gates(given, made):
    for name, count, heads, size, gap in (
        ("published", 3, 10, 128, 8),
        ("fours", 2, 3, 12, 4),
        ("odd", 7, 9, 21, 1),
        ("one", 1, 1, 1, 0),
    ):
        values = torch.randn(count, heads, size).to(given)
        gate = laid((torch.randn(count, heads) * 4).to(given), heads + gap, 1)
        wanted = [(values.double() / (1 + (-gate.double()).exp())[..., None]).flatten(1)]
        by_rows = laid(values, heads * size + gap, size, 1)
        by_heads = laid(values, size, count * size + gap, 1)
        yield f"gate_rows {name} by rows", kernels.gate_rows, (by_rows, gate, made), wanted
        yield f"gate_rows {name} by heads", kernels.gate_rows, (by_heads, gate, made), wanted


def exact_activation(x, kind):
    x = x.double()
    value, linear = (x[:, 0::2], x[:, 1::2].clamp(-7, 7) + 1) if kind == "swiglu7" else (x, 1)
    value = value.clamp(max=7)
    return value / (1 + (-1.702 * value).exp()) * linear


def activations(given, made):
    for kind in kernels.ACTIVATIONS:
        for name, count, inner, width, gap in (
            ("published", 3, 1108, 1152, 8),
            ("fours", 3, 1100, 1300, 4),
            ("bare", 5, 13, 13, 1),
            ("whole", 2, 64, 64, 0),
            ("all padding but one", 2, 1, 2056, 7),
            ("one short", 2, 31, 32, 1),
        ):
            entries = inner * (2 if kind == "swiglu7" else 1)
            up = laid((torch.randn(count, entries) * 6).to(given), entries + gap, 1)
            if name == "one short":  # of a vector, in rows that lie as vectors must
                up = laid(F.pad(up, (0, gap), value=float("nan")))[:, :entries]
            wanted = torch.zeros(count, width, dtype=torch.float64)
            wanted[:, :inner] = exact_activation(up, kind)
            yield f"activate {kind} {name}", kernels.activate, (up, kind, made, width), [wanted]


def odd_ones():
    """What is no number stays none where it came in, infinities are clamped, and no rows give no rows."""
    x = torch.randn(3, 40)
    x[1, 7], x[2, 3] = float("nan"), float("inf")
    up = laid(x)
    yield "swiglu7", kernels.activate, (up, "swiglu7", BF16, 20), None
    yield "gelu7", kernels.activate, (up, "gelu7", FP16, 40), None
    yield "norm_rows", kernels.norm_rows, (up[:2], torch.zeros(40), [], BF16), None
    yield "no rows", kernels.norm_rows, (torch.empty(0, 5), torch.zeros(5), [], FP16), None
    yield "nothing to activate", kernels.activate, (torch.empty(0, 6), "swiglu7", FP16, 4), None
    payload = laid(torch.tensor([[[-1, 0x7FFFFFFF, 0x3F800000]]], dtype=torch.int32).view(FP32))
    yield "payload", kernels.gate_rows, (payload, torch.zeros(1, 1), BF16), None
    # Halves and their neighbours: each way of rounding to 16 bits differs somewhere here.
    steps = torch.arange(1, 4096, dtype=FP32)
    ties = torch.cat([(steps * 2.0**-8 + 1) * 2.0**power for power in (-140, -30, -14, 0, 15, 100)])
    ties = ties[ties < 3e38][None]
    for dtype in (FP16, BF16):
        # A gate of 40 is 1 in float32.
        rows, gate = laid(ties.view(1, 1, -1)), torch.full((1, 1), 40.0)
        yield f"ties {dtype}", kernels.gate_rows, (rows, gate, dtype), [ties.to(dtype).double()]
