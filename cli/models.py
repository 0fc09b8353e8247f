"""``models``: write a small model set: the trained demo set, or a tiny one with random weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..model_loading.demo_set import copy_demo_set
from ..model_loading.tiny import SEED, write_tiny_set

HELP = "Write a small model set below a folder: the trained demo set, or a tiny random one for tests."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--demo", metavar="DIR", type=Path, help="the trained demo set, into a folder like ComfyUI's models"
    )
    kind.add_argument(
        "--tiny", metavar="DIR", type=Path, help="random weights in real file layouts, into such a folder"
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, help="seed of the random weights (default %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    target = options.demo or options.tiny
    written = copy_demo_set(target) if options.demo else write_tiny_set(target, options.seed)
    for path in written:
        print(f"{path.stat().st_size / 1e6:7.2f} MB  {path.relative_to(target)}")
    total = sum(path.stat().st_size for path in written)
    said = (
        "This set is trained: its films show a drawn face that says what is asked, in 64x64 pixels."
        if options.demo
        else "These weights are random: what they make is noise."
    )
    print(f"{total / 1e6:7.2f} MB in all. {said}")
