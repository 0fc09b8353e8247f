"""T5Gemma text encoders in GGUF files, under the published names and with norm weights as the network has them.

Opening reads the header and the norm weights (2.4 MB of the published model). A matrix is mapped from disk when
it is asked for; in a block format it stays in its bytes, for ``kernels.gguf_blocks.dequantise``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..kernels.gguf_blocks import dequantise
from .checkpoint import Checkpoint
from .gguf_header import PLAIN, Entry, read_gguf_header
from .gguf_names import is_llama_style, published_tensors
from .header import Stored

BLOCKS = "gguf_"  # dtype of a tensor in blocks: this and GGML's name of the type
NORM_NOTE = "norm_weights"  # the metadata entry that says what the file's norms hold, and why that is thought
MAX_NORM_ENTRIES = 4_000_000  # the published encoder has 0.6 million


@dataclass(frozen=True, slots=True)
class NormWeights:
    """Whether a file's norm weights are stored with 1 added, and what showed it."""

    is_shifted: bool
    reason: str

    def __str__(self) -> str:
        return f"norm weights hold {'w + 1' if self.is_shifted else 'w'}: {self.reason}"


def open_gguf(path: str | Path) -> Checkpoint:
    """The T5Gemma encoder in a GGUF file, and whatever else the file holds under ``decoder.`` and ``lm_head.``.

    ``metadata`` has the file's single-valued fields and, under ``norm_weights``, what was found of the norms.
    """
    source = GgufSource(Path(path))
    return Checkpoint(source.path, dict.fromkeys(source.names(), source), source.metadata())


