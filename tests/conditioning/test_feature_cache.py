"""Text features come back bit for bit, for the same words by the same encoder only, and without its weights."""

import json
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyui_happyhorse.cli import generate
from comfyui_happyhorse.cli.main import main
from comfyui_happyhorse.conditioning import feature_cache
from comfyui_happyhorse.conditioning.feature_cache import (
    DEFAULT_LIMIT,
    FeatureCache,
    cached_rows,
    encoder_identity,
    feature_key,
    size_limit,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from comfyui_happyhorse.conditioning.tokenizer import find_tokenizer
from comfyui_happyhorse.errors import ConditioningError, HappyHorseError
from comfyui_happyhorse.model_loading import builder, checkpoint
from comfyui_happyhorse.model_loading.precision import PRECISIONS
from comfyui_happyhorse.pipeline import film as films
from comfyui_happyhorse.pipeline.files import ModelFiles
from comfyui_happyhorse.pipeline.film import FilmRequest

KEYS = [f"{number:064x}" for number in range(40)]
IDS = [3, 1, 4, 1, 5]
EDGES = torch.tensor([[0.0, -0.0, 1e-8, -6e-8], [65504.0, 0.1, -1 / 3, 2.0**-24]])
SHARD = "model-00001-of-00002.safetensors"


def rows_of(seed, tokens=5, size=8):
    return torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed))


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(torch.uint8).flatten().tolist()


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "a" / "b")


@pytest.fixture
def encoder(tiny_models, tmp_path):
    """A folder of its own with the tiny text encoder in two shards."""
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_models / "text_encoders" / "t5gemma_tiny", folder)
    assert (folder / SHARD).is_file()
    return folder


# Entries


@pytest.mark.parametrize(
    "rows",
    [
        rows_of(1),
        rows_of(1).half().float(),
        rows_of(1).bfloat16(),
        rows_of(1).half(),
        rows_of(1).T,
        EDGES,
        EDGES.half().float(),
        torch.empty(0, 8),
    ],
    ids=["float32", "rounded", "bfloat16", "float16", "transposed", "edges", "rounded edges", "none"],
)
def test_rows_come_back_bit_for_bit(cache, rows):
    cache.put(KEYS[0], rows)
    assert bits(cache.get(KEYS[0])) == bits(rows)
    assert bits(FeatureCache(cache.folder).get(KEYS[0])) == bits(rows)
    assert cache.get(KEYS[1]) is None


def test_rows_rounded_through_float16_take_half(cache):
    cache.put(KEYS[0], rows_of(1, 64, 64))
    whole = cache.size().bytes
    cache.put(KEYS[0], rows_of(1, 64, 64).half().float())
    assert 64 * 64 * 2 <= whole - cache.size().bytes <= 64 * 64 * 2 + 8


def test_size_and_clear(cache):
    assert cache.size() == (0, 0)
    assert cache.clear() == (0, 0)
    for number in range(3):
        cache.put(KEYS[number], rows_of(number))
    total = sum(path.stat().st_size for path in cache.folder.iterdir())
    (cache.folder / "mine.safetensors").write_bytes(b"mine")
    assert cache.size() == (3, total)
    assert cache.clear() == (3, total)
    assert [path.name for path in cache.folder.iterdir()] == ["mine.safetensors"]
    assert cache.get(KEYS[0]) is None


def test_the_longest_unused_goes_first(cache):
    for number in range(4):
        cache.put(KEYS[number], rows_of(number))
        os.utime(cache.folder / f"{KEYS[number]}.safetensors", (1000 + number,) * 2)
    one = cache.size().bytes // 4
    cache.get(KEYS[0])  # used just now: 1 is the oldest
    cache.limit = 3 * one
    cache.put(KEYS[4], rows_of(4))
    assert [number for number in range(5) if cache.get(KEYS[number]) is not None] == [0, 3, 4]
    assert cache.size() == (3, 3 * one)


def test_the_limit_holds_and_what_is_larger_is_not_kept(cache):
    cache.put(KEYS[0], rows_of(0))
    one = cache.size().bytes
    cache.limit = 10 * one
    for number, key in enumerate(KEYS):
        cache.put(key, rows_of(number))
        assert cache.size().bytes <= cache.limit
    assert cache.size().entries == 10
    cache.put("f" * 64, rows_of(1, 500))
    assert cache.get("f" * 64) is None
    assert cache.size().entries == 10  # and nothing had to go for it
    nothing = FeatureCache(cache.folder / "none", 0)
    nothing.put(KEYS[0], rows_of(0))
    assert nothing.size() == (0, 0)


