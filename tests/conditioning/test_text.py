"""Prompts are encoded whole, cut afterwards, and refused when nothing can come of them."""

import logging

import pytest
import torch

from comfyui_happyhorse.conditioning.text import encode_prompt, pad_or_trim
from comfyui_happyhorse.errors import ConditioningError
from comfyui_happyhorse.shapes import MAX_TEXT_TOKENS


class Words:
    """One id per word: its length."""

    vocab_size = 30

    def encode(self, text):
        return [len(word) for word in text.split()]

    def tail(self, text, keep):
        return " ".join(text.split()[keep:])


def sums(ids):
    """An encoder whose every row depends on all ids: row n is (id, total, 1/3)."""
    assert ids.dtype == torch.int64
    assert ids.shape[0] == 1
    rows = [[float(token), float(ids.sum()), 1 / 3] for token in ids[0]]
    return torch.tensor([rows])


def test_rows_are_the_encoders(caplog):
    with caplog.at_level(logging.WARNING):
        text = encode_prompt("a bb ccc", Words(), sums)
    third = torch.tensor(1 / 3).half().item()
    assert text.rows.dtype == torch.float32
    assert text.rows.tolist() == [[1, 6, third], [2, 6, third], [3, 6, third]]
    assert text.tokens == 3
    assert not caplog.records


def test_rows_keep_float32_where_asked():
    text = encode_prompt("a", Words(), sums, half_precision_rows=False)
    assert text.rows[0, 2].item() == torch.tensor(1 / 3).item()


def test_cut_comes_after_encoding_and_names_the_words(caplog):
    with caplog.at_level(logging.WARNING):
        text = encode_prompt("a bb ccc dddd eeeee", Words(), sums, limit=3)
    assert text.rows[:, :2].tolist() == [[1, 15], [2, 15], [3, 15]]  # 15: all five were read
    assert text.tokens == 5
    [record] = caplog.records
    assert record.name == "comfyui_happyhorse.conditioning.text"
    assert record.getMessage() == (
        "The prompt has 5 tokens and the network reads 3; 2 are cut off at the end: dddd eeeee"
    )


def test_default_limit_is_the_networks(caplog):
    exact = encode_prompt("a " * MAX_TEXT_TOKENS, Words(), sums)
    assert len(exact.rows) == exact.tokens == 640
    assert not caplog.records
    longer = encode_prompt("a " * 640 + "z " * 1000, Words(), sums)
    assert (len(longer.rows), longer.tokens) == (640, 1640)
    [record] = caplog.records
    assert len(record.getMessage()) < 600
    assert record.getMessage().endswith("… (1999 characters)")


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t "])
def test_an_empty_prompt_is_an_error(prompt):
    with pytest.raises(ConditioningError, match="prompt is empty"):
        encode_prompt(prompt, Words(), sums)


def test_a_prompt_without_tokens_is_an_error():
    class Deaf(Words):
        def encode(self, _text):
            return []

    with pytest.raises(ConditioningError, match="makes no token of the prompt 'a'"):
        encode_prompt("a", Deaf(), sums)


def test_half_a_character_is_an_error():
    with pytest.raises(ConditioningError, match="Character 3 of the prompt is half a character"):
        encode_prompt("ab\ud83d", Words(), sums)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 70_000.0])
def test_rows_that_are_not_finite_are_an_error(value):
    def broken(ids):
        rows = sums(ids)
        rows[0, 1, 0] = value  # 70 000 is finite and not in float16
        return rows

    with pytest.raises(ConditioningError, match="1 of 3 rows of text features are not finite"):
        encode_prompt("a bb ccc", Words(), broken)


def test_pad_or_trim_at_the_end():
    tensor = torch.arange(6.0).view(2, 3)
    padded, kept = pad_or_trim(tensor, 4, 0, -1.0)
    assert (padded.tolist(), kept) == ([[0, 1, 2], [3, 4, 5], [-1, -1, -1], [-1, -1, -1]], 2)
    cut, kept = pad_or_trim(tensor, 2, -1, -1.0)
    assert (cut.tolist(), kept) == ([[0, 1], [3, 4]], 2)
    same, kept = pad_or_trim(tensor, 3, 1)
    assert (same.tolist(), kept) == (tensor.tolist(), 3)
