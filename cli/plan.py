"""``plan``: what a film takes on this machine or on another, before anything is loaded."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from ..errors import GeometryError
from ..model_loading.film_size import FilmSize
from ..model_loading.find import find_parts
from ..model_loading.machine import COMMON, Machine, described_machine, this_machine
from ..model_loading.plan_report import as_dict, report
from ..model_loading.planner import plan
from ..model_loading.precision import PRECISIONS
from ..model_loading.weights import Model, read_model
from ..shapes import FPS, MAX_TEXT_TOKENS, frames_for_seconds

HELP = "Say what a film takes, in memory and time, and how it is made to fit; loads nothing."
PARTS = ("transformer", "super_resolution", "text_encoder", "video_vae", "turbo_decoder", "audio_vae")
MAX_SECONDS = 600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("machine", "this one, where nothing is said")
    machine.add_argument("--gpu-memory", metavar="GB", type=float, help="of the card")
    machine.add_argument("--card", metavar="NAME", help="as fast as this one, such as 'RTX 4090'")
    machine.add_argument("--ram", metavar="GB", type=float, help="of the host")
    machine.add_argument("--link", metavar="GB/S", type=float, help="from host to card")
    machine.add_argument(
        "--no-triton", action="store_true", help="plan for a machine without Triton's kernels"
    )

    weights = parser.add_argument_group("weights", "the published sizes, where nothing is said")
    weights.add_argument("--models", metavar="DIR", type=Path, help="folder whose files' headers are read")
    for part in PARTS:
        weights.add_argument(f"--{part.replace('_', '-')}", metavar="PATH", type=Path)
    weights.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default="auto",
        help="default %(default)s: as the file has them",
    )
    weights.add_argument("--variant", choices=("distilled", "base"), default="distilled")

    film = parser.add_argument_group("film")
    length = film.add_mutually_exclusive_group()
    length.add_argument("--frames", type=int, help=f"4k+1, {FPS} a second")
    length.add_argument("--seconds", type=float, help="default 5")
    film.add_argument("--width", type=int, default=448)
    film.add_argument("--height", type=int, default=256)
    film.add_argument("--sr", choices=("none", "540p", "1080p"), default="none", help="default %(default)s")
    film.add_argument("--steps", type=int)
    film.add_argument("--sr-steps", type=int)
    film.add_argument("--sr-guided", action="store_true")
    film.add_argument("--image", action="store_true", help="with a first picture")
    film.add_argument(
        "--text-tokens", type=int, default=MAX_TEXT_TOKENS, help="default %(default)s, the most"
    )
    film.add_argument("--decoder", choices=("turbo", "wan"), default="turbo")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(options: argparse.Namespace) -> None:
    film, files = film_of(options), files_of(options)

    def model_in(precision: str) -> Model:
        return read_model(files, precision, options.variant, options.sr)

    model = model_in(options.precision)
    machines, remark = machines_of(options)
    plans = [plan(machine, model, film) for machine in machines]
    if options.json:
        print(json.dumps({"remark": remark, "plans": [as_dict(found) for found in plans]}, indent=1))
        return
    texts = ["\n".join(report(found, model_in)) for found in plans]
    print("\n\n".join([remark, *texts] if remark else texts))


def machines_of(options: argparse.Namespace) -> tuple[list[Machine], str]:
    """The machines to plan for, and what to say about them first."""
    if options.gpu_memory is not None:
        return [_described(options, options.gpu_memory)], ""
    if options.card is None and options.ram is None and options.link is None:
        here = this_machine()
        if here is not None:
            return [replace(here, has_triton=here.has_triton and not options.no_triton)], ""
    remark = (
        "There is no CUDA card here and --gpu-memory is not given: the plans are for common cards."
        if this_machine() is None
        else "--gpu-memory is not given: the plans are for common cards."
    )
    return [_described(options, size) for size in COMMON], remark


def _described(options: argparse.Namespace, size: float) -> Machine:
    return described_machine(
        size, card=options.card, ram=options.ram, link=options.link, has_triton=not options.no_triton
    )


def film_of(options: argparse.Namespace) -> FilmSize:
    """Raises GeometryError for a film that cannot be made."""
    frames = options.frames
    if frames is None:
        seconds = 5.0 if options.seconds is None else options.seconds
        if seconds > MAX_SECONDS:
            raise GeometryError(f"A film of {seconds:g} s is not planned for; the most are {MAX_SECONDS} s.")
        frames = frames_for_seconds(seconds)
    return FilmSize(
        options.width,
        options.height,
        frames,
        options.variant,
        options.sr,
        steps=options.steps,
        sr_steps=options.sr_steps,
        sr_guided=options.sr_guided,
        text_tokens=options.text_tokens,
        has_picture=options.image,
        decoder=options.decoder,
    )


def files_of(options: argparse.Namespace) -> dict[str, Path | None]:
    """{part: file}: those named, and what --models has exactly one of."""
    files = {part: getattr(options, part) for part in PARTS}
    parts = find_parts(options.models) if options.models is not None else []
    for name in PARTS:
        kind = "transformer" if name == "super_resolution" else name
        variant = {"transformer": options.variant, "super_resolution": f"sr_{options.sr}"}.get(name)
        found = [
            part.path for part in parts if part.kind == kind and (variant is None or part.variant == variant)
        ]
        if files[name] is None and len(found) == 1:
            files[name] = found[0]
    return files
