"""Files that appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import MediaError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it if the block ends well and removed if it does not.

    Whatever ends the block early, an interrupt too, leaves the folder and an older ``path`` as they were.
    Raises MediaError if the folder cannot be written.
    """
    with whole_files(path) as (part,):
        yield part


@contextmanager
def whole_files(*paths: str | Path) -> Iterator[list[Path]]:
    """Like ``whole_file`` for files that belong together: all of them appear, or none.

    They appear in order. If one cannot be put in its place, those before it are removed again.
    """
    paths = [Path(path) for path in paths]
    parts, placed = [], []
    try:
        for path in paths:
            parts.append(_touched(path))
        yield parts
        for part, path in zip(parts, paths, strict=True):
            try:
                os.replace(part, path)
            except OSError as error:
                raise MediaError(
                    f"The finished file cannot be put at {path} ({error.strerror}). "
                    "Is the old one open in another program?"
                ) from error
            placed.append(path)
        placed.clear()
    finally:
        for leftover in (*parts, *placed):
            leftover.unlink(missing_ok=True)


def _touched(path: Path) -> Path:
    """A new empty file beside ``path``."""
    if path.is_dir():
        raise MediaError(f"{path} cannot be written: it is a folder. Give the file another name.")
    # Not tempfile: its files are readable by their owner only, and the film would stay so.
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.touch(exist_ok=False)
    except OSError as error:
        raise MediaError(
            f"{path.name} cannot be written: the folder {path.parent} is missing or closed to writing "
            f"({error.strerror}). Make the folder or choose another."
        ) from error
    return part
