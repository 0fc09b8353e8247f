"""``python -m comfyui_happyhorse.training``: the demo set from nothing, one command, to be stopped and gone on with."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from .loop import Work
from .peers import Peers
from .stages import STAGES, Job, Plan


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m comfyui_happyhorse.training", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("output/training"), help="where results are kept")
    parser.add_argument("--out", type=Path, default=Path("output/demo_set"), help="where the files go")
    parser.add_argument(
        "--stages", nargs="*", choices=STAGES, help="only these; default all that are not done"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="every number of steps times this")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--device", default="cpu", help="of the transformers' stages")
    parser.add_argument(
        "--peers", type=int, default=1, help="processes of one thread that share the transformers' batches"
    )
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--meeting", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    options = arguments().parse_args()
    if options.peers > 1:
        torch.set_num_threads(1)
    work = Work(options.work, torch.device(options.device), options.seed)
    plan = Plan() if options.scale == 1 else Plan().scaled(options.scale)
    job = Job(work, plan, options.out)
    for name, stage in STAGES.items():
        if (options.stages and name not in options.stages) or work.path(stage.done).exists():
            continue
        started = time.monotonic()
        if stage.is_shared and options.peers > 1:
            if options.meeting is None:
                _run_peers(options, name)
                continue
            peers = Peers.join(options.rank, options.peers, options.meeting)
            stage.run(Job(work, plan, options.out, peers))
        else:
            stage.run(job)
        if name == "export":
            work.path(stage.done).touch()
        work.log(name, done=True, minutes=(time.monotonic() - started) / 60)


def _run_peers(options: argparse.Namespace, stage: str) -> None:
    """Start ``options.peers`` processes of this command for one stage, and wait for them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            *("-m", "comfyui_happyhorse.training", "--work", str(options.work), "--out", str(options.out)),
            *("--stages", stage, "--scale", str(options.scale), "--seed", str(options.seed)),
            *("--device", options.device, "--peers", str(options.peers), "--meeting", f"{folder}/meeting"),
        ]
        running = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(options.peers)]
        codes = [process.wait() for process in running]
    if any(codes):
        sys.exit(f"The stage {stage} stopped: its processes ended with {codes}.")


if __name__ == "__main__":
    main()
