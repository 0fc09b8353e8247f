"""Times importing the pack: what it adds to ComfyUI's start on top of torch.

    python benchmarks/import_time.py

Each import runs in a fresh process, the best of five counts. Prints a Markdown table.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    "torch (for comparison)": "torch",
    "the pack's root, all that ComfyUI imports first": "comfyui_happyhorse",
    "the engine: pipeline and everything below": "comfyui_happyhorse.pipeline.film",
}


def main() -> None:
    print("| import | seconds | of which after torch |\n|---|---:|---:|")
    taken = {title: best(module) for title, module in MODULES.items()}
    torch = next(iter(taken.values()))
    for title, seconds in taken.items():
        after = f"{seconds - torch:.2f}" if seconds > torch else "-"
        print(f"| {title} | {seconds:.2f} | {after} |")


def best(module: str, times: int = 5) -> float:
    program = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "comfyui_happyhorse").symlink_to(ROOT, target_is_directory=True)
        command = [sys.executable, "-c", program]
        runs = [
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
            for _ in range(times)
        ]
    return min(float(run.stdout) for run in runs)


if __name__ == "__main__":
    sys.exit(main())
