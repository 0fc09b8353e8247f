"""What was composed comes back field by field; what was pasted comes back word for word, repairs listed."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.conditioning.dialogue.compose import compose, prepare, tidy
from comfyui_happyhorse.conditioning.dialogue.document import (
    FRAMINGS,
    PACES,
    SIDES,
    Line,
    Scene,
    Shot,
    Speaker,
)
from comfyui_happyhorse.conditioning.dialogue.parse import parse

PROMPTS = sorted((Path(__file__).parent / "prompts").glob("*.txt"))
SAID = {
    "English": ["I have 3 dogs.", "Well… he said: no!", "At the start, I knew.", "It's room 12-B, isn't it?"],
    "German": ["Das kostet 5 €.", "Nein, „danke“!", "Wie spät ist es?"],
    "French": ["C’est à 18 h 30 ?", "« Non », dit-il.", "Ça va."],
    "Mandarin": ["我有3个苹果。", "他说：“好吧”……", "OK，我们用 Photoshop 改。", "2030年见！"],
    "Cantonese": ["唔該你，聽日3點。", "係咩？"],
    "Japanese": ["もう一度、3時に。", "「はい」と言った。", "東京へ"],
    "Korean": ["다시 바다를 보게 될 줄은.", "3시에 만나요!", "Hello 세계 ABC"],
}
DESCRIPTIONS = ["young woman, red coat", "old man", "Ada Lovelace", "tall person", "boy of ten, cap", "小明"]
PHRASES = [
    "",
    "soft",
    "a small kitchen. Rain outside",
    "They are tense",
    "low and warm",
    "green; with a frame",
]
# Words of the templates, and characters with a meaning in them.
PIECES = [
    *'abc .,;:"<>()\n\t…“”，。「」3€é한中が*\u200b',
    " The line is delivered at a slow pace",
    " listens in silence with closed lips.",
    "After a brief pause, ",
    " and says, ",
    " In this shot: ",
    "The setting is ",
    "\n\nDialogue:\n",
    "\n\nBackground Sound:\n<x>",
    "<man, English>: ",
]
SOUP = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def scenes(words, texts, descriptions):
    """One to four speakers, up to three shots, all languages, paces, sides and pauses."""

    @st.composite
    def build(draw):
        chosen = draw(st.lists(descriptions, min_size=1, max_size=4, unique_by=lambda text: text.lower()))
        cast = tuple(
            Speaker(f"N{number}", text, draw(st.sampled_from(SIDES)), draw(words))
            for number, text in enumerate(chosen)
        )

        def line():
            language = draw(st.sampled_from(sorted(SAID)))
            return Line(
                draw(st.sampled_from(cast)).name,
                language,
                draw(texts(language)),
                draw(words),
                draw(st.sampled_from(PACES)),
                pause=draw(st.sampled_from([None, 0.0, 0.4, 1.2, 3.0, 30.0])),
                spell_out=draw(st.booleans()),
            )

        shots = tuple(
            Shot(
                tuple(line() for _ in range(draw(st.integers(0, 3)))),
                draw(st.sampled_from(FRAMINGS)),
                draw(words),
            )
            for _ in range(draw(st.integers(0, 3)))
        )
        return Scene(cast, shots, *(draw(words) for _ in range(5)))

    return build()


ORDINARY = scenes(
    st.sampled_from(PHRASES), lambda language: st.sampled_from(SAID[language]), st.sampled_from(DESCRIPTIONS)
)
WILD = scenes(SOUP, lambda language: st.sampled_from(SAID[language]) | SOUP, SOUP)
MANY = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


def as_prepared(scene):
    """The scene as a prompt shows it: lines prepared, names by their order in the cast."""
    scene = tidy(scene)
    names = {speaker.name: str(number) for number, speaker in enumerate(scene.cast)}
    return replace(
        scene,
        cast=tuple(replace(speaker, name=names[speaker.name]) for speaker in scene.cast),
        shots=tuple(
            replace(
                shot,
                lines=tuple(
                    replace(line, speaker=names[line.speaker], text=prepare(line).spaced, spell_out=True)
                    for line in shot.lines
                ),
            )
            for shot in scene.shots
        ),
    )


@MANY
@given(ORDINARY)
def test_fields_come_back_from_what_was_composed(scene):
    text = compose(scene)
    parsed = parse(text)
    assert parsed.changes == () and parsed.findings == ()
    assert as_prepared(parsed.scene) == as_prepared(scene)
    assert compose(parsed.scene) == text


def test_two_thousand_more_scenes_come_back():
    """As above, drawn by a plain generator, which is ten times as fast."""
    for seed in range(2000):
        draw = random.Random(seed)
        cast = tuple(
            Speaker(f"N{number}", text, draw.choice(SIDES), draw.choice(PHRASES))
            for number, text in enumerate(draw.sample(DESCRIPTIONS, draw.randint(1, 4)))
        )

        def line(draw=draw, cast=cast):
            language = draw.choice(list(SAID))
            return Line(
                draw.choice(cast).name,
                language,
                draw.choice(SAID[language]),
                draw.choice(PHRASES),
                draw.choice(PACES),
                pause=draw.choice((None, 0.0, 1.2, 3.0)),
                spell_out=draw.random() < 0.5,
            )

        shots = tuple(
            Shot(
                tuple(line() for _ in range(draw.randint(0, 3))), draw.choice(FRAMINGS), draw.choice(PHRASES)
            )
            for _ in range(draw.randint(0, 3))
        )
        text = compose(Scene(cast, shots, *(draw.choice(PHRASES) for _ in range(5))))
        parsed = parse(text)
        assert compose(parsed.scene) == text, seed
        assert parsed.scene.body is None, seed


@MANY
@given(WILD)
def test_composing_again_gives_the_same_text_whatever_the_fields_hold(scene):
    text = compose(scene)
    assert compose(parse(text).scene) == text


@MANY
@given(WILD, SOUP)
def test_a_verbatim_body_is_kept_to_the_letter(scene, body):
    scene = replace(scene, body=body)
    text = compose(scene)
    parsed = parse(text)
    assert compose(parsed.scene) == text
    if body.strip() and scene.lines:
        assert parsed.scene.body == body.strip()


@MANY
@given(SOUP)
def test_any_text_is_read_and_reading_it_again_changes_nothing(text):
    parsed = parse(text)
    once = compose(parsed.scene)
    assert compose(parse(once).scene) == once
    for change in parsed.changes:
        assert text[change.start :].startswith(change.before)


@pytest.mark.parametrize("file", PROMPTS, ids=lambda file: file.stem)
def test_examples_settle_after_one_reading(file):
    parsed = parse(file.read_text(encoding="utf-8"))
    once = compose(parsed.scene)
    again = parse(once)
    assert compose(again.scene) == once
    assert again.changes == ()
    assert parsed.scene.lines and all(line.text for line in parsed.scene.lines)


def read(name):
    text = (Path(__file__).parent / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
    return text, parse(text)


def test_a_spreadsheets_quotes_go():
    text, parsed = read("csv")
    assert parsed.scene.lines[0].text == "The first loaves come out at five."
    assert parsed.scene.body.startswith("A calm baker") and '""' not in parsed.scene.body
    assert parsed.scene.sound == ""
    assert [text[c.start : c.start + len(c.before)] for c in parsed.changes] == [
        c.before for c in parsed.changes
    ]
    assert [c.start for c in parsed.changes] == [
        0,
        *(i for i in range(1, 440) if text[i : i + 2] == '""'),
        450,
        489,
    ]
    assert "sound effects" in parsed.changes[5].before


def test_all_on_one_line_is_read():
    _, parsed = read("one_line")
    assert parsed.scene.cast == (Speaker("Speaker 1", "girl yellow raincoat"),)
    assert parsed.scene.lines == (Line("Speaker 1", "French", "Nous partons demain matin."),)
    assert parsed.scene.sound == "light rain"
    assert parsed.scene.body.endswith('"Nous partons demain matin." with a small smile.')
    assert parsed.changes == () and parsed.findings == ()


def test_padded_quotes_are_closed_up_in_both_places():
    _, parsed = read("padded_korean")
    assert parsed.scene.lines[0].text == "문좀닫아줘."
    assert compose(parsed.scene).count('"문 좀 닫 아 줘."') == 2
    assert len(parsed.changes) == 2


def test_curly_and_full_width_quotes_are_read_and_lines_spaced():
    _, chinese = read("unspaced_chinese")
    assert [line.language for line in chinese.scene.lines] == ["Mandarin"]
    assert compose(chinese.scene).count('"今 天 有 3 个 问 题。"') == 2
    assert ("Chinese", "Mandarin") in [(change.before, change.after) for change in chinese.changes]
    _, japanese = read("full_width_quotes")
    assert japanese.scene.lines[0].text == "水をやってください。" and japanese.scene.sound == "birds"


def test_names_and_missing_languages_are_told():
    _, parsed = read("names")
    assert [(line.language, line.text) for line in parsed.scene.lines] == [
        ("German", "Hast du den Schlüssel?"),
        ("German", "Nein, den hat Paul."),
    ]
    assert [speaker.description for speaker in parsed.scene.cast] == ["Mira", "Tom"]
    assert [found.code for found in parsed.findings] == [
        "language-guessed",
        "language-guessed",
        "no-sound-section",
    ]


def test_a_body_alone_gives_its_quotes_as_lines():
    _, parsed = read("body_only")
    assert [line.text for line in parsed.scene.lines] == ["I never got your letter."]
    assert "no-dialogue-section" in [found.code for found in parsed.findings]


def test_windows_line_ends_give_the_fields_back():
    scene = Scene(
        (Speaker("A", "old man", "left"),), (Shot((Line("A", "English", "Hello there."),)),), "grey beard"
    )
    parsed = parse(compose(scene).replace("\n", "\r\n"))
    assert as_prepared(parsed.scene) == as_prepared(scene)
    assert len(parsed.changes) == 6 and {change.before for change in parsed.changes} == {"\r\n"}


def test_a_language_that_is_not_spoken_is_kept_for_the_lint():
    parsed = parse(
        'A man looks up.\n\nDialogue:\n<old man, Italian>: "Buongiorno."\n\nBackground Sound:\n<birds>'
    )
    assert parsed.scene.lines[0].language == "Italian"


def test_what_is_left_out_is_listed():
    text = 'A man.\n\nDialogue:\n<man, English>: "Hi." He waves.\n\nBackground Sound:\n<birds> and more\n\nDialogue: <x, French>: "Non."'
    parsed = parse(text)
    assert [line.text for line in parsed.scene.lines] == ["Hi."]
    gone = [change.before for change in parsed.changes if not change.after]
    assert gone == ["He waves.", "and more", 'Dialogue: <x, French>: "Non."']


def test_a_line_typed_with_digits_is_not_spelled_out_behind_ones_back():
    scene = Scene((Speaker("A", "man"),), (Shot((Line("A", "English", "Room 101.", spell_out=False),)),))
    line = parse(compose(scene)).scene.lines[0]
    assert (line.text, line.spell_out) == ("Room 101.", False)
