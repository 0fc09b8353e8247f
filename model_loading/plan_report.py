"""A plan in words: one table of what was chosen and why, and what would fit instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

from ..shapes import FPS, MIN_FRAMES, decoded_frames, latent_frames
from .machine import GB, with_memory
from .planner import HOST_PROCESS, Plan, StagePlan, plan
from .weights import Model, without_super_resolution

TITLES = {
    "text": "text",
    "picture": "first picture",
    "film": "film",
    "super-resolution": "super-resolution",
    "sound": "sound",
    "decode": "decoding",
}
SMALLER = {"1080p": "540p", "540p": "none"}
OTHER_PRECISIONS = ("fp8", "int8", "nf4")
HEADINGS = ("stage", "card", "host", "time", "chosen")
STEP_BYTES = GB // 8  # to which "needs" is found
MAX_CARD = 256 * GB

ModelIn = Callable[[str], Model]  # the same parts in another precision


def report(found: Plan, model_in: ModelIn | None = None) -> list[str]:
    """Lines: a headline, the table, remarks, and where it does not fit, what would."""
    lines = [headline(found), "", *table(found), "", memory_line(found)]
    lines += [f"Short: {what}." for what in shortages(found)]
    if not found.fits:
        others = list(alternatives(found, model_in))
        lines.append("What would fit:" if others else "Nothing smaller fits either.")
        lines += [f"  {line}" for line in others]
    return lines


def headline(found: Plan) -> str:
    """One sentence that says it all."""
    film, machine = found.film, found.machine
    width, height = film.final_size
    what = f"{width}x{height} for {film.num_frames / FPS:.1f} s in {found.model.precision}"
    where = f"{machine.name}, {gigabytes(machine.vram_free)} of {gigabytes(machine.vram_total)} free"
    if found.fits:
        return f"{what} fits ({where}): about {duration(found.seconds)} of computing."
    return f"{what} does not fit ({where})."


def table(found: Plan) -> list[str]:
    """Columns padded to equal width; the first row names them."""
    rows = [HEADINGS, *(_row(stage) for stage in found.stages)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def memory_line(found: Plan) -> str:
    peak = max(stage.vram for stage in found.stages)
    host = max(stage.ram for stage in found.stages)
    return (
        f"At the most {gigabytes(peak)} of the card and {gigabytes(host)} of the host's memory, margins "
        f"included; one network at a time. The link carries {found.machine.link / 1e9:.1f} GB/s."
    )


def shortages(found: Plan) -> Iterator[str]:
    """What is short, and by how much."""
    for stage in found.stages:
        title = TITLES[stage.name]
        if stage.short_vram:
            yield (
                f"{title} needs {gigabytes(stage.vram)} of the card at the least; {gigabytes(stage.short_vram)} "
                "are missing"
            )
        if stage.short_ram:
            yield (
                f"{title} needs {gigabytes(stage.ram)} of the host's memory; {gigabytes(stage.short_ram)} are missing"
            )


def alternatives(found: Plan, model_in: ModelIn | None = None) -> Iterator[str]:
    """Sentences about plans that were computed and fit: another precision, a shorter or smaller film, a larger card."""
    machine, film = found.machine, found.film
    for name in OTHER_PRECISIONS if model_in else ():
        if name != found.model.precision:
            other = plan(machine, model_in(name), film)
            if other.fits:
                yield f"{name}: {summary(other)}"
                break
    shorter = longest_that_fits(found)
    if shorter is not None:
        yield f"{shorter.film.num_frames} frames ({shorter.film.num_frames / FPS:.1f} s): {summary(shorter)}"
    smaller = SMALLER.get(film.super_resolution)
    while smaller is not None:
        # 540p has a network of its own, of the same size.
        model = without_super_resolution(found.model) if smaller == "none" else found.model
        other = plan(machine, model, replace(film, super_resolution=smaller))
        if other.fits:
            width, height = other.film.final_size
            yield f"{width}x{height}: {summary(other)}"
            break
        smaller = SMALLER.get(smaller)
    needs = least_memory(found)
    if needs is not None:
        yield f"a card with {gigabytes(needs)} free, as fast as this one"


def summary(found: Plan) -> str:
    """How a plan that fits runs its largest stage."""
    stage = max(found.stages, key=lambda stage: (stage.blocks > 0, stage.vram))
    return f"{gigabytes(stage.vram)}, {choice(stage)}, about {duration(found.seconds)} in all"


def longest_that_fits(found: Plan) -> Plan | None:
    """The plan for the longest film below this one's length that fits; None where none does."""
    low, high = latent_frames(MIN_FRAMES), latent_frames(found.film.num_frames)
    best = None
    while low < high:  # memory grows with length, so halving finds it
        middle = (low + high) // 2
        film = replace(found.film, num_frames=decoded_frames(middle))
        if plan(found.machine, found.model, film, best=False).fits:
            best, low = film, middle + 1
        else:
            high = middle
    return best and plan(found.machine, found.model, best)


