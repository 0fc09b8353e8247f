"""Times what a newcomer does: clone, install into a fresh environment, run the demo.

    python benchmarks/first_run.py [--torch torch==2.13.0]

Prints a Markdown table. Nothing is left behind.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--torch", default="torch", help="requirement to install first (default: %(default)s)"
    )
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        clone, environment = Path(folder) / "ComfyUI-HappyHorse", Path(folder) / "venv"
        python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"

        def timed(title: str, *command: str | Path) -> None:
            started = time.perf_counter()
            subprocess.run(
                command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            rows.append((title, time.perf_counter() - started))

        timed("clone", "git", "clone", "--depth", "1", ROOT.as_uri(), clone)
        venv.create(environment, with_pip=True)
        timed(f"install {options.torch}", python, "-m", "pip", "install", options.torch)
        timed("install the pack", python, "-m", "pip", "install", clone)
        timed("demo: seven films and a contact sheet", python, "-m", "comfyui_happyhorse", "demo")
        films = len(list((Path(folder) / "happyhorse_demo").glob("*.mp4")))
    print(
        f"{films} films, {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n"
    )
    print("| step | seconds |\n|---|---:|")
    for title, duration in rows:
        print(f"| {title} | {duration:.0f} |")


if __name__ == "__main__":
    sys.exit(main())
