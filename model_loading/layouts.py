"""Every layout and precision a checkpoint is stored in, read as the published one: same names, shapes and values.

What a file is shows in its names, dtypes and scale tensors; the tables below say how. Nothing is converted
until a tensor is asked for, and then only that tensor: value = float32(stored) * float32(scale).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError
from .checkpoint import Checkpoint
from .header import DTYPES, Stored, parse_json
from .keys import KINDS, PARTS, joined

# A scale's name -> its weight's, and the layout that writes it so.
SCALES = (
    (r"\.__fp8_scale$", "", "D"),
    (r"\._scale$", "", "E"),  # optimum-quanto
    (r"\.weight_scale$", ".weight", "H"),
    (r"\.scale_weight$", ".weight", "H"),  # ComfyUI before its markers
)
ACTIVATION_SCALE = r"\.(input_scale|output_scale|scale_input)$"  # of no use once weights are de-quantised
MARKER, OLD_MARKER, METADATA = ".comfy_quant", "scaled_fp8", "_quantization_metadata"
MAX_MARKER_BYTES = 4096
# What stands beside a weight in formats that are recognised only -> the weight, and the format.
FOREIGN = (
    (r"\.(weight_scale_2|pre_quant_scale)$", ".weight", "nvfp4"),
    (r"\.weight_(s_rel|s_channel|codebook)$", ".weight", "asym_w4a8_int8"),
    (r"\.quant_state\.bitsandbytes__(?:nf4|fp4)$", "", "bitsandbytes 4-bit"),
    (r"\.(absmax|quant_map|nested_absmax|nested_quant_map)$", "", "bitsandbytes 4-bit"),
)


@dataclass(frozen=True, slots=True)
class Format:
    """How the numbers of one weight are stored."""

    dtypes: tuple[str, ...]  # what it may be stored as; uint8 is the same bytes in older files
    precision: str


# ComfyUI's names of what is read; a weight without a marker has the format of its dtype.
FORMATS = {
    "float8_e4m3fn": Format(("float8_e4m3fn", "uint8"), "fp8"),
    "float8_e5m2": Format(("float8_e5m2", "uint8"), "fp8_e5m2"),
    "int8_tensorwise": Format(("int8",), "int8"),
}
FORMAT_OF = {name: name for name in ("float8_e4m3fn", "float8_e5m2")} | {"int8": "int8_tensorwise"}
QUANTISED = {title for bits, title in DTYPES.values() if bits <= 8} - {"bool"}
PRECISION_OF = {"bfloat16": "bf16"} | {dtype: FORMATS[name].precision for dtype, name in FORMAT_OF.items()}


@dataclass(frozen=True, slots=True)
class Piece:
    """One stored tensor and what makes numbers of it."""

    name: str
    dtype: str  # as it is to be read
    scale: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """What a file's tensors are. ``letter`` is None where only packaging tells layouts apart."""

    letter: str | None
    precision: str  # of most of the large weights
    weights: Mapping[str, tuple[Piece, ...]]  # published name -> what is stacked, in order
    refusal: str | None = None  # why it cannot be loaded although it was recognised

    def view(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint under the published names; its tensors are made when they are asked for."""
        source = _Made(checkpoint, self.weights)
        return Checkpoint(checkpoint.path, dict.fromkeys(self.weights, source), checkpoint.metadata)


def published(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights under the published names and shapes. Reads headers, and markers of a few bytes."""
    layout = read_layout(checkpoint)
    if layout.refusal:
        raise CheckpointError(layout.refusal)
    return layout.view(checkpoint)


def read_layout(checkpoint: Checkpoint) -> Layout:
    """Recognise a checkpoint whose names have lost their prefix.

    Raises CheckpointError where a scale or a part of a split weight is missing, alone or of a wrong shape.
    """
    dtypes, shapes = checkpoint.dtypes, checkpoint.shapes
    formats, companions = _formats(checkpoint, dtypes)
    scales, letters = _scales(dtypes)
    has_scales = bool(scales or formats) or "quantization" in checkpoint.metadata
    companions |= {*scales.values(), *_activation_scales(dtypes)}
    pieces, refusals, sizes = {}, [], Counter()
    for name, dtype in dtypes.items():
        if name in companions:
            continue
        if dtype not in QUANTISED and name not in formats:
            pieces[name], precision = Piece(name, dtype), PRECISION_OF.get(dtype, dtype)
        else:
            scale, kind = scales.get(name), formats.get(name) or FORMAT_OF.get(dtype, dtype)
            if kind in FORMATS and scale is not None:
                kind = _block_format(shapes, dtypes, name, scale) or kind
            pieces[name] = _quantised(name, dtype, kind, scale, has_scales, refusals)
            precision = FORMATS[kind].precision if kind in FORMATS else kind
        sizes[precision] += math.prod(shapes[name])
    weights = {}
    for name, parts in joined(pieces).items():
        if len(parts) > 1:
            _check_parts(name, parts, shapes)
            letters = {"E"}
        weights[name] = tuple(pieces[part] for part in parts)
    if not letters and (formats or OLD_MARKER in dtypes):
        letters = {"H"}
    if not letters and any(dtypes[name] in QUANTISED for name in pieces):
        letters = {"C"}
    precision = sizes.most_common(1)[0][0] if sizes else "none"
    return Layout(min(letters, default=None), precision, weights, refusals[0] if refusals else None)


def _scales(dtypes: Mapping[str, str]) -> tuple[dict[str, str], set[str]]:
    """({weight: its scale}, the letters of the layouts that name scales so)"""
    scales, letters = {}, set()
    for name in dtypes:
        for pattern, ending, letter in SCALES:
            weight, found = re.subn(pattern, ending, name)
            if found:
                if weight in scales:
                    raise CheckpointError(f"{scales[weight]} and {name} are both scales of {weight}.")
                scales[weight] = name
                letters.add(letter)
    for weight, scale in scales.items():
        stored = dtypes.get(weight, "not in the file")
        if stored not in QUANTISED:
            raise CheckpointError(
                f"{scale} is the scale of {weight}, which is {stored}; a quantised weight is expected."
            )
    return scales, letters


def _activation_scales(dtypes: Mapping[str, str]):
    """Those that stand beside a quantised weight; any other is an unknown tensor."""
    for name in dtypes:
        weight, found = re.subn(ACTIVATION_SCALE, ".weight", name)
        if found and dtypes.get(weight) in QUANTISED:
            yield name


def _formats(checkpoint: Checkpoint, dtypes: Mapping[str, str]) -> tuple[dict[str, str], set[str]]:
    """({weight: its format's name}, the tensors that say so)"""
    said: dict[str, object] = {}
    companions = {OLD_MARKER} & dtypes.keys()
    if METADATA in checkpoint.metadata:
        layers = _json(checkpoint.metadata[METADATA], METADATA).get("layers")
        if not isinstance(layers, dict):
            raise CheckpointError(f"The file's {METADATA} has no 'layers'; it cannot be read.")
        for layer, settings in layers.items():
            said[_without_prefix(layer, dtypes)] = settings
    for name, shape in checkpoint.shapes.items():
        if name.endswith(MARKER):
            if dtypes[name] not in ("uint8", "int8") or math.prod(shape) > MAX_MARKER_BYTES:
                raise CheckpointError(f"{name} of shape {list(shape)} and {dtypes[name]} is not a marker.")
            companions.add(name)
            said[name.removesuffix(MARKER)] = _json(checkpoint.raw(name), name)
    formats = {f"{layer}.weight": _format_name(layer, settings) for layer, settings in said.items()}
    for name in dtypes:
        for pattern, ending, kind in FOREIGN:
            weight, found = re.subn(pattern, ending, name)
            if found:
                companions.add(name)
                formats.setdefault(weight, kind)
    return {weight: kind for weight, kind in formats.items() if weight in dtypes}, companions


def _without_prefix(layer: str, dtypes) -> str:
    """A layer's name as the file's tensors have it now; ComfyUI writes it with and without the prefix."""
    names = (layer[len(p) :] for kind in KINDS.values() for p in kind.prefixes if layer.startswith(p))
    return next((name for name in names if f"{name}.weight" in dtypes), layer)


def _format_name(layer: str, settings) -> str:
    kind = settings.get("format") if isinstance(settings, dict) else None
    if not isinstance(kind, str):
        raise CheckpointError(f"The marker of {layer} names no format.")
    parameters = settings.get("params")
    parameters = parameters if isinstance(parameters, dict) else {}
    is_rotated = settings.get("convrot", parameters.get("convrot", False))
    return "int8_convrot" if kind == "int8_tensorwise" and is_rotated else kind[:60]


def _json(text: str | bytes, name: str) -> dict:
    try:
        return parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be read as JSON ({error}).") from None


def _block_format(shapes, dtypes, weight: str, scale: str) -> str | None:
    """The format whose scales are per block; None for a number per tensor or per row."""
    rows = shapes[weight][0] if shapes[weight] else 1
    if dtypes[scale] in ("float32", "bfloat16", "float16", "float64"):
        if shapes[scale] not in ((), (1,), (1, 1), (rows,), (rows, 1)):
            raise CheckpointError(
                f"{scale} has the shape {list(shapes[scale])}; one number, or one for each of the {rows} rows "
                f"of {weight} is expected."
            )
        return None
    return {"uint8": "mxfp8", "float8_e8m0fnu": "mxfp8", "float8_e4m3fn": "nvfp4"}.get(
        dtypes[scale], f"scaled by {dtypes[scale]}"
    )


def _quantised(name, dtype, kind, scale, has_scales, refusals: list[str]) -> Piece:
    if kind not in FORMATS:
        refusals.append(
            f"{name} is stored as {kind}: this is recognised, and cannot be loaded yet. Use a bf16, FP8 or plain "
            "INT8 file of this model."
        )
        return Piece(name, dtype, scale)
    if dtype not in FORMATS[kind].dtypes:
        raise CheckpointError(f"{name} is said to be {kind} and is stored as {dtype}; download it again.")
    if scale is None and (has_scales or dtype == "int8"):
        raise CheckpointError(
            f"{name} is quantised ({dtype}) and its scale is missing; without it the model makes noise. "
            "Download the file again."
        )
    return Piece(name, kind if dtype == "uint8" else dtype, scale)


def _check_parts(name: str, parts: tuple[str, ...], shapes) -> None:
    """Each modality's parts have the same sizes, and q, k, v and g the sizes of heads."""
    first, width = parts[: len(PARTS)] if len(parts) % len(PARTS) == 0 else parts[:1], shapes[parts[0]][1:]
    rows = [shapes[part][0] if len(shapes[part]) == 2 else 0 for part in first]
    for number, part in enumerate(parts):
        if shapes[part] != (rows[number % len(rows)], *width):
            raise CheckpointError(f"{part} has the shape {list(shapes[part])}; it does not fit {parts[0]}.")
    if len(rows) == len(PARTS):
        q, k, v, gates = rows
        # One gate per head of q; k and v have whole heads of the same size. Exchanged parts end here.
        if k != v or not gates or q % gates or k % (q // gates or 1):
            raise CheckpointError(
                f"{name} has parts of {q}, {k}, {v} and {gates} rows, which are not q, k, v and one gate per head."
            )


class _Made:
    """Tensors made from their pieces when they are asked for."""

    def __init__(self, checkpoint: Checkpoint, weights: Mapping[str, tuple[Piece, ...]]):
        self._checkpoint, self._weights, self._shapes = checkpoint, weights, checkpoint.shapes

    def stored(self, name: str) -> Stored:
        pieces = self._weights[name]
        shapes = [self._shapes[piece.name] for piece in pieces]
        dtypes = {"float32" if piece.dtype in QUANTISED else piece.dtype for piece in pieces}
        rows = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]
        return Stored(dtypes.pop() if len(dtypes) == 1 else "float32", rows)

    def raw(self, name: str) -> bytes:
        return bytes(self.tensor(name).flatten().view(torch.uint8).tolist())

    def tensor(self, name: str) -> Tensor:
        parts = [self._numbers(piece) for piece in self._weights[name]]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([part.to(getattr(torch, self.stored(name).dtype)) for part in parts])

    def _numbers(self, piece: Piece) -> Tensor:
        stored = self._checkpoint.tensor(piece.name)
        if piece.dtype not in QUANTISED:
            return stored
        stored = stored.view(getattr(torch, piece.dtype))
        values = stored.float()
        if piece.scale is None:
            # Only a scale makes weights use the whole range; cast as they are, none of them comes near it.
            if values.numel() and values.abs().max() >= torch.finfo(stored.dtype).max:
                raise CheckpointError(
                    f"{piece.name} fills the range of {piece.dtype}, so it was scaled, and its scale is missing; "
                    "without it the model makes noise."
                )
            return values
        scale = self._checkpoint.tensor(piece.scale).float()
        if not (scale.isfinite() & (scale >= 0)).all():
            raise CheckpointError(f"{piece.scale} holds a scale that is negative or not a number.")
        return values.mul_(scale.view(-1, *[1] * (values.ndim - 1)) if scale.numel() > 1 else scale.view(()))
