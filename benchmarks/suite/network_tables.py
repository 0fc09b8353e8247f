"""Layers, whole passes, decoding and whole clips: what the host does today, ours in bfloat16, ours in 8 bits."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ...kernels.registry import forced
from .float64 import layer_rows
from .measure import Case, Timing, error_of, row_of
from .network import Clip, as_host, flops, inputs, parameters
from .run import Row, Rows, Run

CHECKED = 256  # rows of a layer compared with float64
Setting = Callable[[], AbstractContextManager]
DEFAULT = "ComfyUI default"
SETTINGS: dict[str, Setting] = {DEFAULT: as_host, "bf16": nullcontext, "8-bit": nullcontext}
# What one layer may be off in what it adds to the stream, relative [performance.md, section 5].
LAYER_GATES = {"bf16": 1e-2, "8-bit": 8e-2}
# What a layer moves beside products and attention, fully fused: 106 KB a token at 5120 [performance.md, section 1.2].
BYTES_BETWEEN = 106e3 / 5120
DECODED_AT_ONCE = 4  # frames on their way to the host


def _cases(
    run: Run, clip: Clip, call: Callable[[nn.Module], Any], settings: Mapping[str, Setting] = SETTINGS
) -> list[Case]:
    """``call(network)`` with the network of each case. It is made inside the first call, whose refusal is a note."""

    def case(name: str, setting: Setting) -> Case:
        network = cache(lambda: run.networks.get(kind_of(name), local=clip.is_local))
        return Case(name, lambda _: call(network()), setting)

    return [case(*item) for item in settings.items()]


def kind_of(case: str) -> str:
    return "8-bit" if case == "8-bit" else "bf16"


def layer_table(run: Run) -> Iterator[Row]:
    """One shared and one per-modality layer at every size, a local one at 1080p."""
    for clip_name in ("odd", *run.clips):
        clip = run.sizes.clips[clip_name]
        for number in (len(run.sizes.config.blocks) // 2, 0):
            run.say(f"layer {number} at {clip_name}")
            yield from _layer(run, clip_name, clip, number)


def _layer(run: Run, clip_name: str, clip: Clip, number: int) -> Rows:
    network = run.networks.get("bf16", local=clip.is_local)
    config = network.config
    spec = config.blocks[number]
    video, audio, text = inputs(clip, config, run.device)
    context = _context(network, video, audio, text)
    x = torch.randn(clip.tokens, config.hidden_size, device=run.device)
    settings = dict(SETTINGS)
    if clip_name in ("odd", "256p"):
        settings["bf16, Triton forced"] = lambda: forced("triton")
    cases = _cases(run, clip, lambda net: net.block.layers[number](x, context), settings)
    found = run.clock.compare(cases, budget=run.budget(5.0), most=50, least=2)
    chosen = _some_rows(clip, run.device)
    with torch.inference_mode():
        layer = network.block.layers[number]
        wanted = layer_rows(layer, config, spec, x, context.rope, context.sizes, context.ranges, chosen)
    products = 2.0 * clip.tokens * parameters(config, spec)
    # All layers of a kind are alike, so one layer's share of attention is its kind's.
    attention = flops(_alone(config, spec), clip)[1]
    floor = _floor(run, products, attention, clip.tokens)
    rows = []
    for case in cases:
        timing = found[case.name]
        kind = "per modality, GELU7" if spec.per_modality else "shared, SwiGLU7"
        row = row_of(timing, found[DEFAULT], size=clip_name, tokens=clip.tokens, layer=kind, case=case.name)
        row |= _against_floor(timing.median, floor, products + attention, run)
        if timing.result is not None:
            # Of what the layer adds: beside the stream itself an error would look small.
            added = timing.result[chosen].double() - x[chosen].double()
            row["error"] = error_of(added, wanted - x[chosen].double())
            row["gate"] = LAYER_GATES[kind_of(case.name)]
            row["passes"] = row["error"] <= row["gate"]
        rows.append(row)
    return rows


def _alone(config, spec):
    return replace(config, blocks=(spec,))


def _some_rows(clip: Clip, device: torch.device) -> Tensor:
    """Rows of every modality, the same in each run."""
    random = torch.Generator().manual_seed(7)
    video = clip.tokens - clip.audio - clip.text
    places = [
        torch.randint(0, video, (CHECKED // 2,), generator=random),
        torch.randint(video, clip.tokens, (CHECKED // 2,), generator=random),
    ]
    return torch.cat(places).to(device)


def _context(network: nn.Module, video: Tensor, audio: Tensor, text: Tensor):
    from ...model.sequence import SequenceLayout

    return network.context(SequenceLayout.of(video, audio, text), video.device)


def forward_table(run: Run) -> Iterator[Row]:
    """One pass through the whole network."""
    for clip_name in run.clips:
        run.say(f"forward at {clip_name}")
        yield from _forward(run, clip_name, run.sizes.clips[clip_name])


def _forward(run: Run, clip_name: str, clip: Clip) -> Rows:
    network = run.networks.get("bf16", local=clip.is_local)
    streams = inputs(clip, network.config, run.device)
    context = _context(network, *streams)
    cases = _cases(run, clip, lambda net: net(*streams, context))
    found = run.clock.compare(cases, budget=run.budget(12.0), most=20, least=2)
    products, attention = flops(network.config, clip)
    floor = _floor(run, products, attention, clip.tokens * len(network.config.blocks))
    bf16, rows = found["bf16"].result, []
    for case in cases:
        timing = found[case.name]
        row = row_of(timing, found[DEFAULT], size=clip_name, tokens=clip.tokens, case=case.name)
        row |= _against_floor(timing.median, floor, products + attention, run)
        if timing.result is not None and bf16 is not None:
            row["distance to bf16"] = error_of(timing.result[0], bf16[0].double())
        rows.append(row)
    return rows


def _floor(run: Run, products: float, attention: float, rows: int) -> float:
    """Seconds where products, attention and what is between them run at their measured ceilings.

    ``rows``: tokens times layers.
    """
    nbytes = BYTES_BETWEEN * run.sizes.config.hidden_size * rows
    ceilings = run.ceilings
    return products / ceilings.product + attention / ceilings.attention + nbytes / ceilings.copy


def _against_floor(seconds: float | None, floor: float, work: float, run: Run) -> dict:
    """8-bit passes go below the floor, which is bfloat16's."""
    if seconds is None:
        return {"TFLOP/s": None, "% of product ceiling": None, "times the floor": None}
    return {
        "TFLOP/s": work / seconds / 1e12,
        "% of product ceiling": 100 * work / seconds / run.ceilings.product,
        "times the floor": seconds / floor,
    }


