"""Tensors by name from whatever they are stored in: one file, a sharded folder, an old pickle.

Opening reads headers only; a tensor is mapped from disk when it is asked for. A header is checked here before
the safetensors library sees the file, so a hostile one is refused before anything large is made of it. Pickles
go through torch's weights-only unpickler, which runs no code.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..kernels.quantised import QuantisedWeight
from .header import Stored, read_header, read_json

INDEX_SUFFIX = ".safetensors.index.json"
GGUF_SUFFIX = ".gguf"
PICKLES = {".ckpt", ".pt", ".pth"}
# Where trainers put the weights inside a pickle, the averaged ones first.
PICKLE_ROOTS = ("ema_state_dict", "state_dict", "model")


class Source(Protocol):
    """Where a checkpoint takes tensors from; ``stored`` reads no data."""

    def stored(self, name: str) -> Stored: ...

    def tensor(self, name: str) -> Tensor: ...

    def raw(self, name: str) -> bytes: ...

    def rows(self, name: str, start: int, stop: int) -> Tensor: ...


class Checkpoint:
    """A set of named tensors. ``shapes``, ``dtypes`` and ``metadata`` are known without reading any tensor.

    Raises CheckpointError for what is missing, truncated or not a weight file; a shard that the index names
    and the folder lacks is reported when one of its tensors is needed.
    """

    def __init__(self, path: Path, sources: Mapping[str, Source], metadata: Mapping[str, str]):
        self.path = path
        self.metadata = dict(metadata)
        self._sources = dict(sources)
        self._stored = {name: name for name in sources}

    @property
    def names(self) -> list[str]:
        return list(self._stored)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors; missing shards raise here."""
        return {name: self._sources[stored].stored(stored).shape for name, stored in self._stored.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        """Torch's names of the stored dtypes; missing shards raise here too."""
        return {name: self._sources[stored].stored(stored).dtype for name, stored in self._stored.items()}

    def tensor(self, name: str) -> Tensor:
        """The stored tensor, in its stored dtype, on the CPU."""
        stored = self._stored[name]
        return self._sources[stored].tensor(stored)

    def raw(self, name: str) -> bytes:
        """The stored bytes, read without mapping the file: for what is small."""
        stored = self._stored[name]
        return self._sources[stored].raw(stored)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the stored tensor, read into memory of their own: the file is not mapped."""
        stored = self._stored[name]
        return self._sources[stored].rows(stored, start, stop)

    def read(self, name: str) -> Tensor:
        """The stored tensor, read in the same way."""
        shape = self._sources[self._stored[name]].stored(self._stored[name]).shape
        return self.rows(name, 0, shape[0] if shape else 1)

    def quantised(self, name: str) -> QuantisedWeight | None:
        """The weight in its stored form where it is quantised, else None; see ``layouts.published``."""
        stored = self._stored[name]
        find = getattr(self._sources[stored], "quantised", None)
        return None if find is None else find(stored)

    def source_of(self, name: str) -> tuple[Source, str]:
        """Where a tensor comes from, and what it is called there."""
        stored = self._stored[name]
        return self._sources[stored], stored

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """A view of the tensors {their name here: their name there}; all others are left out."""
        view = Checkpoint(self.path, {}, self.metadata)
        view._sources = self._sources
        view._stored = {new: self._stored[old] for old, new in names.items()}
        return view


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a safetensors file, a folder of them with or without an index, or a pickle of tensors."""
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.{_neighbours(path)}")
    if path.name.endswith(INDEX_SUFFIX):
        return _open_index(path)
    if path.suffix == GGUF_SUFFIX:
        from .gguf_file import open_gguf  # late: it makes a Checkpoint itself

        return open_gguf(path)
    if path.suffix in PICKLES:
        source = _Pickle(path)
    elif path.suffix == ".zst":
        raise CheckpointError(f"{path} is compressed. Unpack it first: zstd -d '{path.name}'")
    else:
        source = _Safetensors(path)
    return Checkpoint(path, dict.fromkeys(source.names(), source), source.metadata())


def _open_folder(folder: Path) -> Checkpoint:
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    if len(indices) == 1:
        return _open_index(indices[0])
    files = sorted(folder.glob("*.safetensors"))
    if not indices and len(files) == 1:
        return open_checkpoint(files[0])
    what = f"{len(indices)} index files" if indices else f"{len(files)} safetensors files and no index"
    raise CheckpointError(
        f"The folder {folder} holds {what}. Name one file, or a folder with one *{INDEX_SUFFIX} "
        f"or one .safetensors file."
    )


def _open_index(index: Path) -> Checkpoint:
    content = read_json(index)
    shards = content.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{index} has no 'weight_map' from tensor names to shards; download it again.")
    for shard in shards.values():
        if not re.fullmatch(r"[^/\\:\x00-\x1f\ud800-\udfff]{1,200}", shard) or shard in (".", ".."):
            raise CheckpointError(f"{index} names the shard {shard[:60]!r}; a file beside it is expected.")
    sources: dict[str, Source] = {shard: _Safetensors(index.parent / shard) for shard in set(shards.values())}
    about = content.get("metadata")
    metadata = {key: str(value) for key, value in about.items()} if isinstance(about, dict) else {}
    return Checkpoint(index.parent, {name: sources[shard] for name, shard in shards.items()}, metadata)


class _Safetensors:
    """One safetensors file, opened at first use so that an unneeded shard may be absent."""

    def __init__(self, path: Path):
        self.path = path
        self._read = self._mapped = None

    def _header(self) -> tuple[dict[str, Stored], dict[str, str], int]:
        if self._read is None:
            if not self.path.exists():
                packed = self.path.with_name(self.path.name + ".zst")
                hint = f" {packed.name} is there: unpack it with zstd -d." if packed.exists() else ""
                raise CheckpointError(
                    f"{self.path.name} is named by the index in {self.path.parent} and is not there.{hint} "
                    "Download the missing shard."
                )
            try:
                self._read = read_header(self.path)
            except (OSError, ValueError) as error:
                size = self.path.stat().st_size
                raise CheckpointError(
                    f"{self.path} ({size:,} bytes) is not a whole safetensors file: {error}. Download it again."
                ) from None
        return self._read

    def names(self) -> Iterable[str]:
        return self._header()[0].keys()

    def metadata(self) -> dict[str, str]:
        return self._header()[1]

    def stored(self, name: str) -> Stored:
        tensors = self._header()[0]
        if name not in tensors:
            raise self._unable(name, "it has no such tensor")
        return tensors[name]

    def tensor(self, name: str) -> Tensor:
        dtype = self.stored(name).dtype
        if not hasattr(torch, dtype):
            raise self._unable(name, f"torch {torch.__version__} has no {dtype}")
        try:
            # The library maps all of the file at once, for which a small machine may have no room.
            self._mapped = self._mapped or safe_open(self.path, framework="pt")
            return self._mapped.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise self._unable(name, str(error)) from None

    def raw(self, name: str) -> bytes:
        stored, start = self.stored(name), self._header()[2]
        with self.path.open("rb") as file:
            file.seek(start + stored.first)
            return file.read(stored.last - stored.first)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        stored, begin = self.stored(name), self._header()[2]
        if not hasattr(torch, stored.dtype):
            raise self._unable(name, f"torch {torch.__version__} has no {stored.dtype}")
        height = stored.shape[0] if stored.shape else 1
        width = (stored.last - stored.first) // max(height, 1)  # bytes of a row
        with self.path.open("rb") as file:
            file.seek(begin + stored.first + start * width)
            data = torch.from_numpy(np.fromfile(file, np.uint8, (stop - start) * width))
        if data.numel() != (stop - start) * width:
            raise self._unable(name, "the file became shorter")
        shape = (stop - start, *stored.shape[1:]) if stored.shape else ()
        return data.view(getattr(torch, stored.dtype)).reshape(shape)

    def _unable(self, name: str, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path.name} does not give the tensor {name} ({reason}). "
            "Unless memory is short, the file is damaged or does not belong to its index: download it again."
        )


