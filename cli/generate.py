"""``generate``: a film from real weight files."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from ..conditioning.feature_cache import DEFAULT_LIMIT, LIMIT_VARIABLE, FeatureCache, size_limit
from ..conditioning.negative import read_negative
from ..errors import ConditioningError, HappyHorseError
from ..media.audio import load_audio
from ..media.frames import load_image
from ..model_loading.precision import PRECISIONS
from ..pipeline.files import ModelFiles
from ..pipeline.film import FilmRequest, Voice, make_film
from ..shapes import FPS, SIZES, frames_for_samples, frames_for_seconds, size_advice
from .progress import ProgressBars

logger = logging.getLogger(__name__)

HELP = "Make a film from weight files."
PARTS = {
    "transformer": "audio-video transformer: .safetensors, or a folder of shards",
    "text_encoder": "T5Gemma text encoder: .safetensors, or a folder of shards",
    "video_vae": "Wan 2.2 autoencoder (needed for --image and --decoder wan): .pth or .safetensors",
    "turbo_decoder": "Turbo video decoder: .ckpt or .safetensors",
    "audio_vae": "Oobleck audio autoencoder: .safetensors",
    "super_resolution": "transformer of the stage that --sr names",
    "tokenizer": "tokenizer.json or tokenizer.model, where none lies in or beside the text encoder",
}

# By platform: the variable that names the folder for caches, and where it is in the user's without one.
CACHE_PLACES = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("XDG_CACHE_HOME", "Library/Caches")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = ", ".join(f"{row.base[0]}x{row.base[1]}" for row in SIZES)
    weights = parser.add_argument_group("weights")
    weights.add_argument(
        "--models", metavar="DIR", type=Path, help="folder to search for all parts not named below"
    )
    for part, text in PARTS.items():
        weights.add_argument(f"--{part.replace('_', '-')}", metavar="PATH", type=Path, help=text)
    weights.add_argument(
        "--variant", choices=("distilled", "base"), default="distilled", help="default %(default)s"
    )
    weights.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default="auto",
        help="how the large weights are kept (default %(default)s: as the file has them)",
    )
    weights.add_argument(
        "--blocks-to-swap",
        metavar="N",
        type=int,
        help="stream so many of the transformer's 40 blocks from host memory (default: as many as the card's memory "
        "asks for)",
    )
    weights.add_argument(
        "--no-text-cache",
        action="store_true",
        help="neither read nor keep text features; without this, words met before need no text encoder, and up to "
        f"{DEFAULT_LIMIT / 1e9:g} GB (the environment's {LIMIT_VARIABLE}) are kept in the user's cache folder",
    )
    weights.add_argument(
        "--clear-text-cache", action="store_true", help="first remove all text features kept so far"
    )
    weights.add_argument("--device", help="cuda, cuda:1, cpu … (default: cuda where there is one)")

    scene = parser.add_argument_group("scene")
    prompt = scene.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT")
    prompt.add_argument("--prompt-file", metavar="FILE", type=Path, help="UTF-8 text")
    scene.add_argument(
        "--negative", metavar="FILE", type=Path, help="UTF-8 text in place of the default negative prompt"
    )
    scene.add_argument("--image", metavar="FILE", type=Path, help="first frame")
    scene.add_argument("--audio", metavar="FILE", type=Path, help="driving voice; also gives the length")
    scene.add_argument(
        "--soundtrack",
        choices=("voice", "model"),
        default="voice",
        help="with --audio: keep that sound in the film, or decode the model's (default %(default)s)",
    )

    film = parser.add_argument_group("film")
    length = film.add_mutually_exclusive_group()
    length.add_argument("--frames", type=int, help=f"4k+1, {FPS} a second")
    length.add_argument("--seconds", type=float, help="the nearest 4k+1 frames are made (default 4)")
    film.add_argument(
        "--width", type=int, default=448, help=f"of the base stage, with --height: {sizes} (default 448x256)"
    )
    film.add_argument("--height", type=int, default=256)
    film.add_argument(
        "--sr",
        choices=("none", "540p", "1080p"),
        default="none",
        help="super-resolution (default %(default)s)",
    )
    film.add_argument(
        "--exact", action="store_true", help="1080p at exactly four times the base, such as 1792x1024"
    )
    film.add_argument("--steps", type=int, help="default 8 distilled, 32 base")
    film.add_argument(
        "--step-saving",
        metavar="X",
        type=float,
        default=0.0,
        help="base only: leave out passes whose result would differ by less than this from one before, relatively and "
        "by estimate, such as 0.1; faster, and another film (default 0: off)",
    )
    film.add_argument("--sr-steps", type=int, help="default 5")
    film.add_argument(
        "--sr-guided", action="store_true", help="guide super-resolution too: two passes a step"
    )
    film.add_argument(
        "--no-align-corners", action="store_true", help="enlarge latents by pixel centres, not corners"
    )
    film.add_argument("--decoder", choices=("turbo", "wan"), default="turbo", help="default %(default)s")
    film.add_argument("--seed", type=int, default=42, help="default %(default)s")
    film.add_argument("--sr-seed", type=int, help="default: seed + 1")
    film.add_argument("--save-latents", metavar="FILE", type=Path, help="keep the latents (.safetensors)")
    film.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("film.mp4"), help="default %(default)s"
    )


def run(options: argparse.Namespace) -> None:
    request = read_request(options)
    if advice := size_advice(request.width, request.height):
        logger.warning(advice)
    text_cache = FeatureCache(text_cache_folder(os.environ, sys.platform), size_limit(os.environ))
    if options.clear_text_cache:
        gone = text_cache.clear()
        print(f"Prompts removed from {text_cache.folder}: {gone.entries} ({gone.bytes / 1e6:.1f} MB).")
    named = ModelFiles(**{part: getattr(options, part) for part in PARTS})
    film = make_film(
        ModelFiles.locate(options.models, request, named),
        request,
        options.out,
        device=choose_device(options.device),
        policy=PRECISIONS[options.precision],
        save_latents=options.save_latents,
        report=ProgressBars(),
        text_cache=None if options.no_text_cache else text_cache,
        swapped=options.blocks_to_swap,
    )
    if film.saved is not None:
        print(film.saved)
    info = film.info
    print(f"{info.path}: {info.width}x{info.height}, {info.frames} frames, {info.duration:.2f} s")


def read_request(options: argparse.Namespace) -> FilmRequest:
    """The command line as a request; pictures and voices are read here."""
    image = None if options.image is None else load_image(options.image)
    voice = None if options.audio is None else Voice(*load_audio(options.audio))
    return FilmRequest(
        prompt=options.prompt if options.prompt_file is None else _read_text(options.prompt_file),
        num_frames=_length(options, voice),
        width=options.width,
        height=options.height,
        variant=options.variant,
        seed=options.seed,
        steps=options.steps,
        step_saving=options.step_saving,
        negative=None if options.negative is None else read_negative(options.negative),
        image=image,
        voice=voice,
        soundtrack=options.soundtrack,
        super_resolution=options.sr,
        exact=options.exact,
        sr_steps=options.sr_steps,
        sr_seed=options.sr_seed,
        sr_guided=options.sr_guided,
        align_corners=not options.no_align_corners,
        decoder=options.decoder,
    )


def text_cache_folder(environment: Mapping[str, str], platform: str) -> Path:
    """Where this platform keeps what a program can make again."""
    variable, below = CACHE_PLACES.get(platform, ("XDG_CACHE_HOME", ".cache"))
    named = Path(environment.get(variable, ""))
    if named.is_absolute():  # the standard of Linux takes no relative path
        base = named
    else:
        try:
            base = Path.home() / below
        except RuntimeError:  # a container's user without a home
            base = Path(tempfile.gettempdir())
    return base / "comfyui-happyhorse" / "text_features"


def choose_device(name: str | None) -> torch.device:
    """The named device, or CUDA where there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise HappyHorseError(f"The device '{name}' cannot be used: {error}") from None


def _length(options: argparse.Namespace, voice: Voice | None) -> int:
    if options.frames is not None:
        return options.frames
    if options.seconds is not None:
        return frames_for_seconds(options.seconds)
    if voice is not None:
        return frames_for_samples(voice.waveform.shape[-1], voice.sample_rate)
    return frames_for_seconds(4)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConditioningError(f"The prompt file {path} cannot be read as UTF-8 text: {error}") from None
