"""What stands before the tensors of a GGUF file: typed fields, then each tensor's name, shape, type and offset.

Read here and not by the library's ``GGUFReader``, which believes every count and makes several arrays of each
word of a vocabulary: for the 256,000 of T5Gemma that took 9 s and 700 MB. Here the vocabulary is stepped over,
and every count, length and offset is held against the file before it is used. Little-endian, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError
from ..kernels.gguf_blocks import block_size

MAX_FIELDS, MAX_TENSORS = 10_000, 20_000  # the whole T5Gemma has some 40 and 1,100
MAX_TEXTS = 4_000_000  # in all arrays together: a vocabulary, its merges and more
MAX_NAME = 1_000  # bytes of a tensor's or field's name; GGML itself stops at 64
MAX_VALUE = 1_000  # bytes of a field's text; longer ones (chat templates) are stepped over
TEXT, ARRAY = 8, 9
SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
# The file's numbers of the types that need no library: plain numbers with their size and torch's name, ...
PLAIN = {
    "F32": (4, "float32"),
    "F16": (2, "float16"),
    "I8": (1, "int8"),
    "I16": (2, "int16"),
    "I32": (4, "int32"),
    "I64": (8, "int64"),
    "F64": (8, "float64"),
    "BF16": (2, "bfloat16"),
}
# ... and blocks.
KINDS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    30: "BF16",
}  # fmt: skip


class Entry(NamedTuple):
    """One tensor as the header has it."""

    kind: str  # GGML's name of the type
    shape: tuple[int, ...]  # rows first, which the file stores last
    first: int  # its bytes, counted from the end of the header
    last: int


class GgufHeader(NamedTuple):
    """``fields`` holds single values only; ``start`` is where the data begins, in bytes."""

    fields: dict[str, str | int | float | bool]
    tensors: dict[str, Entry]
    start: int


def read_gguf_header(path: Path) -> GgufHeader:
    """The header, if the whole file agrees with it; ValueError names the first thing that cannot be.

    CheckpointError names a tensor whose type cannot be read.
    """
    size = path.stat().st_size
    if size < 24:
        raise ValueError("the file ends before its header")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data, size)
        magic, version = cursor.bytes(4), cursor.number("<I")
        if magic != b"GGUF":
            raise ValueError(f"it begins with {magic!r}, and a GGUF file with b'GGUF'")
        if version and not version & 0xFFFF:
            raise ValueError("it is big-endian; take the usual little-endian file of the same model")
        if version not in (2, 3):
            raise ValueError(f"it has version {version}, and versions 2 and 3 are known")
        num_tensors, num_fields = cursor.number("<Q"), cursor.number("<Q")
        if num_tensors > MAX_TENSORS or num_fields > MAX_FIELDS:
            raise ValueError(f"it claims {num_tensors:,} tensors and {num_fields:,} fields")
        fields = _fields(cursor, num_fields)
        alignment = fields.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & alignment - 1:
            raise ValueError(f"its alignment is {alignment!r}, and a power of two from 8 on is expected")
        tensors = _tensors(cursor, num_tensors)
    start = _aligned(cursor.at, alignment)
    _check_extents(tensors, alignment, size - start)
    return GgufHeader(fields, tensors, start)


class _Cursor:
    """A place in the header; every step past the file's end is a ValueError."""

    def __init__(self, data: mmap.mmap, size: int):
        self.data, self.size, self.at, self.texts = data, size, 0, 0

    def skip(self, length: int) -> int:
        """Step over so many bytes; returns where they begin."""
        first = self.at
        if length > self.size - first:
            raise ValueError(
                f"its header claims {length:,} bytes at {first:,}, and {self.size - first:,} are there"
            )
        self.at += length
        return first

    def bytes(self, length: int) -> bytes:
        first = self.skip(length)
        return self.data[first : first + length]

    def number(self, form: str):
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))[0]

    def name(self) -> str:
        length = self.number("<Q")
        if not 0 < length <= MAX_NAME:
            raise ValueError(f"it has a name of {length:,} bytes at {self.at:,}")
        return self.bytes(length).decode("utf-8")

    def value(self, kind: int):
        """A field's value; None for arrays and long texts, which are stepped over."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            length = self.number("<Q")
            text = self.bytes(length) if length <= MAX_VALUE else self.skip(length)
            return text.decode("utf-8", "replace") if isinstance(text, bytes) else None
        if kind != ARRAY:
            raise ValueError(f"it has a field of the unknown type {kind} at {self.at:,}")
        kind, count = self.number("<I"), self.number("<Q")
        if kind in SCALARS:
            self.skip(count * struct.calcsize(SCALARS[kind]))
        elif kind == TEXT:
            self._skip_texts(count)
        else:
            raise ValueError(f"it has an array of the type {kind} at {self.at:,}")
        return None

    def _skip_texts(self, count: int) -> None:
        self.texts += count
        if self.texts > MAX_TEXTS or count * 8 > self.size - self.at:
            raise ValueError(f"it claims an array of {count:,} texts at {self.at:,}")
        length_at, at, last = struct.Struct("<Q").unpack_from, self.at, self.size - 8
        for _ in range(count):  # spelt out, because a vocabulary has some 256,000
            if at > last:
                raise ValueError(f"it ends within an array of {count:,} texts")
            at += 8 + length_at(self.data, at)[0]
        self.skip(at - self.at)


def _fields(cursor: _Cursor, count: int) -> dict[str, str | int | float | bool]:
    seen, fields = set(), {}
    for _ in range(count):
        name = cursor.name()
        if name in seen:
            raise ValueError(f"it holds the field {name[:80]!r} more than once")
        seen.add(name)
        value = cursor.value(cursor.number("<I"))
        if value is not None:
            fields[name] = value
    return fields


def _tensors(cursor: _Cursor, count: int) -> dict[str, Entry]:
    tensors = {}
    for _ in range(count):
        name = cursor.name()
        if name in tensors:
            raise ValueError(f"it holds the tensor {name[:80]!r} more than once")
        dims = cursor.number("<I")
        if not 1 <= dims <= 4:
            raise ValueError(f"{name[:80]} has {dims:,} dimensions")
        shape = tuple(cursor.number("<Q") for _ in range(dims))[::-1]
        kind, first = _kind(cursor.number("<I"), name), cursor.number("<Q")
        entries, size = _sizes(kind, name)
        if 0 in shape or shape[-1] % entries:
            raise ValueError(f"{name[:80]} of shape {list(shape)} is not whole {kind} blocks of {entries}")
        tensors[name] = Entry(kind, shape, first, first + math.prod(shape) // entries * size)
    return tensors


def _kind(number: int, tensor: str) -> str:
    if number in KINDS:
        return KINDS[number]
    try:
        import gguf

        return gguf.GGMLQuantizationType(number).name
    except ImportError:
        name = f"number {number} without the Python package 'gguf' (pip install gguf)"
    except ValueError:
        name = f"number {number}"
    raise CheckpointError(
        f"{tensor[:80]} is stored in the GGUF type {name}, which is not known here; take a file in Q8_0 or Q6_K."
    )


def _sizes(kind: str, tensor: str) -> tuple[int, int]:
    if kind in PLAIN:
        return 1, PLAIN[kind][0]
    try:
        return block_size(kind)
    except CheckpointError as error:
        raise CheckpointError(f"{tensor[:80]}: {error}") from None


def _check_extents(tensors: dict[str, Entry], alignment: int, size: int) -> None:
    """Tensors follow one another without gaps or overlaps, as llama.cpp asks too, up to the file's end."""
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].first):
        if entry.first != _aligned(end, alignment):
            raise ValueError(
                f"the data of {name[:80]} begins at {entry.first:,}, where {_aligned(end, alignment):,} is expected"
            )
        end = entry.last
    if not end <= size <= _aligned(end, alignment):
        raise ValueError(f"its tensors take {end:,} bytes, and {size:,} are there")


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
