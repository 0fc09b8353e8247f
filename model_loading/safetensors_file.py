"""A safetensors file that is written in any order and can be gone on with: places, journal, check, replacement."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .header import DTYPES

CODES = {title: code for code, (_, title) in DTYPES.items()}
# Not ".part": browsers call a download so while it comes in.
PARTIAL, JOURNAL, ASIDE = ".unfinished", ".unfinished.journal", ".old"
BLOCK = 16 << 20  # bytes read at once where a file is checked

OnProgress = Callable[[str, int, int], None]  # (stage, done, total)


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file."""

    name: str
    dtype: str  # torch's name
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Places:
    """Where each tensor of a file lies; ``groups`` are tensors that are finished together."""

    header: bytes
    entries: Mapping[str, Entry]
    offsets: Mapping[str, int]  # from the beginning of the file
    groups: Mapping[str, tuple[str, ...]]
    bytes: int  # of all tensors

    @classmethod
    def of(cls, groups: Mapping[str, Iterable[Entry]], metadata: Mapping[str, str]) -> Places:
        """Wide dtypes first, so that every tensor is aligned for mapping."""
        groups = {name: tuple(entries) for name, entries in groups.items()}
        entries = [entry for group in groups.values() for entry in group]
        entries.sort(key=lambda entry: (-getattr(torch, entry.dtype).itemsize, entry.name))
        content: dict[str, object] = {"__metadata__": dict(metadata)}
        offsets, end = {}, 0
        for entry in entries:
            offsets[entry.name], end = end, end + entry.bytes
            content[entry.name] = {
                "dtype": CODES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [offsets[entry.name], end],
            }
        text = json.dumps(content, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        header = struct.pack("<Q", len(text)) + text
        return cls(
            header,
            {entry.name: entry for entry in entries},
            {name: offset + len(header) for name, offset in offsets.items()},
            {name: tuple(entry.name for entry in group) for name, group in groups.items()},
            end,
        )


class UnfinishedFile:
    """The file beside ``target`` while it is written, and the journal of what is finished.

    ``job`` says what is written from what: an unfinished file of another job is begun anew.
    """

    def __init__(self, target: Path, places: Places, job: str):
        self.target, self.places, self.job = target, places, job
        _, self.path, self.journal = self.paths(target)
        self.sums: dict[str, int] = {}  # CRC-32 of each finished tensor
        self.bytes_done = 0

    @staticmethod
    def paths(target: Path) -> tuple[Path, Path, Path]:
        """All that is written for ``target``: itself, the unfinished file and the journal."""
        return target, target.with_name(target.name + PARTIAL), target.with_name(target.name + JOURNAL)

    def begin(self) -> set[str]:
        """Make the file, or take up what an earlier run left; returns the groups that are finished in it.

        Raises CheckpointError where the disk has no room for it.
        """
        finished = self._finished_before()
        self._check_room()
        with self.path.open("r+b" if finished else "wb") as file:
            file.write(self.places.header)  # also where it goes on: the journal does not vouch for it
            file.truncate(self._size)
        if not finished:
            self.journal.write_text(json.dumps(self._title()) + "\n", encoding="utf-8")
        elif not self.journal.read_bytes().endswith(b"\n"):  # the last line was cut
            with self.journal.open("a", encoding="utf-8") as file:
                file.write("\n")
        return finished

    def write(self, group: str, pieces: Iterable[tuple[str, Tensor]]) -> None:
        """The tensors of one group: (name, what comes next in it), until all of them are full."""
        names = self.places.groups[group]
        ends = dict.fromkeys(names, 0)
        sums = dict.fromkeys(names, 0)
        with self.path.open("r+b") as file:
            for name, tensor in pieces:
                data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
                file.seek(self.places.offsets[name] + ends[name])
                file.write(data)
                sums[name] = zlib.crc32(data, sums[name])
                ends[name] += data.nbytes
            file.flush()
            os.fsync(file.fileno())
        for name in names:
            wanted = self.places.entries[name].bytes
            assert ends[name] == wanted, f"{name}: {ends[name]} of {wanted} bytes were made"
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps([group, sums]) + "\n")
        self._take(sums)

    def verify(self, on_progress: OnProgress | None = None) -> None:
        """Read all of it back; CheckpointError names the first tensor that is not what was written."""
        done = 0
        with self.path.open("rb") as file:
            # So that the disk is read, and not the memory that it was written from.
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if file.read(len(self.places.header)) != self.places.header:
                raise self._damaged("its header")
            for name, entry in self.places.entries.items():
                if _sum_at(file, self.places.offsets[name], entry.bytes) != self.sums[name]:
                    raise self._damaged(name)
                done += entry.bytes
                if on_progress:
                    on_progress("checking", done, self.places.bytes)

    def finish(self) -> Path | None:
        """Give the file its name; returns where an older file went that another program holds open, if any.

        Windows does not replace a file that is mapped, as a loaded model is; it lets it be renamed.
        """
        aside = None
        try:
            os.replace(self.path, self.target)
        except OSError as error:
            aside = self._replace_after_moving(error)
        self.journal.unlink(missing_ok=True)
        return aside

    def _replace_after_moving(self, error: OSError) -> Path:
        """Where the older file went; CheckpointError, and all as it was, where that does not help either."""
        names = (f"{self.target.name}{ASIDE}{number or ''}" for number in range(10_000))
        aside = next(path for name in names if not (path := self.target.with_name(name)).exists())
        try:
            if not self.target.exists():
                raise error
            os.rename(self.target, aside)
            try:
                os.replace(self.path, self.target)
            except OSError:
                os.rename(aside, self.target)
                raise
        except OSError as last:
            raise CheckpointError(
                f"{self.target.name} is in use or protected ({last.strerror}). All is written in {self.path.name}: "
                "close the program that uses the old file and run the same command again."
            ) from None
        return aside

    @property
    def _size(self) -> int:
        return len(self.places.header) + self.places.bytes

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path.name} does not hold what was written (first: {what}); {self.target.name} was not touched. "
            "Run the same command again: only what is damaged is written again. If that does not help, the disk is "
            "failing; name another."
        )

    def _title(self) -> dict:
        return {"job": self.job, "header": zlib.crc32(self.places.header), "bytes": self.places.bytes}

    def _take(self, sums: Mapping[str, int]) -> None:
        self.sums.update(sums)
        self.bytes_done += sum(self.places.entries[name].bytes for name in sums)

    def _finished_before(self) -> set[str]:
        """Groups of the journal whose bytes are still what it says."""
        try:
            lines = self.journal.read_text(encoding="utf-8").splitlines()
            if self.path.stat().st_size != self._size or json.loads(lines[0]) != self._title():
                return set()
        except (OSError, ValueError, IndexError):
            return set()
        finished = set()
        with self.path.open("rb") as file:
            for line in lines[1:]:
                # The last line may be half a line.
                with suppress(ValueError, KeyError, TypeError, AttributeError):
                    group, sums = json.loads(line)
                    # What was damaged and written again has two lines.
                    if group not in finished and self._holds(file, group, sums):
                        finished.add(group)
                        self._take(sums)
        return finished

    def _holds(self, file, group: str, sums: Mapping[str, int]) -> bool:
        offsets, entries = self.places.offsets, self.places.entries
        return sums.keys() == set(self.places.groups[group]) and all(
            _sum_at(file, offsets[name], entries[name].bytes) == sums[name] for name in sums
        )

    def _check_room(self) -> None:
        free = shutil.disk_usage(self.target.parent).free
        if self.bytes_done:
            free += self.bytes_done
        elif self.path.exists():
            # Begun anew, it gives back what it takes: less than its size where it has holes.
            stat = self.path.stat()
            free += getattr(stat, "st_blocks", stat.st_size / 512) * 512
        if free < self._size:
            raise CheckpointError(
                f"{self.target.name} will have {self._size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in "
                f"{self.target.parent}. Make room, or name another disk."
            )


def _sum_at(file, offset: int, count: int) -> int:
    file.seek(offset)
    total = 0
    while count:
        block = file.read(min(BLOCK, count))
        if not block:
            return -1
        total = zlib.crc32(block, total)
        count -= len(block)
    return total
