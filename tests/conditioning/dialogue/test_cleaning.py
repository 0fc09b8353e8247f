"""Cleaning takes out what nobody sees, changes nothing else, and says where it did what."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.conditioning.dialogue.cleaning import clean

PAIRS = [
    ("e\u0301t\u00e9", "été", "put together"),
    ("\u1112\u1161\u11ab글", "한글", "put together"),
    ("か\u3099", "が", "put together"),
    ("\u212bngström", "Ångström", "stands for"),
    ("a\u200bb", "ab", "zero-width space"),
    ("a\u200b\u202eb", "ab", "and 1 more"),
    ("\ufeffHi", "Hi", "byte order mark"),
    ("\u200fHi\u202c", "Hi", "text direction mark"),
    ("soft\u00adware", "software", "soft hyphen"),
    ("a\x00b\x1bc", "abc", "U+0000"),
    ("half \ud83d", "half", "U+D83D"),
    ("ＯＫ！", "OK！", "half-width"),
    ("２０２６年", "2026年", "half-width"),
    ("ｶﾞｷﾞﾗ", "ガギラ", "put together"),
    ("ﾃﾚﾋ", "テレヒ", "full-width"),
    ("a  b", "a b", "one plain space"),
    ("a\r\n b", "a b", "line break"),
    ("\tHi \n", "Hi", "end of the line"),
    ("très\u00a0bien", "très bien", "one plain space"),
    ("你\u3000好", "你 好", "one plain space"),
]


@pytest.mark.parametrize(("given", "expected", "reason"), PAIRS)
def test_what_is_cleaned(given, expected, reason):
    cleaned = clean(given)
    assert cleaned.text == expected
    assert any(reason in change.reason for change in cleaned.changes), cleaned.changes


@pytest.mark.parametrize(
    "text",
    [
        "Plain.",
        "你好，「世界」！",
        "Ça va ?",
        "👨‍👩‍👧 ❤️ 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        '<eos> " {x}',
        "葛\U000e0100",
    ],
)
def test_what_stays(text):
    """Emoji with their joiners, variants of characters, quotes and special tokens are not cleaning's business."""
    assert clean(text).text == text
    assert clean(text).changes == ()


def test_a_joiner_between_letters_is_no_emoji():
    assert clean("क\u200dष").text == "कष"
    assert clean("a\U000e0041b").text == "ab"


def test_a_pile_of_marks_is_cut():
    """Normalising takes the square of its height; Unicode's own bound is 30."""
    cleaned = clean("a" + "\u0316\u0301" * 50)
    assert len(cleaned.text) == 30
    assert "70 of 100 marks" in cleaned.changes[0].reason


SPECIAL = "ab ,é\u0301\u0316\u200b\u200d가\u1112\u1161\u11abＡｶﾞか\u3099👩\n\ufeff、，你\U000e0041\U0001f3f4\uff9e\u0bc6\u0bbe"


@given(st.one_of(st.text(alphabet=SPECIAL, max_size=12), st.text(max_size=12)))
@settings(max_examples=200, deadline=None)
def test_changes_rebuild_the_text_and_once_is_enough(text):
    cleaned = clean(text)
    assert clean(cleaned.text) == type(cleaned)(cleaned.text)
    rebuilt, at = [], 0
    for change in cleaned.changes:
        assert change.start >= at and change.before != change.after and change.reason
        assert text[change.start : change.start + len(change.before)] == change.before
        rebuilt += [text[at : change.start], change.after]
        at = change.start + len(change.before)
    assert "".join(rebuilt) + text[at:] == cleaned.text


@pytest.mark.parametrize(
    "text",
    ["a" + "\u0301\u0316" * 50_000, "\u200b" * 100_000 + "\u0301", "\u200b " * 50_000, "a\u200b" * 50_000],
)
def test_100_kb_do_not_hang(text):
    """Linear: 0.2 s on the slower of two cores; a square would take minutes."""
    begin = time.process_time()
    clean(text)
    assert time.process_time() - begin < 3
