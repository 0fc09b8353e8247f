"""Every layout and precision a checkpoint is stored in, recognised by its names, dtypes and scale tensors.

What a file is shows in its tensors; the tables below say how. Reads headers and markers of a few bytes. What the
tensors then are to the network, with their published names and shapes, is in ``stored``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import CheckpointError
from ..kernels.quantised import GGUF, GROUPS
from .block_formats import PADDED, check_scales, logical_shape, whole
from .checkpoint import Checkpoint
from .header import DTYPES, parse_json
from .keys import KINDS, PARTS, joined
from .stored import Piece, published_view

# A scale's name -> its weight's, and the layout that writes it so.
SCALES = (
    (r"\.__fp8_scale$", "", "D"),
    (r"\._scale$", "", "E"),  # optimum-quanto
    (r"\.weight_scale$", ".weight", "H"),
    (r"\.scale_weight$", ".weight", "H"),  # ComfyUI before its markers
    (r"\.SCB$", ".weight", None),  # bitsandbytes' INT8: the largest number of each row
)
INPUT_SCALE = r"\.(input_scale|scale_input)$"  # of the activations, where the weight is multiplied in FP8
UNUSED = r"\.(output_scale|weight_format)$"
MARKER, OLD_MARKER, METADATA = ".comfy_quant", "scaled_fp8", "_quantization_metadata"
MAX_MARKER_BYTES = 4096
# What else stands beside a weight -> the weight, the format, and what ComfyUI and bitsandbytes call it.
COMPANIONS = (
    (r"\.(weight_scale_2|pre_quant_scale)$", ".weight", "nvfp4"),
    (r"\.(weight_s_rel|weight_s_channel|weight_codebook)$", ".weight", "asym_w4a8_int8"),
    (r"\.(quant_state\.bitsandbytes__(?:nf4|fp4))$", "", "nf4"),
    (r"\.(absmax|quant_map|nested_absmax|nested_quant_map)$", "", "nf4"),
)
NF4_STATE = "quant_state.bitsandbytes__"


@dataclass(frozen=True, slots=True)
class Form:
    """How the numbers of one weight are stored."""

    dtypes: tuple[str, ...]  # what it may be stored as; uint8 is the same bytes in older files
    precision: str
    needs: tuple[str, ...] = ("weight_scale",)


# ComfyUI's names of what is read; a weight without a marker has the format of its dtype.
FORMS = {
    "float8_e4m3fn": Form(("float8_e4m3fn", "uint8"), "fp8"),
    "float8_e5m2": Form(("float8_e5m2", "uint8"), "fp8_e5m2"),
    "int8_tensorwise": Form(("int8",), "int8"),
    "nf4": Form(("uint8", "int8"), "nf4", ("absmax", "quant_map")),
    "mxfp8": Form(("float8_e4m3fn", "uint8"), "mxfp8"),
    "nvfp4": Form(("uint8", "float4_e2m1fn"), "nvfp4", ("weight_scale", "weight_scale_2")),
    "convrot_w4a4": Form(("int8", "uint8"), "int4"),
    "asym_w4a8_int8": Form(("int8", "uint8"), "int4", ("weight_s_rel", "weight_s_channel")),
}
BY_NUMBER = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")  # a scale per tensor or per row
FORMAT_OF = {name: name for name in ("float8_e4m3fn", "float8_e5m2")} | {"int8": "int8_tensorwise"}
QUANTISED = {title for bits, title in DTYPES.values() if bits <= 8} - {"bool"}
PRECISION_OF = {"bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class Layout:
    """What a file's tensors are. ``letter`` is None where only packaging tells layouts apart."""

    letter: str | None
    precision: str  # of most of the large weights
    weights: Mapping[str, tuple[Piece, ...]]  # published name -> what is stacked, in order
    refusal: str | None = None  # why it cannot be loaded although it was recognised

    def view(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint under the published names; its tensors are made when they are asked for."""
        return published_view(checkpoint, self.weights)


@dataclass(slots=True)
class _Found:
    """What the names and markers say, before any weight is looked at."""

    formats: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Mapping] = field(default_factory=dict)
    scales: dict[str, dict[str, str]] = field(default_factory=dict)  # weight -> {ComfyUI's name: the file's}
    companions: set[str] = field(default_factory=set)
    letters: set[str] = field(default_factory=set)


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
    found = _Found(companions={OLD_MARKER} & dtypes.keys())
    _read_scales(found, dtypes)
    _read_companions(found, dtypes)
    _read_markers(found, checkpoint)
    has_scales = bool(found.scales or found.formats) or "quantization" in checkpoint.metadata
    pieces, refusals, sizes = {}, [], Counter()
    for name, dtype in dtypes.items():
        if name in found.companions:
            continue
        piece = _piece(name, found, checkpoint, dtype, shapes, has_scales, refusals)
        pieces[name] = piece
        sizes[_precision(piece)] += math.prod(piece.shape)
    _unpad(pieces)
    weights = {}
    for name, parts in joined(pieces).items():
        if len(parts) > 1:
            _check_parts(name, parts, {part: pieces[part].shape for part in parts})
            found.letters.add("E")
        weights[name] = tuple(pieces[part] for part in parts)
    letters = {"E"} if "E" in found.letters else found.letters
    if not letters and any(piece.format in BY_NUMBER and not piece.scales for piece in pieces.values()):
        letters = {"C"}
    precision = sizes.most_common(1)[0][0] if sizes else "none"
    return Layout(min(letters, default=None), precision, weights, refusals[0] if refusals else None)


def _unpad(pieces: dict[str, Piece]) -> None:
    """Give pieces of padded block formats the sizes of their weights."""
    shapes = {name: piece.shape for name, piece in pieces.items()}
    for name, piece in pieces.items():
        if piece.format in PADDED and "orig_shape" not in piece.settings:
            pieces[name] = replace(piece, shape=logical_shape(name, piece.shape, shapes))


def _precision(piece: Piece) -> str:
    if piece.format is None:
        return PRECISION_OF.get(piece.dtype, piece.dtype)
    return FORMS[piece.format].precision if piece.format in FORMS else piece.format.removeprefix(GGUF)


def _read_scales(found: _Found, dtypes: Mapping[str, str]) -> None:
    for name in dtypes:
        for pattern, ending, letter in SCALES:
            weight, fits = re.subn(pattern, ending, name)
            if not fits:
                continue
            if weight in found.scales:
                other = next(iter(found.scales[weight].values()))
                raise CheckpointError(f"{other} and {name} are both scales of {weight}.")
            stored = dtypes.get(weight, "not in the file")
            if stored not in QUANTISED:
                raise CheckpointError(
                    f"{name} is the scale of {weight}, which is {stored}; a quantised weight is expected."
                )
            found.scales[weight] = {"weight_scale": name}
            found.companions.add(name)
            found.letters |= {letter} - {None}


def _read_companions(found: _Found, dtypes: Mapping[str, str]) -> None:
    for name in dtypes:
        for pattern, ending, kind in COMPANIONS:
            if (match := re.search(pattern, name)) and name[: match.start()] + ending in dtypes:
                weight = name[: match.start()] + ending
                found.scales.setdefault(weight, {})[match[1]] = name
                found.formats.setdefault(weight, kind)
                found.companions.add(name)
        for pattern in (INPUT_SCALE, UNUSED):  # beside a quantised weight; any other is an unknown tensor
            weight, fits = re.subn(pattern, ".weight", name)
            if fits and dtypes.get(weight) in QUANTISED:
                found.companions.add(name)
                if pattern == INPUT_SCALE and weight in found.scales and dtypes[weight].startswith("float8"):
                    found.scales[weight]["input_scale"] = name


def _read_markers(found: _Found, checkpoint: Checkpoint) -> None:
    dtypes, said = checkpoint.dtypes, {}
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
            found.companions.add(name)
            said[name.removesuffix(MARKER)] = _json(checkpoint.raw(name), name)
    for layer, settings in said.items():
        weight = f"{layer}.weight"
        if weight in dtypes:
            found.formats[weight], found.settings[weight] = _format_and_settings(layer, settings)
    if OLD_MARKER in dtypes or any(kind != "nf4" for kind in found.formats.values()):
        found.letters = found.letters or {"H"}


def _without_prefix(layer: str, dtypes) -> str:
    """A layer's name as the file's tensors have it now; ComfyUI writes it with and without the prefix."""
    names = (layer[len(p) :] for kind in KINDS.values() for p in kind.prefixes if layer.startswith(p))
    return next((name for name in names if f"{name}.weight" in dtypes), layer)


def _format_and_settings(layer: str, settings) -> tuple[str, Mapping]:
    kind = settings.get("format") if isinstance(settings, dict) else None
    if not isinstance(kind, str):
        raise CheckpointError(f"The marker of {layer} names no format.")
    inner = settings.get("params")
    merged = {**(inner if isinstance(inner, dict) else {}), **settings}
    numbers = ("convrot_groupsize", "quant_group_size", "group_size", "blocksize")
    for name in numbers:
        if name in merged and not (type(merged[name]) is int and 0 < merged[name] <= 65536):
            raise CheckpointError(f"The marker of {layer} has a {name} that is no size.")
    known = (*numbers, "convrot", "linear_dtype", "orig_shape")
    return kind[:60], {name: merged[name] for name in known if name in merged}


def _json(text: str | bytes, name: str) -> dict:
    try:
        return parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be read as JSON ({error}).") from None


def _piece(name, found: _Found, checkpoint: Checkpoint, dtype, shapes, has_scales, refusals) -> Piece:
    shape = shapes[name]
    if dtype.startswith(GGUF):
        return Piece(name, dtype, shape, dtype)
    if dtype not in QUANTISED and name not in found.formats:
        return Piece(name, dtype, shape)
    scales, kind = found.scales.get(name, {}), found.formats.get(name) or FORMAT_OF.get(dtype, dtype)
    if kind in BY_NUMBER and "weight_scale" in scales:
        kind = _block_format(shapes, checkpoint.dtypes, name, scales["weight_scale"]) or kind
    if kind not in FORMS:
        refusals.append(
            f"{name} is stored as {kind}, which is not known. Use a bf16, FP8, INT8 or NF4 file of this model, or "
            "convert this one with the program that made it."
        )
        return Piece(name, kind, shape)
    stored = FORMS[kind]
    if dtype not in stored.dtypes:
        raise CheckpointError(f"{name} is said to be {kind} and is stored as {dtype}; download it again.")
    missing = [need for need in stored.needs if need not in scales]
    if missing and (kind not in BY_NUMBER or has_scales or dtype == "int8"):
        raise CheckpointError(
            f"{name} is quantised ({kind}) and its {missing[0].replace('weight_scale', 'scale')} is missing; "
            "without it the model makes noise. Download the file again."
        )
    settings = found.settings.get(name, {})
    if kind == "nf4":
        shape, settings = _read_nf4_state(name, scales, checkpoint, shape)
    else:
        shape = _logical_shape(name, kind, shape, settings)
    check_scales(name, kind, scales, checkpoint, whole(kind, shapes[name]), settings)
    as_dtype = kind if kind in BY_NUMBER and dtype == "uint8" else dtype
    if kind == "mxfp8":
        as_dtype = "float8_e4m3fn"
    is_largest = any(scale.endswith(".SCB") for scale in scales.values())
    return Piece(name, as_dtype, shape, kind, dict(scales), settings, 1 / 127 if is_largest else 1.0)


def _logical_shape(name: str, kind: str, shape: Sequence[int], settings: Mapping) -> tuple[int, ...]:
    """The shape of the weight that a packed or padded tensor stands for."""
    if len(shape) != 2 and (kind not in BY_NUMBER or settings.get("convrot")):
        raise CheckpointError(f"{name} of shape {list(shape)} is said to be {kind}; a matrix is expected.")
    group = settings.get("convrot_groupsize", 256)
    if settings.get("convrot") and (group not in GROUPS or shape[1] % group):
        raise CheckpointError(
            f"{name} is said to be rotated in groups of {group}, a power of 4 up to 256 that divides its "
            f"{shape[1]} columns; it does not."
        )
    stored = whole(kind, shape)
    original = settings.get("orig_shape")
    if original is None:
        return stored
    if (
        not isinstance(original, list)
        or len(original) != len(stored)
        or not all(type(size) is int and 0 < size <= has for size, has in zip(original, stored, strict=True))
    ):
        raise CheckpointError(
            f"The marker of {name} gives the original shape {str(original)[:60]}; it does not fit {list(stored)}."
        )
    if original[0] != stored[0] and kind == "int8_tensorwise":
        raise CheckpointError(f"{name} has {stored[0]} rows and its marker says {original[0]}.")
    return tuple(original)


def _read_nf4_state(name: str, scales: dict[str, str], checkpoint: Checkpoint, shape):
    """(shape, settings) from bitsandbytes' own JSON beside the weight."""
    state_name = next((scales.pop(key) for key in list(scales) if key.startswith(NF4_STATE)), None)
    if state_name is None:
        raise CheckpointError(f"{name} is 4-bit and its quant_state is missing; download the file again.")
    if math.prod(checkpoint.shapes[state_name]) > MAX_MARKER_BYTES:
        raise CheckpointError(f"{state_name} is too large for what it should say.")
    state = _json(checkpoint.raw(state_name), state_name)
    size, block, kind = state.get("shape"), state.get("blocksize"), state.get("quant_type")
    count = math.prod(shape)
    if (
        not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size))
        or not (type(block) is int and 0 < block <= 4096)
        or kind not in ("nf4", "fp4")
        or (math.prod(size) + 1) // 2 != count
    ):
        raise CheckpointError(f"{state_name} does not describe {name}, which has {count:,} bytes.")
    blocks = -(-math.prod(size) // block)
    if math.prod(checkpoint.shapes[scales["absmax"]]) != blocks or checkpoint.shapes[scales["quant_map"]] != (
        16,
    ):
        raise CheckpointError(f"{scales['absmax']} does not hold one number for each of {blocks:,} blocks.")
    settings = {"blocksize": block, "quant_type": kind}
    if "nested_absmax" in scales:
        nested, offset = state.get("nested_blocksize"), state.get("nested_offset", 0.0)
        if not (type(nested) is int and 0 < nested <= 65536 and isinstance(offset, int | float)):
            raise CheckpointError(f"{state_name} does not say how the scales of {name} are stored.")
        settings |= {"nested_blocksize": nested, "nested_offset": float(offset)}
    return tuple(size), settings


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
