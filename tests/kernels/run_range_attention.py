"""Runs attention over ranges in Triton's interpreter at odd sizes, beside its definition and a masked float64.

Float16, because the interpreter's product of bfloat16 matrices multiplies their bits.
"""

import math
import warnings

import numpy as np
import torch

from comfyui_happyhorse.kernels.attention import attention_over_ranges
from comfyui_happyhorse.kernels.range_plan import flatten
from comfyui_happyhorse.kernels.registry import forced


def windows(frames, size, tail, window):
    """Frames that see ``window`` to each side and the tail; the tail sees everything."""
    video, ranges = frames * size, []
    for frame in range(frames):
        first, last = max(0, frame - window), min(frames, frame + window + 1)
        ranges.append(((frame * size, (frame + 1) * size), (first * size, last * size)))
    return [*ranges, ((0, video), (video, video + tail)), ((video, video + tail), (0, video + tail))]


# name -> (query rows, key rows, query heads, key heads, entries, ranges, what of gates). Tiles are 16 x 16 here, so
# that frames of 19 rows and a tail of 7 have a remainder in both directions.
CASES = {
    "windows": (83, 83, 5, 1, 128, windows(4, 19, 7, 1), None),
    "windows, gated": (53, 53, 5, 1, 128, windows(3, 12, 17, 1), "rows"),
    "ten heads on two": (64, 64, 10, 2, 16, windows(3, 17, 13, 1), "strided"),
    "one key": (3, 40, 5, 1, 64, [((0, 3), (17, 18))], None),
    "everything": (17, 65, 2, 2, 32, [((0, 17), (0, 65))], "rows"),
    "rows that see nothing": (50, 31, 2, 1, 16, [((5, 21), (3, 20)), ((30, 44), (30, 31))], "rows"),
    "many pieces": (20, 90, 2, 1, 16, [((0, 20), (first, first + 3)) for first in range(0, 80, 10)], None),
    "large logits": (20, 50, 3, 1, 64, [((0, 20), (0, 50))], None),
    "not a number": (20, 50, 3, 1, 64, [((0, 20), (0, 50))], "rows"),
}


def measure() -> dict:
    return {name: measure_case(name, *case) for name, case in CASES.items()}


def measure_case(name, rows, keys, heads, groups, depth, ranges, gates) -> dict:
    random = torch.Generator().manual_seed(len(name))

    def numbers(*shape):
        return torch.randn(shape, generator=random).half()

    # Views of fused rows, as the projection gives them: more entries between rows than a row has.
    q = numbers(rows, heads * depth + 24)[:, : heads * depth].unflatten(1, (heads, depth))
    k, v = (part.unflatten(1, (groups, depth)) for part in numbers(keys, 2 * groups * depth).chunk(2, 1))
    if name == "large logits":
        q, k = q * 12, k * 12
    if name == "not a number":
        q[7, 2, 3] = float("nan")
    gate = {
        None: None,
        "rows": numbers(rows, heads) * 3,
        "strided": (numbers(rows, 40) * 3)[:, 4 : 4 + heads],
    }[gates]
    arguments = (q, k, v, flatten(ranges), gate)
    with forced("triton"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of the row without a number
        assert attention_over_ranges.chosen(*arguments) == "triton"
        out, again = attention_over_ranges(*arguments), None
        if name == "windows, gated":
            again = attention_over_ranges(*arguments)
    wanted = in_float64(q, k, v, ranges, gate)
    is_number = ~np.isnan(wanted)
    found = out.double().numpy()

    def error(values) -> float:
        return float(np.linalg.norm((values - wanted)[is_number]) / np.linalg.norm(wanted[is_number]))

    return {
        "error": error(found),
        "definition": error(attention_over_ranges.definition(*arguments).double().numpy()),
        "empty": np.flatnonzero(np.abs(found).sum((1, 2)) == 0).tolist(),
        "lost": sorted({(int(row), int(head)) for row, head, _ in np.argwhere(np.isnan(found))}),
        "repeats": again is None or torch.equal(out, again),
    }


def in_float64(q, k, v, ranges, gate):
    """A dense softmax under a mask, head by head."""
    q, k, v = (part.double().numpy() for part in (q, k, v))
    mask = np.zeros((q.shape[0], k.shape[0]), dtype=bool)
    for (q0, q1), (k0, k1) in ranges:
        mask[q0:q1, k0:k1] = True
    out = np.zeros(q.shape)
    for head in range(q.shape[1]):
        group = head * k.shape[1] // q.shape[1]
        logits = q[:, head] @ k[:, group].T / math.sqrt(q.shape[2])
        logits = np.where(mask, logits, -np.inf)
        top = np.where(mask.any(1), np.where(np.isnan(logits), np.nan, logits).max(1), 0.0)
        weights = np.exp(logits - top[:, None])
        out[:, head] = np.divide(weights @ v[:, group], np.maximum(weights.sum(1), 1e-300)[:, None])
    if gate is not None:
        out /= 1 + np.exp(-gate.double().numpy())[:, :, None]
    return out
