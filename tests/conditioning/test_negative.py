"""The default negative prompt is whole, ours, and can be replaced by a file."""

import pytest

from comfyui_happyhorse.conditioning.negative import (
    DELIVERY_FAULTS,
    PICTURE_FAULTS,
    SOUND_FAULTS,
    default_negative,
    read_negative,
)
from comfyui_happyhorse.errors import ConditioningError

PHRASES = PICTURE_FAULTS + SOUND_FAULTS + DELIVERY_FAULTS


def test_default_is_every_phrase_once_in_order():
    assert default_negative().split(", ") == list(PHRASES)  # so no phrase has a comma of its own
    assert len(set(PHRASES)) == len(PHRASES)
    assert all(phrase == phrase.strip() and phrase.isascii() for phrase in PHRASES)


def test_default_is_far_from_the_limit_of_640_tokens():
    # Gemma spends at most 2 tokens on a word here, 1.3 on average (test_tokenizer.py counts them).
    assert 2 * len(default_negative().split()) + len(PHRASES) < 640


def test_default_forbids_no_ordinary_scene():
    for thing in ("music", "crowd", "people", "second voice", "two voices", "static", "fast", "breath"):
        assert thing not in default_negative()


def test_a_file_replaces_it(tmp_path):
    file = tmp_path / "negative.txt"
    file.write_bytes("\ufeff  grésillement, 模糊\n".encode())
    assert read_negative(file) == "grésillement, 模糊"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b" \n\t", "is empty; write into it"),
        (b"caf\xe9", r"is not UTF-8 text \(byte 3 is not\)"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_cannot_replace_it_is_an_error(tmp_path, data, words):
    file = tmp_path / "negative.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ConditioningError, match=rf"negative\.txt {words}"):
        read_negative(file)
