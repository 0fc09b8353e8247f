"""Durations are units over rate and the punctuation's pauses, stretched by pace and delivery."""

import time

import pytest

from comfyui_happyhorse.conditioning.dialogue import duration
from comfyui_happyhorse.conditioning.dialogue.document import PACES
from comfyui_happyhorse.conditioning.dialogue.duration import Duration, estimate, pauses
from comfyui_happyhorse.conditioning.dialogue.languages import LANGUAGES
from comfyui_happyhorse.conditioning.dialogue.spacing import space


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("No.", 0),
        ("Come closer, and tell me.", 0.22),
        ("Welcome; my name is John: yes.", 0.60),
        ("Wait... what?", 0.50),
        ("Wait…what?", 0.50),
        ("No! Yes? No.", 0.90),
        ("Yes!!! No?!", 0.45),
        ("Hm. … Yes", 0.50),
        ("No—never - ever.", 0.60),
        ("It's 3.5, well-known, and 1,000", 0.44),
        ("“Hi,” she said.", 0.22),
        ("«Non», dit-il. Oui !", 0.67),
        ("行啦，聽日見。好！", 0.67),
        ("行 啦，聽 日 見。好！", 0.67),
        ("海、山。", 0.22),
        ("“…！", 0),
        ("", 0),
    ],
)
def test_pauses(text, seconds):
    assert pauses(text) == pytest.approx(seconds)


def test_the_formula():
    """English: 5.51, 6.34 and 7.40 syllables a second; here 13 syllables and one comma."""
    estimated = estimate("Come closer, and tell me what really happened last night.", "English")
    assert estimated == Duration(
        13.0,
        pytest.approx(0.22),
        pytest.approx(13 / 5.51 + 1.5 * 0.22),
        pytest.approx(13 / 6.34 + 0.22),
        pytest.approx(13 / 7.40 + 0.6 * 0.22),
    )


@pytest.mark.parametrize(
    ("language", "text", "seconds"),
    [
        ("English", "I never thought we would see the ocean again.", 1.9),
        ("French", "Je n'aurais jamais cru revoir la mer un jour.", 1.7),
        ("German", "Ich hätte nie gedacht, dass wir das Meer noch einmal sehen.", 2.7),
        ("Japanese", "もう一度海が見られるとは思いませんでした。", 2.9),
        ("Korean", "다시 바다를 보게 될 줄은 정말 몰랐어요.", 2.3),
        ("Mandarin", "我从来没想过我们还能再看到大海。", 2.6),
        ("Cantonese", "我從來冇諗過我哋仲可以再見到大海。", 2.9),
    ],
)
def test_natural_seconds(language, text, seconds):
    """Worked out by hand from the published rates, to a tenth of a second."""
    estimated = estimate(text, language)
    assert estimated.natural == pytest.approx(seconds, abs=0.06)
    assert estimated.fast < estimated.natural < estimated.slow
    assert estimate(space(text), language) == estimated


def test_paces_divide_the_speech_and_not_the_pauses():
    text = "Come closer, and tell me what really happened last night."
    plain = estimate(text, "English")
    for pace, factor in zip(PACES, (0.65, 0.80, 1.0, 1.15, 1.30), strict=True):
        paced = estimate(text, "English", pace)
        assert paced.natural - paced.pauses == pytest.approx((plain.natural - plain.pauses) / factor)
        assert paced.pauses == plain.pauses


@pytest.mark.parametrize(
    ("pace", "delivery", "factor"),
    [
        ("natural", "whispers, close to tears", 1 / 1.2),
        ("natural", "sobbing", 1 / 1.2),
        ("natural", "in a low, warm voice", 1),
        ("natural", "speaks very slowly", 0.65),
        ("natural", "slow and measured", 0.80),
        ("natural", "quickly, under her breath", 1.15),
        ("fast", "slow and measured", 1.15),  # the field decides
        ("slow", "weeping", 0.80 / 1.2),
        ("natural", "a breakfast tone", 1),
    ],
)
def test_delivery(pace, delivery, factor):
    plain = estimate("Not again", "English").natural
    assert estimate("Not again", "English", pace, delivery).natural == pytest.approx(plain / factor)


def test_nothing_said_takes_no_time():
    for language in LANGUAGES:
        assert estimate("… !", language) == Duration(0.0, 0.0, 0.0, 0.0, 0.0)


def test_the_constants_are_read_when_used(monkeypatch):
    """A calibration can move them."""
    before = estimate("One, two.", "English").natural
    monkeypatch.setattr(duration, "FAST_PAUSES", 1.0)
    assert estimate("One, two.", "English").natural == before
    assert estimate("One, two.", "English").fast == pytest.approx(2 / 7.40 + 0.22)


@pytest.mark.parametrize("text", ["." * 100_000 + "a", 'a" ' * 30_000, "a" + '…"' * 50_000 + "a"])
def test_100_kb_do_not_hang(text):
    begin = time.process_time()
    estimate(text, "English")
    assert time.process_time() - begin < 3