class _Pickle:
    """A torch pickle of tensors, read without running what is in it."""

    def __init__(self, path: Path):
        self.path = path
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
        except pickle.UnpicklingError as error:
            reason = re.sub(r"\s+", " ", str(error))[:200]
            raise CheckpointError(
                f"{path} holds more than tensors, and what a pickle holds besides could be harmful code, so it "
                f"was not opened: {reason}"
            ) from None
        except Exception as error:  # damaged bytes lead the unpickler to errors of every kind
            size = path.stat().st_size
            raise CheckpointError(
                f"{path} ({size:,} bytes) is not a whole torch file ({type(error).__name__}: {error}). "
                "Download it again."
            ) from None
        self.tensors = self._weights(content)

    def _weights(self, content) -> dict[str, Tensor]:
        for root in PICKLE_ROOTS:
            if isinstance(content, dict) and isinstance(content.get(root), dict):
                content = content[root]
                break
        tensors = content if isinstance(content, dict) else {}
        tensors = {
            name: value
            for name, value in tensors.items()
            if isinstance(name, str) and isinstance(value, Tensor)
        }
        if not tensors:
            raise CheckpointError(f"{self.path} holds no named tensors; it is not a checkpoint.")
        return tensors

    def names(self) -> Iterable[str]:
        return self.tensors.keys()

    def metadata(self) -> dict[str, str]:
        return {}

    def stored(self, name: str) -> Stored:
        tensor = self.tensors[name]
        return Stored(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        tensor = self.tensors[name]
        return tensor[start:stop] if tensor.ndim else tensor

    def raw(self, name: str) -> bytes:
        return bytes(self.tensors[name].flatten().view(torch.uint8).tolist())


def _is_zip(path: Path) -> bool:
    """Old pickles are not zip archives and cannot be mapped."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either."
    found = sorted(entry.name for entry in path.parent.iterdir())[:8]
    return f" In {path.parent} there is: {', '.join(found)}." if found else f" {path.parent} is empty."
