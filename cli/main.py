"""``python -m comfyui_happyhorse``: bench, convert, demo, generate, inspect, models, plan."""

from __future__ import annotations

import argparse
import logging
import sys
from importlib import import_module

from ..errors import HappyHorseError

COMMANDS = ("bench", "convert", "demo", "generate", "inspect", "models", "plan")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 refused with a message, 2 usage, 130 stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m comfyui_happyhorse",
        description="Films with sound from text, a picture or a voice, with open weights.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Only what will run is imported: bench is for machines that have torch and little else.
    wanted = arguments[:1] if arguments[:1] and arguments[0] in COMMANDS else COMMANDS
    modules = {name: import_module(f".{name}", __package__) for name in wanted}
    for name, module in modules.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
    try:
        modules[options.command].run(options)
    except HappyHorseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; no unfinished file was left.", file=sys.stderr)
        return 130
    return 0
