"""``inspect``: what a weight file is, in a few lines or as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..model_loading.inspect import LAYOUTS, VARIANT_NAMES, Inspection, inspect_file

HELP = "Say what a weight file or a folder of shards is, and whether it can be used."
JSON_KEYS = (
    "kind",
    "layout",
    "precision",
    "variant",
    "parameters",
    "missing",
    "unknown",
    "memory_bytes",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="FILE|DIR", type=Path, help="weight file, or folder of shards")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of sentences")


def run(options: argparse.Namespace) -> None:
    found = inspect_file(options.path)
    if options.json:
        print(json.dumps({key: getattr(found, key) for key in JSON_KEYS}, indent=1))
    else:
        print("\n".join(sentences(options.path, found)))


def sentences(path: Path, found: Inspection) -> list[str]:
    """The report for a person; its first line is one sentence that says it all."""
    layout = f", layout {found.layout} ({LAYOUTS[found.layout]})" if found.layout else ""
    variant = f", {found.variant} by its name" if found.variant else ""
    is_whole = not (found.missing or found.unknown or found.problem)
    can_be_used = "complete" if is_whole else "not usable as it is"
    article = "a" if found.kind == "lora" else "the"
    lines = [f"{path.name} is {article} {found.title}{layout}, in {found.precision}{variant}: {can_be_used}."]
    if found.kind == "dit":
        why = (
            f"{found.variant}, because of the name '{found.why}'"
            if found.variant
            else f"no name says; choose one of {', '.join(VARIANT_NAMES)}"
        )
        lines.append(f"Variant: {why}. The tensors of all variants have the same names and shapes.")
    if found.targets is not None:
        lines.append(f"Targets: {found.targets} layers.")
    lines.append(f"Parameters: {found.parameters:,} in {found.tensors} tensors.")
    for title, names in (("Missing", found.missing), ("Unknown", found.unknown)):
        if names:
            lines.append(f"{title}: {len(names)} (first: {names[0]}).")
    if found.note:
        lines.append(f"{found.note[0].upper()}{found.note[1:]}.")
    if found.problem:
        lines.append(f"Problem: {found.problem}")
    lines.append(f"Memory: {size(found.memory_bytes)} for the weights once loaded.")
    return lines


def size(count: int) -> str:
    """15_300_000_000 -> "15.30 GB"."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
