"""Tensors by name from whatever they are stored in: one file, a sharded folder, an old pickle.

Opening reads headers only; a tensor is mapped from disk when it is asked for. Pickles go through torch's
weights-only unpickler, which runs no code.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

INDEX_SUFFIX = ".safetensors.index.json"
PICKLES = {".ckpt", ".pt", ".pth"}
# Where trainers put the weights inside a pickle, the averaged ones first.
PICKLE_ROOTS = ("ema_state_dict", "state_dict", "model")


class Checkpoint:
    """A set of named tensors. ``shapes`` and ``metadata`` are known without reading any tensor.

    Raises CheckpointError for what is missing, truncated or not a weight file; a shard that the index names
    and the folder lacks is reported when one of its tensors is needed.
    """

    def __init__(self, path: Path, sources: Mapping[str, _Source], metadata: Mapping[str, str]):
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
        return {name: self._sources[stored].shape(stored) for name, stored in self._stored.items()}

    def tensor(self, name: str) -> Tensor:
        """The stored tensor, in its stored dtype, on the CPU."""
        stored = self._stored[name]
        return self._sources[stored].tensor(stored)

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
    sources: dict[str, _Source] = {
        shard: _Safetensors(index.parent / shard) for shard in set(shards.values())
    }
    metadata = {key: str(value) for key, value in (content.get("metadata") or {}).items()}
    return Checkpoint(index.parent, {name: sources[shard] for name, shard in shards.items()}, metadata)


def read_json(path: Path) -> dict:
    """A JSON object from a file beside the weights."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); download it again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}; an object is expected.")
    return content


class _Safetensors:
    """One safetensors file, opened at first use so that an unneeded shard may be absent."""

    def __init__(self, path: Path):
        self.path = path
        self._file = None

    @property
    def file(self):
        if self._file is None:
            if not self.path.exists():
                packed = self.path.with_name(self.path.name + ".zst")
                hint = f" {packed.name} is there: unpack it with zstd -d." if packed.exists() else ""
                raise CheckpointError(
                    f"{self.path.name} is named by the index in {self.path.parent} and is not there.{hint} "
                    "Download the missing shard."
                )
            try:
                self._file = safe_open(self.path, framework="pt")
            except (SafetensorError, OSError, ValueError) as error:
                size = self.path.stat().st_size
                raise CheckpointError(
                    f"{self.path} ({size:,} bytes) is not a whole safetensors file: {error}. Download it again."
                ) from None
        return self._file

    def names(self) -> Iterable[str]:
        return self.file.keys()

    def metadata(self) -> dict[str, str]:
        return self.file.metadata() or {}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._ask(lambda: self.file.get_slice(name).get_shape(), name))

    def tensor(self, name: str) -> Tensor:
        return self._ask(lambda: self.file.get_tensor(name), name)

    def _ask(self, read, name: str):
        try:
            return read()
        except SafetensorError as error:
            raise CheckpointError(
                f"{self.path.name} does not give the tensor {name} ({error}). "
                "The file does not belong to its index, or is damaged: download it again."
            ) from None


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
        tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
        if not tensors:
            raise CheckpointError(f"{self.path} holds no named tensors; it is not a checkpoint.")
        return tensors

    def names(self) -> Iterable[str]:
        return self.tensors.keys()

    def metadata(self) -> dict[str, str]:
        return {}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]


_Source = _Safetensors | _Pickle


def _is_zip(path: Path) -> bool:
    """Old pickles are not zip archives and cannot be mapped."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either."
    found = sorted(entry.name for entry in path.parent.iterdir())[:8]
    return f" In {path.parent} there is: {', '.join(found)}." if found else f" {path.parent} is empty."