def decode_table(run: Run) -> Iterator[Row]:
    """Latents to 8-bit frames on the host: converted there as the reference does, or on the card."""
    decoder = make_decoder(run)
    for clip_name in run.clips:
        clip = run.sizes.clips[clip_name]
        run.say(f"decode at {clip_name}")
        latent = torch.randn(1, 48, clip.frames, clip.height // 16, clip.width // 16, device=run.device)
        cases = [
            Case("converted on the host", lambda _, z=latent: _on_the_host(decoder, z)),
            Case("ours", lambda _, z=latent: frames_on_host(decoder, z)),
        ]
        found = run.clock.compare(cases, budget=run.budget(5.0), most=10, least=2)
        work = decoder_flops(decoder, latent)
        frames = 3 * (4 * (clip.frames - 1) + 1) * clip.width * clip.height  # bytes
        floor = work / run.ceilings.product + frames / run.ceilings.copy
        theirs, ours = (found[case.name].result for case in cases)
        for case in cases:
            timing = found[case.name]
            row = row_of(timing, found[cases[0].name], size=clip_name, case=case.name)
            row |= _against_floor(timing.median, floor, work, run)
            if case.name == "ours" and ours is not None and theirs is not None:
                # Rounding may fall to either side of a step, no further.
                row["error"] = largest_difference(ours, theirs)
                row["gate"], row["passes"] = 1, row["error"] <= 1
            yield row


def largest_difference(a: Tensor, b: Tensor) -> int:
    """Steps of 255, frame by frame: the films would take gigabytes in a wider dtype."""
    return max(int((one.int() - other.int()).abs().max()) for one, other in zip(a, b, strict=True))


def make_decoder(run: Run) -> nn.Module:
    """The published Turbo decoder with random weights."""
    from ...model.turbo_decoder import TurboConfig, TurboDecoder, TurboStage

    widths = (8, 8, 8, 8, 8) if run.sizes.is_tiny else (512, 512, 256, 128, 64)
    stages = tuple(
        TurboStage(widths[i], widths[i + 1], (3, 2, 2, 2)[i], space, twice)
        for i, (space, twice) in enumerate(((True, True), (True, True), (True, False), (False, False)))
    )
    with torch.device("meta"):
        decoder = TurboDecoder(TurboConfig(48, 3, stages, patch=2), dtype=torch.bfloat16)
    decoder = decoder.to_empty(device=run.device).requires_grad_(False).eval()
    random = torch.Generator(run.device).manual_seed(2026)
    for tensor in decoder.parameters():
        fan = tensor[0].numel() if tensor.ndim > 1 else 1
        tensor.normal_(0, fan**-0.5 if tensor.ndim > 1 else 0.1, generator=random)
    for tensor in decoder.buffers():
        tensor.normal_(0, 0.1, generator=random)
    return decoder


def decoder_flops(decoder: nn.Module, latent: Tensor) -> float:
    """Of the decoder as it is, counted without computing."""
    with torch.device("meta"), torch.inference_mode():
        twin = copy.deepcopy(decoder).to("meta")
        with FlopCounterMode(display=False) as counter:
            for window in twin.decode_chunks(torch.empty(latent.shape, device="meta")):
                del window
    return float(counter.get_total_flops())


def _on_the_host(decoder: nn.Module, latent: Tensor) -> Tensor:
    pixels = torch.cat([window.float().cpu() for window in decoder.decode_chunks(latent)], 2)
    return pixels.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 3, 0).contiguous()


