"""A scene written to JSON and read back, and every wrong place in a file named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from comfyui_happyhorse.conditioning.dialogue.document import (
    FRAMINGS,
    PACES,
    SIDES,
    Line,
    Scene,
    Shot,
    Speaker,
)
from comfyui_happyhorse.conditioning.dialogue.languages import LANGUAGES
from comfyui_happyhorse.conditioning.dialogue.scene_json import MAX_LINES, from_json, from_text, to_json
from comfyui_happyhorse.errors import ConditioningError

words = some.text(max_size=20)
seconds = some.none() | some.floats(0, 9_999)
lines = some.builds(
    Line,
    words,
    some.sampled_from(list(LANGUAGES)),
    words,
    words,
    some.sampled_from(PACES),
    seconds,
    seconds,
    some.booleans(),
)
shots = some.builds(Shot, some.lists(lines, max_size=3).map(tuple), some.sampled_from(FRAMINGS), words)
speakers = some.builds(Speaker, words, words, some.sampled_from(SIDES), words)
scenes = some.builds(
    Scene,
    some.lists(speakers, max_size=3).map(tuple),
    some.lists(shots, max_size=3).map(tuple),
    *[words] * 5,
    some.none() | words,
)


@given(scenes)
def test_a_scene_comes_back_as_it_was(scene):
    assert from_json(json.loads(json.dumps(to_json(scene)))) == scene


def test_what_is_left_out_has_its_default():
    scene = from_json({"shots": [{"lines": [{"speaker": "A", "language": "German", "text": "Ja."}]}]})
    assert scene == Scene(shots=(Shot((Line("A", "German", "Ja."),)),))


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_widget_is_an_empty_scene(text):
    assert from_text(text) == Scene()


def test_the_text_of_a_workflow_is_read():
    assert from_text('{"version": 1, "frames": 0, "scene": {"mood": "calm"}}') == Scene(mood="calm")
    assert from_text('{"version": 1}') == Scene()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"version": 2}', "its version is 2"),
        ('{"mood": "calm"}', "its version is None"),
        ("[]", "its version is None"),
        ('{"version": 1, "mood": "calm"}', "there is mood"),
        ('{"version": 1, "scene": []}', "the scene: expected an object"),
    ],
)
def test_another_text_is_refused(text, words):
    with pytest.raises(ConditioningError, match=words):
        from_text(text)


def line(**fields):
    return {"shots": [{"lines": [{"speaker": "A", "language": "German", "text": "Ja."} | fields]}]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "the scene: expected an object"),
        ([], "the scene: expected an object"),
        ({"tone": "calm"}, "tone.*Known are cast"),
        ({"cast": {}}, "cast: expected a list"),
        ({"cast": [{"name": "A"}]}, "cast 1 lacks description"),
        ({"shots": [{}, {"framing": "nearby"}]}, "shots 2, framing: 'nearby' is not one of close-up"),
        (line(text=7), "lines 1, text: expected str, found 7"),
        (line(start=True), "start: expected float or null, found True"),
        (line(start=-1), "-1.0 is not a time"),
        (line(pause=float("nan")), "nan is not a time"),
        (line(pace="rapid"), "pace: 'rapid'"),
        (line(spell_out=1), "spell_out: expected bool"),
        ({"mood": "x" * 10_000, "body": 5}, "body: expected str or null, found 5"),
        ({"shots": [{"lines": line()["shots"][0]["lines"] * (MAX_LINES + 1)}]}, "501 lines; at most 500"),
    ],
)
def test_a_wrong_place_is_named(value, words):
    with pytest.raises(ConditioningError, match=words):
        from_json(value)


def test_a_text_that_is_no_json_says_where():
    with pytest.raises(ConditioningError, match="line 2"):
        from_text('{"mood":\n oops}')


def test_a_whole_number_is_a_time():
    assert from_json(line(start=2)).lines[0].start == 2.0
