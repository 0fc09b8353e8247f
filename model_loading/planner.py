"""Chooses how each stage of a film runs on a machine: what stays on the card, what is streamed, what is cut.

For every stage it predicts device memory, host memory and seconds a step, and takes the fastest way that fits with
a margin. Memory is predicted by ``live_bytes``, time by counting multiplications and bytes against the machine's
rates and by the swapper's own order of copies on a clock. Nothing is loaded.

What it chooses for the transformer: the rows that go through a feed-forward layer at once, the slots, and the
blocks that stay. For decoding: the bytes of a piece. For the text encoder: the card or the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..model.config import TransformerConfig
from ..model.layers import MLP_ROWS
from ..model.turbo_decoder import PIECE_BYTES
from ..shapes import (
    PATCH,
    VIDEO_CHANNELS,
    latent_size,
)
from . import live_bytes
from .block_swap import default_slot_bytes
from .film_size import SR_STEPS, STEPS, FilmSize
from .live_bytes import SAMPLER_COPIES, Rows, Stored
from .machine import DEFAULT_LINK, GB, Machine, Rates, card_named
from .swap_plan import BlockCost, choose_resident, simulate
from .weights import Model, Network, Weights
from .work import (
    CPU_RATE,
    SOUND_WORK,
    TURBO_WORK,
    WAN_ENCODE_WORK,
    WAN_WORK,
    block_seconds,
    product_rate,
)

# Kept free on the card: libraries' workspaces, and what the allocator loses between tensors.
RESERVE, FRAGMENTATION = 400 << 20, 0.06
HOST_PROCESS = 2 * GB  # Python, torch and the driver's side of a card
ENCODER_FRAMES = 64  # that the film's encoder holds, at three bytes a pixel at most
SHARES = (None, MLP_ROWS, 8_192, 4_096, 2_048, 1_024)  # rows of a feed-forward layer at once
SLOTS = (2, 3, 1)  # one slot computes and copies in turn: only where two do not fit
PIECES = (PIECE_BYTES, PIECE_BYTES // 2, PIECE_BYTES // 4, PIECE_BYTES // 8)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """How one stage runs, and what it takes."""

    name: str  # text, picture, film, super-resolution, sound, decode
    weights: int  # bytes of the network, wherever they are
    live: int  # bytes on the device beside weights
    vram: int  # bytes on the device, the margin included
    ram: int  # bytes in the host's memory
    seconds_per_step: float
    steps: int = 1
    device: str = "cuda"
    blocks: int = 0
    resident: frozenset[int] = frozenset()
    slots: int = 0
    mlp_rows: int | None = None
    piece_bytes: int | None = None
    together: int = 1  # sequences that go through a block while it is there
    full_vram: int = 0  # with everything resident and nothing cut
    full_seconds: float = 0.0  # a step, likewise
    short_vram: int = 0
    short_ram: int = 0
    note: str = ""

    @property
    def fits(self) -> bool:
        return not (self.short_vram or self.short_ram)

    @property
    def seconds(self) -> float:
        return self.seconds_per_step * self.steps

    @property
    def swapped(self) -> int:
        """Blocks that are streamed."""
        return self.blocks - len(self.resident)

    @property
    def slowdown(self) -> float:
        """Of a step, against everything resident and nothing cut; 0.04 is 4 %."""
        return self.seconds_per_step / self.full_seconds - 1 if self.full_seconds else 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages in order, and what would fit where they do not."""

    machine: Machine
    model: Model
    film: FilmSize
    stages: tuple[StagePlan, ...]

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Of computing; reading files is not in it."""
        return sum(stage.seconds for stage in self.stages)

    def stage(self, name: str) -> StagePlan:
        return next(stage for stage in self.stages if stage.name == name)


def plan(machine: Machine, model: Model, film: FilmSize, *, best: bool = True) -> Plan:
    """How the film is made on this machine. Whether it fits is in the plan; it raises for nothing.

    Without ``best`` it is any way that fits, which is known at once: the blocks that stay are not chosen.
    """
    width, height = film.final_size
    base = _pass_rows(film.width, film.height, film)
    steps, branches = STEPS[film.variant]
    stages = [_text(machine, model, film, branches > 1 or film.sr_guided)]
    if film.has_picture:
        stages.append(_picture(machine, model.video_vae, film.width, film.height))
    stages.append(
        _sampling(
            "film",
            machine,
            model.transformer,
            base,
            film.steps or steps,
            branches,
            SAMPLER_COPIES[film.variant],
            best,
        )
    )
    if model.super_resolution is not None and film.super_resolution != "none":
        if film.has_picture:
            stages.append(_picture(machine, model.video_vae, width, height))
        guided = film.sr_guided
        stages.append(
            _sampling(
                "super-resolution",
                machine,
                model.super_resolution,
                _pass_rows(width, height, film),
                film.sr_steps or SR_STEPS,
                2 if guided else 1,
                SAMPLER_COPIES["sr guided" if guided else "sr"],
                best,
            )
        )
    stages += [_sound(machine, model, film), _decode(machine, model, film)]
    return Plan(machine, model, film, tuple(stages))


def resident_blocks(
    free_bytes: int,
    config: TransformerConfig,
    block_bytes: Sequence[int],
    tokens: int,
    branches: int = 1,
    leave_free: int = 0,
    *,
    stored: Stored = "plain",
    itemsize: int = 2,
    link: float = DEFAULT_LINK,
    rates: Rates | None = None,
    mlp_rows: int | None = None,
    slots: Sequence[int] = SLOTS,
    fused: bool = True,
) -> tuple[frozenset[int], int]:
    """(blocks that stay, slots) for the fastest pass within ``free_bytes`` less ``leave_free``.

    ``block_bytes`` are each block's in the form it is streamed in. What a pass over ``tokens`` rows needs beside
    the weights is taken off first. Where nothing fits, the least there is: no block, one slot.
    """
    rates = rates or card_named("RTX 4090").rates
    frame = max(1, tokens // (2 * config.window + 1))
    rows = Rows(tokens, 0, 0, frame)
    live = live_bytes.network_bytes(config, rows, stored, itemsize, mlp_rows, branches, fused)
    room = free_bytes - leave_free - with_margin(0, live)
    costs = [
        BlockCost(
            nbytes, branches * block_seconds(config, spec, rows, stored, itemsize, rates, mlp_rows, fused)
        )
        for nbytes, spec in zip(block_bytes, config.blocks, strict=True)
    ]
    chosen = _fastest(costs, room, link, slots)
    return (chosen[1], chosen[2]) if chosen else (frozenset(), min(slots))


def with_margin(weights: int, live: int) -> int:
    """What must be free on the device for a stage."""
    return weights + round(live * (1 + FRAGMENTATION)) + RESERVE


def _pass_rows(width: int, height: int, film: FilmSize) -> Rows:
    size = latent_size(width, height, film.num_frames)
    frame = size.height * size.width // PATCH**2
    return Rows(size.frames * frame, size.audio, film.text_tokens, frame)


def _sampling(
    name: str,
    machine: Machine,
    network: Network,
    rows: Rows,
    steps: int,
    branches: int,
    copies: float,
    best_only: bool,
) -> StagePlan:
    """The fastest of all ways to run the transformer that fit; where none does, the one that is least short."""
    latents = 4 * (VIDEO_CHANNELS * PATCH**2 * rows.video + rows.audio * 64)
    held = round(latents * copies) + 4 * rows.text * network.config.text_features * branches
    total = sum(network.blocks)
    found: StagePlan | None = None
    smallest: StagePlan | None = None
    full = _stage_of(name, machine, network, rows, steps, branches, held, None)
    # Swapped weights wait in the host's memory, all of them; without room for that nothing can be swapped.
    choices = SLOTS if HOST_PROCESS + total <= machine.ram_free else ()
    for mlp_rows in SHARES:
        if mlp_rows is not None and mlp_rows >= rows.all:
            continue
        way = _stage_of(name, machine, network, rows, steps, branches, held, mlp_rows)
        if found is not None and way.full_seconds >= found.seconds_per_step:
            break  # cut finer, even everything resident is slower than what was found
        room = machine.vram_free - with_margin(network.outside, way.live)
        costs = way_costs(network, rows, machine, branches, mlp_rows)
        chosen = _fastest(costs, room, machine.link, choices, best_only)
        if chosen is None:
            needs = with_margin(network.outside + default_slot_bytes(network.blocks), way.live)
            if smallest is None or needs < smallest.vram:
                smallest = replace(way, vram=needs, slots=1, seconds_per_step=0.0)
            continue
        seconds, resident, slots = chosen
        room_taken = sum(network.blocks[block] for block in resident)
        room_taken += slots * default_slot_bytes(network.blocks)
        stage = replace(
            way,
            vram=with_margin(network.outside + room_taken, way.live),
            seconds_per_step=seconds,
            resident=resident,
            slots=slots,
        )
        if found is None or stage.seconds_per_step < found.seconds_per_step:
            found = stage
    best = found or smallest
    host = HOST_PROCESS + (total if network.is_made or best.swapped else 0)
    if found is None:
        best = replace(best, short_vram=max(0, best.vram - machine.vram_free))
    return replace(
        best,
        ram=host,
        short_ram=max(0, host - machine.ram_free),
        full_vram=full.full_vram,
        full_seconds=full.full_seconds,
    )


def _stage_of(name, machine, network, rows, steps, branches, held, mlp_rows) -> StagePlan:
    """One way, with every block resident."""
    config, stored, size = network.config, network.stored, network.itemsize
    live = held + live_bytes.network_bytes(config, rows, stored, size, mlp_rows, branches, machine.has_triton)
    seconds = sum(cost.seconds for cost in way_costs(network, rows, machine, branches, mlp_rows))
    return StagePlan(
        name,
        network.nbytes,
        live,
        with_margin(network.nbytes, live),
        0,
        seconds,
        steps,
        blocks=len(network.blocks),
        mlp_rows=mlp_rows,
        together=branches,
        full_vram=with_margin(network.nbytes, live),
        full_seconds=seconds,
    )


def way_costs(
    network: Network, rows: Rows, machine: Machine, branches: int, mlp_rows: int | None
) -> tuple[BlockCost, ...]:
    """Each block's bytes, and its seconds for all branches."""
    seconds = {
        spec: branches
        * block_seconds(
            network.config,
            spec,
            rows,
            network.stored,
            network.itemsize,
            machine.rates,
            mlp_rows,
            machine.has_triton,
        )
        for spec in set(network.config.blocks)
    }
    return tuple(
        BlockCost(nbytes, seconds[spec])
        for nbytes, spec in zip(network.blocks, network.config.blocks, strict=True)
    )


