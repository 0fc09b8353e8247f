"""The elementwise kernels in Triton's interpreter, against float64 written out here; run by interpreted.py.

Per case {"triton": relative error, "definition": relative error, "exact": share of results equal to float64 rounded
once}. Sizes are odd, runs of modalities may be empty, inputs are views with strides of their own.
"""

import interpreted
import torch

from comfyui_happyhorse import kernels
from comfyui_happyhorse.kernels.registry import forced

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FP8 = torch.float8_e4m3fn


def measure() -> dict:
    torch.manual_seed(0)
    found = {}
    for dtype in DTYPES:
        found |= norms(dtype) | rotations(dtype) | gates(dtype) | activations(dtype)
    return found | activations(FP8) | odd_ones()


def compare(operation, arguments, wanted, dtype, gain=1.0) -> dict:
    """Errors of both ways of an operation against ``wanted`` in float64, one tensor for each of its results."""
    report = {}
    for way in ("triton", "definition"):
        with forced(way):
            made = operation(*arguments)
        made = made if isinstance(made, tuple) else (made,)
        pairs = list(zip(made, wanted, strict=True))
        report[way] = max(interpreted.relative_error(a.double() / gain, b) for a, b in pairs)
        if way == "triton":
            last, exact = pairs[-1]
            report["exact"] = (last.double() == (exact * gain).to(dtype).double()).double().mean().item()
            report["dtype"] = str(last.dtype)
    return report


def exact_norm(x, weight, sizes):
    x, size = x.double(), x.shape[-1]
    weights = weight.double().view(-1, size)
    kinds = [kind if len(weights) > 1 else 0 for kind, rows in enumerate(sizes) for _ in range(rows)]
    scale = (x.pow(2).sum(-1, keepdim=True) / size + 1e-6).sqrt()
    return x / scale * (1 + weights[kinds].view(-1, *[1] * (x.dim() - 2), size))


def norms(dtype) -> dict:
    found = {}
    for name, sizes, size, parts in (
        ("shared", (3, 2, 4), 37, 1),
        ("per modality", (3, 2, 4), 40, 3),
        ("no audio", (5, 0, 2), 129, 3),
        ("one row", (0, 0, 1), 5, 3),
        ("wide", (2, 1, 1), 5120, 3),
    ):
        count = sum(sizes)
        # Columns of a wider tensor: rows lie further apart than they are long.
        x = torch.randn(count, size + 3)[:, :size] * torch.logspace(-3, 2, count)[:, None]
        branch = torch.randn(count, 2 * size).to(dtype)[:, size:]
        weight = torch.randn(parts * size)
        plain = compare(kernels.norm_rows, (x, weight, sizes, dtype), [exact_norm(x, weight, sizes)], dtype)
        total = x.double() + branch.double()
        added = compare(
            kernels.add_norm,
            (x, branch, weight, sizes, dtype),
            [total, exact_norm(total, weight, sizes)],
            dtype,
        )
        found |= {f"norm_rows {name} {dtype}": plain, f"add_norm {name} {dtype}": added}
    return found


def rotations(dtype) -> dict:
    found = {}
    for name, sizes, heads, groups, size, half, parts in (
        ("published head", (4, 1, 2), 10, 2, 128, 48, 3),
        ("no rest", (3, 0, 2), 3, 1, 12, 6, 3),
        ("odd", (2, 3, 1), 9, 9, 21, 5, 1),
        ("small", (1, 1, 1), 2, 1, 8, 3, 1),
    ):
        count = sum(sizes)
        fused = torch.randn(count, (heads + groups) * size + heads + 1).to(dtype)
        q = fused[:, 1 : 1 + heads * size].unflatten(1, (heads, size))
        k = fused[:, 1 + heads * size : 1 + (heads + groups) * size].unflatten(1, (groups, size))
        if name == "odd":  # heads further apart than they are long
            q, k = (torch.randn(count, part.shape[1], size + 4).to(dtype)[..., :size] for part in (q, k))
        angles = torch.randn(count, half).double() * 3
        rope = torch.cat([angles.sin(), angles.cos()], 1).float()
        weights = [torch.randn(parts * size) for _ in range(2)]
        wanted = []
        for x, weight in zip((q, k), weights, strict=True):
            y = exact_norm(x, weight, sizes)
            a, b, sine, cosine = (
                y[..., :half],
                y[..., half : 2 * half],
                *rope.double()[:, None].split(half, -1),
            )
            wanted.append(torch.cat([a * cosine - b * sine, b * cosine + a * sine, y[..., 2 * half :]], -1))
        run = compare(kernels.norm_rope, (q, k, *weights, sizes, rope, dtype), wanted, dtype)
        found[f"norm_rope {name} {dtype}"] = run
    return found


