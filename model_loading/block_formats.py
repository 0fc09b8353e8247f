"""What ComfyUI's block formats store: the shapes of their scales, and the sizes of weights that they padded.

NVFP4 and MXFP8 files hold whole blocks of 16 or 32 rows and columns, and ComfyUI knows the true sizes from its
network. Here they follow from the file: hidden size and modalities from the norms and the embedder, heads from the
q norm, and the feed-forward's width from the published rule where both of its weights are padded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import CheckpointError
from ..model.config import MODALITIES
from .checkpoint import Checkpoint

BLOCK = 32  # the widest padding there is
PADDED = ("nvfp4", "mxfp8")  # to whole blocks of rows and columns
HALVED = ("nvfp4", "convrot_w4a4", "asym_w4a8_int8")  # two numbers a byte
FLOATS = ("float32", "bfloat16", "float16")
E4M3, E8M0 = ("float8_e4m3fn", "uint8"), ("float8_e8m0fnu", "uint8")


def _tiled(block: int):
    """One scale for ``block`` columns, in tiles of 128 rows by 4 scales."""
    return lambda rows, columns, _: (-(-rows // 128) * 128, -(-(columns // block) // 4) * 4)


# format -> {ComfyUI's name of a scale: (its shape for a weight [rows, columns] and the marker's settings, dtypes)}
SCALES = {
    "mxfp8": {"weight_scale": (_tiled(32), E8M0)},
    "nvfp4": {
        "weight_scale": (_tiled(16), E4M3),
        "weight_scale_2": (lambda *_: (), FLOATS),
        "pre_quant_scale": (lambda rows, columns, _: (columns,), FLOATS),
    },
    "convrot_w4a4": {"weight_scale": (lambda rows, *_: (rows,), FLOATS)},
    "asym_w4a8_int8": {
        "weight_s_rel": (lambda rows, columns, s: (rows, columns // s.get("group_size", 16)), E4M3),
        "weight_s_channel": (lambda rows, *_: (rows,), FLOATS),
        "weight_codebook": (lambda rows, columns, _: (16,), FLOATS),
    },
}


def whole(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in numbers of a tensor that may hold two of them in a byte."""
    return (shape[0], shape[1] * 2) if kind in HALVED and len(shape) == 2 else tuple(shape)


def check_scales(
    weight: str,
    kind: str,
    names: Mapping[str, str],
    checkpoint: Checkpoint,
    stored: tuple[int, ...],
    settings: Mapping,
) -> None:
    """Raise CheckpointError where a scale has another shape than the format's layout in comfy-kitchen asks for.

    ``names`` are {ComfyUI's name of a scale: the file's}, ``stored`` is the weight's shape with its padding.
    """
    for scale, (shape_of, dtypes) in SCALES.get(kind, {}).items():
        if scale not in names:
            continue  # "pre_quant_scale" and "weight_codebook" may be absent
        name = names[scale]
        wanted, has, dtype = shape_of(*stored, settings), checkpoint.shapes[name], checkpoint.dtypes[name]
        if has != wanted or dtype not in dtypes:
            raise CheckpointError(
                f"{name} is {dtype} of shape {list(has)}; for {weight}, stored as {kind}, {dtypes[0]} of shape "
                f"{list(wanted)} is expected. Download the file again."
            )


def logical_shape(
    name: str, stored: tuple[int, int], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """[M, K] of the weight ``name``, stored as whole blocks; what is no projection of a block is as it is stored.

    Raises CheckpointError where the sizes do not fit one another.
    """
    found = re.match(r"(block\.layers\.\d+)\.(?:attention|mlp)\.(\w+)\.weight$", name)
    if not found:
        return stored
    layer, projection = found.groups()
    try:
        hidden = shapes["adapter.video_embedder.weight"][0]
        parts = shapes[f"{layer}.attention.pre_norm.weight"][0] // hidden
        head = shapes[f"{layer}.attention.q_norm.weight"][0] // parts
        if parts not in (1, MODALITIES) or head < 1:
            raise KeyError
        wanted = _shape(projection, stored, layer, shapes, hidden, parts, head)
    except (KeyError, IndexError, ZeroDivisionError):
        raise CheckpointError(
            f"{name} is stored in whole blocks, and what says its size is missing."
        ) from None
    if any(not 0 <= has - size < BLOCK for has, size in zip(stored, wanted, strict=True)):
        raise CheckpointError(
            f"{name} is stored as {list(stored)}, which does not fit its size {list(wanted)}."
        )
    return wanted


def _shape(projection, stored, layer, shapes, hidden, parts, head) -> tuple[int, int]:
    width = shapes[f"{layer}.attention.linear_proj.weight"][1]  # heads are whole blocks
    if projection == "linear_proj":
        return parts * hidden, stored[1]
    if projection == "linear_qkv":
        heads = width // head
        keys = (stored[0] // parts - width - heads) // (2 * head)
        return parts * (width + 2 * keys * head + heads), hidden
    inner, is_gated = _inner(layer, shapes, hidden, parts)
    if projection == "down_proj":
        return parts * hidden, inner
    return parts * inner * (2 if is_gated else 1), hidden


def _inner(layer, shapes, hidden, parts) -> tuple[int, bool]:
    """(width of the feed-forward, whether it is gated)"""
    rows = shapes[f"{layer}.mlp.up_gate_proj.weight"][0] / parts
    columns = shapes[f"{layer}.mlp.down_proj.weight"][1]
    is_gated = rows > 1.5 * columns
    # int(4 * 2/3 * hidden) in fours for SwiGLU7, four times the hidden size for GELU7.
    published = hidden * 8 // 3 // 4 * 4 if is_gated else 4 * hidden
    return (published if 0 <= columns - published < BLOCK else columns), is_gated
