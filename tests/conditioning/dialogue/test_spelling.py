"""Whole numbers are spelled as independent libraries spell them, on 10,000 and more per language."""

import random

import pytest

from comfyui_happyhorse.conditioning.dialogue.spelling import (
    chinese,
    english,
    french,
    german,
    japanese,
    korean,
)

num2words = pytest.importorskip("num2words").num2words
cn2an = pytest.importorskip("cn2an")


# cn2an leaves the zero out where the myriads are empty and four figures follow: 七十亿五千六百二十一 for 7,000,005,621.
def zero_said(n: int) -> bool:
    return abs(n) < 10**8 or abs(n) // 10**4 % 10**4 > 0 or abs(n) % 10**4 < 1000


TO_TRADITIONAL = str.maketrans("万亿负", "萬億負")


@pytest.fixture(scope="module")
def integers() -> list[int]:
    """Each to 2,999, and 9,000 spread evenly over the orders up to 1e12, a seventh of them negative."""
    draw = random.Random(7)
    large = [draw.randrange(10 ** draw.randint(3, 12)) for _ in range(9_000)]
    return [*range(3_000), *(-n if place % 7 == 0 else n for place, n in enumerate(large)), 10**12]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        # num2words puts commas between the powers of a thousand; they would be heard as pauses.
        pytest.param(english.cardinal, lambda n: num2words(n, lang="en").replace(",", ""), id="English"),
        pytest.param(french.cardinal, lambda n: num2words(n, lang="fr"), id="French"),
        # Above a million num2words has "achthunderteinstausend" for 801,000, below it the right "eintausend".
        pytest.param(
            german.cardinal,
            lambda n: num2words(n, lang="de").replace("einstausend", "eintausend"),
            id="German",
        ),
        pytest.param(japanese.cardinal, lambda n: num2words(n, lang="ja"), id="Japanese"),
        pytest.param(korean.cardinal, lambda n: num2words(n, lang="ko"), id="Korean"),
        pytest.param(chinese.cardinal, cn2an.an2cn, id="Mandarin"),
        pytest.param(
            lambda n: chinese.cardinal(n, chinese.TRADITIONAL),
            lambda n: cn2an.an2cn(n).translate(TO_TRADITIONAL),
            id="Cantonese",
        ),
    ],
)
def test_integers_equal_an_independent_library(ours, theirs, integers, request):
    if request.node.callspec.id in ("Mandarin", "Cantonese"):
        integers = [n for n in integers if zero_said(n)]
    assert len(integers) > 10_000
    assert [(n, ours(n), theirs(n)) for n in integers if ours(n) != theirs(n)] == []


def test_ordinals_equal_an_independent_library():
    for n in range(1, 1_000):
        assert english.ordinal(n) == num2words(n, lang="en", to="ordinal").replace(",", "")
        # num2words keeps the s of the plural: "quatre-vingtsième", "deux centsième".
        assert french.ordinal(n) == num2words(n, lang="fr", to="ordinal").replace(
            "sième", "ième" if n % 100 in (0, 80) else "sième"
        )
        if n != 100:  # num2words has "hundertste" beside "einhunderterste"
            assert german.ordinal(n) == num2words(n, lang="de", to="ordinal")


def test_years_equal_an_independent_library():
    for n in range(1010, 2100):
        assert english.year(n) == num2words(n, lang="en", to="year").replace("oh-", "oh ")
        assert german.year(n) == num2words(n, lang="de", to="year")
