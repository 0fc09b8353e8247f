"""``python -m comfyui_happyhorse``: convert, demo, generate, inspect, models."""

from __future__ import annotations

import argparse
import logging
import sys

from ..errors import HappyHorseError
from . import convert, demo, generate, inspect, models

COMMANDS = {"convert": convert, "demo": demo, "generate": generate, "inspect": inspect, "models": models}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 refused with a message, 2 usage, 130 stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m comfyui_happyhorse",
        description="Films with sound from text, a picture or a voice, with open weights.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
    try:
        COMMANDS[options.command].run(options)
    except HappyHorseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; no unfinished file was left.", file=sys.stderr)
        return 130
    return 0
