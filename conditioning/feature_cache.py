"""Text features on disk by what they were made of, so that words met before need no text encoder.

An entry is a safetensors file of one prompt's rows, named by a SHA-256 over all that decides them: the weights,
the tokeniser, the encoder's settings, the precision, the kind of device and the token ids. What it cannot see are
the versions of torch and of the card's driver, which round a little differently, and a change to a part of one
matrix that leaves its middle row as it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import ConditioningError
from ..model.text_encoder import T5GemmaConfig
from ..shapes import MAX_TEXT_TOKENS
from .tokenizer import EMBEDDED_NAMES, FILE_NAMES

logger = logging.getLogger(__name__)

VERSION = 1  # raise it when the same words come to other numbers
DEFAULT_LIMIT = 1_000_000_000  # bytes; a prompt of 640 tokens takes 4.6 MB
LIMIT_VARIABLE = "HAPPYHORSE_TEXT_CACHE_GB"
SAMPLED = 32_768  # entries read of a tensor in one dimension: the norms whole
ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
PART = ".part"
STALE = 3600  # seconds after which an unfinished file belongs to a program that was ended
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DAMAGE = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Contents(NamedTuple):
    """What a cache holds, or what was taken out of it."""

    entries: int
    bytes: int


class Weights(Protocol):
    """What is asked of a checkpoint here: what its headers say, and single rows, read without mapping a file."""

    @property
    def names(self) -> list[str]: ...

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    @property
    def dtypes(self) -> dict[str, str]: ...

    metadata: dict[str, str]

    def rows(self, name: str, start: int, stop: int) -> Tensor: ...


class FeatureCache:
    """Rows [Lt, D] by key in a folder, the longest unused gone first where they pass ``limit`` bytes.

    Several processes may use one folder. Nothing here raises: where the disk refuses, one warning says so and
    the features are made each time.
    """

    def __init__(self, folder: str | Path, limit: int = DEFAULT_LIMIT):
        self.folder, self.limit = Path(folder), limit
        self._warned = False

    def get(self, key: str) -> Tensor | None:
        """The rows as they were put, bit for bit; None where there are none, or none that are whole."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._warn(f"cannot be read ({error.strerror})")
            return None
        try:
            rows = _unpacked(data, key)
        except DAMAGE as error:
            logger.warning("The stored text features %s are damaged and are made again: %s", path, error)
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):  # a folder that is read-only is a cache all the same
            os.utime(path, ns=(time.time_ns(),) * 2)
        return rows

    def put(self, key: str, rows: Tensor) -> None:
        """Keep ``rows`` [Lt, D]; they appear whole or not at all."""
        data, path = _packed(rows, key), self._path(key)
        if len(data) > self.limit:
            return
        part = self.folder / f".{uuid.uuid4().hex}{PART}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            os.replace(part, path)
        except OSError as error:
            # Windows does not replace what another program is reading; that holds the same.
            if not path.exists():
                self._warn(f"cannot be written ({error.strerror})")
            with suppress(OSError):
                part.unlink()
        else:
            self._trim(path)

    def size(self) -> Contents:
        """How many prompts are kept and the bytes they take."""
        entries = self._entries()
        return Contents(len(entries), sum(size for _, size, _ in entries))

    def clear(self) -> Contents:
        """Take all entries out; returns what went."""
        return _removed(self._entries())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(time of last use, bytes, path), the longest unused first."""
        found = []
        with suppress(OSError), os.scandir(self.folder) as files:
            for file in files:
                if ENTRY.fullmatch(file.name):
                    with suppress(OSError):  # another process took it out
                        stat = file.stat()
                        found.append((stat.st_mtime_ns, stat.st_size, Path(file.path)))
        return sorted(found)

    def _trim(self, newest: Path) -> None:
        entries = self._entries()
        too_much = sum(size for _, size, _ in entries) - self.limit
        for entry in entries:
            if too_much > 0 and entry[2] != newest:
                too_much -= _removed([entry]).bytes
        with suppress(OSError):
            for part in self.folder.glob(f".*{PART}"):
                if part.stat().st_mtime < time.time() - STALE:
                    part.unlink()

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "The folder of text features %s %s; prompts are encoded each time. Give the folder room and the "
                "right to be written, or switch the text cache off.",
                self.folder,
                what,
            )


def cached_rows(
    ids: Sequence[int],
    encode: Callable[[Sequence[int]], Tensor],
    cache: FeatureCache | None,
    encoder: str,
) -> Tensor:
    """``encode(ids)`` [Lt, D], or what it gave before; ``encoder`` is its ``encoder_identity``."""
    if cache is None:
        return encode(ids)
    key = feature_key(encoder, ids)
    rows = cache.get(key)
    if rows is None:
        rows = encode(ids)
        cache.put(key, rows)
    return rows


def feature_key(encoder: str, ids: Sequence[int]) -> str:
    """The name of one prompt's features, 64 hexadecimal digits."""
    return _hash({"encoder": encoder, "ids": list(ids), "limit": MAX_TEXT_TOKENS, "version": VERSION})