def frames_on_host(decoder: nn.Module, latent: Tensor) -> Tensor:
    """[F, H, W, 3] uint8: converted on the device a few frames at a time, copied into pinned memory beside the next."""
    out, first = None, 0
    total = 4 * (latent.shape[2] - 1) + 1
    for window in decoder.decode_chunks(latent):
        for part in window.split(DECODED_AT_ONCE, dim=2):
            frames = (
                part.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 3, 0)
            )
            if out is None:
                out = torch.empty((total, *frames.shape[1:]), dtype=torch.uint8, pin_memory=latent.is_cuda)
            out[first : first + len(frames)].copy_(frames.contiguous(), non_blocking=True)
            first += len(frames)
    if latent.is_cuda:
        torch.cuda.current_stream(latent.device).synchronize()
    return out


def clip_table(run: Run) -> Iterator[Row]:
    """Five seconds from noise to frames on the host: all steps of both stages, and decoding."""
    decoder = make_decoder(run)
    for clip_name in run.clips:
        baseline = None
        for case in SETTINGS:
            if run.is_quick and case == DEFAULT and clip_name != "256p":
                continue
            run.say(f"clip at {clip_name}: {case}")
            timing, parts = _clip(run, clip_name, case, decoder)
            baseline = baseline or timing
            yield row_of(timing, baseline, size=clip_name, case=case) | parts


def _clip(run: Run, clip_name: str, case: str, decoder: nn.Module) -> tuple[Timing, dict]:
    parts: dict[str, float] = {}
    if run.clock.left() < run.budget(20.0):
        return Timing(note="not measured: the time was over"), parts

    def work(_):
        return _film(run, clip_name, kind_of(case), decoder, case == DEFAULT, parts)

    if clip_name == "256p":  # short enough to be warmed up, which is what a second film finds
        found = run.clock.compare([Case(case, work, SETTINGS[case])], budget=run.budget(4.0), most=5, least=1)
        return found[case], parts
    return run.clock.time_once(Case(case, work, SETTINGS[case])), parts


def _film(run: Run, clip_name: str, kind: str, decoder: nn.Module, is_host: bool, parts: dict) -> Tensor:
    """``parts`` gets the seconds of each stage of this call."""
    from ...sampling.joint import PRESETS, sample
    from ...sampling.streams import SeededNoise, Streams, StreamShapes
    from ...sampling.super_resolution import super_resolve

    clip = run.sizes.clips["256p"]
    config = run.sizes.config
    video, audio, text = inputs(clip, config, run.device)
    shapes = StreamShapes((1, *video.shape), (1, *audio.shape))
    noise = SeededNoise(2026, shapes, run.device)

    def velocity_of(network):
        context = None

        def velocity(x: Streams, _sigma: float) -> Streams:
            nonlocal context
            if context is None:
                context = _context(network, x.video[0], x.audio[0], text)
            made = network(x.video[0], x.audio[0], text, context)
            return Streams(made[0][None], made[1][None])

        return velocity

    mark = _Mark(run, parts)
    preset = PRESETS["distilled"]
    velocity = velocity_of(run.networks.get(kind))
    film = sample(velocity, None, noise(), preset, noise)
    mark("base s")
    if clip_name != "256p":
        large = run.sizes.clips[clip_name]
        rows, columns = large.height // 16, large.width // 16
        shapes = StreamShapes((1, video.shape[0], clip.frames, rows, columns), (1, *audio.shape))
        velocity = velocity_of(run.networks.get(kind, local=large.is_local))
        film = super_resolve(velocity, None, film, rows, columns, SeededNoise(2027, shapes, run.device))
        mark("super-resolution s")
    frames = _on_the_host(decoder, film.video) if is_host else frames_on_host(decoder, film.video)
    mark("decode s")
    return frames


class _Mark:
    """Seconds since the last one."""

    def __init__(self, run: Run, parts: dict):
        self.run, self.parts = run, parts
        run.clock.synchronise()
        self.last = time.perf_counter()

    def __call__(self, name: str) -> None:
        self.run.clock.synchronise()
        now = time.perf_counter()
        self.parts[name] = now - self.last
        self.last = now
