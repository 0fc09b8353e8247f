"""Three paragraphs, each line twice and prepared, and a body of 150 to 200 words whatever the fields hold."""

import re

import pytest

from comfyui_happyhorse.conditioning.dialogue.compose import body_words, compose, prepare, tidy
from comfyui_happyhorse.conditioning.dialogue.document import FRAMINGS, Line, Scene, Shot, Speaker
from comfyui_happyhorse.conditioning.dialogue.languages import LANGUAGES
from comfyui_happyhorse.conditioning.dialogue.lint import lint
from comfyui_happyhorse.conditioning.dialogue.wording import FILLERS, mentions

WOMAN = Speaker("A", "young woman, red coat", "left", "low and warm")
MAN = Speaker("B", "old man, grey beard", "right")
SAID = {
    "Mandarin": ("我从来没想过，我们还能再看到大海。", "我 从 来 没 想 过，我 们 还 能 再 看 到 大 海。"),
    "Cantonese": ("唔該你，好唔好呀？", "唔 該 你，好 唔 好 呀？"),
    "English": ("I have 3 dogs.", "I have three dogs."),
    "Japanese": ("今日は良い天気ですね。", "今 日 は 良 い 天 気 で す ね。"),
    "Korean": ("다시 바다를 보게 될 줄은.", "다 시 바 다 를 보 게 될 줄 은."),
    "French": ("Il a 3 chiens.", "Il a trois chiens."),
    "German": ("Ich habe 3 Hunde.", "Ich habe drei Hunde."),
}


def paragraphs(scene):
    body, dialogue, sound = compose(scene).split("\n\n")
    return body, dialogue, sound


def one(language="English", text="Hello there.", **fields):
    return Scene((WOMAN,), (Shot((Line("A", language, text),)),), **fields)


def test_languages_are_all_tried():
    assert SAID.keys() == LANGUAGES.keys()


@pytest.mark.parametrize("language", SAID)
def test_a_line_stands_in_body_and_dialogue_as_the_model_reads_it(language):
    typed, spaced = SAID[language]
    body, dialogue, sound = paragraphs(one(language, typed))
    assert body.count(f'says, "{spaced}"') == 1
    assert dialogue == f'Dialogue:\n<young woman, red coat, {language}>: "{spaced}"'
    assert sound == "Background Sound:\n<No prominent background sound>"


def test_every_stage_of_a_line_is_shown_with_its_changes():
    ready = prepare(Line("A", "English", "I\u200b have 3 dogs."))
    assert (ready.cleaned, ready.spoken, ready.spaced) == (
        "I have 3 dogs.",
        "I have three dogs.",
        "I have three dogs.",
    )
    assert [(change.start, change.before) for change in ready.cleaning] == [(1, "\u200b ")]
    assert [(change.start, change.before, change.after) for change in ready.spelling] == [(7, "3", "three")]
    assert prepare(Line("A", "English", "3 dogs.", spell_out=False)).spaced == "3 dogs."


def test_two_people_are_told_apart_and_the_listener_is_silent():
    lines = (
        Line("A", "English", "Did you see it?", "whispers", "slow", pause=2.0),
        Line("B", "German", "Nein."),
    )
    body, dialogue, sound = paragraphs(
        Scene(
            (WOMAN, MAN),
            (Shot(lines, "close-up", "Rain falls"),),
            setting="a kitchen",
            sound="rain",
        )
    )
    order = [
        "A static close-up shows a young woman, red coat, on the left; and an old man, grey beard, on the right. "
        "The camera and every torso stay still.",
        "The setting is a kitchen.",
        "In this shot: Rain falls. At the start, the young woman on the left parts her lips and says, "
        '"Did you see it?" The line is delivered at a slow pace in a low and warm voice: whispers. '
        "The old man on the right listens in silence with closed lips. "
        "After a silence of about two seconds, the speaker changes: the old man on the right opens his mouth and says, "
        '"Nein." The line is delivered at a natural pace. The young woman on the left listens in silence',
        "After the last word the lips close",
    ]
    places = [body.find(part) for part in order]
    assert -1 not in places and places == sorted(places)
    assert dialogue.split("\n")[1:] == [
        '<young woman, red coat, English>: "Did you see it?"',
        '<old man, grey beard, German>: "Nein."',
    ]
    assert sound.endswith("<rain>")


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("filled", [False, True])
def test_bodies_have_150_to_200_words(framing, count, filled):
    lines = tuple(Line("AB"[index % 2], "English", "Did you see three dogs there?") for index in range(count))
    words = ("four words of it",) * 5 if filled else ("",) * 5
    body, *_ = paragraphs(Scene((WOMAN, MAN), (Shot(lines, framing, words[0]),), *words))
    assert 150 <= body_words(body) <= 200
    spoken = 6 * count
    # A short dialogue is not counted as description, as long as both bounds can be kept.
    assert (
        body_words(body) - spoken >= 150
        or body_words(body) + min(len(s.split()) for s in FILLERS) > 200
        or count > 3
    )