def _cut(count):
    return lambda data: data[:count]


def _flipped(place):
    return lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        *(_cut(count) for count in (0, 5, 8, 40, -1)),
        *(_flipped(place) for place in (0, 7, 8, 30, -2, -70)),
        lambda _: os.urandom(300),
        lambda data: data + b"\0",
        lambda _: (2**62).to_bytes(8, "little") + b"{" * 100_000,
        lambda data: data.replace(b'"dtype":"float32"', b'"dtype":"float99"'),
        lambda data: data.replace(b'"crc32":"', b'"crc32":"1'),
    ],
)
def test_damage_is_dropped_and_made_again(cache, caplog, damage):
    made = []

    def encode(ids):
        made.append(ids)
        return rows_of(7)

    cached_rows(IDS, encode, cache, "encoder")
    [path] = cache.folder.iterdir()
    harmed = damage(path.read_bytes())
    assert harmed != path.read_bytes()
    path.write_bytes(harmed)
    with caplog.at_level(logging.WARNING):
        assert cache.get(path.stem) is None
    assert "damaged and are made again" in caplog.text
    assert not path.exists()
    for _ in range(2):
        assert bits(cached_rows(IDS, encode, cache, "encoder")) == bits(rows_of(7))
    assert made == [IDS, IDS]


def test_another_entrys_file_is_no_answer(cache):
    cache.put(KEYS[0], rows_of(0))
    (cache.folder / f"{KEYS[0]}.safetensors").rename(cache.folder / f"{KEYS[1]}.safetensors")
    assert cache.get(KEYS[1]) is None


def _refused(tmp_path, _monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"")
    return file / "features"  # no folder can be made in a file, by root either


def _full(tmp_path, monkeypatch):
    def write(_path, _data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    return tmp_path


@pytest.mark.parametrize("place", [_refused, _full])
def test_a_disk_that_refuses_is_said_once(tmp_path, monkeypatch, caplog, place):
    cache = FeatureCache(place(tmp_path, monkeypatch))
    with caplog.at_level(logging.WARNING):
        for seed in (1, 2, 1):
            rows = cached_rows([seed], lambda ids: rows_of(ids[0]), cache, "encoder")
            assert bits(rows) == bits(rows_of(seed))
    assert (len(caplog.records), cache.size(), cache.clear()) == (1, (0, 0), (0, 0))
    assert "prompts are encoded each time" in caplog.text


def test_a_folder_closed_to_writing_is_read(cache, monkeypatch, caplog):
    cache.put(KEYS[0], rows_of(0))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    for function in ("utime", "replace", "unlink", "mkdir", "open"):
        monkeypatch.setattr(os, function, refuse)
    with caplog.at_level(logging.WARNING):
        assert bits(cache.get(KEYS[0])) == bits(rows_of(0))
        cache.put(KEYS[1], rows_of(1))
        cache.put(KEYS[2], rows_of(2))
    assert len(caplog.records) == 1


def test_unfinished_files_of_ended_programs_are_swept(cache):
    cache.put(KEYS[0], rows_of(0))
    old, fresh = cache.folder / f".old{feature_cache.PART}", cache.folder / f".fresh{feature_cache.PART}"
    for path in (old, fresh):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - feature_cache.STALE - 60,) * 2)
    cache.put(KEYS[1], rows_of(1))
    assert not old.exists()
    assert fresh.exists()
    assert cache.size().entries == 2


def use(cache, seed, turns):
    """Ask for one of twelve entries and make it where it is not there; returns how often it was there."""
    numbers, found = random.Random(seed), 0
    for _ in range(turns):
        number = numbers.randrange(12)
        wanted = torch.full((400, 80), number / 3)
        rows = cache.get(KEYS[number])
        if rows is None:
            cache.put(KEYS[number], wanted)
        else:
            assert torch.equal(rows, wanted), number
            found += 1
    return found