def gates(dtype) -> dict:
    found = {}
    for name, count, heads, size in (("published head", 3, 10, 128), ("odd", 7, 9, 21), ("one", 1, 1, 1)):
        rows, by_head = torch.randn(count, heads, size), torch.randn(heads, count, size).transpose(0, 1)
        gate = (torch.randn(count, heads + 5) * 4).to(dtype)[:, 3:-2]
        for layout, out in (("rows", rows.to(dtype)), ("heads", by_head.to(dtype))):
            wanted = (out.double() / (1 + (-gate.double()).exp())[..., None]).reshape(count, heads * size)
            run = compare(kernels.gate_rows, (out, gate, dtype), [wanted], dtype)
            found[f"gate_rows {name} {layout} {dtype}"] = run
    return found


def exact_activation(x, kind):
    x = x.double()
    value, linear = (x[:, 0::2], x[:, 1::2].clamp(-7, 7) + 1) if kind == "swiglu7" else (x, 1)
    value = value.clamp(max=7)
    return value / (1 + (-1.702 * value).exp()) * linear


def activations(dtype) -> dict:
    found = {}
    for kind, gain in (("swiglu7", 8), ("gelu7", 64)):
        for name, count, inner, width in (
            ("padded", 3, 1101, 1300),
            ("bare", 5, 13, 13),
            ("aligned", 2, 64, 1152),
        ):
            entries = inner * (2 if kind == "swiglu7" else 1)
            up = torch.randn(count, entries + 3).to(torch.float16 if dtype == FP8 else dtype)[:, :entries] * 6
            wanted = torch.zeros(count, width, dtype=torch.float64)
            wanted[:, :inner] = exact_activation(up, kind)
            gain_here = gain if dtype == FP8 else 1
            run = compare(kernels.activate, (up, kind, dtype, width), [wanted], dtype, gain_here)
            with forced("triton"):
                behind = kernels.activate(up, kind, dtype, width)[:, inner:].float()
            found[f"activate {kind} {name} {dtype}"] = run | {"behind": behind.abs().sum().item()}
    return found


def odd_ones() -> dict:
    """What is no number stays none where it came in, the largest fill FP8 and no more, and no rows give no rows."""
    with forced("triton"):
        x = torch.randn(3, 40)
        x[1, 7] = float("nan")
        bad = {
            "activate swiglu7": kernels.activate(x, "swiglu7", torch.float32, 20),
            "activate gelu7": kernels.activate(x, "gelu7", torch.float32, 40),
            "norm_rows": kernels.norm_rows(x, torch.zeros(40), [], torch.float32),
        }
        none = {f"NaN of {name}": out.isnan().nonzero().tolist() for name, out in bad.items()}
        largest = {}
        for kind, entries in (("swiglu7", 2), ("gelu7", 1)):
            for value in (7.0, 1000.0, float("inf")):
                out = kernels.activate(torch.full((1, entries), value), kind, FP8, 1)
                largest[f"{kind} of {value}"] = out.float().item()
        empty = [
            list(kernels.norm_rows(torch.empty(0, 5), torch.zeros(5), [], torch.float16).shape),
            list(kernels.activate(torch.empty(0, 6), "swiglu7", torch.float16, 4).shape),
        ]
    return {"odd": none | {"largest": largest, "empty": empty}}