def _fastest(
    costs: Sequence[BlockCost], room: int, link: float, choices: Sequence[int] = SLOTS, best_only: bool = True
) -> tuple[float, frozenset[int], int] | None:
    """(seconds, blocks that stay, slots) of the fastest pass within ``room`` bytes; None where no slot fits."""
    compute = sum(cost.seconds for cost in costs)
    if sum(cost.nbytes for cost in costs) <= room:
        return compute, frozenset(range(len(costs))), 0
    slot = default_slot_bytes([cost.nbytes for cost in costs])
    best = None
    for slots in choices:
        budget = room - slots * slot
        # However the blocks are chosen, what does not stay crosses the link.
        floor = max(compute, (sum(cost.nbytes for cost in costs) - budget) / link)
        if budget < 0 or (best is not None and floor >= best[0]):
            continue
        resident = choose_resident(costs, budget, slots, link) if best_only else frozenset()
        seconds = simulate(costs, resident, slots, link)
        if best is None or seconds < best[0] * (1 - 1e-9):
            best = seconds, resident, slots
        if not best_only or best[0] <= compute * (1 + 1e-6):
            break
    return best


def _text(machine: Machine, model: Model, film: FilmSize, is_guided: bool) -> StagePlan:
    weights, config = model.text_encoder, model.text
    live = live_bytes.text_bytes(config, film.text_tokens, weights.stored, weights.itemsize)
    prompts = 2 if is_guided else 1
    parameters = (
        len(config.sliding_layers)
        * config.hidden_size
        * (3 * config.intermediate_size + 2 * (config.num_heads + config.num_kv_heads) * config.head_dim)
    )
    work = 2 * parameters * film.text_tokens
    rate = product_rate("plain", weights.itemsize, machine.rates)
    vram = with_margin(weights.nbytes, live)
    stage = StagePlan("text", weights.nbytes, live, vram, 0, work / rate, prompts, full_vram=vram)
    made = HOST_PROCESS + (weights.nbytes if weights.is_made else 0)
    if vram > machine.vram_free:
        # The pages of a mapped file are read again where memory is short; slow, but it goes on.
        note = "on the CPU: the card has no room for it"
        stage = replace(stage, device="cpu", vram=0, live=live, seconds_per_step=work / CPU_RATE, note=note)
        made = max(made, HOST_PROCESS + weights.nbytes)
    else:
        stage = replace(stage, note=f"{weights.nbytes / machine.link:.1f} s to the card")
    return replace(stage, ram=made, short_ram=max(0, made - machine.ram_free))