def encoder_identity(
    weights: Weights,
    config: T5GemmaConfig,
    tokenizer: str,
    *,
    precision: str,
    dtype: torch.dtype,
    device: str,
) -> str:
    """All that decides the rows beside the words. ``device`` is a kind, such as "cuda": each rounds its own way."""
    return _hash(
        {
            "weights": weights_fingerprint(weights),
            "config": asdict(config),
            "tokenizer": tokenizer,
            "precision": precision,
            "dtype": str(dtype),
            "device": device,
        }
    )


def weights_fingerprint(weights: Weights) -> str:
    """The headers and, of every tensor, the middle row: any training or merging changes those.

    Of the published encoder's 18 GB 7 MB are read. Dates do not count: files are copied and touched.
    """
    shapes, dtypes = weights.shapes, weights.dtypes
    found = hashlib.sha256(json.dumps(weights.metadata, sort_keys=True).encode())
    for name in sorted(weights.names):
        shape = shapes[name]
        found.update(json.dumps([name, dtypes[name], list(shape)]).encode())
        height = shape[0] if shape else 1
        count = 1 if len(shape) > 1 else min(height, SAMPLED)
        if math.prod(shape):
            start = (height - count) // 2
            found.update(_bytes(weights.rows(name, start, start + count)))
    return found.hexdigest()


def tokenizer_fingerprint(
    weights: Path, embedded: Mapping[str, bytes | Tensor], named: Path | None = None
) -> str:
    """The content of the tokeniser that ``find_tokenizer`` takes, given the same."""
    inside = [embedded[name] for name in EMBEDDED_NAMES if name in embedded]
    if inside:
        content = _bytes(inside[0]) if isinstance(inside[0], Tensor) else inside[0]
    else:
        folder = weights if weights.is_dir() else weights.parent
        places = [*(folder / name for name in FILE_NAMES), *([named] if named else [])]
        content = next((path.read_bytes() for path in places if path.is_file()), b"")
    return hashlib.sha256(content).hexdigest()


def size_limit(environment: Mapping[str, str]) -> int:
    """Bytes that a cache may take: 1 GB, or what the environment's HAPPYHORSE_TEXT_CACHE_GB says."""
    text = environment.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return DEFAULT_LIMIT
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit < 1e9:
        raise ConditioningError(
            f"{LIMIT_VARIABLE} is '{text}'; a number of gigabytes is expected, such as 2.5, or 0 to keep nothing."
        )
    return round(limit * 1e9)


def _removed(entries: Sequence[tuple[int, int, Path]]) -> Contents:
    """Remove the files; returns what is gone."""
    count = total = 0
    for _, size, path in entries:
        with suppress(OSError):  # gone already, or being read on Windows
            path.unlink()
            count, total = count + 1, total + size
    return Contents(count, total)


def _packed(rows: Tensor, key: str) -> bytes:
    """Rows rounded through float16 are float32 in use; half the bytes hold them."""
    rows = rows.detach().cpu().contiguous()
    stored = rows
    if rows.dtype == torch.float32:
        narrow = rows.half()
        if torch.equal(narrow.float().view(torch.int32), rows.view(torch.int32)):
            stored = narrow
    title = str(rows.dtype).removeprefix("torch.")
    check = {"dtype": title, "key": key, "crc32": str(_sum(stored, title, key))}
    return save({"rows": stored}, metadata=check)


def _unpacked(data: bytes, key: str) -> Tensor:
    length = int.from_bytes(data[:8], "little")
    about = json.loads(data[8 : 8 + length])["__metadata__"]
    rows = load(data)["rows"]
    if str(_sum(rows, about["dtype"], key)) != about["crc32"]:
        raise ValueError("the checksum is of other bytes")
    return rows.to(DTYPES[about["dtype"]])


def _sum(rows: Tensor, title: str, key: str) -> int:
    return zlib.crc32(_bytes(rows), zlib.crc32(f"{title} {rows.dtype} {tuple(rows.shape)} {key}".encode()))


def _hash(content: Mapping) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
