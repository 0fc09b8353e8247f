"""Help pages and translations: one for every node, with a word for every input."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LANGUAGES = ["en", "zh", "ja", "ko", "fr", "de"]


@pytest.fixture(params=LANGUAGES)
def language(request) -> str:
    return request.param


@pytest.fixture
def words(language) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def test_every_node_has_a_help_page_and_no_page_is_left_over(nodes):
    assert {path.stem for path in (ROOT / "web/docs").glob("*.md")} == nodes.keys()


def test_help_pages_tell_of_every_input_and_of_what_goes_wrong(nodes):
    for name, schema in nodes.items():
        page = (ROOT / f"web/docs/{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {schema.display_name}\n")
        missing = [entry for entry in schema.inputs if f"**{entry}**" not in page]
        assert not missing, f"the page of {name} does not mention {missing}"
        for heading in ("## Inputs", "## Outputs", "## When it goes wrong"):
            assert f"\n{heading}\n" in page, f"the page of {name} has no {heading}"


def test_every_language_has_a_word_for_everything(nodes, words):
    assert words.keys() == nodes.keys()
    for name, schema in nodes.items():
        entry = words[name]
        assert entry["display_name"].startswith("HappyHorse ")
        assert entry["description"]
        assert entry["inputs"].keys() == schema.inputs.keys()
        assert all(each["name"] and each["tooltip"] for each in entry["inputs"].values())
        assert list(entry["outputs"]) == [str(slot) for slot in range(len(schema.outputs))]


def test_english_is_what_the_nodes_say(nodes):
    words = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    for name, schema in nodes.items():
        entry = words[name]
        assert (entry["display_name"], entry["description"]) == (schema.display_name, schema.description)
        for key, said in schema.inputs.items():
            assert entry["inputs"][key]["name"] == key
            if said.tooltip is not None:
                assert entry["inputs"][key]["tooltip"] == said.tooltip


def test_other_languages_are_translated(language, words):
    if language == "en":
        return
    english = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    for name, entry in words.items():
        assert entry["description"] != english[name]["description"]
        for key, said in entry["inputs"].items():
            assert said["tooltip"] != english[name]["inputs"][key]["tooltip"], f"{language}: {name}.{key}"
            for number in re.findall(r"\d{2,}", english[name]["inputs"][key]["tooltip"]):
                assert number in said["tooltip"], f"{language}: {name}.{key} does not say {number}"