OTHER = """
import runpy, sys
runpy.run_path(sys.argv[1])
tests = runpy.run_path(sys.argv[2])
print(tests["use"](tests["FeatureCache"](sys.argv[3], int(sys.argv[4])), 1, 300))
"""


def test_programs_share_a_folder(cache, root, caplog):
    cache.put(KEYS[0], torch.full((400, 80), 0.0))
    cache.limit = round(8.5 * cache.size().bytes)  # of twelve: they evict what the other reads
    cache.put(KEYS[1], torch.full((400, 80), 1 / 3))
    paths = [root / "tests" / "conftest.py", Path(__file__), cache.folder, cache.limit]
    command = [sys.executable, "-c", OTHER, *map(str, paths)]
    found = turns = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        while program.poll() is None:
            found, turns = found + use(cache, turns, 5), turns + 5
        output, errors = program.communicate()
    assert program.returncode == 0, errors
    assert errors == ""  # nothing was damaged, and nothing could not be written
    assert not caplog.records
    assert int(output) > 100
    assert found > turns / 3
    cache.put(KEYS[0], torch.full((400, 80), 0.0))
    assert 1 <= cache.size().entries <= 8
    assert all(path.suffix == ".safetensors" for path in cache.folder.iterdir())


# Keys


def identity_of(folder, precision="bf16", **changes):
    path = builder.open_kind(folder, "text_encoder")
    policy = PRECISIONS[precision]
    how = {"precision": precision, "dtype": policy.dtype, "device": "cpu", **changes}
    config = how.pop("config", None) or builder.text_encoder_config(path)
    return encoder_identity(path, config, how.pop("tokenizer", "tokens"), **how)


def test_everything_that_decides_is_in_the_key(encoder, monkeypatch):
    config = builder.text_encoder_config(builder.open_kind(encoder, "text_encoder"))
    base = identity_of(encoder)
    others = [
        identity_of(encoder, "float32"),
        identity_of(encoder, "fp8"),
        identity_of(encoder, dtype=torch.float32),
        identity_of(encoder, device="cuda"),
        identity_of(encoder, tokenizer="other"),
        identity_of(encoder, config=replace(config, softcap=None)),
        identity_of(encoder, config=replace(config, rope_theta=1e6)),
        identity_of(encoder, config=replace(config, sliding_window=7)),
    ]
    assert identity_of(encoder) == base
    assert len({base, *others}) == 9
    keys = [feature_key(base, IDS), feature_key(base, IDS[::-1]), feature_key(base, IDS[:-1])]
    keys += [feature_key(other, IDS) for other in others]
    monkeypatch.setattr(feature_cache, "VERSION", feature_cache.VERSION + 1)
    keys.append(feature_key(base, IDS))
    assert len(set(keys)) == 12
    assert all(len(key) == 64 and int(key, 16) for key in keys)


def test_the_config_beside_the_weights_counts(encoder):
    before = identity_of(encoder)
    settings = json.loads((encoder / "config.json").read_text())
    settings["encoder"]["attn_logit_softcapping"] = 30.0
    (encoder / "config.json").write_text(json.dumps(settings))
    assert identity_of(encoder) != before


def test_copies_and_dates_do_not_count(encoder, tmp_path):
    before = identity_of(encoder)
    for path in encoder.iterdir():
        os.utime(path, (1, 1))
    assert identity_of(encoder) == before
    shutil.move(encoder, tmp_path / "elsewhere")
    assert identity_of(tmp_path / "elsewhere") == before


def test_a_change_to_any_tensor_counts(encoder):
    """The header stays the same to the byte; a low-rank change of any one tensor is seen."""

    def fingerprint():
        return weights_fingerprint(builder.open_kind(encoder, "text_encoder"))

    before, state = fingerprint(), load_file(encoder / SHARD)
    assert len(state) > 10
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        first = torch.randn(tensor.shape[0], generator=generator)
        change = (
            first
            if tensor.ndim == 1
            else torch.outer(first, torch.randn(tensor.shape[1], generator=generator))
        )
        merged = tensor + (0.05 * change * tensor.abs().mean()).to(tensor.dtype)
        save_file({**state, name: merged}, encoder / SHARD, metadata={"format": "pt"})
        assert fingerprint() != before, name
    save_file(state, encoder / SHARD, metadata={"format": "pt"})
    assert fingerprint() == before


