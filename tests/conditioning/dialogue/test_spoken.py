"""Lines are read as the tables say, and nothing is lost, invented or read twice on the way."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.conditioning.dialogue.languages import LANGUAGES
from comfyui_happyhorse.conditioning.dialogue.spoken import replaced, spoken_form, unread
from comfyui_happyhorse.errors import ConditioningError

TABLES = Path(__file__).parent / "spoken"
PIECES = [
    *"0123456789", *".,:/-–~%$€£¥₩°+×÷=#№§½¼&'’() ％１：，￥", "\u202f", "\n", "km", "°C", "million", "p.m.", "May",
    "th", "h", "heure", "er", "Mai", "am ", "der ", " Mal", " Uhr", "Louis ", "XIV", "年", "月", "日", "个", "點",
    "点", "亿", "万", "打", "年", "시", "분", "번", "대", "만", "개", "時", "人", "word",
]  # fmt: skip
noisy = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
anything = st.one_of(st.text(max_size=60), noisy)


def rows(code: str) -> list[tuple[str, str, str]]:
    """(written, said, what stays unread) of one language's table."""
    lines = (TABLES / f"{code}.tsv").read_text(encoding="utf-8").splitlines()
    return [(*line.split("\t"), "")[:3] for line in lines if not line.startswith("# ")]


@pytest.mark.parametrize("name", LANGUAGES)
def test_tables(name):
    table = rows(LANGUAGES[name].code)
    assert len(table) >= 20
    said = [spoken_form(written, name).text for written, _, _ in table]
    assert said == [row[1] for row in table]
    assert [" ".join(text[a:b] for a, b in unread(text)) for text in said] == [row[2] for row in table]


@settings(max_examples=150, deadline=None)
@given(anything, st.sampled_from(list(LANGUAGES)))
def test_changes_rebuild_the_spoken_form(text, name):
    form = spoken_form(text, name)
    assert replaced(text, form.changes) == form.text
    ends = 0
    for change in form.changes:
        assert text[change.start :].startswith(change.before) and change.before and change.start >= ends
        assert change.after and change.reason.startswith("read ")
        ends = change.start + len(change.before)


@settings(max_examples=250, deadline=None)
@given(anything, st.sampled_from(list(LANGUAGES)))
def test_a_spoken_form_is_its_own(text, name):
    once = spoken_form(text, name).text
    assert spoken_form(once, name) == type(spoken_form("", name))(once, ())


@settings(max_examples=100, deadline=None)
@given(
    st.text(
        st.characters(categories=["Ll", "Lo", "Zs", "Po", "Ps", "Pe"], exclude_characters="#%&@*/\\§"),
        max_size=80,
    )
)
def test_text_without_figures_and_signs_stays(text):
    for name in LANGUAGES:
        assert spoken_form(text, name).changes == ()


@settings(max_examples=150, deadline=None)
@given(anything)
def test_unread_spans_are_in_order_and_cover_all_figures(text):
    spans, at = unread(text), 0
    for start, end in spans:
        assert at <= start < end <= len(text)
        at = end
    inside = {place for start, end in spans for place in range(start, end)}
    assert all(place in inside for place, character in enumerate(text) if character.isdecimal())


def test_changes_say_where_and_why():
    form = spoken_form("Pay $5 on May 3.", "English")
    assert [(c.start, c.before, c.after, c.reason) for c in form.changes] == [
        (4, "$5", "five dollars", "read as money"),
        (10, "May 3", "May third", "read as a date"),
    ]


def test_a_language_that_is_not_spoken_is_an_error():
    with pytest.raises(ConditioningError, match="does not speak 'Italian'"):
        spoken_form("3", "Italian")
