"""A pasted prompt comes out right as far as there is one right way, and every change is listed."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.conditioning.dialogue.compose import body_words, compose
from comfyui_happyhorse.conditioning.dialogue.doctor import doctor
from comfyui_happyhorse.conditioning.dialogue.document import Line, Scene, Shot, Speaker

PROMPTS = sorted((Path(__file__).parent / "prompts").glob("*.txt"))


def test_a_good_prompt_is_left_as_it_is():
    scene = Scene((Speaker("A", "old man"),), (Shot((Line("A", "English", "Good morning to you."),)),))
    diagnosis = doctor(compose(scene))
    assert diagnosis.corrected == compose(scene)
    assert diagnosis.changes == diagnosis.findings == diagnosis.remaining == ()


@pytest.mark.parametrize("file", PROMPTS, ids=lambda file: file.stem)
def test_examples_come_out_whole(file):
    text = file.read_text(encoding="utf-8")
    diagnosis = doctor(text)
    body, dialogue, sound = diagnosis.corrected.split("\n\n")
    assert 150 <= body_words(body) <= 200
    assert dialogue.startswith("Dialogue:\n<") and sound.startswith("Background Sound:\n<")
    for row in dialogue.split("\n")[1:]:
        assert body.count(row.partition(": ")[2]) == 1
    assert "error" not in [found.level for found in diagnosis.remaining]
    assert all(text[change.start :].startswith(change.before) for change in diagnosis.changes)
    again = doctor(diagnosis.corrected)
    assert again.corrected == diagnosis.corrected and again.changes == ()


def test_a_short_body_is_reported_and_filled():
    diagnosis = doctor('A man.\n\nDialogue:\n<old man, English>: "Hello you."\n\nBackground Sound:\n<rain>')
    assert {"body-short", "line-not-in-body"} <= {found.code for found in diagnosis.findings}
    assert [change.start for change in diagnosis.changes] == [6, 6]
    assert 'At the start, the old man parts his lips and says, "Hello you."' in diagnosis.corrected
    assert diagnosis.remaining == ()


def test_lines_are_mended_in_both_places_and_each_change_is_listed():
    text = (
        'A man says, "I have 3 dogs 😀." and waits.\n\nDialogue:\n<old man, English>: "I have 3 dogs 😀."\n\n'
        "Background Sound:\n<rain>"
    )
    diagnosis = doctor(text)
    assert diagnosis.corrected.count('"I have three dogs."') == 2 and "😀" not in diagnosis.corrected
    made = [(change.start, change.before, change.after) for change in diagnosis.changes if change.before]
    quotes = [text.index("I have"), text.rindex("I have")]
    assert made == [(place, "I have 3 dogs 😀.", "I have three dogs.") for place in quotes]
    assert all(
        "number" in change.reason or "Dialogue" in change.reason
        for change in diagnosis.changes
        if change.before
    )
    assert "emoji" in [found.code for found in diagnosis.findings]


def test_commands_of_the_tokeniser_go():
    text = 'A man<eos> says "Hi you."\n\nDialogue:\n<old man, English>: "Hi <bos>you."\n\nBackground Sound:\n<rain>'
    diagnosis = doctor(text)
    assert "<eos>" not in diagnosis.corrected and "<bos>" not in diagnosis.corrected
    assert (5, "<eos>", "") in [(change.start, change.before, change.after) for change in diagnosis.changes]


def test_an_empty_text_is_diagnosed():
    diagnosis = doctor("")
    assert "no-body" in [found.code for found in diagnosis.findings]
    assert diagnosis.corrected == compose(Scene())


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.text(st.sampled_from('ab. "<>\n,“”:3我가é…😀\u200b'), max_size=60),
    st.text(st.sampled_from('ab "<>3我\n'), max_size=30),
)
def test_any_text_is_diagnosed_and_what_comes_out_is_read_back(body, line):
    diagnosis = doctor(f'{body}\n\nDialogue:\n<old man, English>: "{line}"\n\nBackground Sound:\n<rain>')
    assert compose(diagnosis.scene) == diagnosis.corrected
