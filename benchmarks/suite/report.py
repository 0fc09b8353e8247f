"""The figures as JSON, as Markdown tables, and as bars: plain SVG, so that nothing needs to be installed for them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from .ceilings import Ceilings
from .run import Rows

TITLES = {
    "kernels": "Operations",
    "layer": "One layer",
    "forward": "One pass through the network",
    "decode": "Turbo decoder, latents to 8-bit frames on the host",
    "clip": "Five seconds, noise to frames",
}
BAR, GAP, LABEL, WIDTH = 18, 6, 330, 760  # pixels
COLOURS = {"bf16": "#4477aa", "8-bit": "#228833", "ours": "#4477aa", "chosen": "#4477aa"}


def write_report(
    folder: Path,
    name: str,
    facts: Mapping[str, Any],
    ceilings: Ceilings,
    tables: Mapping[str, Rows],
    found: Mapping[str, Any],
) -> list[Path]:
    """Writes name.json, name.md and one SVG for each table with times; returns the files, JSON first."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.json", folder / f"{name}.md"]
    whole = {"machine": facts, "summary": found, "ceilings": ceilings._asdict(), "tables": tables}
    files[0].write_text(json.dumps(whole, indent=1), encoding="utf-8")
    lines = [
        f"# Benchmark: {facts['device']}",
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
    ]
    met = "met" if found["goals_met"] else f"{found['goals_missed']} missed, {found['goals_open']} open"
    lines += [f"## Goals: {met}", "", markdown(found["goals"]), ""]
    for table, rows in tables.items():
        lines += [f"## {TITLES[table]}", ""]
        drawing = bars(rows)
        if drawing:
            files.append(folder / f"{name}_{table}.svg")
            files[-1].write_text(drawing, encoding="utf-8")
            lines += [f"![times faster than the first case]({files[-1].name})", ""]
        lines += [markdown(rows), ""]
    files[1].write_text("\n".join(lines), encoding="utf-8")
    return files


def file_name(device: str, *, quick: bool, tiny: bool) -> str:
    """ "NVIDIA H200" -> "nvidia_h200"; what is no full run says so."""
    words = re.sub(r"[^a-z0-9]+", "_", device.split(":")[0].lower()).strip("_")
    return words + ("_quick" if quick else "") + ("_tiny" if tiny else "")


def markdown(rows: Rows) -> str:
    """One table; columns that are empty in all rows are left out."""
    columns = [
        column
        for column in dict.fromkeys(column for row in rows for column in row)
        if any(row.get(column) not in (None, [], "") for row in rows)
    ]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2e}" if 0 < abs(value) < 1e-2 else f"{value:.4g}"
    if isinstance(value, list):
        return "; ".join(str(part)[:60].replace("|", "/") for part in value)
    return str(value).replace("|", "/").replace("\n", " ")


def bars(rows: Rows) -> str:
    """Times faster than the first case of each group; the line is at 1. Empty without any."""
    shown = [row for row in rows if row.get("times faster") is not None]
    if not shown:
        return ""
    longest = max(row["times faster"] for row in shown)
    scale = (WIDTH - LABEL - 60) / max(longest, 1.0)
    height = len(shown) * (BAR + GAP) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for number, row in enumerate(shown):
        top = GAP + number * (BAR + GAP)
        label = " · ".join(
            str(row[key]) for key in ("kernel", "shape", "size", "layer", "case") if row.get(key)
        )
        width = row["times faster"] * scale
        colour = COLOURS.get(row["case"], "#aaaaaa")
        parts += [
            f'<text x="{LABEL - 6}" y="{top + 13}" text-anchor="end">{escape(label[-58:])}</text>',
            f'<rect x="{LABEL}" y="{top}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<text x="{LABEL + width + 4:.1f}" y="{top + 13}">{row["times faster"]:.2f}</text>',
        ]
    line = LABEL + scale
    parts.append(f'<line x1="{line:.1f}" x2="{line:.1f}" y1="0" y2="{height}" stroke="black"/>')
    return "\n".join([*parts, "</svg>", ""])
