"""A conversion that is stopped loses nothing, one that goes wrong replaces nothing, and both say what to do."""

import errno
import json
import os
import shutil
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyui_happyhorse.errors import CheckpointError, HappyHorseError
from comfyui_happyhorse.model_loading import recipes
from comfyui_happyhorse.model_loading.convert import convert
from comfyui_happyhorse.model_loading.safetensors_file import Entry, Places, UnfinishedFile

WEIGHTS = 75  # of the tiny transformer
QKV, SHARED = "block.layers.0.attention.linear_qkv.weight", "block.layers.3.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """The disk's own time is no matter of these tests."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def target(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "x.safetensors"


@pytest.fixture
def source(tiny_models, tmp_path):
    """A copy, which a test may change."""
    path = tiny_models / "diffusion_models" / "happyhorse_tiny_distilled.safetensors"
    return Path(shutil.copy(path, tmp_path / "source.safetensors"))


@pytest.fixture
def encoder(tiny_models, tmp_path):
    return Path(shutil.copytree(tiny_models / "text_encoders" / "t5gemma_tiny", tmp_path / "encoder"))


@pytest.fixture
def lora(tmp_path):
    """``lora(name, factor)`` writes one and returns its path."""

    def write(name="lora.safetensors", factor=0.1):
        layer = SHARED.removesuffix(".weight")
        pair = {"A": factor * torch.ones(2, 168), "B": factor * torch.ones(64, 2)}
        save_file({f"{layer}.lora_{key}.weight": tensor for key, tensor in pair.items()}, tmp_path / name)
        return tmp_path / name

    return write


def left_over(target):
    return sorted(path.name for path in target.parent.iterdir())


def unfinished(target):
    """(the unfinished file, its journal)"""
    return [target.with_name(target.name + ending) for ending in (".unfinished", ".unfinished.journal")]


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 16]))


def place(target, name):
    """Where a tensor lies in a file."""
    data = target.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0]


# Stopped and gone on with.


class Stop(Exception):
    """The power is cut here."""


class StopAfter:
    """A report that stops the run after so many new weights."""

    def __init__(self, count):
        self.left, self.stages = count, []

    def __call__(self, stage, done, total):
        assert 0 <= done <= total, (stage, done, total)
        self.stages.append(stage)
        if self.left == 0:
            raise Stop
        self.left -= 1


@pytest.fixture
def writes(monkeypatch):
    """Names of the weights that were written."""
    names, write = [], UnfinishedFile.write

    def counted(self, group, pieces):
        names.append(group)
        write(self, group, pieces)

    monkeypatch.setattr(UnfinishedFile, "write", counted)
    return names


@pytest.mark.parametrize("precision", ["fp8", "nf4"])
def test_stopped_after_every_weight(source, state, target, writes, precision):
    convert(source, target, precision)
    whole, order = target.read_bytes(), list(writes)
    target.write_bytes(b"an older file")
    for number in range(len(order)):
        writes.clear()
        with pytest.raises(Stop):  # after the weights of the runs before, and one more
            convert(source, target, precision, on_progress=StopAfter(number))
        assert writes == order[number : number + 1]
        assert target.read_bytes() == b"an older file"
        assert left_over(target) == [
            target.name,
            *(target.name + end for end in (".unfinished", ".unfinished.journal")),
        ]
    writes.clear()
    with pytest.raises(Stop):
        convert(source, target, precision, on_progress=(report := StopAfter(len(order) + 3)))
    assert report.stages[-1] == "checking" and not writes and target.read_bytes() == b"an older file"
    done = convert(source, target, precision)
    assert not writes and done.resumed == len(order) == len(state)
    assert target.read_bytes() == whole
    assert left_over(target) == [target.name]


