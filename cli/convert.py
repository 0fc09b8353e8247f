"""``convert``: any checkpoint to one file in ComfyUI's format."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from ..errors import CheckpointError
from ..model_loading.convert import convert
from ..model_loading.recipes import TARGETS
from .inspect import size
from .progress import ProgressBars

HELP = "Convert a checkpoint to one safetensors file in bf16, FP8, INT8 or NF4, in little memory."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", type=Path, help="weight file, or folder of shards")
    parser.add_argument("target", metavar="DST", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--precision", choices=TARGETS, required=True, help="what the large weights become")
    parser.add_argument(
        "--lora",
        metavar="FILE[:STRENGTH]",
        action="append",
        default=[],
        help="merge a LoRA; may be given several times",
    )
    parser.add_argument(
        "--embed-tokenizer",
        metavar="FILE",
        type=Path,
        help="put tokenizer.json or tokenizer.model into a text encoder's file",
    )


def run(options: argparse.Namespace) -> None:
    loras = [lora(text) for text in options.lora]
    try:
        done = convert(
            options.source,
            options.target,
            options.precision,
            loras=loras,
            tokenizer=options.embed_tokenizer,
            on_progress=InMegabytes(ProgressBars()),
        )
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where it was.", file=sys.stderr)
        raise SystemExit(130) from None
    if done.resumed:
        print(f"{done.resumed} weights had been finished before.")
    if done.unmatched:
        print(f"Keys of the LoRA that belong to nothing: {len(done.unmatched)} (first: {done.unmatched[0]}).")
    if done.replaced:
        print(f"The older file was in use and is now {done.replaced.name}; remove it when you like.")
    print(f"{done.path}: {size(done.bytes)} in {done.tensors} tensors, {options.precision}, checked.")


def lora(text: str) -> tuple[Path, float]:
    """ "style.safetensors:0.8" -> the file and its strength; a drive's letter is no file."""
    name, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        number = float(strength)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return Path(name), number
    if len(name) == 1:  # C:\style.safetensors
        return Path(text), 1.0
    raise CheckpointError(f"--lora {text}: '{strength}' is no strength; give a number, such as 0.8.")


class InMegabytes:
    """Progress in whole megabytes, each shown once."""

    def __init__(self, bars: ProgressBars):
        self.bars, self.shown = bars, None

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = f"{stage}, MB", -(-done // 1_000_000), -(-total // 1_000_000)
        if now != self.shown:
            self.bars(*now)
        self.shown = now
