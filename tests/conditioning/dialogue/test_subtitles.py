"""Captions carry every word in its line's time, two rows at most, in files that players read."""

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.conditioning.dialogue.document import Line
from comfyui_happyhorse.conditioning.dialogue.duration import Duration, estimate
from comfyui_happyhorse.conditioning.dialogue.subtitles import srt, vtt
from comfyui_happyhorse.conditioning.dialogue.timeline import place


def film(*lines, frames=None):
    """(timeline, texts) of (language, text) lines."""
    rows = [(estimate(text, language), Line("A", language, text)) for language, text in lines]
    return place(rows, frames=frames), [text for _, text in lines]


def cues(text: str) -> list[tuple[float, float, list[str]]]:
    """SubRip read back: (start, end, rows)."""
    found = []
    for number, block in enumerate(re.split(r"\n\n", text.strip("\n")) if text else [], 1):
        index, times, *rows = block.split("\n")
        assert index == str(number)
        clocks = re.fullmatch(r"(\d\d):(\d\d):(\d\d),(\d{3}) --> (\d\d):(\d\d):(\d\d),(\d{3})", times)
        h, m, s, t, hh, mm, ss, tt = map(int, clocks.groups())
        found.append((h * 3600 + m * 60 + s + t / 1000, hh * 3600 + mm * 60 + ss + tt / 1000, rows))
    return found


def test_a_whole_file():
    lines = (
        ("English", "Come closer, and tell me."),
        ("Mandarin", "说实话，巧克力蛋糕很好吃，可是有一点太甜了。"),
    )
    timeline, texts = film(*lines)
    assert srt(timeline, texts) == (
        "1\n00:00:00,300 --> 00:00:01,466\nCome closer, and tell me.\n\n"
        "2\n00:00:01,816 --> 00:00:05,499\n说实话，巧克力蛋糕很好吃，\n可是有一点太甜了。\n"
    )
    assert vtt(timeline, ["a < b & c", "-->"]) == (
        "WEBVTT\n\n00:00:00.300 --> 00:00:01.466\na &lt; b &amp; c\n\n00:00:01.816 --> 00:00:05.499\n--&gt;\n"
    )


def test_a_long_line_is_shared_out_in_time():
    text = (
        "Honestly, the restaurant was beautiful. But the chocolate cake tasted like fire and ashes, my dear. "
        * 3
    )
    timeline, texts = film(("English", text.strip()))
    read = cues(srt(timeline, texts))
    assert len(read) > 2
    assert read[0][0] == pytest.approx(0.3)
    assert read[-1][1] == pytest.approx(timeline.spans[0].end, abs=0.001)
    for (_, end, _), (start, _, _) in pairwise(read):
        assert start == pytest.approx(end)
    assert all(end - start <= 8.5 for start, end, _ in read)
    assert sum(rows[-1].endswith(".") for _, _, rows in read) >= len(read) / 3  # cut behind sentences


def test_korean_breaks_between_words_only():
    timeline, texts = film(("Korean", "솔직히 초콜릿 케이크는 맛있었지만 조금 너무 달았어요."))
    read = cues(srt(timeline, texts))
    assert " ".join(row for _, _, rows in read for row in rows) == texts[0]
    assert all(len(row) <= 16 for _, _, rows in read for row in rows)


def test_no_row_begins_with_a_closing_mark_or_ends_with_an_opening_one():
    timeline, texts = film(
        (
            "Japanese",
            "「もう一度、あの海が見られるとは、ちょっと思いませんでした！」と彼女は「静かに」言った。",
        )
    )
    for _, _, rows in cues(srt(timeline, texts)):
        for row in rows:
            assert row[0] not in "、。！？」っょーゃ"
            assert row[-1] not in "「（"


def test_captions_end_with_the_film():
    timeline, texts = film(("English", "One two three four five six seven eight nine ten."), frames=49)
    assert timeline.outside == (0,)
    assert cues(srt(timeline, texts))[-1][1] == 1.96


def test_nothing_said_is_no_caption():
    timeline, texts = film(("English", "…"), ("English", ""))
    assert srt(timeline, texts) == ""
    assert vtt(timeline, texts) == "WEBVTT\n"


WORDS = st.lists(
    st.sampled_from(["a", "Hello,", "world.", "x" * 60, "字", "大家，", "「好」", "케이크는", "ok?"]),
    min_size=1,
    max_size=60,
)


@given(WORDS, st.floats(0.5, 40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_character_once_in_rows_that_fit(words, seconds, spaced):
    text = (" " if spaced else "").join(words)
    timeline = place([(Duration(1.0, 0, seconds, seconds, seconds), Line("A", "English", text))])
    read = cues(srt(timeline, [text]))
    if seconds / (len(text) + 1) > 0.25:  # else some captions are too short to show
        assert "".join("".join(rows) for _, _, rows in read).replace(" ", "") == text.replace(" ", "")
    for start, end, rows in read:
        assert end > start
        assert 1 <= len(rows) <= 2
        assert all(0 < len(row) <= 42 for row in rows)


@pytest.mark.parametrize("text", ["你" * 100_000, "a. " * 33_000])
def test_100_kb_do_not_hang(text):
    timeline = place([(Duration(1.0, 0, 9e4, 9e4, 9e4), Line("A", "English", text))])
    begin = time.process_time()
    srt(timeline, [text])
    assert time.process_time() - begin < 5
