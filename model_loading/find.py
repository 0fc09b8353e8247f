"""Finds the parts of a model set in a folder, by what the files hold and, for the variant, by their names.

Works for a ComfyUI ``models`` folder, for the folders of the original release, and for a flat folder.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .checkpoint import GGUF_SUFFIX, INDEX_SUFFIX, PICKLES, open_checkpoint
from .keys import KINDS, kind_of

PIPELINE_INDEX = "model_index.json"
# Names as people have them; the first that fits decides, so that "1080p_sr_base" is super-resolution.
VARIANT_HINTS = (
    (r"1080", "sr_1080p"),
    (r"540", "sr_540p"),
    (r"distill", "distilled"),
    (r"base", "base"),
)


@dataclass(frozen=True, slots=True)
class Part:
    """One weight file or sharded folder, recognised."""

    path: Path
    kind: str
    variant: str | None = None  # of a transformer; None where the name does not tell


def find_parts(folder: str | Path) -> list[Part]:
    """Every recognised part below ``folder``, by path. Files that are something else are left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"The models folder {folder} does not exist; name another with --models.")
    parts = []
    for path in sorted(_candidates(folder)):
        try:
            kind = kind_of(open_checkpoint(path).names)
        except CheckpointError:
            continue  # a broken or foreign file matters only when it is asked for by name
        if kind is not None:
            variant = variant_hint(path.relative_to(folder)) if kind.name == "transformer" else None
            parts.append(Part(path, kind.name, variant))
    return parts


def the_part(parts: list[Part], kind: str, variant: str | None, folder: str | Path, option: str) -> Path:
    """The one part of this kind (and variant). None or several is an error that names ``option``."""
    found = [part for part in parts if part.kind == kind and (variant is None or part.variant == variant)]
    if len(found) == 1:
        return found[0].path
    title = KINDS[kind].title + (f" ({variant})" if variant else "")
    if not found:
        unnamed = [part.path.name for part in parts if part.kind == kind and part.variant is None and variant]
        hint = (
            f" {', '.join(unnamed)} may be it, but neither its name nor its tensors tell the variant."
            if unnamed
            else ""
        )
        raise CheckpointError(f"No {title} was found in {folder}.{hint} Name the file with {option}.")
    names = ", ".join(str(part.path.relative_to(folder)) for part in found)
    raise CheckpointError(f"{len(found)} files in {folder} are a {title}: {names}. Name one with {option}.")


def variant_hint(path: Path) -> str | None:
    """What a file's or its folders' names say about the variant; the nearest name to the file decides."""
    return variant_and_name(path)[0]


def variant_and_name(path: Path) -> tuple[str | None, str | None]:
    """(variant, the file's or folder's name that says so)"""
    for name in (path.name, *(parent.name for parent in path.parents)):
        for pattern, variant in VARIANT_HINTS:
            if re.search(pattern, name.lower()):
                return variant, name
    return None, None


def part_folder(path: str | Path, kind: str) -> Path:
    """The folder of one part inside a diffusers pipeline folder; every other path as it is."""
    path = Path(path)
    return path / KINDS[kind].folder if is_pipeline(path) and KINDS[kind].folder else path


def is_pipeline(path: Path) -> bool:
    """Whether this is the root of a diffusers pipeline."""
    return (path / PIPELINE_INDEX).is_file()


def _candidates(folder: Path):
    """Folders with an index count as one; every other weight file counts for itself."""
    for parent, _, files in os.walk(folder, followlinks=True):  # people link model folders
        if any(file.endswith(INDEX_SUFFIX) for file in files):
            yield Path(parent)
            continue
        for path in (Path(parent) / file for file in files):
            if path.suffix in {".safetensors", GGUF_SUFFIX, *PICKLES} and path.is_file():
                yield path
