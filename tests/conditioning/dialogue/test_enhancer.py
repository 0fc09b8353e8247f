"""A body from a model is used only where it kept the lines and the rules; everything else is refused in words."""

import pytest

from comfyui_happyhorse.conditioning.dialogue.compose import compose
from comfyui_happyhorse.conditioning.dialogue.document import Line, Scene, Shot, Speaker
from comfyui_happyhorse.conditioning.dialogue.enhancer import check_enhanced, instruction
from comfyui_happyhorse.conditioning.dialogue.parse import parse

SCENE = Scene(
    (Speaker("A", "young woman, red coat", "left", "low"), Speaker("B", "old man", "right")),
    (
        Shot(
            (
                Line("A", "English", "Did you feed the 3 dogs?", "whispers"),
                Line("B", "Mandarin", "没有，我忘了。"),
            ),
            "close-up",
            "Rain runs down the glass",
        ),
    ),
    setting="a kitchen",
    sound="rain",
)
FIRST, SECOND = '"Did you feed the three dogs?"', '"没 有，我 忘 了。"'
BODY = (
    "A young woman in a red coat and an old man sit side by side in a still close-up in a kitchen. "
    + "Soft light falls on both faces and the background stays calm. " * 11
    + f"Her lips part and she whispers {FIRST} in a low voice. He breathes in and answers {SECOND} and is still."
)
TAIL = (
    f"\n\nDialogue:\n<young woman, red coat, English>: {FIRST}\n<old man, Mandarin>: {SECOND}\n\n"
    "Background Sound:\n<rain>"
)


def verdict(answer):
    scene, findings = check_enhanced(SCENE, answer)
    return scene, [found.code for found in findings if found.level == "error"]


def test_the_instruction_holds_all_that_is_settled():
    text = instruction(SCENE, "they are about to part")
    for part in (
        FIRST,
        SECOND,
        "<rain>",
        "a kitchen",
        "close-up",
        "150 to 200 words",
        "whispers",
        "part",
        "red coat",
    ):
        assert part in text
    assert text.count(FIRST) == 1 and "Dialogue:\n<young woman, red coat, English>" in text


def test_a_good_answer_becomes_the_scenes_body():
    scene, errors = verdict(BODY + TAIL)
    assert errors == []
    assert scene.body == BODY and scene.lines == SCENE.lines and scene.cast == SCENE.cast
    assert compose(scene) == BODY + TAIL
    assert parse(compose(scene)).scene.body == BODY


@pytest.mark.parametrize(
    "answer",
    [
        f"Here is the prompt:\n\n{BODY}{TAIL}",
        f"```\n{BODY}{TAIL}\n```",
        (BODY + TAIL).replace(SECOND, "“没有，我忘了。”"),
        (BODY + TAIL).replace("\n", "\r\n"),
        (BODY + TAIL).replace("Dialogue:", "**Dialogue:**"),
    ],
)
def test_the_manners_of_chat_models_are_put_up_with(answer):
    scene, errors = verdict(answer)
    assert errors == [] and scene.body == BODY


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((BODY + TAIL).replace("three dogs", "two dogs"), "line-changed"),
        ((BODY + TAIL).replace(SECOND, '"No, I forgot."'), "line-changed"),
        ((BODY + TAIL).replace(f"<old man, Mandarin>: {SECOND}\n", ""), "line-dropped"),
        (BODY.replace(SECOND, "nothing") + TAIL, "line-not-in-body"),
        (BODY + f" Again: {FIRST}" + TAIL, "line-repeated"),
        (BODY + ' And he adds "Sorry."' + TAIL, "unlisted-quote"),
        (
            (BODY + TAIL).replace("\n\nBackground", '\n<old man, Mandarin>: "好。"\n\nBackground'),
            "line-added",
        ),
        ((BODY + TAIL).replace("Mandarin", "Cantonese"), "language-changed"),
        (BODY + " Then the camera zooms in." + TAIL, "camera-move"),
        (BODY + " Then it cuts to a street." + TAIL, "camera-move"),
        (BODY[:200] + TAIL, "wrong-length"),
        (BODY + " More words about the light." * 20 + TAIL, "wrong-length"),
        (BODY, "no-dialogue-section"),
        ((BODY + TAIL).partition("\n\nBackground")[0], "no-sound-section"),
        (TAIL.strip(), "no-body"),
        ("", "no-body"),
        (BODY.replace("Soft light", "柔和的光", 1) + TAIL, "not-english"),
        (BODY + " <eos>" + TAIL, "special-token"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_what_to_do(answer, expected):
    scene, errors = verdict(answer)
    assert scene is None and expected in errors
    _, findings = check_enhanced(SCENE, answer)
    assert all(found.message.endswith(".") for found in findings)


def test_lines_in_another_order_are_refused():
    rows = TAIL.strip().split("\n")
    rows[1], rows[2] = rows[2], rows[1]
    assert verdict(BODY + "\n\n" + "\n".join(rows))[1] == ["line-moved", "line-moved"]


def test_another_sound_is_told_and_ours_kept():
    scene, findings = check_enhanced(SCENE, (BODY + TAIL).replace("<rain>", "<traffic>"))
    assert [found.code for found in findings] == ["sound-changed"] and scene.sound == "rain"


def test_a_long_dialogue_may_have_a_longer_body():
    scene = Scene((Speaker("A", "old man"),), (Shot((Line("A", "English", "very " * 150),)),))
    assert "150 to 270 words" in instruction(scene)