def _picture(machine: Machine, weights: Weights, width: int, height: int) -> StagePlan:
    live = live_bytes.wan_encode_bytes(width * height, weights.itemsize)
    seconds = WAN_ENCODE_WORK * width * height / machine.rates.convolution
    return _plain("picture", machine, weights, live, seconds)


def _sound(machine: Machine, model: Model, film: FilmSize) -> StagePlan:
    live = live_bytes.sound_bytes(model.audio, film.num_frames)
    seconds = SOUND_WORK * film.num_frames / machine.rates.float32
    return _plain("sound", machine, model.audio_vae, live, seconds)


def _decode(machine: Machine, model: Model, film: FilmSize) -> StagePlan:
    width, height = film.final_size
    pixels = width * height
    size = latent_size(width, height, film.num_frames)
    latents = 4 * VIDEO_CHANNELS * size.frames * size.height * size.width
    host = ENCODER_FRAMES * 3 * pixels
    if film.decoder == "wan":
        weights = model.video_vae
        live = latents + live_bytes.wan_decode_bytes(pixels, size.frames, weights.itemsize)
        seconds = WAN_WORK * pixels * size.frames / machine.rates.convolution
        return _plain("decode", machine, weights, live, seconds, host)
    weights = model.turbo_decoder
    decoded = sum(window.stop - window.start for window in model.turbo.windows(size.frames))
    seconds = TURBO_WORK * pixels * decoded / machine.rates.convolution
    stages = []
    for piece in PIECES:
        live = latents + live_bytes.turbo_bytes(
            pixels, size.frames, model.turbo.step, piece, weights.itemsize
        )
        stage = replace(_plain("decode", machine, weights, live, seconds, host), piece_bytes=piece)
        stages.append(stage)
        if stage.fits:
            return stage
    return stages[-1]


def _plain(
    name: str, machine: Machine, weights: Weights, live: int, seconds: float, host: int = 0
) -> StagePlan:
    """A stage with nothing to choose."""
    vram, ram = with_margin(weights.nbytes, live), HOST_PROCESS + host
    return StagePlan(
        name,
        weights.nbytes,
        live,
        vram,
        ram,
        seconds,
        full_vram=vram,
        full_seconds=seconds,
        short_vram=max(0, vram - machine.vram_free),
        short_ram=max(0, ram - machine.ram_free),
    )
