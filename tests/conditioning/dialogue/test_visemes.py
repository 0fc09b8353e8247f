"""Mouth shapes from letters: what lips do on sounds that nobody doubts, and times that fill the line."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as some

from comfyui_happyhorse.conditioning.dialogue.languages import LANGUAGES
from comfyui_happyhorse.conditioning.dialogue.visemes import visemes


def shapes(text: str, language: str) -> str:
    return "".join(shape for _, shape in visemes(text, language, 0, 1))


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("mama", "English", "ADADX"),
        ("thief", "English", "HCGX"),  # ie: wide, and stays
        ("boot", "English", "AFBX"),
        ("oiseau", "French", "FDBEX"),
        ("bonjour", "French", "AEBFBX"),
        ("vom Weg", "German", "GEAGCBX"),
        ("Schau", "German", "BDFX"),
        ("まま", "Japanese", "ADADX"),
        ("ふね", "Japanese", "GFBCX"),
        ("らーめん", "Japanese", "BDACBX"),
        ("엄마", "Korean", "EADX"),
        ("봐", "Korean", "AFDX"),
        ("우유", "Korean", "FX"),
        ("你好", "Mandarin", "BDBCX"),  # Han characters alternate, and begin with an open mouth
        ("a, a", "English", "DXDX"),
        ("é", "French", "CX"),
    ],
)
def test_lips_do_what_the_sound_asks(text, language, expected):
    assert shapes(text, language) == expected


@given(some.text(max_size=60), some.sampled_from(list(LANGUAGES)), some.floats(0, 5), some.floats(0.1, 5))
def test_times_fill_the_line_in_order(text, language, start, length):
    found = visemes(text, language, start, start + length)
    times = [time for time, _ in found]
    assert times == sorted(times)
    assert found[-1] == (start + length, "X")
    assert all(start - 1e-3 <= time <= start + length for time in times)
    assert {shape for _, shape in found} <= set("ABCDEFGHX")
    assert all(one != other for (_, one), (_, other) in pairwise(found[:-1]))


def test_a_vowel_takes_longer_than_a_consonant():
    (closed, _), (opened, _), (rest, _) = visemes("ma", "English", 1.0, 2.4)
    assert opened - closed == pytest.approx(0.4, abs=1e-3)
    assert rest - opened == pytest.approx(1.0, abs=1e-3)