def test_the_fingerprint_reads_a_row_of_each_matrix_and_the_norms():
    class Watched:
        names = ("norm", "proj", "number")  # out of order
        shapes = {"norm": (3584,), "proj": (1001, 64), "number": ()}  # noqa: RUF012
        dtypes = dict.fromkeys(names, "float32")
        metadata = {"format": "pt"}  # noqa: RUF012

        def __init__(self):
            self.asked = []

        def rows(self, name, start, stop):
            self.asked.append((name, start, stop))
            return torch.zeros(stop - start, *self.shapes[name][1:])

    watched = Watched()
    first = weights_fingerprint(watched)
    assert watched.asked == [("norm", 0, 3584), ("number", 0, 1), ("proj", 500, 501)]
    other = Watched()
    other.dtypes = {**other.dtypes, "proj": "bfloat16"}
    named = Watched()
    named.metadata = {"format": "np"}
    assert len({first, weights_fingerprint(other), weights_fingerprint(named)}) == 3


@pytest.mark.parametrize("place", ["inside", "beside", "named"])
def test_the_fingerprint_is_of_the_tokeniser_that_is_found(encoder, tmp_path, place):
    """Of three at once the one that find_tokenizer takes decides, and the others do not."""
    content = (encoder / "tokenizer.json").read_text()
    beside, named = encoder / "tokenizer.json", tmp_path / "named.json"
    texts = {name: content + " " * number for number, name in enumerate(("inside", "beside", "named"), 1)}
    named.write_text(texts["named"])
    beside.write_text(texts["beside"])
    embedded = {"tokenizer_json": torch.tensor(list(texts["inside"].encode()), dtype=torch.uint8)}
    if place != "inside":
        embedded = {}
    if place == "named":
        beside.unlink()
    find_tokenizer(encoder, embedded, named)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "tokenizer.json").write_text(texts[place])
    wanted = tokenizer_fingerprint(alone, {})
    assert tokenizer_fingerprint(encoder, embedded, named) == wanted
    (alone / "tokenizer.json").write_text(texts[place] + "\n")
    assert tokenizer_fingerprint(alone, {}) != wanted


# The engine and the command line


@pytest.fixture
def watched(monkeypatch):
    """How often the weights were read since ``clear()``: tensors taken, files mapped, encoders built."""
    calls = []

    def watch(place, name):
        real = getattr(place, name)

        def called(*arguments, **keywords):
            calls.append(name)
            return real(*arguments, **keywords)

        monkeypatch.setattr(place, name, called)

    for name in ("tensor", "quantised"):
        watch(checkpoint.Checkpoint, name)
    watch(checkpoint, "safe_open")
    watch(builder, "load_text_encoder")
    return calls


def encode(models, request, cache=None, precision="auto"):
    files = ModelFiles.locate(models, request, ModelFiles())
    run = films._Run(files, request, torch.device("cpu"), PRECISIONS[precision], lambda *_: None, cache)
    with torch.inference_mode():
        return [features for features in run.encode_prompts() if features is not None]


@pytest.mark.parametrize("precision", ["auto", "float32", "int8"])
@pytest.mark.parametrize("variant", ["distilled", "base"])
def test_the_same_words_read_no_weights(tiny_models, cache, watched, precision, variant):
    request = FilmRequest("A man at a piano says hello.", 9, 96, 64, variant=variant)
    plain = encode(tiny_models, request, None, precision)
    watched.clear()
    first = encode(tiny_models, request, cache, precision)
    assert watched.count("load_text_encoder") == 1  # for both prompts of the base model
    assert watched.count("safe_open") == 2  # shards
    watched.clear()
    again = encode(tiny_models, request, FeatureCache(cache.folder), precision)
    assert watched == []
    assert len(plain) == len(first) == len(again) == (2 if variant == "base" else 1)
    for one, two, three in zip(plain, first, again, strict=True):
        assert one.tokens == two.tokens == three.tokens
        assert bits(one.rows) == bits(two.rows) == bits(three.rows)
    encode(tiny_models, replace(request, prompt="A man at a piano says goodbye."), cache, precision)
    assert watched.count("load_text_encoder") == 1


