"""Tensors from single files, shards and pickles, and what is said of files that are none of these."""

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.model_loading.checkpoint import open_checkpoint

TENSORS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "b.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
}


@pytest.fixture
def shards(tmp_path):
    """A folder of two shards with an index."""
    for number, name in enumerate(TENSORS, 1):
        save_file({name: TENSORS[name]}, tmp_path / f"model-{number}-of-2.safetensors")
    index = {
        "metadata": {"total_size": 28},
        "weight_map": {n: f"model-{i}-of-2.safetensors" for i, n in enumerate(TENSORS, 1)},
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def same(checkpoint):
    assert sorted(checkpoint.names) == sorted(TENSORS)
    assert checkpoint.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    for name, tensor in TENSORS.items():
        assert checkpoint.tensor(name).dtype == tensor.dtype
        assert torch.equal(checkpoint.tensor(name), tensor)


def test_single_file_and_its_metadata(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"made by": "a test"})
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    same(checkpoint)
    assert checkpoint.metadata == {"made by": "a test"}
    same(open_checkpoint(tmp_path))  # a folder with one file and no index


def test_shards_by_folder_and_by_index(shards):
    same(open_checkpoint(shards))
    same(open_checkpoint(shards / "model.safetensors.index.json"))
    assert open_checkpoint(shards).metadata == {"total_size": "28"}


@pytest.mark.parametrize("root", [None, "ema_state_dict", "state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles(tmp_path, root, zipped):
    content = TENSORS if root is None else {root: TENSORS, "step": 3}
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    same(open_checkpoint(tmp_path / "x.ckpt"))


def test_averaged_weights_are_preferred(tmp_path):
    other = {name: tensor + 1 for name, tensor in TENSORS.items()}
    torch.save({"state_dict": other, "ema_state_dict": TENSORS}, tmp_path / "x.ckpt")
    same(open_checkpoint(tmp_path / "x.ckpt"))


class Bomb:
    """A pickle of this would run code when it is read carelessly."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, zipped):
    torch.save(
        {"ema_state_dict": TENSORS, "x": Bomb(tmp_path / "ran")},
        tmp_path / "x.ckpt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(CheckpointError, match="harmful"):
        open_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_missing_shard_matters_when_it_is_needed(shards):
    (shards / "model-2-of-2.safetensors").unlink()
    checkpoint = open_checkpoint(shards)
    assert torch.equal(checkpoint.tensor("a.weight"), TENSORS["a.weight"])
    assert checkpoint.renamed({"a.weight": "a"}).shapes == {"a": (2, 3)}
    with pytest.raises(CheckpointError, match=r"model-2-of-2\.safetensors is named by the index"):
        checkpoint.tensor("b.bias")
    (shards / "model-2-of-2.safetensors.zst").touch()
    with pytest.raises(CheckpointError, match="zstd -d"):
        open_checkpoint(shards).tensor("b.bias")


def test_a_shard_that_lacks_its_tensor(shards):
    save_file({"other": torch.zeros(1)}, shards / "model-2-of-2.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.bias"):
        open_checkpoint(shards).tensor("b.bias")


@pytest.mark.parametrize("keep", [0, 4, 20, 100, -1, -20])
def test_truncated_safetensors(tmp_path, keep):
    file = tmp_path / "x.safetensors"
    save_file(TENSORS, file)
    content = file.read_bytes()[:keep]
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"x.safetensors.*{len(content)} bytes"):
        open_checkpoint(file)


@pytest.mark.parametrize("keep", [0, 1, 50, 400, -1])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pickles(tmp_path, keep, zipped):
    file = tmp_path / "x.pth"
    torch.save(TENSORS, file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()[:keep]
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        open_checkpoint(file)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"ema_state_dict": {}}, "text"])
def test_pickles_without_tensors(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no named tensors"):
        open_checkpoint(tmp_path / "x.pth")


def test_a_header_that_claims_more_than_the_file(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        open_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 1}', '{"weight_map": {"a": 2}}', "{", "\x00"])
def test_broken_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


def test_what_is_not_there(tmp_path):
    (tmp_path / "near.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"does not exist.*near\.safetensors"):
        open_checkpoint(tmp_path / "far.safetensors")
    with pytest.raises(CheckpointError, match="does not exist either"):
        open_checkpoint(tmp_path / "nowhere" / "far.safetensors")
    save_file(TENSORS, tmp_path / "second.safetensors")
    with pytest.raises(CheckpointError, match="2 safetensors files and no index"):
        open_checkpoint(tmp_path)


def test_a_pickle_of_an_old_protocol_is_not_a_checkpoint(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1}, protocol=0))
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        open_checkpoint(tmp_path / "x.pt")
