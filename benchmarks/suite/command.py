"""From the command's settings to tables and files."""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import HappyHorseError
from .ceilings import measure_ceilings
from .goals import summary
from .kernel_table import kernel_table
from .machine import machine
from .measure import Clock
from .network import Networks, eight_bit, scale
from .network_tables import clip_table, decode_table, forward_table, layer_table
from .report import file_name, write_report
from .run import Run, Say

# In the order they run: a clip finds warm what the tables before it have run.
TABLES = {
    "kernels": kernel_table,
    "layer": layer_table,
    "forward": forward_table,
    "decode": decode_table,
    "clip": clip_table,
}
WITH_NETWORKS = {"layer", "forward", "clip"}
NEEDED = 60e9  # bytes: both networks, and what a layer at 1080p works with


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command was asked for."""

    tables: Sequence[str]
    device: str
    is_tiny: bool
    is_quick: bool
    precision: str | None
    minutes: float
    output: Path


def bench(settings: Settings, say: Say) -> tuple[dict[str, Any], list[Path]]:
    """(machine, summary and tables; the files written). Raises HappyHorseError where it cannot be measured."""
    device = _device(settings)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(2026)
    clock, sizes = Clock(device, settings.minutes), scale(tiny=settings.is_tiny)
    facts = machine(device)
    precision = settings.precision or eight_bit(device)
    say(f"{facts['device']}: ceilings")
    ceilings = measure_ceilings(clock, tiny=settings.is_tiny)
    facts |= {"8-bit precision": precision} | {
        f"measured {name}": f"{rate / 1e12:.4g} T{'B' if name == 'copy' else 'FLOP'}/s"
        for name, rate in ceilings._asdict().items()
        if rate is not None
    }
    run = Run(clock, sizes, Networks(sizes, device, precision), ceilings, settings.is_quick, say)
    if set(settings.tables) & WITH_NETWORKS:
        say("networks with random weights")
        run.networks.prepare()
    for name in (table for table in TABLES if table in settings.tables):
        run.tables[name] = rows = []
        try:
            for row in TABLES[name](run):
                rows.append(row)
        except (
            Exception
        ) as error:  # nobody watches: the figures there are get written, and this table says why
            rows.append({"note": f"failed: {type(error).__name__}: {error}"})
            say(traceback.format_exc())
        if device.type == "cuda":
            torch.cuda.empty_cache()  # between tables only: what one left would count as another's peak
    facts["minutes"] = f"{settings.minutes - clock.left() / 60:.1f}"
    found = summary(run.tables, "" if settings.is_tiny else facts["device"])
    if settings.is_tiny or device.type != "cuda":
        found |= {
            "goals_met": False,
            "meaningless": "a walk through the measurement at tiny sizes or on a processor",
        }
    name = file_name(facts["device"], quick=settings.is_quick, tiny=settings.is_tiny)
    name += "" if set(settings.tables) == set(TABLES) else "_" + "_".join(settings.tables)
    files = write_report(settings.output, name, facts, ceilings, run.tables, found)
    return json.loads(files[0].read_text(encoding="utf-8")), files


def _device(settings: Settings) -> torch.device:
    device = torch.device(settings.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise HappyHorseError(
            f"bench measures on a CUDA device, and torch {torch.__version__} finds none here. To walk through the "
            "measurement at tiny sizes, whose figures mean nothing: bench --device cpu --tiny"
        )
    if device.type != "cuda" and not settings.is_tiny:
        raise HappyHorseError(
            f"On {device.type} the full sizes would take hours and say nothing of a card; add --tiny for a walk "
            "through the measurement."
        )
    if device.type == "cuda" and not settings.is_tiny and set(settings.tables) & WITH_NETWORKS:
        total = torch.cuda.get_device_properties(device).total_memory
        if total < NEEDED:
            raise HappyHorseError(
                f"The networks of this benchmark take {NEEDED / 1e9:.0f} GB on the card and it has "
                f"{total / 1e9:.0f} GB; measure 'kernels' or 'decode' there."
            )
    return device
