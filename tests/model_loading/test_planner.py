"""The planner: memory it predicts against memory counted, its choice against every choice, and its words."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, islice, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.errors import CheckpointError, GeometryError
from comfyui_happyhorse.kernels.quantised import QuantisedWeight
from comfyui_happyhorse.media.frames import to_frames
from comfyui_happyhorse.model.audio_vae import OobleckVAE
from comfyui_happyhorse.model.config import BlockSpec, TransformerConfig
from comfyui_happyhorse.model.layers import Context
from comfyui_happyhorse.model.sequence import SequenceLayout
from comfyui_happyhorse.model.text_encoder import T5GemmaEncoder
from comfyui_happyhorse.model.transformer import JointTransformer
from comfyui_happyhorse.model.turbo_decoder import PIECE_BYTES, TurboDecoder
from comfyui_happyhorse.model.video_vae import Wan22VAE
from comfyui_happyhorse.model_loading import live_bytes, planner, published
from comfyui_happyhorse.model_loading.block_swap import default_slot_bytes
from comfyui_happyhorse.model_loading.film_size import SR_STEPS, STEPS, FilmSize
from comfyui_happyhorse.model_loading.live_bytes import Rows
from comfyui_happyhorse.model_loading.machine import (
    CARDS,
    COMMON,
    GB,
    card_named,
    described_machine,
    free_memory,
    measured_rates,
    with_memory,
)
from comfyui_happyhorse.model_loading.plan_report import alternatives, least_memory, report
from comfyui_happyhorse.model_loading.planner import plan, resident_blocks
from comfyui_happyhorse.model_loading.quantised_layers import QuantisedLinear
from comfyui_happyhorse.model_loading.swap_plan import simulate
from comfyui_happyhorse.model_loading.weights import published_model, read_model
from comfyui_happyhorse.pipeline.decode import host_frames
from comfyui_happyhorse.sampling.joint import PRESETS, sample
from comfyui_happyhorse.sampling.streams import SeededNoise, Streams, StreamShapes
from comfyui_happyhorse.sampling.super_resolution import GUIDED_PRESET, PRESET, SuperResolution, super_resolve

place = importlib.util.spec_from_file_location(
    "happyhorse_tests_live_bytes", Path(__file__).parent / "live_bytes.py"
)
counter = importlib.util.module_from_spec(place)
place.loader.exec_module(counter)
LiveBytes = counter.LiveBytes

META = {"device": "meta"}
OVER = 1.10  # a prediction is at most so much above the count, and never below it
KINDS = {
    "shared": BlockSpec(False, "swiglu7", 13_652),
    "local": BlockSpec(False, "swiglu7", 13_652, True),
    "first": BlockSpec(True, "gelu7", 20_480),
    "last": BlockSpec(True, "swiglu7", 13_652, True),
}
LATENTS = {"256p": (32, 16, 28), "540p": (9, 32, 56), "1080p": (32, 68, 120), "short": (2, 16, 28)}


def fits_count(predicted, counted, what=""):
    assert counted <= predicted <= OVER * counted, (
        f"{what} {predicted / counted:.3f} of {counted / 1e9:.3f} GB"
    )


def network_of(*specs, kept="bf16"):
    """Two blocks of each kind, at the real sizes, without memory."""
    config = replace(published.transformer("base"), blocks=specs)
    with torch.device("meta"):
        dtype = torch.float32 if kept == "float32" else torch.bfloat16
        network = JointTransformer(config, dtype=dtype).requires_grad_(False)
    for name, layer in list(network.named_modules()):
        if kept in STORED and name.rpartition(".")[2] in (
            "linear_qkv",
            "linear_proj",
            "up_gate_proj",
            "down_proj",
        ):
            weight, products = STORED[kept]
            network.set_submodule(name, QuantisedLinear(weight(*layer.weight.shape), products))
    return network


def stored_fp8(rows, columns):
    data = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, **META)
    return QuantisedWeight("float8_e4m3fn", data, (rows, columns), {"weight_scale": torch.empty((), **META)})


def stored_int8(rows, columns, rotated=True):
    wide = -(-columns // 256) * 256 if rotated else columns
    data = torch.empty(rows, wide, dtype=torch.int8, **META)
    turned = {"convrot": True, "convrot_groupsize": 256} if rotated else {}
    scales = {"weight_scale": torch.empty(rows, 1, **META)}
    return QuantisedWeight("int8_tensorwise", data, (rows, columns), scales, turned)


def stored_nf4(rows, columns):
    data = torch.empty(rows * columns // 2, 1, dtype=torch.uint8, **META)
    scales = {"absmax": torch.empty(rows * columns // 64, **META), "quant_map": torch.empty(16, **META)}
    return QuantisedWeight("nf4", data, (rows, columns), scales, {"blocksize": 64, "quant_type": "nf4"})


STORED = {
    "fp8": (stored_fp8, "weights"),
    "fp8_fast": (stored_fp8, "fast"),
    "int8": (stored_int8, "stored"),
    "int8_weights": (lambda rows, columns: stored_int8(rows, columns, False), "weights"),
    "nf4": (stored_nf4, "stored"),
}
NAMES = {"bf16": "plain", "float32": "plain", "nf4": "decoded", "int8_weights": "int8_plain"}


def pass_of(network, latent, text=400, mlp_rows=None, fused=True, together=1):
    """(rows, bytes that a pass of the network holds at its peak, its inputs not counted)"""
    frames, height, width = latent
    video = torch.empty(48, *latent, **META)
    audio, rows = torch.empty(64, 4 * frames - 3, **META), torch.empty(text, 3584, **META)
    layout = SequenceLayout.of(video, audio, rows)
    ranges = layout.local_ranges(network.config.window)
    with torch.inference_mode(), LiveBytes(fused) as live:
        rope = torch.empty(layout.length, 6 * network.config.bands, **META)
        context = Context(layout.sizes, rope, ranges, mlp_rows=mlp_rows)
        if together == 1:
            network(video, audio, rows, context)
        else:  # as BlockSwapper.run_together does it
            embedded = [network.embed(video, audio, rows) for _ in range(together)]
            hidden = list(embedded)
            for block in network.block.layers:
                for which in range(together):
                    hidden[which] = block(hidden[which], context)
    return Rows(layout.video, layout.audio, layout.text, height * width // 4), live.peak


def predicted(network, rows, kept, mlp_rows=None, fused=True, together=1):
    return live_bytes.network_bytes(
        network.config,
        rows,
        NAMES.get(kept, kept),
        4 if kept == "float32" else 2,
        mlp_rows,
        together,
        fused,
    )


@pytest.mark.parametrize("fused", [True, False], ids=["kernels", "definitions"])
@pytest.mark.parametrize("kept", ["bf16", "float32", *STORED])
def test_what_a_pass_holds_is_predicted(kept, fused):
    """Real sizes: every kind of block, sizes from a few tokens to 1080p, whole and in shares."""
    grid = [("short", None), ("256p", None), ("1080p", None), ("1080p", 4096)]
    for title, spec in KINDS.items() if fused else [("shared", KINDS["shared"]), ("last", KINDS["last"])]:
        network = network_of(spec, spec, kept=kept)
        for size, mlp_rows in grid if kept == "bf16" else grid[1:4:2]:
            rows, counted = pass_of(network, LATENTS[size], mlp_rows=mlp_rows, fused=fused)
            fits_count(predicted(network, rows, kept, mlp_rows, fused), counted, f"{title} {size} {mlp_rows}")


@pytest.mark.parametrize("variant", ["base", "sr_1080p"])
def test_the_whole_network_is_its_widest_blocks(variant):
    network = network_of(*published.transformer(variant).blocks)
    assert sum(parameter.numel() for parameter in network.parameters()) == 15_299_419_136
    rows, counted = pass_of(network, LATENTS["256p"])
    fits_count(predicted(network, rows, "bf16"), counted)


def test_two_prompts_together():
    network = network_of(KINDS["shared"], KINDS["shared"])
    for size in ("256p", "1080p"):
        rows, counted = pass_of(network, LATENTS[size], together=2)
        fits_count(predicted(network, rows, "bf16", together=2), counted, size)


@pytest.mark.parametrize("name", ["distilled", "base", "sr", "sr guided"])
def test_what_the_sampler_keeps_beside_a_pass(name):
    """Counted whenever the network is called, with a first picture."""
    frames, height, width, sounds = 32, 34, 60, 125
    shapes = StreamShapes((1, 48, frames, height, width), (1, 64, sounds))
    picture = torch.empty(1, 48, 1, height, width, **META)
    base = Streams(torch.empty(1, 48, frames, 16, 28, **META), torch.empty(1, 64, sounds, **META))
    seen = []

    def velocity(x, _sigma):
        seen.append(live.now)
        return Streams(torch.empty_like(x.video), torch.empty_like(x.audio))

    with torch.inference_mode(), LiveBytes() as live:
        noise = SeededNoise(1, shapes, "meta")
        if name in PRESETS:
            preset = PRESETS[name]
            sample(velocity, preset.guidance and velocity, noise(), preset, noise, first_frame=picture)
        else:
            preset = GUIDED_PRESET if "guided" in name else PRESET
            guide = velocity if preset.guidance else None
            way = SuperResolution(preset)
            super_resolve(velocity, guide, base, height, width, noise, way, first_frame=picture)
    latents = 4 * (48 * frames * height * width + 64 * sounds)
    fits_count(live_bytes.SAMPLER_COPIES[name] * latents, max(seen))


def test_steps_are_the_presets():
    for name, (steps, passes) in STEPS.items():
        assert (PRESETS[name].steps, 2 if PRESETS[name].guidance else 1) == (steps, passes)
    assert PRESET.steps == GUIDED_PRESET.steps == SR_STEPS


@pytest.mark.parametrize("kept", ["bf16", "nf4", "fp8"])
def test_what_encoding_a_prompt_holds(kept):
    with torch.device("meta"):
        config = replace(published.TEXT_ENCODER, sliding_layers=(True, False))
        encoder = T5GemmaEncoder(config).requires_grad_(False)
    for name, layer in list(encoder.named_modules()):
        if kept in STORED and name.endswith("_proj"):
            encoder.set_submodule(name, QuantisedLinear(STORED[kept][0](*layer.weight.shape), "weights"))
    for tokens in (40, 640):
        with torch.inference_mode(), LiveBytes() as live:
            encoder(torch.empty(1, tokens, dtype=torch.long, **META))
        # Of a stage of 10 to 18 GB this is 1 %: a float's worth of slack.
        found = live_bytes.text_bytes(config, tokens, NAMES.get(kept, kept), 2)
        assert live.peak <= found <= OVER * live.peak + 32e6, (tokens, found / live.peak)


class Waiting:
    """Carries frames as a card does: one window waits while the next is decoded."""

    ahead = 1

    def mark(self):
        pass

    def start(self, pixels, _decoded, bit_depth):
        return to_frames(pixels, bit_depth)[0]

    def finish(self, frames):
        return frames


def decoded(decoder, latent):
    """Bytes at the peak of decoding, with what becomes of the frames."""
    with torch.inference_mode(), LiveBytes() as live:
        windows = islice(decoder.decode_chunks(latent), 2)  # the second is the longest there is
        for frames in host_frames(windows, torch.device("meta"), carrier=Waiting()):
            del frames
    return live.peak


@pytest.mark.parametrize(
    ("size", "frames", "piece"),
    [
        ((448, 256), 7, PIECE_BYTES),
        ((448, 256), 21, PIECE_BYTES),
        ((896, 512), 7, PIECE_BYTES // 8),
        ((1920, 1088), 7, PIECE_BYTES),
        ((1920, 1088), 21, PIECE_BYTES),
    ],
)
def test_what_the_turbo_decoder_holds(size, frames, piece):
    with torch.device("meta"):
        decoder = TurboDecoder(published.TURBO, dtype=torch.bfloat16, piece_bytes=piece)
    latent = torch.empty(1, 48, frames, size[1] // 16, size[0] // 16, **META)
    pixels = size[0] * size[1]
    fits_count(live_bytes.turbo_bytes(pixels, frames, 7, piece, 2), decoded(decoder, latent))


def test_what_the_wan_autoencoder_holds():
    with torch.device("meta"):
        vae = Wan22VAE(published.WAN, dtype=torch.bfloat16)
    for width, height in ((448, 256), (1920, 1088)):
        for frames in (1, 4):
            latent = torch.empty(1, 48, frames, height // 16, width // 16, **META)
            fits_count(live_bytes.wan_decode_bytes(width * height, frames, 2), decoded(vae, latent))
        with torch.inference_mode(), LiveBytes() as live:
            vae.encode(torch.empty(1, 3, 1, height, width, **META))
        fits_count(live_bytes.wan_encode_bytes(width * height, 2), live.peak)


def test_what_decoding_sound_holds():
    with torch.device("meta"):
        vae = OobleckVAE(published.OOBLECK)
    for latents in (5, 125, 249):
        with torch.inference_mode(), LiveBytes() as live:
            vae.decode(torch.empty(1, 64, latents, **META))
        fits_count(live_bytes.sound_bytes(published.OOBLECK, latents), live.peak, latents)


def test_published_sizes():
    """The parameters that the published files have."""
    makers = {
        107_122_892: lambda: TurboDecoder(published.TURBO),
        704_688_668: lambda: Wan22VAE(published.WAN),
        156_112_514: lambda: OobleckVAE(published.OOBLECK),
        9_241_705_984: lambda: T5GemmaEncoder(published.TEXT_ENCODER),
    }
    for count, make in makers.items():
        with torch.device("meta"):
            assert sum(parameter.numel() for parameter in make().parameters()) == count


# --- the choice ------------------------------------------------------------------------------------------


def small_model(blocks=6, unit=1 << 28):
    """A model whose transformer has few blocks, so that every choice can be tried."""
    model = published_model("fp8")
    specs = tuple(
        KINDS["first"] if number in (0, blocks - 1) else KINDS["shared"] for number in range(blocks)
    )
    sizes = tuple(unit * (3 if spec.per_modality else 1) for spec in specs)
    config = replace(model.transformer.config, blocks=specs)
    network = replace(model.transformer, config=config, blocks=sizes, nbytes=sum(sizes) + (80 << 20))
    return replace(model, transformer=network)


SMALL = small_model()
MACHINE = described_machine(24, ram=64)


def every_choice(machine, network, rows, branches, held):
    """Seconds of every way that fits: shares, slots, sets of blocks."""
    costs_of = planner.way_costs
    for mlp_rows in planner.SHARES:
        if mlp_rows is not None and mlp_rows >= rows.all:
            continue
        live = held + live_bytes.network_bytes(network.config, rows, "fp8", 2, mlp_rows, branches)
        room = machine.vram_free - planner.with_margin(network.outside, live)
        costs = costs_of(network, rows, machine, branches, mlp_rows)
        numbers = range(len(costs))
        for count in range(len(costs) + 1):
            for kept in combinations(numbers, count):
                taken = sum(costs[number].nbytes for number in kept)
                if count == len(costs):
                    if taken <= room:
                        yield sum(cost.seconds for cost in costs)
                    continue
                for slots in planner.SLOTS:
                    if taken + slots * default_slot_bytes(network.blocks) <= room:
                        yield simulate(costs, frozenset(kept), slots, machine.link)


@pytest.mark.parametrize("gigabytes", [1.9, 2.6, 3.4, 4.2])
@pytest.mark.parametrize("link", [2e9, 2e10])
def test_the_choice_is_the_best_there_is(gigabytes, link):
    """Of some thousand ways for a network of six blocks."""
    machine = replace(with_memory(MACHINE, int(gigabytes * GB)), link=link)
    film = FilmSize(num_frames=29)
    found = plan(machine, SMALL, film).stage("film")
    rows = planner._pass_rows(film.width, film.height, film)
    latents = 4 * (192 * rows.video + 64 * rows.audio)
    held = round(latents * live_bytes.SAMPLER_COPIES["distilled"]) + 4 * rows.text * 3584
    best = min(every_choice(machine, SMALL.transformer, rows, 1, held), default=None)
    assert found.fits == (best is not None)
    assert found.vram <= machine.vram_free
    if best is not None:
        assert found.seconds_per_step == pytest.approx(best, rel=1e-6)


def test_those_machines_are_of_every_kind():
    """Too small, swapping, cut into shares, all resident: what the test above walks through."""
    film = FilmSize(num_frames=29)
    stages = [
        plan(with_memory(MACHINE, int(size * GB)), SMALL, film).stage("film") for size in (1.4, 1.9, 2.6, 4.2)
    ]
    assert [stage.fits for stage in stages] == [False, True, True, True]
    assert [stage.swapped > 0 for stage in stages[1:]] == [True, True, False]


@given(
    st.floats(1.2, 6),
    st.floats(0, 4),
    st.floats(1, 40),
    st.sampled_from([5, 29, 125]),
    st.sampled_from([1, 2]),
)
@settings(max_examples=25, deadline=None)
def test_more_memory_is_never_slower(size, more, link, frames, passes):
    film = FilmSize(num_frames=frames, variant="base" if passes == 2 else "distilled")
    machine = replace(with_memory(MACHINE, int(size * GB)), link=link * 1e9)
    less = plan(machine, SMALL, film).stage("film")
    larger = plan(with_memory(machine, int((size + more) * GB)), SMALL, film).stage("film")
    if less.fits:
        assert larger.fits
        assert larger.seconds_per_step <= less.seconds_per_step * (1 + 1e-9)
    for stage in (less, larger):
        assert stage.short_vram >= 0
        assert bool(stage.short_vram) == (not stage.fits)


def test_the_published_network_never_loses_by_more_memory():
    model = published_model("bf16")
    seconds = [
        plan(described_machine(size, card="RTX 4090", ram=64), model, FilmSize())
        .stage("film")
        .seconds_per_step
        for size in (10, 16, 24, 48)
    ]
    assert all(after <= before * 1.005 for before, after in pairwise(seconds)), seconds
    assert seconds[-1] < seconds[0]


def test_a_faster_link_and_a_shorter_film_are_never_worse():
    film, machine = FilmSize(num_frames=125), with_memory(MACHINE, int(2.6 * GB))
    stages = [plan(replace(machine, link=link), SMALL, film).stage("film") for link in (1e9, 5e9, 5e10)]
    assert stages[0].seconds_per_step >= stages[1].seconds_per_step >= stages[2].seconds_per_step
    lives = [
        plan(MACHINE, SMALL, FilmSize(num_frames=count)).stage("film").live for count in (5, 29, 125, 249)
    ]
    assert lives == sorted(lives) and lives[0] < lives[-1]


def test_without_memory_for_the_weights_on_the_host_nothing_is_swapped():
    """Shares take the place of swapping; where they do not suffice, the host's memory is what is short."""
    film = FilmSize(num_frames=125)
    roomy = with_memory(MACHINE, int(3.4 * GB))
    assert plan(roomy, SMALL, film).stage("film").swapped > 0
    poor = replace(roomy, ram_free=planner.HOST_PROCESS + GB)
    stage = plan(poor, SMALL, film).stage("film")
    assert (stage.fits, stage.short_ram > 0, stage.short_vram) == (False, True, 0)
    cut = plan(with_memory(poor, int(3.75 * GB)), SMALL, film).stage("film")
    assert (cut.fits, cut.swapped) == (True, 0) and cut.mlp_rows


