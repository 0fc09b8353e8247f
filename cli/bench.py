"""``bench``: how fast this machine is, against what ComfyUI does today and against what its card can reach."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from ..errors import HappyHorseError
from ..model_loading.precision import PRECISIONS

HELP = "Measure operations, layers, passes, decoding and whole clips on this card; needs no weights."
TABLES = ("kernels", "layer", "forward", "clip", "decode")
EIGHT_BIT = tuple(name for name, policy in PRECISIONS.items() if policy.quantise is not None)
RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tables",
        nargs="*",
        metavar="TABLE",
        help=f"what is measured: {', '.join(TABLES)} (default: all of them)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer calls, and nothing at 1080p")
    parser.add_argument("--device", default="cuda", help="(default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: a walk whose figures mean nothing")
    parser.add_argument(
        "--precision",
        choices=EIGHT_BIT,
        help="of the case called 8-bit (default: fp8_fast where the card has FP8 units, else int8)",
    )
    parser.add_argument("--minutes", type=float, default=7.5, help="to stop after (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="(default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    unknown = [table for table in options.tables if table not in TABLES]
    if unknown:
        raise HappyHorseError(f"There is no table '{unknown[0]}'; there are {', '.join(TABLES)}.")
    if not 0 < options.minutes <= 600:
        raise HappyHorseError(
            f"{options.minutes:g} minutes cannot be kept to; give more than 0 and at most 600."
        )
    command = suite()
    settings = command.Settings(
        options.tables or TABLES,
        options.device,
        options.tiny,
        options.quick,
        options.precision,
        options.minutes,
        options.output,
    )
    result, files = command.bench(settings, lambda line: print(line, file=sys.stderr, flush=True))
    print(files[1].read_text(encoding="utf-8"))
    for file in files:
        print(file)
    found = result["summary"]
    print(
        f"goals_met: {str(found['goals_met']).lower()} ({found['goals_missed']} missed, {found['goals_open']} open)"
    )


def suite():
    """The benchmark's own package, which is no room of the pack: a wheel may come without it."""
    try:
        return import_module("...benchmarks.suite.command", __name__)
    except ModuleNotFoundError as error:
        if "benchmarks" not in str(error.name):
            raise
        raise HappyHorseError(
            "This installation came without the folder benchmarks/; run bench from a clone of the repository."
        ) from None
