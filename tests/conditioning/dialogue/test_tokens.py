"""The estimate agrees with the counts that were made with the Gemma vocabulary."""

import pytest

from comfyui_happyhorse.conditioning.dialogue.tokens import estimate_tokens

# Measured: tokens of spaced characters, and of words, in dialogue.
COST = {"Mandarin": 1.26, "Cantonese": 1.38, "Japanese": 1.20, "Korean": 1.17}
WORDS = {"English": 1.20, "French": 1.45, "German": 1.52}
LETTER = {"Mandarin": "我", "Cantonese": "係", "Japanese": "あ", "Korean": "가"}


def prompt(language, text):
    return f'He says, "{text}"\n\nDialogue:\n<man, {language}>: "{text}"\n\nBackground Sound:\n<rain>'


@pytest.mark.parametrize("language", COST)
def test_a_character_costs_what_was_measured_twice(language):
    few, many = (
        estimate_tokens(prompt(language, " ".join(LETTER[language] * count))) for count in (100, 600)
    )
    assert (many - few) / 500 == pytest.approx(2 * COST[language], abs=0.01)


@pytest.mark.parametrize("language", WORDS)
def test_a_word_costs_what_was_measured_twice(language):
    few, many = (estimate_tokens(prompt(language, " ".join(["mot"] * count))) for count in (100, 600))
    assert (many - few) / 500 == pytest.approx(2 * WORDS[language], abs=0.01)


def test_a_line_that_the_body_does_not_quote_costs_once():
    text = "Did you see three dogs there?"
    twice, once = prompt("English", text), prompt("English", text).replace(f'says, "{text}"', "says nothing")
    assert estimate_tokens(twice) - estimate_tokens(once) == pytest.approx(6 * 1.2 - 1.25, abs=1)


@pytest.mark.parametrize(
    ("language", "text", "measured"),
    [
        # Five seconds of speech at the usual rate in the table of the spec.
        ("Mandarin", "我 " * 23, 266),
        ("Korean", "가 " * 29, 276),
        ("English", "I never thought we would see the great wide ocean again.", 246),
    ],
)
def test_a_whole_prompt_costs_about_what_was_measured(language, text, measured):
    body = f'{"word " * 150}"{text}"'
    rows = f'Dialogue:\n<young woman red coat, {language}>: "{text}"'
    whole = f"{body}\n\n{rows}\n\nBackground Sound:\n<No prominent background sound>"
    assert estimate_tokens(whole) == pytest.approx(measured, rel=0.05)


def test_nothing_costs_the_paragraphs_alone():
    assert estimate_tokens("") == 13
