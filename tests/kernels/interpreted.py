"""Runs a program of these tests in Triton's interpreter, in a process of its own; loaded as the fixture ``interpreted``.

The interpreter is chosen by TRITON_INTERPRET when Triton is imported, and a process has one choice. A program is a
file with ``measure() -> dict``, which imports the pack as the tests do. Memory that nobody wrote holds NaN there.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MARK = "MEASURED "


def run(program: Path) -> dict:
    """What the program's ``measure`` returns, by way of JSON; its output and traceback where it fails."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", __file__, str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{program.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    line = next(line for line in done.stdout.splitlines() if line.startswith(MARK))
    return json.loads(line.removeprefix(MARK))


def relative_error(found, wanted) -> float:
    """|found - wanted| / |wanted| (Frobenius); infinite where a number is none or shapes differ."""
    import torch

    if found.shape != wanted.shape or not torch.isfinite(found.float()).all():
        return float("inf")
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def _import(name: str, file: Path):
    place = importlib.util.spec_from_file_location(name, file)
    sys.modules[name] = module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


if __name__ == "__main__":
    import torch

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    sys.path[:] = [
        entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, Path(__file__).parent)
    ]
    _import("comfyui_happyhorse", ROOT / "__init__.py")
    _import("interpreted", Path(__file__))
    print(MARK + json.dumps(_import("program", Path(sys.argv[1])).measure()))  # noqa: T201
