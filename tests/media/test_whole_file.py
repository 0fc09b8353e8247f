"""Files appear whole or not at all, alone and together."""

import pytest

from comfyui_happyhorse.errors import MediaError
from comfyui_happyhorse.media.whole_file import whole_file, whole_files


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def interrupted():
        with whole_file(path) as part:
            part.write_text("half")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file.txt": "old"}

    with whole_file(path) as part:
        part.write_text("new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file.txt": "new"}


def listing(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_files_appear_together(tmp_path):
    with whole_files(tmp_path / "a", tmp_path / "b") as (first, second):
        first.write_text("1")
        second.write_text("2")
        assert not (tmp_path / "a").exists()
    assert listing(tmp_path) == {"a": "1", "b": "2"}


def test_none_appears_if_one_cannot(tmp_path):
    def locked():
        with whole_files(tmp_path / "a", tmp_path / "b") as (first, second):
            first.write_text("1")
            second.write_text("2")
            (tmp_path / "b").mkdir()  # after the beginning, as another program might

    with pytest.raises(MediaError, match=r"cannot be put at .*b"):
        locked()
    (tmp_path / "b").rmdir()
    assert listing(tmp_path) == {}


def test_a_place_that_is_missing_leaves_none(tmp_path):
    with pytest.raises(MediaError, match="missing"), whole_files(tmp_path / "a", tmp_path / "no" / "b"):
        pytest.fail("the second place does not exist")
    assert listing(tmp_path) == {}