def test_a_hit_maps_no_weights(tiny_models, cache):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux says what is mapped")
    request = FilmRequest("Rain on a tin roof.", 9, 96, 64)
    opened = []
    real = checkpoint.safe_open

    def mapped(*arguments, **keywords):
        file = real(*arguments, **keywords)
        opened.append("t5gemma_tiny/model" in maps.read_text())
        return file

    checkpoint.safe_open = mapped
    try:
        encode(tiny_models, request, cache)
        assert opened == [True, True]  # the check sees a mapping where there is one
        assert "t5gemma_tiny/model" not in maps.read_text()  # and the encoder is let go of
        encode(tiny_models, request, cache)
        assert opened == [True, True]
    finally:
        checkpoint.safe_open = real


def test_other_weights_and_other_tokenisers_are_other_features(tiny_models, tmp_path, cache, watched):
    models = tmp_path / "models"
    shutil.copytree(tiny_models, models)
    request = FilmRequest("Hello.", 9, 96, 64)
    before = encode(models, request, cache)[0].rows
    file = models / "text_encoders" / "t5gemma_tiny" / SHARD
    state = load_file(file)
    save_file({name: tensor * 1.25 for name, tensor in state.items()}, file, metadata={"format": "pt"})
    after = encode(models, request, cache)[0].rows
    assert not torch.equal(before, after)
    assert bits(after) == bits(encode(models, request)[0].rows)
    tokenizer = file.with_name("tokenizer.json")
    tokenizer.write_text(tokenizer.read_text() + "\n")
    watched.clear()
    assert bits(encode(models, request, cache)[0].rows) == bits(after)
    assert watched.count("load_text_encoder") == 1
    save_file(state, file, metadata={"format": "pt"})
    tokenizer.write_text(tokenizer.read_text().rstrip("\n"))
    watched.clear()
    assert bits(encode(models, request, cache)[0].rows) == bits(before)
    assert cache.size().entries == 3


def test_the_command_line(tiny_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HAPPYHORSE_TEXT_CACHE_GB", "0.5")
    folder = tmp_path / "cache" / "comfyui-happyhorse" / "text_features"
    given = []

    def make_film(*_, text_cache, **__):
        given.append(text_cache)
        raise HappyHorseError("stopped here")

    monkeypatch.setattr(generate, "make_film", make_film)
    arguments = ["generate", "--models", str(tiny_models), "--prompt", "Hello."]
    assert main(arguments) == 1
    assert (given[-1].folder, given[-1].limit) == (folder, 500_000_000)
    given[-1].put(KEYS[0], rows_of(0))
    assert main([*arguments, "--no-text-cache"]) == 1
    assert given[-1] is None
    assert "removed" not in capsys.readouterr().out
    assert main([*arguments, "--clear-text-cache"]) == 1
    assert capsys.readouterr().out == f"Prompts removed from {folder}: 1 (0.0 MB).\n"
    assert given[-1].size() == (0, 0)


def test_folders_of_the_platforms(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    end, place = Path("comfyui-happyhorse", "text_features"), generate.text_cache_folder
    assert place({}, "linux") == tmp_path / ".cache" / end
    assert place({"XDG_CACHE_HOME": "relative"}, "linux") == tmp_path / ".cache" / end
    assert place({"XDG_CACHE_HOME": str(tmp_path / "x")}, "linux") == tmp_path / "x" / end
    assert place({}, "darwin") == tmp_path / "Library" / "Caches" / end
    assert place({"LOCALAPPDATA": str(tmp_path / "l")}, "win32") == tmp_path / "l" / end
    assert place({}, "win32") == tmp_path / "AppData" / "Local" / end

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert place({}, "linux").is_absolute()


def test_the_limit_of_the_environment():
    assert size_limit({}) == size_limit({"HAPPYHORSE_TEXT_CACHE_GB": " "}) == DEFAULT_LIMIT == 10**9
    assert size_limit({"HAPPYHORSE_TEXT_CACHE_GB": "2.5"}) == 2_500_000_000
    assert size_limit({"HAPPYHORSE_TEXT_CACHE_GB": "0"}) == 0
    for wrong in ("-1", "much", "nan", "inf", "1,5"):
        with pytest.raises(ConditioningError, match=f"is '{wrong}'; a number of gigabytes"):
            size_limit({"HAPPYHORSE_TEXT_CACHE_GB": wrong})
