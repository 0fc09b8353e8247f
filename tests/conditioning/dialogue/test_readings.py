"""Japanese read in kana: what sudachipy reads, with particles as they are spoken."""

import json
import sys
from pathlib import Path

import pytest

from comfyui_happyhorse.conditioning.dialogue import readings
from comfyui_happyhorse.conditioning.dialogue.readings import kana
from comfyui_happyhorse.errors import HappyHorseError

SENTENCES = json.loads((Path(__file__).parent / "sentences.json").read_text(encoding="utf-8"))["Japanese"]


def test_the_sentences_are_read_as_their_writer_read_them():
    """Compared as spoken, so with particles by their sound; at most one sentence in ten may differ."""
    pytest.importorskip("sudachipy", reason="the extra 'test' brings sudachipy")
    different = [(text, kana(text)) for text, known in SENTENCES if heard(kana(text)) != heard(known)]
    assert len(different) <= 5, different


def heard(text: str) -> str:
    """Katakana as hiragana and the three particles as they sound, wherever they stand: blind to words."""
    hiragana = "".join(chr(ord(sign) - 0x60) if "ァ" <= sign <= "ヴ" else sign for sign in text)
    return hiragana.translate(str.maketrans("はへを", "わえお"))


def test_particles_are_told_from_words():
    pytest.importorskip("sudachipy", reason="the extra 'test' brings sudachipy")
    assert kana("私は花へ水をやる。") == "わたしわはなえみずおやる。"


def test_kana_needs_no_package(monkeypatch):
    monkeypatch.setattr(readings, "_tokenizer", lambda: pytest.fail("asked for a dictionary"))
    assert kana("これはパンです。") == "これはパンです。"


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sudachipy", None)
    readings._tokenizer.cache_clear()
    with pytest.raises(HappyHorseError, match=r"sudachipy.*comfyui-happyhorse\[ja\]"):
        kana("花")
