"""Dialogue inside ComfyUI: nodes in a row, the same scene typed in the editor, and the route behind it.

``host_dialogue.py`` measures in ComfyUI's interpreter; here is what must come out.
"""

import json

import pytest

PATH = "/happyhorse/dialogue"


@pytest.fixture(scope="module")
def report(host_program):
    return host_program("host_dialogue.py")


def test_lines_become_a_prompt_with_each_line_twice(report):
    assert report["text"].count('"我 们 三 点 见。"') == 2
    assert report["text"].count('"Um fünfzehn Uhr dreißig, gut."') == 2
    assert report["text"].endswith("Background Sound:\n<rain>")
    assert "<woman, jade earrings, Mandarin>" in report["text"]
    assert report["length"] % 4 == 1
    assert report["length"] > 75 + 25 * 1.5  # the second line begins at 3 s
    assert "two" not in report["negative"]
    assert "spoken as: Um fünfzehn Uhr dreißig, gut." in report["words"]
    assert '"我 们 三 点 见。"' in report["instruction"]


def test_typed_in_the_editor_it_is_the_same(report):
    assert report["typed"] is True
    assert report["route"] == [200, True, report["length"], False]


def test_a_clip_counts_tokens_exactly(report):
    tokens, count = report["exact"]
    assert tokens == {"count": count, "limit": 640, "exact": True}


def test_text_encode_gives_what_the_stock_node_gives_and_says_what_is_cut(report):
    assert report["encoded"] == 0
    told, short, long, empty = report["told"]
    assert "tokens, and 640 are read. Cut off at the end: " in told  # the tiny vocabulary spells most words
    assert told.endswith("<rain>")
    assert "of 640 tokens; all are read" in short
    assert "Cut off at the end" in long
    assert long.rstrip().endswith("the very end")
    assert "default negative" in empty


def test_subtitles_have_the_words_that_were_typed(report):
    assert report["srt"].startswith("1\n00:00:00,300 --> ")
    assert "我们3点见。" in report["srt"]
    assert "2\n00:00:03,000 --> " in report["srt"]
    assert report["vtt"].startswith("WEBVTT\n")
    assert "00:00:03.000 --> " in report["vtt"]


def test_the_scratch_voice_is_as_long_as_the_film(report):
    shape, rate, peak = report["voice"]
    assert (shape, rate) == ([1, 1, report["length"] * 1764], 44100)
    assert peak == pytest.approx(0.5, abs=1e-3)
    assert report["silent before"] == 0
    assert report["spoken"].splitlines()[1].startswith("3.00–")


def test_an_enhanced_prompt_is_used_if_it_keeps_the_lines(report):
    assert report["enhanced"][:2] == [True, True]
    assert report["fallback"][0] is True
    assert "Line 2 came back changed" in report["fallback"][1]
    assert "Line 2 came back changed" in report["refused"]["stop"]


def test_the_doctor_corrects_and_tells(report):
    assert '"我 们 见"' in report["corrected"]
    assert report["corrected"].endswith("<No prominent background sound>")
    assert "Found:" in report["diagnosis"]
    assert "Changed:" in report["diagnosis"]


def test_a_film_is_measured(report):
    assert "[good] Picture: 50 frames, 2.00 s." in report["measured"]
    batch, height, width, channels = report["plot"]
    assert (batch, width, channels) == (1, 1280, 3)
    assert height > 300


def test_refusals_say_what_to_do(report):
    refused = report["refused"]
    assert "name: it is empty" in refused["empty name"]
    assert refused["empty line"].startswith("ConditioningError: The scene cannot be filmed as it is:\n- ")
    assert "the clip has 1.00 s" in refused["too long"]
    assert "not JSON" in refused["no json"]
    assert "HappyHorse Text Encoder Loader" in refused["other clip"]
    assert "connect HappyHorse Prompt's timeline" in refused["no timeline"]
    assert refused["two names"].startswith("GeometryError: 26 frames")
    automatic, right, wrong = report["lengths"]
    assert automatic is True
    assert right is True
    assert wrong == "length: 98 frames are not 4k+1; 97 and 101 are."


@pytest.fixture
def scene():
    return {
        "cast": [{"name": "A", "description": "young woman, red coat"}],
        "shots": [{"lines": [{"speaker": "A", "language": "Korean", "text": "내일 3시에 만나요."}]}],
    }


def test_the_route_answers_the_editor(comfy, scene):
    answer = comfy.post(PATH, {"scene": scene, "frames": 125})
    assert answer["error"] is None
    assert answer["frames"] == 125
    (line,) = answer["lines"]
    assert line["spoken"] == "내일 세 시에 만나요."
    assert line["spaced"] == "내 일 세 시 에 만 나 요."
    assert line["unit"] == "character"
    assert line["units"] == 8
    assert line["fast"] < line["natural"] < line["slow"]
    assert line["visemes"][-1] == [line["end"], "X"]
    assert answer["fill"]["level"] == "under"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "400.*not JSON"),
        (b"[]", "400.*must be an object"),
        (b'{"scene": {}, "frames": 6}', "400.*4k\\+1"),
        (b'{"scene": {"tone": 1}}', "400.*tone"),
        (b'{"scene": {"mood": "' + b"x" * 1_000_000 + b'"}}', "413.*1,000,000 bytes"),
    ],
)
def test_the_route_refuses_what_it_cannot_read(comfy, body, words):
    with pytest.raises(RuntimeError, match=words):
        comfy.read(PATH, body)


def test_a_language_that_is_not_spoken_is_named(comfy, scene):
    scene["shots"][0]["lines"][0]["language"] = "Italian"
    with pytest.raises(RuntimeError, match=r"400.*does not speak 'Italian'"):
        comfy.read(PATH, json.dumps({"scene": scene}).encode())
