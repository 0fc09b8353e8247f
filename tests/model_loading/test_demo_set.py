"""The demo set as files: copied whole or refused, and the words of a line that it does not know."""

import hashlib

import pytest

from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.model_loading.demo_set import checksums, copy_demo_set, unknown_words


@pytest.fixture
def demo_set(tmp_path):
    """A folder of two files with their checksums."""
    folder = tmp_path / "demo_set"
    files = {"vae/a.safetensors": b"weights", "vocabulary.json": b"{}"}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()]
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder


def test_it_is_copied_whole(demo_set, tmp_path):
    target = tmp_path / "models"
    written = copy_demo_set(target, demo_set)
    assert [path.relative_to(target).as_posix() for path in written] == [
        "vae/a.safetensors",
        "vocabulary.json",
    ]
    assert (target / "vae/a.safetensors").read_bytes() == b"weights"
    assert not list(target.rglob("*.part"))
    copy_demo_set(target, demo_set)  # again, over itself


@pytest.mark.parametrize(
    ("spoil", "word"),
    [(lambda file: file.write_bytes(b"weight"), "damaged"), (lambda file: file.unlink(), "missing")],
)
def test_a_damaged_set_is_refused_before_anything_is_written(demo_set, tmp_path, spoil, word):
    spoil(demo_set / "vocabulary.json")
    with pytest.raises(CheckpointError, match=f"vocabulary.json is {word}"):
        copy_demo_set(tmp_path / "models", demo_set)
    assert not (tmp_path / "models").exists()


def test_a_pack_without_the_set_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="demo set is not at"):
        checksums(tmp_path)


@pytest.mark.parametrize(
    ("line", "words", "unknown"),
    [
        ("hello moon", ["moon", "hello"], []),
        ("hello big  moon", ["moon", "hello"], ["big"]),
        ("moonlight", ["moon"], ["moonlight"]),
        ("나 무 바 다", ["나 무", "바 다"], []),
        ("나 무 나", ["나 무"], ["나"]),
        ("火 车 大 山", ["大", "火 车"], ["山"]),
        ("", ["a"], []),
    ],
)
def test_words_that_are_not_known_are_told(line, words, unknown):
    assert unknown_words(line, words) == unknown
