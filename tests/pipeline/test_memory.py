"""Blocks that are swapped, and stages that run out of memory once: the same film, and a line that says so."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.model.layers import FeedForward
from comfyui_happyhorse.model.text_encoder import T5GemmaEncoder
from comfyui_happyhorse.model.transformer import JointTransformer
from comfyui_happyhorse.model.turbo_decoder import TurboDecoder
from comfyui_happyhorse.model_loading import builder
from comfyui_happyhorse.model_loading.precision import PRECISIONS
from comfyui_happyhorse.pipeline import memory
from comfyui_happyhorse.pipeline.files import ModelFiles
from comfyui_happyhorse.pipeline.film import FilmRequest, make_film

SMALL = FilmRequest("A man at a piano says hello.", 5, 64, 64, steps=2, sr_steps=2)
LARGE = replace(SMALL, super_resolution="540p")
GUIDED = replace(SMALL, variant="base")


@pytest.fixture
def make(tiny_models, tmp_path):
    def run(request, name="film.mp4", precision="bf16", **keywords):
        files = ModelFiles.locate(tiny_models, request, ModelFiles())
        film = make_film(files, request, tmp_path / name, policy=PRECISIONS[precision], **keywords)
        return film, (tmp_path / name).read_bytes()

    return run


def same(one, other):
    assert torch.equal(one[0].latents.video, other[0].latents.video)
    assert torch.equal(one[0].latents.audio, other[0].latents.audio)
    assert one[1] == other[1]


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8", "nf4"])
def test_swapped_films_are_the_same_in_every_precision(make, precision):
    whole = make(SMALL, precision=precision)
    for swapped in (3, 8):
        same(make(SMALL, f"{swapped}.mp4", precision, swapped=swapped), whole)


@pytest.mark.parametrize("request_", [LARGE, GUIDED], ids=["super-resolution", "guided"])
def test_swapped_films_are_the_same_in_every_stage(make, request_):
    same(make(request_, "swapped.mp4", swapped=8), make(request_))


def test_more_blocks_than_there_are(make):
    with pytest.raises(CheckpointError, match="--blocks-to-swap 9: this model has 0 to 8 blocks"):
        make(SMALL, swapped=9)


def fails(monkeypatch, cls, name, at, times=1):
    """The method runs out of memory at its ``at``-th call, ``times`` times; returns what it was called with."""
    original, calls = getattr(cls, name), []

    def method(self, *args, **kwargs):
        calls.append(weakref.ref(self))
        if at <= len(calls) < at + times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nmore")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(cls, name, method)
    return calls


STAGES = {
    "film": (SMALL, JointTransformer, "forward", 2, "The film: out of memory (CUDA out of memory. Tried"),
    "super-resolution": (LARGE, JointTransformer, "forward", 3, "Super-resolution: out of memory"),
    "decoding": (SMALL, TurboDecoder, "_pixels", 1, "Decoding: out of memory"),
    "text": (SMALL, T5GemmaEncoder, "forward", 1, "The text encoder: out of memory"),
    "second text": (GUIDED, T5GemmaEncoder, "forward", 2, "The text encoder: out of memory"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_runs_out_of_memory_goes_on_with_a_smaller_plan(make, monkeypatch, caplog, stage):
    request, cls, name, at, said = STAGES[stage]
    whole = make(request)
    calls = fails(monkeypatch, cls, name, at)
    same(make(request, "again.mp4"), whole)
    lines = [record.message for record in caplog.records if "out of memory" in record.message]
    assert len(lines) == 1 and lines[0].startswith(said) and "Going on" in lines[0] and "\n" not in lines[0]
    gc.collect()
    assert calls[0]() is None  # nothing of the failed try is left


@pytest.mark.parametrize("stage", ["film", "decoding"])
def test_a_second_time_is_an_error_and_leaves_no_file(make, monkeypatch, tmp_path, stage):
    request, cls, name, _, _ = STAGES[stage]
    fails(monkeypatch, cls, name, 1, times=99)
    with pytest.raises(torch.OutOfMemoryError):
        make(request)
    assert not list(tmp_path.glob("film*"))


def test_decoding_goes_on_in_quarters(make, monkeypatch):
    sizes, original = [], TurboDecoder._pixels

    def pixels(self, *args):
        sizes.append(self.piece_bytes)
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("no")
        return original(self, *args)

    monkeypatch.setattr(TurboDecoder, "_pixels", pixels)
    make(SMALL)
    assert sizes[1] * 4 == sizes[0]


@pytest.mark.parametrize("swapped", [0, 8])
def test_long_sequences_go_through_in_shares(make, monkeypatch, swapped):
    """The plan's shares reach the network: no more rows at once, and the film to float32's rounding."""
    whole, _ = make(SMALL, precision="float32")
    seen, original = [], FeedForward._of_rows

    def of_rows(self, x, sizes):
        seen.append(len(x))
        return original(self, x, sizes)

    monkeypatch.setattr(FeedForward, "_of_rows", of_rows)
    monkeypatch.setattr(memory, "SHARES", [16, 8])
    shared, _ = make(SMALL, "shares.mp4", "float32", swapped=swapped)
    assert seen and max(seen) <= 16
    for stream in ("video", "audio"):
        one, other = getattr(whole.latents, stream), getattr(shared.latents, stream)
        assert not torch.equal(one, torch.zeros_like(one))
        assert (one - other).abs().max() <= 1e-4 * one.abs().max()


def test_shares_and_blocks_follow_free_memory(tiny_models, monkeypatch):
    files = ModelFiles.locate(tiny_models, SMALL, ModelFiles())
    network = builder.load_transformer(files.transformer, "distilled")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def planned(free, tokens):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80_000_000_000))
        return memory._plan(network, torch.device("cuda"), tokens)

    assert planned(80_000_000_000, 100) == (frozenset(range(8)), 0, memory.SHARES[0])
    resident, slots, rows = planned(450_000_000, 20_000)  # 419 MB of it are the margin
    assert len(resident) < 8 and slots >= 1 and rows < memory.SHARES[0]
    least = [planned(free, 20_000)[2] for free in (430_000_000, 500_000_000, 700_000_000, 10**10)]
    assert least == sorted(least) and least[0] == memory.SHARES[-1] and least[-1] == memory.SHARES[0]


def test_nothing_is_swallowed_but_memory():
    with pytest.raises(ZeroDivisionError):
        memory.once_more("x", lambda small: 1 / 0, "smaller")
    assert memory.once_more("x", lambda small: small, "smaller") is False