@pytest.mark.parametrize("pieces_before", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp8", "int8", "nf4"])
def test_stopped_within_a_weight(source, target, writes, monkeypatch, precision, pieces_before):
    monkeypatch.setattr(recipes, "CHUNK_ENTRIES", 2000)
    convert(source, target, precision)
    whole, order = target.read_bytes(), list(writes)
    target.unlink()
    write = UnfinishedFile.write

    def broken(self, group, pieces):
        def some():
            for number, piece in enumerate(pieces):
                if group == SHARED and number == pieces_before:
                    raise Stop
                yield piece

        write(self, group, some())

    with monkeypatch.context() as during:
        during.setattr(UnfinishedFile, "write", broken)
        with pytest.raises(Stop):
            convert(source, target, precision)
    assert not target.exists()
    writes.clear()
    done = convert(source, target, precision)
    assert writes == order[order.index(SHARED) :] and done.resumed == order.index(SHARED)
    assert target.read_bytes() == whole


def stopped(count, *arguments, **options):
    with pytest.raises(Stop):
        convert(*arguments, **options, on_progress=StopAfter(count))


def test_data_is_on_the_disk_before_the_journal_says_so(source, target, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda _: sizes.append(unfinished(target)[1].read_text().count("\n")))
    convert(source, target, "bf16")
    assert (
        sizes == list(range(1, len(sizes) + 1)) and len(sizes) == WEIGHTS
    )  # the title, and the weights before


def test_a_cut_last_line_costs_one_weight(source, target, writes):
    """Twice: what is written after a cut line must be found as well."""
    convert(source, target, "fp8")
    whole, order = target.read_bytes(), list(writes)
    target.unlink()
    stopped(20, source, target, "fp8")
    journal = unfinished(target)[1]
    for finished in (20, 24):
        journal.write_bytes(journal.read_bytes()[:-9])
        writes.clear()
        stopped(24, source, target, "fp8")
        assert writes == order[finished:25]
    writes.clear()
    assert convert(source, target, "fp8").resumed == 25
    assert writes == order[25:] and target.read_bytes() == whole


def test_a_flipped_byte_costs_one_weight(source, target, writes):
    convert(source, target, "fp8")
    whole, order, offset = target.read_bytes(), list(writes), place(target, f"{QKV}_scale")
    target.unlink()
    stopped(40, source, target, "fp8")
    for number in range(2):  # what is written again has two lines in the journal, and is counted once
        flip(unfinished(target)[0], offset)
        writes.clear()
        stopped(41 + number, source, target, "fp8")
        assert writes == [QKV, *order[41 + number : 42 + number]]
    report = StopAfter(-1)
    done = convert(source, target, "fp8", on_progress=report)
    assert (done.resumed, target.read_bytes()) == (43, whole)


@pytest.mark.parametrize("offset", [3, 200])
def test_a_flipped_byte_in_the_header_costs_nothing(source, target, offset):
    convert(source, target, "fp8")
    whole = target.read_bytes()
    target.unlink()
    stopped(40, source, target, "fp8")
    flip(unfinished(target)[0], offset)
    assert convert(source, target, "fp8").resumed == 41
    assert target.read_bytes() == whole


@dataclass
class Job:
    """What is asked for; the changes below make another job of it, or damage what is left of it."""

    source: Path
    target: Path
    precision: str = "fp8"
    loras: list = field(default_factory=list)
    tokenizer: Path | None = None

    def run(self, **options):
        return convert(
            self.source, self.target, self.precision, loras=self.loras, tokenizer=self.tokenizer, **options
        )


def negate(path, to):
    """The same file with other numbers."""
    tensors = load_file(path)
    tensors[SHARED] = -tensors[SHARED]
    save_file(tensors, to)


def another_source(job):
    """Of the same name, size and date, as unpacked from an archive."""
    other = job.source.parent / "other" / job.source.name
    other.parent.mkdir()
    negate(job.source, other)
    stat = job.source.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert other.stat().st_size == stat.st_size
    job.source = other


def source_of_another_date(job):
    negate(job.source, job.source)
    os.utime(job.source, ns=(0, 10**18))


def another_precision(job):
    job.precision = "int8"


def another_strength(job):
    job.loras = [(job.loras[0][0], 0.5)]


def another_lora(job):
    job.loras = [(Path(shutil.copy2(job.loras[0][0], job.source.with_name("c.safetensors"))), 1.0)]


def no_lora(job):
    job.loras = []


def another_order(job):
    job.loras = job.loras[::-1]


def no_journal(job):
    unfinished(job.target)[1].unlink()


def an_empty_journal(job):
    unfinished(job.target)[1].write_bytes(b"")


def a_journal_of_something_else(job):
    unfinished(job.target)[1].write_bytes(b'[1]\n{"a": 1}\n[[], {}]\n')


def a_journal_of_the_title_only(job):
    """And lines that are JSON and no weights."""
    title = unfinished(job.target)[1].read_bytes().splitlines()[0]
    unfinished(job.target)[1].write_bytes(title + b'\n[1]\n{"a": 1}\n[[], {}]\n["x", {}]\nnull\n[1, 2]\n')


def another_size(job):
    with unfinished(job.target)[0].open("ab") as file:
        file.write(b"x")


def no_file(job):
    unfinished(job.target)[0].unlink()


CHANGES = (
    another_source, source_of_another_date, another_precision, another_strength, another_lora, no_lora, another_order,
    no_journal, an_empty_journal, a_journal_of_something_else, a_journal_of_the_title_only, another_size, no_file,
)  # fmt: skip


def test_another_header_is_another_file(target):
    """Of the same tensors and size: a later version of the pack may mark them otherwise."""
    groups, numbers = {"x": [Entry("x", "float32", (3,))]}, torch.arange(3.0)
    for mark, resumed in (("a", set()), ("a", {"x"}), ("b", set())):
        file = UnfinishedFile(target, Places.of(groups, {"mark": mark}), "job")
        assert file.begin() == resumed
        file.write("x", [("x", numbers[:2]), ("x", numbers[2:])])
    file.verify()
    file.finish()
    assert torch.equal(load_file(target)["x"], numbers)


@pytest.mark.parametrize("change", CHANGES)
def test_what_belongs_to_another_job_is_begun_anew(source, lora, target, change):
    job = Job(source, target, loras=[(lora("a.safetensors"), 1.0), (lora("b.safetensors", 0.2), 1.0)])
    if change is not another_order:
        job.loras.pop()
    with pytest.raises(Stop):
        job.run(on_progress=StopAfter(60))
    change(job)
    assert job.run().resumed == 0
    again = target.read_bytes()
    target.unlink()
    job.run()
    assert target.read_bytes() == again


def test_another_tokeniser_is_another_job(encoder, target):
    """Of the same size and date."""
    job = Job(encoder, target, "bf16", tokenizer=encoder / "tokenizer.json")
    with pytest.raises(Stop):
        job.run(on_progress=lambda stage, *_: stop_if(stage == "checking"))
    stat, content = job.tokenizer.stat(), job.tokenizer.read_bytes().replace(b"1.0", b"2.0", 1)
    job.tokenizer.write_bytes(content)
    os.utime(job.tokenizer, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert job.tokenizer.stat().st_size == stat.st_size
    assert job.run().resumed == 0
    assert bytes(load_file(target)["tokenizer_json"].tolist()) == content


def stop_if(is_time):
    if is_time:
        raise Stop


def test_what_lies_beside_the_source_is_no_matter(encoder):
    """The target may grow in the folder of the source itself."""
    folder, target = encoder, encoder / "x.safetensors"
    stopped(5, folder, target, "bf16")
    (folder / "note.txt").write_text("x")
    assert convert(folder, target, "bf16").resumed == 6


# Checked before it replaces anything.


@pytest.mark.parametrize("where", ["a weight", "a scale", "the header"])
def test_a_byte_that_changed_on_the_disk_is_found(source, target, monkeypatch, writes, where):
    convert(source, target, "fp8")
    whole, names = target.read_bytes(), list(writes)
    name = {"a weight": SHARED, "a scale": f"{SHARED}_scale", "the header": None}[where]
    offset = place(target, name) if name else 500
    target.write_bytes(b"an older file")
    verify = UnfinishedFile.verify

    def damaged(self, on_progress=None):
        flip(self.path, offset)
        verify(self, on_progress)

    with monkeypatch.context() as during:
        during.setattr(UnfinishedFile, "verify", damaged)
        with pytest.raises(
            CheckpointError, match=rf"not hold what was written \(first: {name or 'its header'}\)"
        ):
            convert(source, target, "fp8")
    assert target.read_bytes() == b"an older file"
    writes.clear()
    done = convert(source, target, "fp8")
    assert writes == ([SHARED] if name else []) and done.resumed == len(names) - len(writes)
    assert target.read_bytes() == whole


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system keeps no such promise")
def test_the_disk_is_read_and_not_the_memory(source, target, monkeypatch):
    asked, advise = [], os.posix_fadvise
    monkeypatch.setattr(os, "posix_fadvise", lambda *a: asked.append(a[1:]) or advise(*a))
    convert(source, target, "bf16")
    assert asked == [(0, 0, os.POSIX_FADV_DONTNEED)]


def refused_targets(source, target, encoder):
    link = target.parent / "link.safetensors"
    link.symlink_to(source)
    shard = sorted(encoder.glob("*.safetensors"))[0]
    (target.parent / "folder.safetensors").mkdir()
    part = target.with_name("z.safetensors.unfinished")
    shutil.copy(source, part)
    return {
        "itself": (source, source, "is what is converted"),
        "a link to it": (source, link, "is what is converted"),
        "a shard of it": (encoder, shard, rf"{shard.name} is what is converted"),
        "its unfinished name": (part, target.with_name("z.safetensors"), "is what is converted"),
        "a folder": (source, target.parent / "folder.safetensors", "is a folder; name a file"),
        "a wrong ending": (source, target.with_suffix(".pt"), r"should end in \.safetensors"),
        "no folder": (source, target.parent / "none" / "x.safetensors", "none does not exist; make it"),
    }


REFUSED = (
    "itself",
    "a link to it",
    "a shard of it",
    "its unfinished name",
    "a folder",
    "a wrong ending",
    "no folder",
)


@pytest.mark.parametrize("fault", REFUSED)
def test_targets_that_are_refused(source, encoder, target, fault):
    cases = refused_targets(source, target, encoder)
    assert tuple(cases) == REFUSED
    before, bytes_before = left_over(target), source.read_bytes()
    path, bad, message = cases[fault]
    names = sorted(file.name for file in path.parent.rglob("*"))
    with pytest.raises(CheckpointError, match=message):
        convert(path, bad, "bf16")
    assert left_over(target) == before and source.read_bytes() == bytes_before
    assert sorted(file.name for file in path.parent.rglob("*")) == names


def test_a_lora_is_no_target_either(source, lora, target):
    path = lora()
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"lora\.safetensors is what is converted"):
        convert(source, path, "bf16", loras=[(path, 1.0)])
    assert path.read_bytes() == before and left_over(target) == []


def test_strangers_and_unknown_precisions(source, target, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="is no part of this model; nothing was written"):
        convert(tmp_path / "x.safetensors", target, "bf16")
    with pytest.raises(
        CheckpointError, match="no precision 'int4' to convert to; there are bf16, fp8, int8, nf4"
    ):
        convert(source, target, "int4")
    incomplete = load_file(source)
    del incomplete[SHARED]
    save_file(incomplete, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=rf"has no tensor '{SHARED}' among its 74"):
        convert(tmp_path / "x.safetensors", target, "bf16")
    assert left_over(target) == []


@pytest.mark.parametrize(
    ("precision", "package"), [("int8", "comfy_kitchen"), ("nf4", "bitsandbytes.functional")]
)
def test_a_missing_package_is_named_first(source, target, monkeypatch, precision, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(HappyHorseError, match=f"package '{package.partition('.')[0].replace('_', '-')}'"):
        convert(source, target, precision)
    assert left_over(target) == []


class Disk:
    """A disk with so many bytes free."""

    def __init__(self, free):
        self.free = free

    def __call__(self, _):
        return shutil._ntuple_diskusage(10**12, 10**12 - self.free, self.free)


def test_no_room(source, target, monkeypatch):
    convert(source, target, "fp8")
    size = target.stat().st_size
    target.unlink()
    monkeypatch.setattr(shutil, "disk_usage", Disk(size - 1))
    with pytest.raises(CheckpointError, match=r"will have 0\.00 GB, and 0\.00 GB are free in .*Make room"):
        convert(source, target, "fp8")
    assert left_over(target) == []
    monkeypatch.setattr(shutil, "disk_usage", Disk(size))
    stopped(60, source, target, "fp8")
    with monkeypatch.context() as during:
        during.setattr(shutil, "disk_usage", Disk(0))
        with pytest.raises(CheckpointError, match="Make room"):
            convert(source, target, "fp8")
        # Another job's file is full of holes, and gives back less than its size.
        part = unfinished(target)[0]
        with part.open("wb") as file:
            file.truncate(10 * size)
        with pytest.raises(CheckpointError, match="Make room"):
            convert(source, target, "fp8")
    convert(source, target, "fp8")


def test_what_is_written_already_needs_no_room(source, target, monkeypatch):
    with pytest.raises(Stop):
        convert(source, target, "fp8", on_progress=lambda stage, *_: stop_if(stage == "checking"))
    monkeypatch.setattr(shutil, "disk_usage", Disk(20_000))  # the header of 14 kB counts
    assert convert(source, target, "fp8").resumed == WEIGHTS


def test_a_disk_that_fills_up(source, target, monkeypatch):
    """What was free when it began may not be so later."""
    count, real = [0], UnfinishedFile.write

    def write(self, group, pieces):
        count[0] += 1
        if count[0] == 31:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, group, pieces)

    with monkeypatch.context() as during:
        during.setattr(UnfinishedFile, "write", write)
        with pytest.raises(
            CheckpointError, match=r"could not be written: No space left on device\. .*same command"
        ):
            convert(source, target, "fp8")
    assert convert(source, target, "fp8").resumed == 30


# Windows does not replace what is mapped.


def in_use(monkeypatch, times, moves=True):
    """``os.replace`` over the target fails so many times; without ``moves`` it cannot be renamed either."""
    replace, rename, left = os.replace, os.rename, [times]

    def busy(a, b):
        if left[0] and Path(a).suffix == ".unfinished":
            left[0] -= 1
            raise PermissionError(13, "Access is denied")
        replace(a, b)

    def stuck(a, b):
        if not moves:
            raise PermissionError(13, "Access is denied")
        rename(a, b)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(os, "rename", stuck)


@pytest.mark.parametrize("others", [[], [".old"], [".old", ".old1"]])
def test_a_file_in_use_is_moved_aside(source, target, monkeypatch, others):
    convert(source, target, "bf16")
    whole = target.read_bytes()
    target.write_bytes(b"in use")
    for ending in others:
        target.with_name(target.name + ending).write_bytes(b"precious")
    in_use(monkeypatch, 1)
    done = convert(source, target, "bf16")
    assert done.replaced.name == f"x.safetensors.old{len(others) or ''}"
    assert done.replaced.read_bytes() == b"in use" and target.read_bytes() == whole
    assert all(target.with_name(target.name + ending).read_bytes() == b"precious" for ending in others)
    assert len(left_over(target)) == 2 + len(others)


@pytest.mark.parametrize("moves", [True, False])
def test_a_file_that_cannot_be_replaced_costs_no_work(source, target, monkeypatch, writes, moves):
    convert(source, target, "bf16")
    whole = target.read_bytes()
    target.write_bytes(b"in use")
    with monkeypatch.context() as during:
        in_use(during, -1, moves)
        with pytest.raises(
            CheckpointError, match=r"x\.safetensors is in use or protected \(Access is denied\)\. All is"
        ):
            convert(source, target, "bf16")
    assert target.read_bytes() == b"in use"
    assert left_over(target) == [target.name, *(path.name for path in unfinished(target))]
    writes.clear()
    done = convert(source, target, "bf16")
    assert (writes, done.resumed, done.replaced) == ([], WEIGHTS, None)
    assert target.read_bytes() == whole and left_over(target) == [target.name]


def test_a_new_file_that_gets_no_name(source, target, monkeypatch):
    in_use(monkeypatch, -1)
    with pytest.raises(CheckpointError, match="Access is denied"):
        convert(source, target, "bf16")
    assert left_over(target) == [path.name for path in unfinished(target)]