class GgufSource:
    """One GGUF file as a source of tensors by their published names.

    Block formats have the dtype "gguf_Q6_K" and the like, their shape in entries, and come as their bytes,
    uint8 [rows, bytes per row]. Norm weights come as w in float32, whatever they are stored as and with.
    Raises CheckpointError for what is damaged, of another model, or in a type that cannot be de-quantised.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise CheckpointError(
                f"{path} is {'a folder' if path.exists() else 'not there'}; name a .gguf file."
            )
        try:
            header = read_gguf_header(path)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except (OSError, ValueError) as error:
            size = path.stat().st_size
            raise CheckpointError(
                f"{path} ({size:,} bytes) is not a whole GGUF file: {error}. Download it again."
            ) from None
        self._start, self._fields = header.start, header.fields
        self._tensors = published_tensors(path, header.tensors, header.fields)
        _check_kinds(path, self._tensors)
        self._norms = _norm_names(path, self._tensors)
        self.norms = norm_weights(self._all_norms(), is_llama_style(header.tensors))

    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def metadata(self) -> dict[str, str]:
        return {**{name: str(value) for name, value in self._fields.items()}, NORM_NOTE: str(self.norms)}

    def stored(self, name: str) -> Stored:
        entry = self._entry(name)
        dtype = PLAIN[entry.kind][1] if entry.kind in PLAIN else BLOCKS + entry.kind
        return Stored("float32" if name in self._norms else dtype, entry.shape, entry.first, entry.last)

    def tensor(self, name: str) -> Tensor:
        """Mapped from disk, each by itself, so that the file is let go with its last tensor; norms are read."""
        entry = self._entry(name)
        if name in self._norms:
            return self.rows(name)
        try:
            # Copy on write, because torch warns of memory that it may not write to.
            mapped = np.memmap(
                self.path, np.uint8, "c", self._start + entry.first, (entry.last - entry.first,)
            )
        except (OSError, ValueError) as error:
            raise self._unable(name, str(error)) from None
        return _formed(torch.from_numpy(mapped), entry)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """``tensor(name)[start:stop]``, of which only these rows are read, and nothing is mapped."""
        entry = self._entry(name)
        if name in self._norms:
            values = self._norm(entry, name)[start:stop]
            return values - 1 if self.norms.is_shifted else values
        return self._read(entry, name, start, stop)

    def raw(self, name: str) -> bytes:
        """The bytes of ``tensor(name)``, read without mapping the file."""
        return self.rows(name).flatten().view(torch.uint8).numpy().tobytes()

    def _entry(self, name: str) -> Entry:
        if name not in self._tensors:
            raise self._unable(name, "it has no such tensor")
        return self._tensors[name]

    def _read(self, entry: Entry, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        shape = _given_shape(entry)
        start, stop, _ = slice(start, stop).indices(shape[0])
        row = (entry.last - entry.first) // shape[0]
        data = bytearray(max(stop - start, 0) * row)
        try:
            with self.path.open("rb") as file:
                file.seek(self._start + entry.first + start * row)
                found = file.readinto(data)
        except OSError as error:
            raise self._unable(name, str(error)) from None
        if found != len(data):
            raise self._unable(name, f"{found:,} of {len(data):,} bytes are there")
        return _formed(
            torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8), entry
        )

    def _norm(self, entry: Entry, name: str) -> Tensor:
        """[D] in float32, as stored."""
        data = self._read(entry, name)
        values = data.float() if entry.kind in PLAIN else dequantise(data, entry.kind)
        if not values.isfinite().all():
            raise self._unable(name, "it holds numbers that are not finite")
        return values

    def _all_norms(self) -> Tensor:
        return torch.cat([self._norm(self._tensors[name], name) for name in sorted(self._norms)])

    def _unable(self, name: str, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path.name} does not give the tensor {name} ({reason}). "
            "Unless memory is short, the file is damaged or was changed: download it again."
        )


def norm_weights(stored: Tensor, is_llama_style: bool) -> NormWeights:
    """What the norm values of one file (float32, all in one row) hold: w, by which 1 + w multiplies, or w + 1.

    Trained weights were bfloat16 once. The one rounding of w + 1, to float32, float16 or bfloat16, leaves
    something that minus 1 is a bfloat16 number again: where w has finer bits than the sum can keep, fewer than
    eight remain. So "all are bfloat16" and "all are, less 1" tell the two apart, unless both or neither hold;
    then where the values lie does, and last the style of the file's names, since llama.cpp adds the 1.
    """
    values = stored.double()
    # From 256 on bfloat16 has even numbers only: a sum rounded to it has lost its 1.
    is_w, is_sum = _are_bfloat16(values), _are_bfloat16(values[values.abs() < 256] - 1)
    if is_w != is_sum:
        return NormWeights(is_sum, f"all {'less 1 ' if is_sum else ''}are bfloat16 numbers")
    negative, median = (values < 0).double().mean().item(), values.median().item()
    place = f"{negative:.1%} are negative, half are below {median:.2f}"
    if negative >= 0.01 or abs(median) < 0.25:
        return NormWeights(False, place)
    # Of w in bfloat16 every other one in 1/4 to 1/2, and most below, has finer bits than a sum with 1.
    if is_sum and (small := ((values != 0) & (values.abs() < 0.5)).sum().item()) >= 50:
        return NormWeights(True, f"{small:,} are below 1/2 and none has finer bits than 1 + w in bfloat16")
    if negative < 0.001 and 0.5 <= median <= 1.5:
        return NormWeights(True, place)
    style = "llama.cpp, which adds 1" if is_llama_style else "Hugging Face, which stores w"
    return NormWeights(is_llama_style, f"the values do not show it ({place}); the names are of {style}")


def _are_bfloat16(values: Tensor) -> bool:
    return bool((values.bfloat16().double() == values).all())


def _formed(data: Tensor, entry: Entry) -> Tensor:
    """Bytes of some whole rows -> numbers, or block bytes [rows, bytes per row]."""
    dtype = getattr(torch, PLAIN[entry.kind][1]) if entry.kind in PLAIN else torch.uint8
    return data.view(dtype).view(-1, *_given_shape(entry)[1:])


def _given_shape(entry: Entry) -> tuple[int, ...]:
    """The shape that ``tensor`` gives: blocks in bytes."""
    if entry.kind in PLAIN:
        return entry.shape
    rows = entry.shape[:-1]
    return (*rows, (entry.last - entry.first) // math.prod(rows))


def _check_kinds(path: Path, tensors: Mapping[str, Entry]) -> None:
    for name, entry in tensors.items():
        if name.startswith("encoder.") and PLAIN.get(entry.kind, (0, ""))[1].startswith("int"):
            raise CheckpointError(
                f"{path}: {name} holds whole numbers ({entry.kind}) and no scale; weights are expected. "
                "The file is damaged: download it again."
            )


def _norm_names(path: Path, tensors: Mapping[str, Entry]) -> frozenset[str]:
    """The encoder's norms, if all are vectors of the embedding's width."""
    hidden_size = tensors["encoder.embed_tokens.weight"].shape[-1]
    norms = frozenset(name for name in tensors if re.fullmatch(r"encoder\..*norm\.weight", name))
    for name in sorted(norms):
        if tensors[name].shape != (hidden_size,):
            raise CheckpointError(
                f"{path}: {name} has the shape {tensors[name].shape}, and the embedding asks for {(hidden_size,)}. "
                "The file is damaged or of another model: download it again."
            )
    if len(norms) * hidden_size > MAX_NORM_ENTRIES:
        raise CheckpointError(
            f"{path} claims {len(norms)} norms of {hidden_size:,}; it is no T5Gemma encoder."
        )
    return norms
