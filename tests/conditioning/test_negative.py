"""The default negative prompt is whole, ours, can be replaced by a file, and gives way to what a scene asks for."""

from dataclasses import replace

import pytest

from comfyui_happyhorse.conditioning.dialogue.document import Line, Scene, Shot, Speaker
from comfyui_happyhorse.conditioning.negative import (
    DELIVERY_FAULTS,
    PICTURE_FAULTS,
    SOUND_FAULTS,
    default_negative,
    negative_for,
    read_negative,
)
from comfyui_happyhorse.errors import ConditioningError

PHRASES = PICTURE_FAULTS + SOUND_FAULTS + DELIVERY_FAULTS


def test_default_is_every_phrase_once_in_order():
    assert default_negative().split(", ") == list(PHRASES)  # so no phrase has a comma of its own
    assert len(set(PHRASES)) == len(PHRASES)
    assert all(phrase == phrase.strip() and phrase.isascii() for phrase in PHRASES)


def test_default_is_far_from_the_limit_of_640_tokens():
    # Gemma spends at most 2 tokens on a word here, 1.3 on average (test_tokenizer.py counts them).
    assert 2 * len(default_negative().split()) + len(PHRASES) < 640


def test_default_forbids_no_ordinary_scene():
    for thing in ("music", "crowd", "people", "second voice", "two voices", "static", "fast", "breath"):
        assert thing not in default_negative()


def test_a_file_replaces_it(tmp_path):
    file = tmp_path / "negative.txt"
    file.write_bytes("\ufeff  grésillement, 模糊\n".encode())
    assert read_negative(file) == "grésillement, 模糊"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b" \n\t", "is empty; write into it"),
        (b"caf\xe9", r"is not UTF-8 text \(byte 3 is not\)"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_cannot_replace_it_is_an_error(tmp_path, data, words):
    file = tmp_path / "negative.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ConditioningError, match=rf"negative\.txt {words}"):
        read_negative(file)


WOMAN, MAN = Speaker("A", "woman", "left"), Speaker("B", "man", "right")
LINE = Line("A", "English", "Hello.")
THEIRS = (
    "blur, music, instrumental, crowd noise, multiple speakers, two voices, background talking, speaking too fast, "
    "speaking too slow, heavy breathing, static, echo, whispering, jump cuts"
)


def scene(*lines, **fields):
    return Scene((WOMAN,), (Shot(lines or (LINE,)),), **fields)


def dropped(scene, negative=THEIRS):
    return [drop.phrase for drop in negative_for(scene, negative).dropped]


def test_an_ordinary_scene_keeps_the_default_to_the_letter():
    assert negative_for(scene()) == (default_negative(), ())
    assert negative_for(scene(), " mine,  as typed;") == (" mine,  as typed;", ())


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (scene(), []),
        (scene(LINE, replace(LINE, speaker="B")), ["multiple speakers", "two voices", "background talking"]),
        (scene(sound="a piano playing softly"), ["music", "instrumental"]),
        (scene(sound="soft, steady rain in the distance"), []),
        (scene(setting="a bar with a cheering crowd"), ["crowd noise", "background talking"]),
        (scene(replace(LINE, pace="fast")), ["speaking too fast"]),
        (scene(replace(LINE, pace="very slow")), ["speaking too slow"]),
        (scene(replace(LINE, delivery="whispers, close to tears")), ["heavy breathing", "whispering"]),
        (scene(replace(LINE, delivery="gasping for air")), ["heavy breathing"]),
        (scene(setting="an empty cathedral"), ["echo"]),
        (scene(sound="radio static"), ["static"]),
        (Scene((WOMAN,), (Shot((LINE,)), Shot())), ["jump cuts"]),
        (scene(sound="no music"), []),
        (scene(appearance="a single earring and crystal eyes"), []),
    ],
)
def test_what_a_scene_asks_for_is_not_forbidden(wish, expected):
    text, drops = negative_for(wish, THEIRS)
    assert [drop.phrase for drop in drops] == expected
    kept = [phrase for phrase in THEIRS.split(", ") if phrase not in expected]
    assert text == ", ".join(kept)
    assert all(drop.reason for drop in drops)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (Scene((WOMAN,), (Shot((LINE,)), Shot())), ["a sudden cut or zoom"]),
        (scene(replace(LINE, pace="very fast")), ["a gabbled tempo"]),
        (scene(replace(LINE, pace="slow")), ["syllables stretched to fill the time"]),
        (scene(replace(LINE, delivery="shouts")), ["theatrical overacting"]),
        (
            scene(replace(LINE, delivery="stammers")),
            ["words skipped or doubled or invented", "pauses in the middle of a word"],
        ),
        (scene(lighting="a flickering candle"), ["flickering light"]),
        (scene(sound="mains hum"), ["mains humming"]),
        (scene(sound="soft, steady rain"), []),
        (scene(replace(LINE, delivery="through the telephone")), ["a voice from inside a tin or a tube"]),
        (Scene((WOMAN, MAN), (Shot((LINE, replace(LINE, speaker="B"))),)), []),
    ],
)
def test_the_default_gives_way_too(wish, expected):
    assert [drop.phrase for drop in negative_for(wish).dropped] == expected


def test_a_reason_names_what_the_scene_has():
    reasons = [drop.reason for drop in negative_for(scene(sound="radio static"), THEIRS).dropped]
    assert reasons == ['the scene\'s sound is "radio static" ("static")']
