"""What ComfyUI serves the dialogue editor: its files, its node's inputs, and the route that it asks."""

import json
import re

import pytest

PATH = "/happyhorse/dialogue"
LINE = {"speaker": "Anna", "language": "German", "text": "Um 15:30 Uhr!"}
CAST = [{"name": "Anna", "description": "young woman, red coat"}]
SCENE = {"cast": CAST, "shots": [{"action": "", "lines": [LINE]}]}


def test_every_module_is_served(comfy, root):
    listed = comfy.get("/extensions")
    for file in (root / "web").rglob("*.js"):
        path = f"/extensions/ComfyUI-HappyHorse/{file.relative_to(root / 'web').as_posix()}"
        assert path in listed
        assert comfy.read(path) == file.read_bytes()
    style = "/extensions/ComfyUI-HappyHorse/dialogue_editor/editor.css"
    assert comfy.read(style).isascii()  # no word of its encoding is sent with it


def test_the_node_has_the_inputs_that_the_editor_looks_for(comfy, root):
    definition = comfy.get("/object_info/HappyHorsePrompt")["HappyHorsePrompt"]
    inputs = definition["input"]["required"] | definition["input"]["optional"]
    script = (root / "web/dialogue_editor.js").read_text(encoding="utf-8")
    names = re.findall(r'^const (?:SCENE|LINES|LENGTH) = "(\w+)"', script, re.MULTILINE)
    for row in re.findall(r"^const (?:FIELDS|FIRST) = (\[.*\]);", script, re.MULTILINE):
        names += json.loads(row)
    assert len(names) == 10
    assert set(names) <= inputs.keys()
    assert inputs["scene"][0] == "STRING"


def test_the_route_answers_all_that_the_editor_shows(comfy):
    answer = comfy.post(PATH, {"scene": SCENE, "frames": 101})
    keys = {
        "prompt",
        "negative",
        "frames",
        "seconds",
        "tokens",
        "fill",
        "lines",
        "findings",
        "report",
        "error",
    }
    assert keys <= answer.keys()
    assert (answer["frames"], answer["seconds"], answer["error"]) == (101, 4.04, None)
    assert answer["tokens"].keys() == {"count", "limit", "exact"}
    assert answer["fill"]["level"] in ("under", "good", "tight", "over")
    (line,) = answer["lines"]
    assert 0 < line["fast"] < line["natural"] < line["slow"]
    assert line["end"] == pytest.approx(line["start"] + line["natural"], abs=0.01)
    assert "fünfzehn" in line["spoken"]
    assert line["changes"][0].keys() == {"start", "before", "after", "reason"}
    assert all(len(pair) == 2 and pair[1] in "ABCDEFGHX" for pair in line["visemes"])
    for finding in (*line["findings"], *answer["findings"]):
        assert {"level", "code", "message", "start", "end", "fix"} <= finding.keys()


def test_what_the_route_refuses_it_says(comfy):
    with pytest.raises(RuntimeError, match=r"answered 400.*frames: 100 is not"):
        comfy.post(PATH, {"scene": SCENE, "frames": 100})
    with pytest.raises(RuntimeError, match=r"answered 413.*1,000,000 bytes"):
        comfy.post(PATH, {"scene": SCENE | {"mood": "x" * 1_000_001}, "frames": 0})
