"""Runs ``gated_product`` in Triton's interpreter at odd sizes, beside its definition and float64."""

import numpy as np
import torch

from comfyui_happyhorse.kernels.gated_linear import FP8, gated_product
from comfyui_happyhorse.kernels.registry import forced

# name -> (form, kind, rows, inputs, columns, a scale per row of x, of the weight, result, width). The interpreter's
# tile is 16 x 32 x 32: there are tails in every direction.
CASES = {
    "fp8, one scale": ("fp8", "swiglu7", 37, 80, 45, False, False, torch.float32, 45),
    "fp8, row scales, padded": ("fp8", "swiglu7", 19, 97, 53, True, True, torch.float32, 64),
    "fp8 to fp8": ("fp8", "swiglu7", 33, 64, 24, True, True, FP8, 48),
    "fp8 gelu": ("fp8", "gelu7", 21, 65, 70, False, True, torch.float32, 70),
    "fp8 gelu to fp8": ("fp8", "gelu7", 5, 33, 31, True, False, FP8, 32),
    "int8": ("int8", "swiglu7", 35, 272, 49, True, True, torch.float32, 96),
    "int8, one row": ("int8", "swiglu7", 1, 31, 7, True, True, torch.float16, 7),
    "int8 gelu": ("int8", "gelu7", 20, 96, 33, True, False, torch.float32, 33),
    "int8, largest sums": ("full int8", "gelu7", 3, 4096, 16, True, True, torch.float32, 16),
    "fp8, no activation": ("fp8", "none", 19, 97, 45, True, True, torch.float32, 45),
    "int8, no activation": ("int8", "none", 34, 80, 37, True, True, torch.float32, 37),
    "not a number": ("int8", "swiglu7", 18, 48, 20, True, True, torch.float32, 20),
}


def measure() -> dict:
    with forced("triton"):
        return {name: measure_case(name, *case) for name, case in CASES.items()}


def measure_case(name, form, kind, rows, inputs, columns, x_rows, w_rows, dtype, width) -> dict:
    random = torch.Generator().manual_seed(len(name))
    tall = columns * (2 if kind == "swiglu7" else 1)
    x, weight = (numbers(form, count, inputs, random) for count in (rows, tall))
    # So that sums are of a size at which clamps and sigmoid matter.
    size = {"fp8": 40**2 * inputs**0.5, "int8": 74**2 * inputs**0.5, "full int8": 128**2 * inputs}[form]
    x_scale = torch.rand(rows if x_rows else 1, generator=random) + 0.5
    w_scale = (torch.rand(tall if w_rows else 1, generator=random) + 0.5) * 5 / size
    if name == "not a number":  # the interpreter reads FP8's NaN as 480, so it comes by a scale
        x_scale[3] = float("nan")
    arguments = (x, weight, x_scale, w_scale, kind, dtype, width)
    out, again = gated_product(*arguments), gated_product(*arguments)
    definition = gated_product.definition(*arguments)
    wanted = in_float64(x, weight, x_scale, w_scale, kind)
    factor = {"swiglu7": 8, "gelu7": 64}[kind] if dtype == FP8 else 1
    made, defined = (part.double().numpy() / factor for part in (out, definition))
    is_number = ~np.isnan(wanted)

    def error(found) -> float:
        return float(
            np.linalg.norm((found[:, :columns] - wanted)[is_number]) / np.linalg.norm(wanted[is_number])
        )

    return {
        "error": error(made),
        "definition": error(defined),
        "largest": float(np.abs(wanted[is_number]).max()),
        "behind": float(np.abs(made[:, columns:]).sum()),
        "lost": np.argwhere(np.isnan(made)).tolist(),
        "definition lost": np.argwhere(np.isnan(defined)).tolist(),
        "repeats": torch.equal(out.view(torch.uint8), again.view(torch.uint8)),
    }


def numbers(form: str, count: int, inputs: int, random):
    if form == "fp8":
        return torch.randn(count, inputs, generator=random).mul_(40).clamp_(-448, 448).to(FP8)
    if form == "full int8":
        return torch.full((count, inputs), -128, dtype=torch.int8)
    return torch.randint(-127, 128, (count, inputs), generator=random, dtype=torch.int8)


def in_float64(x, weight, x_scale, w_scale, kind):
    x, weight, x_scale, w_scale = (part.double().numpy() for part in (x, weight, x_scale, w_scale))
    up = x @ weight.T * x_scale[:, None] * w_scale[None, :]
    if kind == "none":
        return up
    if kind == "gelu7":
        return np.minimum(up, 7) / (1 + np.exp(-1.702 * np.minimum(up, 7)))
    gate, straight = np.minimum(up[:, 0::2], 7), np.clip(up[:, 1::2], -7, 7)
    return gate / (1 + np.exp(-1.702 * gate)) * (straight + 1)
