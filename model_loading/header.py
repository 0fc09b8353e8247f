"""What stands before the tensors: JSON from outside, and a safetensors header, checked before anything is allocated."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError

# The published header has 40 kB and 4,000 of these marks; worst-case text of this size makes about 100 MB.
MAX_JSON_BYTES = 16 << 20
MAX_JSON_MARKS = 500_000  # opening brackets, commas and colons, those in strings too
# A header's name of a dtype -> bits per entry, torch's name.
DTYPES = {
    "BOOL": (8, "bool"),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "U16": (16, "uint16"),
    "I16": (16, "int16"),
    "U32": (32, "uint32"),
    "I32": (32, "int32"),
    "U64": (64, "uint64"),
    "I64": (64, "int64"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F32": (32, "float32"),
    "F64": (64, "float64"),
    "C64": (64, "complex64"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F6_E2M3": (6, "float6_e2m3fn"),
    "F6_E3M2": (6, "float6_e3m2fn"),
    "F4": (4, "float4_e2m1fn"),
}


class Stored(NamedTuple):
    """What a header says of a tensor."""

    dtype: str  # torch's name
    shape: tuple[int, ...]
    first: int = 0  # its bytes, counted from the end of the header
    last: int = 0


def read_json(path: Path) -> dict:
    """A JSON object from a file beside the weights."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {MAX_JSON_BYTES:,} bytes")
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); download it again.") from None


def parse_json(text: str | bytes) -> dict:
    """A JSON object of bounded size, depth and integers, without repeated names; else ValueError."""
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    if len(text) > MAX_JSON_BYTES or sum(map(text.count, "[{,:")) > MAX_JSON_MARKS:
        raise ValueError(f"{len(text):,} characters hold more values than any list of tensors")
    try:
        content = json.loads(text, parse_int=_integer, object_pairs_hook=_unrepeated)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}; an object is expected")
    return content


def _integer(digits: str) -> int:
    if len(digits) > 19:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _unrepeated(pairs: list[tuple[str, object]]) -> dict:
    content = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"it holds {name[:80]!r} more than once")
        content[name] = value
    return content


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str], int]:
    """Tensors, metadata and where the data begins; ValueError names the first thing that cannot be."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError("the file ends before its header")
        length = struct.unpack("<Q", start)[0]
        if length > size - 8 or length > MAX_JSON_BYTES:
            raise ValueError(f"its header claims {length:,} bytes")
        content = parse_json(file.read(length))
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not names and texts")
    "".join([*content, *metadata, *metadata.values()]).encode()  # ValueError for half a surrogate pair
    tensors = {name: _entry(name, value) for name, value in content.items()}
    end = 0
    for name, stored in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if stored.first != end:
            raise ValueError(f"the data of {name} begins at {stored.first:,}, where {end:,} is expected")
        end = stored.last
    if end != size - 8 - length:
        raise ValueError(f"its tensors take {end:,} bytes, and {size - 8 - length:,} are there")
    return tensors, metadata, 8 + length


def _entry(name: str, value) -> Stored:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"its entry for {name} is not a dtype, a shape and offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name} has the dtype {str(dtype)[:40]!r}, which is not known")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"the shape or the offsets of {name} are not whole numbers")
    bits, title = DTYPES[dtype]
    if len(shape) > 8 or len(offsets) != 2 or (offsets[1] - offsets[0]) * 8 != math.prod(shape) * bits:
        raise ValueError(
            f"{name} of shape {shape[:8]} and dtype {dtype} does not fit the offsets {offsets[:2]}"
        )
    return Stored(title, tuple(shape), *offsets)
