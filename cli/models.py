"""``models``: write a tiny model set for tests and first steps."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..model_loading.tiny import SEED, write_tiny_set

HELP = "Write a tiny model set (random weights, real file layouts) below a folder."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tiny", metavar="DIR", type=Path, required=True, help="folder to write, like ComfyUI's models"
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, help="seed of the random weights (default %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    written = write_tiny_set(options.tiny, options.seed)
    for path in written:
        print(f"{path.stat().st_size / 1e6:7.2f} MB  {path.relative_to(options.tiny)}")
    total = sum(path.stat().st_size for path in written)
    print(f"{total / 1e6:7.2f} MB in all. These weights are random: what they make is noise.")