def test_resident_blocks_for_the_node():
    """The seam of HappyHorseBlockSwap: what stays and the slots, from free bytes."""
    network = published_model("bf16").transformer
    tokens = 4_110
    kept, slots = resident_blocks(16 * GB, network.config, network.blocks, tokens)
    live = live_bytes.network_bytes(network.config, Rows(tokens, 0, 0, tokens // 23), "plain", 2)
    taken = sum(network.blocks[block] for block in kept) + slots * default_slot_bytes(network.blocks)
    assert 0 < len(kept) < 40 and slots in (2, 3)
    assert taken + live <= 16 * GB < taken + live + 3 * GB
    assert {0, 1, 2, 3} <= kept  # where many bytes come with little work
    less, _ = resident_blocks(16 * GB, network.config, network.blocks, tokens, leave_free=4 * GB)
    assert sum(network.blocks[block] for block in less) < sum(network.blocks[block] for block in kept)
    assert resident_blocks(64 * GB, network.config, network.blocks, tokens) == (frozenset(range(40)), 0)
    assert resident_blocks(GB, network.config, network.blocks, tokens) == (frozenset(), 1)
    of_two, _ = resident_blocks(16 * GB, network.config, network.blocks, tokens, 2)
    assert len(of_two) <= len(kept)


# --- words and refusals ----------------------------------------------------------------------------------


def test_the_report_of_a_film_that_fits():
    model = published_model("fp8", "distilled", "1080p")
    lines = report(plan(described_machine(16, ram=64), model, FilmSize(super_resolution="1080p")))
    assert lines[0].startswith(
        "1920x1088 for 5.0 s in fp8 fits (16 GB card, as fast as an RTX 4060 Ti, 15.5 GB of "
    )
    assert lines[2].split() == ["stage", "card", "host", "time", "chosen"]
    rows = {line.split("  ")[0]: line for line in lines[3:8]}
    assert list(rows) == ["text", "film", "super-resolution", "sound", "decoding"]
    assert "of 40 blocks swapped through 2 slots" in rows["super-resolution"]
    assert "(everything at once: " in rows["super-resolution"]
    assert "pieces of 256 MB" in rows["decoding"]
    assert "The link carries 12.5 GB/s." in lines[-1]


def test_what_is_short_and_what_would_fit_instead():
    """Every sentence is a plan that was computed."""
    machine, film = described_machine(5, ram=64), FilmSize(super_resolution="1080p")
    model = published_model("bf16", "distilled", "1080p")
    found = plan(machine, model, film)
    assert not found.fits
    lines = report(found, lambda name: published_model(name, "distilled", "1080p"))
    stage = found.stage("super-resolution")
    assert stage.short_vram == stage.vram - machine.vram_free > 0
    short = f"{-(-stage.short_vram * 10 // GB) / 10:.1f} GB are missing"
    assert any("super-resolution needs" in line and short in line for line in lines)
    assert "What would fit:" in lines
    needs = least_memory(found)
    assert plan(with_memory(machine, needs), model, film).fits
    assert not plan(with_memory(machine, needs - GB // 4), model, film).fits
    assert any(f"a card with {-(-needs * 10 // GB) / 10:.1f} GB free" in line for line in lines)


def test_nothing_fits_on_a_host_without_memory():
    machine = replace(described_machine(4, ram=64), ram_free=GB)
    found = plan(machine, published_model("bf16"), FilmSize())
    assert list(alternatives(found)) == []
    assert "Nothing smaller fits either." in report(found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 450},
        {"width": 0},
        {"height": -32},
        {"num_frames": 124},
        {"num_frames": -3},
        {"steps": 0},
        {"sr_steps": 100_000},
        {"text_tokens": 0},
        {"variant": "sr_1080p"},
        {"super_resolution": "4k"},
        {"decoder": "none"},
    ],
    ids=str,
)
def test_films_that_cannot_be_made_are_refused(wrong):
    with pytest.raises(GeometryError):
        FilmSize(**wrong)


@pytest.mark.parametrize("wrong", [(-1,), (0,), (float("nan"),), (10**6,)])
def test_machines_that_are_none_are_refused(wrong):
    with pytest.raises(GeometryError, match="no machine's"):
        described_machine(*wrong)
    with pytest.raises(GeometryError, match="no machine's"):
        described_machine(24, ram=wrong[0])
    with pytest.raises(GeometryError, match="no machine's"):
        described_machine(24, link=wrong[0])


def test_cards():
    with pytest.raises(GeometryError, match="no card 'Voodoo'"):
        described_machine(24, card="Voodoo")
    assert card_named("NVIDIA GeForce RTX 4070 Ti").name == "RTX 4070 Ti"
    assert card_named("NVIDIA GeForce RTX 4070").name == "RTX 4070"
    assert card_named("NVIDIA H200").name == "H200"
    assert card_named("Quadro P400") is None
    assert all(card_named(name) in CARDS for name in COMMON.values())
    assert 0 < free_memory() < 1 << 50


def test_rates_are_measured_where_the_table_has_no_row():
    """On the CPU with small products: the numbers are this machine's, not a table's."""
    rates = measured_rates(torch.device("cpu"), size=256)
    assert 1e7 < rates.bf16 < 1e15
    assert 1e7 < rates.attention < 1e15
    assert 1e7 < rates.memory < 1e13
    assert rates.fp8 is None


# --- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "chosen"),
    [("happyhorse_tiny_distilled.safetensors", name) for name in ("auto", "bf16", "fp8", "int8", "nf4")],
)
def test_bytes_are_those_of_the_loaded_network(tiny_models, file, chosen):
    """From headers, against the network that the builder makes: parameters, buffers and slabs."""
    from comfyui_happyhorse.model_loading.builder import load_transformer
    from comfyui_happyhorse.model_loading.host_weights import HostWeights
    from comfyui_happyhorse.model_loading.precision import PRECISIONS

    path = tiny_models / "diffusion_models" / file
    network = load_transformer(path, "distilled", PRECISIONS[chosen])
    found = read_model({"transformer": path}, chosen).transformer
    tensors = [*network.parameters(), *network.buffers()]
    real = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert real <= found.nbytes <= real + 768 * len(tensors)
    slabs = HostWeights(network.block.layers).sizes
    assert all(slab <= ours <= slab + 5120 for slab, ours in zip(slabs, found.blocks, strict=True))


def test_another_kind_of_file_is_refused(tiny_models):
    file = tiny_models / "diffusion_models" / "happyhorse_tiny_distilled.safetensors"
    with pytest.raises(CheckpointError):
        read_model({"text_encoder": file})


# --- tiny runs -------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("mlp_rows", [None, 512])
def test_resident_memory_of_a_tiny_run(root, mlp_rows):
    """Sampled while a real pass runs on the CPU, as definitions; 64 MB are the libraries' and the allocator's."""
    slack = 64e6
    program = root / "tests" / "model_loading" / "resident_pass.py"
    command = [sys.executable, str(program), str(root), str(mlp_rows or 0)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    added, *sizes = map(int, done.stdout.split())
    spec = BlockSpec(False, "swiglu7", 1_600)
    config = TransformerConfig(512, 1, 1, 128, 192, 64, 64, 16, (spec, spec))
    found = live_bytes.network_bytes(config, Rows(*sizes, 400), "plain", 4, mlp_rows, fused=False)
    assert found - slack <= added <= found + slack, (found / 1e6, added / 1e6)


def test_nothing_asks_for_a_device_at_import(root):
    """Imported where every question about CUDA is an error."""
    script = f"""
import importlib.util, sys, torch
def refuse(*_):
    raise AssertionError("asked for a device")
for name in ("is_available", "device_count", "get_device_properties", "mem_get_info"):
    setattr(torch.cuda, name, refuse)
spec = importlib.util.spec_from_file_location("comfyui_happyhorse", {str(root / "__init__.py")!r})
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
for name in ("machine", "planner", "plan_report", "live_bytes", "weights", "published"):
    importlib.import_module("comfyui_happyhorse.model_loading." + name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
