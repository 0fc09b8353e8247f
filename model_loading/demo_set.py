"""The trained demo set that comes with the pack: where it lies, whether it is whole, and which words it knows."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

from ..errors import CheckpointError

FOLDER = Path(__file__).resolve().parent.parent / "demo_set"
CHECKSUMS = "SHA256SUMS"
VOCABULARY = (
    "vocabulary.json"  # {"languages": {name: [words]}, "faces": [...], "backgrounds": [...], "voices": [...]}
)
SIDE = 64  # pixels of its films; two faces take two squares


def copy_demo_set(target: Path, source: Path = FOLDER) -> list[Path]:
    """Copy the set below ``target``, a folder like ComfyUI's models; the paths written.

    Raises CheckpointError where the pack came without the set, or a file of it is not what was published.
    """
    listed = checksums(source)
    written = []
    for name, expected in listed.items():
        file = source / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise CheckpointError(
                f"{file} is {'damaged' if file.is_file() else 'missing'}: it is not the file of {CHECKSUMS}. Install the "
                "pack again, or restore it with git checkout -- demo_set."
            )
    for name in listed:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(place.name + ".part")
        shutil.copyfile(source / name, part)
        part.replace(place)
        written.append(place)
    return written


def checksums(source: Path = FOLDER) -> dict[str, str]:
    """{file: SHA-256} of the set."""
    try:
        lines = (source / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise CheckpointError(
            f"The demo set is not at {source}. It comes with a clone and with the installed package; copy the folder "
            "demo_set there, or use --tiny for random weights."
        ) from None
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def vocabulary(source: Path = FOLDER) -> dict:
    """Faces, backgrounds, voices, and the words of each language."""
    return json.loads((source / VOCABULARY).read_text(encoding="utf-8"))


def unknown_words(line: str, words: list[str]) -> list[str]:
    """The parts of a spoken line that are none of ``words``; CJK lines have spaces between their characters."""
    rest = " ".join(line.split())
    for word in sorted(words, key=len, reverse=True):
        rest = re.sub(rf"(?<!\S){re.escape(word)}(?!\S)", "\0", rest)
    return [part.strip() for part in rest.split("\0") if part.strip()]
