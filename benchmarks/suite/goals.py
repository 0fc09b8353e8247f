"""What was to be reached, and what was: computed from the raw figures of the tables, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .run import Rows

Table = Mapping[str, Rows]
DEFAULT = "ComfyUI default"
# Seconds for five of film on one H200, decoding included: (bf16, 8-bit).
TOTALS = {"256p": (1.3, 0.95), "540p": (5.2, 3.8), "1080p": (32.0, 22.5)}
FLOOR = 1.08


class Goal(NamedTuple):
    """``reached`` is None where it was not measured; ``at_least``: or at most."""

    title: str
    wanted: float
    reached: float | None
    at_least: bool

    @property
    def is_met(self) -> bool | None:
        if self.reached is None:
            return None
        return self.reached >= self.wanted if self.at_least else self.reached <= self.wanted


def goals(tables: Table, device: str) -> list[Goal]:
    """Every goal of the issue; totals in seconds count on an H200 only."""
    found = []
    for size in ("256p", "1080p"):
        found.append(_faster(tables, f"bf16 at {size}, times ComfyUI default", size, "bf16", 1.6))
    for size in ("540p", "1080p"):
        share = _one(tables, "forward", "% of product ceiling", size=size, case="bf16")
        found.append(Goal(f"bf16 at {size}, % of the measured product ceiling", 70.0, share, True))
    for size in ("256p", "1080p"):
        found.append(_faster(tables, f"8-bit at {size}, times ComfyUI default", size, "8-bit", 2.5))
    for size in TOTALS:
        times = _one(tables, "forward", "times the floor", size=size, case="bf16")
        found.append(Goal(f"forward at {size}, times the floor", FLOOR, times, False))
    for size in TOTALS:
        times = _one(tables, "decode", "times the floor", size=size, case="ours")
        found.append(Goal(f"decode at {size}, times the floor", FLOOR, times, False))
    for size, wanted in TOTALS.items():
        for case, seconds in zip(("bf16", "8-bit"), wanted, strict=True):
            total = _one(tables, "clip", "ms", size=size, case=case) if "H200" in device else None
            title = f"5 s at {size} in {case} on one H200, seconds"
            found.append(Goal(title, seconds, None if total is None else total / 1e3, False))
    checked = [row["passes"] for rows in tables.values() for row in rows if row.get("passes") is not None]
    found.append(Goal("rows beyond their error gate", 0, checked.count(False) if checked else None, False))
    lost = [row["NaN"] for rows in tables.values() for row in rows if "NaN" in row]
    found.append(Goal("numbers lost", 0, sum(lost) if lost else None, False))
    failed = [row for rows in tables.values() for row in rows if str(row.get("note")).startswith("failed")]
    found.append(Goal("rows that failed", 0, len(failed) if tables else None, False))
    return found


def summary(tables: Table, device: str) -> dict[str, Any]:
    """``goals_met`` is true only where every goal was measured and met."""
    found = goals(tables, device)
    return {
        "goals": [
            {
                "goal": goal.title,
                "wanted": f"{'>=' if goal.at_least else '<='} {goal.wanted:g}",
                "reached": goal.reached,
                "met": goal.is_met,
            }
            for goal in found
        ],
        "goals_met": all(goal.is_met for goal in found),
        "goals_missed": sum(goal.is_met is False for goal in found),
        "goals_open": sum(goal.is_met is None for goal in found),
    }


def _faster(tables: Table, title: str, size: str, case: str, wanted: float) -> Goal:
    ours, default = (_one(tables, "forward", "ms", size=size, case=name) for name in (case, DEFAULT))
    return Goal(title, wanted, default / ours if ours and default else None, True)


def _one(tables: Table, table: str, column: str, **wanted: str) -> float | None:
    """The figure of the one row with these facts."""
    for row in tables.get(table, ()):
        if all(row.get(name) == value for name, value in wanted.items()):
            return row.get(column)
    return None
