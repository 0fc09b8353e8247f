"""Spacing sets CJK characters one by one, keeps words and every character, and is undone for captions."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.conditioning.dialogue.spacing import space, unspace

GOLDEN = Path(
    os.environ.get("HAPPYHORSE_GOLDEN") or Path(__file__).resolve().parents[4] / "shared" / "golden"
)

PAIRS = [
    ("我爱你。", "我 爱 你。"),
    ("他说：“走吧！”", "他 说：“走 吧！”"),
    ("你，好 ， 吗 ？", "你，好，吗？"),
    ("ケーキ・ショップ", "ケ ー キ・シ ョ ッ プ"),
    ("네, 알겠습니다.", "네, 알 겠 습 니 다."),
    ("정말(진짜)?", "정 말 (진 짜)?"),
    ("用3.5元买USB-C线", "用 3.5 元 买 USB-C 线"),
    ("50%的人", "50% 的 人"),
    ("BTS 좋아해!", "BTS 좋 아 해!"),
    ("人々は", "人 々 は"),
    ("C'est la vie !", "C'est la vie !"),
    ("He said “no way” (really).", "He said “no way” (really)."),
    ("好😀的", "好 😀 的"),
    ("𠮷野家", "𠮷 野 家"),
    ("葛\U000e0100城", "葛\U000e0100 城"),
]


@pytest.mark.parametrize(("raw", "spaced"), PAIRS)
def test_pairs(raw, spaced):
    assert space(raw) == spaced


def test_golden_pairs():
    file = GOLDEN / "dialogue.json"
    if not file.exists():
        pytest.skip(f"{file} is not there; set HAPPYHORSE_GOLDEN")
    pairs = json.loads(file.read_text(encoding="utf-8"))["spacing"]
    assert pairs
    for pair in pairs:
        assert space(pair["raw"]) == pair["spaced"]


@pytest.mark.parametrize(
    "text",
    [
        "我从来没想过，我们还能再看到大海。",
        "「行啦，」佢話，「聽日見！」",
        "もう一度、質問を。",
        "我们用 Photoshop 改一下。",
        "Plain English.",
    ],
)
def test_unspacing_is_the_way_back(text):
    assert unspace(space(text)) == text


def test_korean_words_cannot_come_back():
    assert unspace(space("다시 바다를 보게.")) == "다시바다를보게."
    assert unspace("다시 바다를 보게.") == "다시 바다를 보게."  # was never spaced: its words are its own


ALPHABET = "你好あア々ー가나abc1 .,!?;:()[]%\"'，。！？：「」《》（）…—～“”‘’·・\u3000\n\té\u0301が\u3099😀\ufe0f\u200d\U000e0100"


@given(st.one_of(st.text(alphabet=ALPHABET, max_size=14), st.text(max_size=14)))
@settings(max_examples=200, deadline=None)
def test_only_spaces_come_and_go_and_once_is_enough(text):
    spaced = space(text)
    assert space(spaced) == spaced
    for done in (spaced, unspace(text)):
        assert "".join(done.split()) == "".join(text.split())
    assert space(unspace(spaced)) == spaced


@pytest.mark.parametrize("text", [" " * 100_000 + "a", "你 " * 50_000, "，\n" * 50_000, '" ' * 50_000])
def test_100_kb_do_not_hang(text):
    begin = time.process_time()
    space(text), unspace(text)
    assert time.process_time() - begin < 3