@pytest.mark.parametrize("language", SAID)
@pytest.mark.parametrize("cast", [(WOMAN,), (WOMAN, MAN), (Speaker("A", "x"),)])
def test_one_line_of_any_language_makes_a_body_of_the_right_length(language, cast):
    body, *_ = paragraphs(Scene(cast, (Shot((Line("A", language, SAID[language][0] * 3),)),)))
    assert 150 <= body_words(body) <= 200


@pytest.mark.parametrize("count", [6, 7])
def test_more_lines_fit_where_the_fields_are_few(count):
    lines = tuple(Line("AB"[index % 2], "English", "Did you see three dogs there?") for index in range(count))
    body, *_ = paragraphs(Scene((WOMAN, MAN), (Shot(lines),)))
    assert 150 <= body_words(body) <= 200
    assert body.count("opens") == count - 1 and "Then the old man on the right opens his mouth" in body


def test_where_the_dialogue_alone_is_too_long_the_lint_says_so():
    scene = one(text="word " * 190)
    body, *_ = paragraphs(scene)
    assert not any(filler in body for filler in FILLERS)
    found = next(each for each in lint(scene) if each.code == "body-long")
    assert f"{body_words(body)} words (190 of them dialogue)" in found.message


def test_a_film_without_words_says_so_and_keeps_three_paragraphs():
    body, dialogue, _ = paragraphs(Scene((MAN,), (Shot(),), setting="A station at night."))
    assert "Nobody speaks: the lips stay closed" in body and "The setting: A station at night." in body
    assert "syllable" not in body
    assert dialogue == "Dialogue:\n<No dialogue>"
    assert 150 <= body_words(body) <= 200


def test_shots_follow_one_another():
    line = Line("A", "English", "Hello.")
    body, *_ = paragraphs(
        Scene((WOMAN,), (Shot((line,)), Shot((), "wide shot", "She waits."), Shot((line,))))
    )
    cuts = re.findall(r"The picture changes to a static ([a-z -]+)\.", body)
    assert cuts == ["wide shot", "medium close-up"]
    assert body.index("In this shot: She waits. The picture changes") < body.rindex('"Hello."')


@pytest.mark.parametrize(
    ("description", "first", "later", "possessive"),
    [
        ("young woman, red coat", "a young woman, red coat", "the young woman", "her"),
        ("an old man", "an old man", "the old man", "his"),
        ("Young man", "a young man", "the young man", "his"),
        ("German engineer", "a German engineer", "the German engineer", "their"),
        ("Ada Lovelace", "Ada Lovelace", "Ada Lovelace", "their"),
        ("小明", "小明", "小明", "their"),
        ("university student", "a university student", "the university student", "their"),
        ("umpire", "an umpire", "the umpire", "their"),
    ],
)
def test_people_are_mentioned_as_english_does(description, first, later, possessive):
    cast = tidy(Scene((Speaker("A", description),))).cast
    mention = mentions(cast)["A"]
    assert (mention.first, mention.later, mention.possessive) == (first, later, possessive)


def test_people_whose_first_words_agree_are_mentioned_in_full():
    cast = (Speaker("A", "woman, red coat"), Speaker("B", "woman, blue coat"), Speaker("C", "man"))
    assert [mention.later for mention in mentions(cast).values()] == [
        "the woman, red coat",
        "the woman, blue coat",
        "the man",
    ]


def test_a_pasted_body_is_left_alone():
    body, dialogue, _ = paragraphs(one(text="Hello.", body=' A short body, "Hello." \n'))
    assert body == 'A short body, "Hello."' and dialogue.endswith('English>: "Hello."')


def test_composing_never_refuses():
    scene = Scene((), (Shot((Line("Nobody", "Klingon", "nuqneH 3"),)),))
    assert '<Nobody, Klingon>: "nuqneH 3"' in compose(scene)


def test_no_field_is_altered_but_for_its_ends():
    scene = tidy(one(appearance=" Two scars.  ", sound="<a clock>.", setting="Rome. 3 a.m."))
    assert (scene.appearance, scene.sound, scene.setting) == ("Two scars", "a clock", "Rome. 3 a.m")


@pytest.mark.parametrize(
    "sound", ["", "none", "No sound effects.", "<No prominent background sound effects>", "silence"]
)
def test_no_sound_has_one_form(sound):
    assert paragraphs(one(sound=sound))[2] == "Background Sound:\n<No prominent background sound>"


def test_the_pack_agrees_with_its_own_lint():
    scene = Scene(
        (WOMAN, MAN), (Shot((Line("A", "English", "Good morning."), Line("B", "French", "Bonjour !"))),)
    )
    assert lint(scene) == ()