def least_memory(found: Plan) -> int | None:
    """Bytes that must be free on the card for this film; None where it is not the card's memory that is short."""
    low, high = found.machine.vram_free, MAX_CARD
    if not plan(with_memory(found.machine, high), found.model, found.film, best=False).fits:
        return None
    while high - low > STEP_BYTES:
        middle = (low + high) // 2
        if plan(with_memory(found.machine, middle), found.model, found.film, best=False).fits:
            high = middle
        else:
            low = middle
    return -(-high // STEP_BYTES) * STEP_BYTES


def _row(stage: StagePlan) -> tuple[str, ...]:
    card = gigabytes(stage.vram) if stage.device == "cuda" else "-"
    time = duration(stage.seconds)
    if not stage.fits:
        time = "-"
    elif stage.steps > 1:
        time = f"{stage.steps} x {duration(stage.seconds_per_step)}"
    return TITLES[stage.name], card, gigabytes(stage.ram), time, f"{choice(stage)}{_why(stage)}"


def choice(stage: StagePlan) -> str:
    """What was chosen for a stage."""
    if not stage.fits:
        return "does not fit"
    if stage.blocks:
        parts = [
            f"{stage.swapped} of {stage.blocks} blocks swapped through {stage.slots} slot{'s' * (stage.slots > 1)}"
            if stage.swapped
            else "all blocks on the card"
        ]
        if stage.mlp_rows:
            parts.append(f"{stage.mlp_rows} rows of a feed-forward layer at once")
        if stage.together > 1 and stage.swapped:
            parts.append("both prompts while a block is there")
        if stage.swapped or stage.mlp_rows:
            parts.append(f"{max(0.0, stage.slowdown):+.0%}")
        return ", ".join(parts)
    if stage.piece_bytes:
        return f"pieces of {stage.piece_bytes >> 20} MB"
    return stage.note or "all at once"


def _why(stage: StagePlan) -> str:
    if stage.blocks and (stage.swapped or stage.mlp_rows or not stage.fits):
        return f" (everything at once: {gigabytes(stage.full_vram)})"
    if stage.device == "cpu":
        return f" ({gigabytes(stage.full_vram)})"
    return ""


def as_dict(found: Plan) -> dict:
    """The plan for other programs: bytes and seconds."""
    stages = []
    for stage in found.stages:
        row = asdict(stage) | {"fits": stage.fits, "swapped": stage.swapped, "seconds": stage.seconds}
        stages.append(row | {"resident": sorted(stage.resident)})
    return {
        "fits": found.fits,
        "seconds": found.seconds,
        "machine": asdict(found.machine),
        "film": asdict(found.film) | {"final_size": list(found.film.final_size)},
        "precision": found.model.precision,
        "host_process": HOST_PROCESS,
        "stages": stages,
    }


def gigabytes(count: float) -> str:
    """In GB of 2^30 bytes, as cards are sold; upward, so that what is said to be enough is."""
    return f"{-(-count * 10 // GB) / 10:.1f} GB"


def duration(seconds: float) -> str:
    """ "0.27 s", "32 s", "3 min 20 s"."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
