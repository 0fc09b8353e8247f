"""The example workflows and the blueprint, as files: whole, in step with the nodes, and with no invented link."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from comfyui_happyhorse.conditioning.dialogue.languages import LANGUAGES
from comfyui_happyhorse.conditioning.dialogue.review import described, review
from comfyui_happyhorse.conditioning.dialogue.scene_json import from_text

ROOT = Path(__file__).resolve().parent.parent.parent
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
EXPECTED = {
    "text_to_film",
    "text_to_film_base",
    "picture_to_film",
    "voice_to_film",
    "text_to_film_1080p",
    "image_model_to_film",
    "several_seeds",
    "dialogue_mandarin",
    "dialogue_cantonese",
    "dialogue_english",
    "dialogue_japanese",
    "dialogue_korean",
    "dialogue_french",
    "dialogue_german",
    "dialogue_two_languages",
}
STOCK = {
    "CLIPTextEncode",
    "CheckpointLoaderSimple",
    "CreateVideo",
    "EmptyLatentImage",
    "KSampler",
    "LoadAudio",
    "LoadImage",
    "PreviewImage",
    "VAEDecode",
    "VAELoader",
}
NOTES = {"MarkdownNote", "Note"}
HUB = "https://huggingface.co"
MERGES = f"{HUB}/smthem/daVinci-MagiHuman-custom-comfyUI/resolve/main"
# Known from model cards; none was opened. A download that asks for a licence first is a note, not a link.
DOWNLOADS = {
    f"{MERGES}/distill-merger_bf16.safetensors": "diffusion_models",
    f"{MERGES}/540p_sr_merge_bf16.safetensors": "diffusion_models",
    f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/vae/wan2.2_vae.safetensors": "vae",
}
PAGES = {
    f"{HUB}/GAIR/daVinci-MagiHuman",
    f"{HUB}/DeepBeepMeep/MagiHuman",
    f"{HUB}/google/t5gemma-9b-9b-ul2",
    f"{HUB}/stabilityai/stable-audio-open-1.0",
}
FILES = {
    "model_name",
    "text_encoder_name",
    "decoder_name",
    "vae_name",
    "ckpt_name",
}  # widgets that name a file
FIELDS = ("appearance", "setting", "framing", "action", "lighting", "mood", "sound")
PAGE_ONLY = {"control_after_generate", "upload", "audioUI"}  # widgets that are not posted
CJK = "[぀-ヿ一-鿿가-힣]"


def read(path: str) -> dict:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def blueprint() -> dict:
    return read("subgraphs/happyhorse_text_to_film.json")


@pytest.fixture(params=WORKFLOWS)
def name(request) -> str:
    return request.param


@pytest.fixture
def workflow(name) -> dict:
    return read(f"workflows/{name}.json")


@pytest.fixture
def prompt(name) -> dict:
    """The workflow as it is posted."""
    return read(f"workflows/api/{name}.json")


def test_every_workflow_is_there_in_both_forms():
    assert set(WORKFLOWS) == EXPECTED
    assert {path.stem for path in (ROOT / "workflows/api").glob("*.json")} == EXPECTED


def test_the_format_is_the_page_s(workflow):
    assert workflow["version"] == 0.4
    assert workflow["groups"]
    assert len({node["id"] for node in workflow["nodes"]}) == len(workflow["nodes"])
    assert workflow["last_node_id"] >= max(node["id"] for node in workflow["nodes"])
    assert workflow["last_link_id"] >= max(link[0] for link in workflow["links"])


def test_links_join_slots_of_one_type(workflow):
    check_links(workflow["nodes"], workflow["links"])


def check_links(nodes: list[dict], links: list[list], outside: tuple[int, ...] = ()):
    """Every link is known to both of its ends, and every end to its link; ``outside`` are a subgraph's borders."""
    by_id = {node["id"]: node for node in nodes}
    for number, origin, from_slot, target, to_slot, kind in links:
        if origin not in outside:
            output = by_id[origin]["outputs"][from_slot]
            assert number in output["links"]
            assert output["type"] == kind
        if target not in outside:
            entry = by_id[target]["inputs"][to_slot]
            assert entry["link"] == number
            assert entry["type"] == kind
    known = {link[0] for link in links}
    for node in nodes:
        ends = [entry["link"] for entry in node["inputs"] if entry["link"] is not None]
        ends += [number for output in node["outputs"] for number in output["links"] or ()]
        assert known.issuperset(ends), f"{node['type']} {node['id']} has a link that is none"


def test_nodes_are_ours_or_stock_ones(workflow, nodes):
    assert {node["type"] for node in workflow["nodes"]} <= nodes.keys() | STOCK | NOTES


def test_slots_and_widgets_are_the_nodes_own(workflow, nodes):
    check_slots(workflow["nodes"], nodes)


def check_slots(placed: list[dict], nodes):
    for node in placed:
        if node["type"] not in nodes:
            continue
        schema = nodes[node["type"]]
        for entry in node["inputs"]:
            name = entry["name"].partition(".")[0]
            assert name in schema.inputs, f"{node['type']} has no {name}"
            if name == entry["name"]:  # else a socket of a growing list
                assert entry["type"] == schema.inputs[name].type
        assert [output["type"] for output in node["outputs"]] == schema.outputs
        order = []
        for name, entry in schema.inputs.items():
            order += [name] * entry.is_widget + ["control_after_generate"] * entry.has_control
        named = node.get("widgets_values_named", {})
        assert node.get("widgets_values", []) == [named[name] for name in order], node["type"]


def test_both_forms_say_the_same(workflow, prompt):
    placed = {str(node["id"]): node for node in workflow["nodes"] if node["type"] not in NOTES}
    assert prompt.keys() == placed.keys()
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    for number, node in placed.items():
        assert prompt[number]["class_type"] == node["type"]
        linked = {
            entry["name"]: links[entry["link"]] for entry in node["inputs"] if entry["link"] is not None
        }
        values = {
            name: value
            for name, value in node.get("widgets_values_named", {}).items()
            if name not in PAGE_ONLY
        }
        assert prompt[number]["inputs"] == values | linked


def test_downloads_are_the_known_ones(workflow):
    check_downloads(workflow["nodes"])


def check_downloads(nodes: list[dict]):
    for node in nodes:
        for model in node["properties"].get("models", []):
            assert DOWNLOADS.get(model["url"]) == model["directory"]
            assert model["url"].endswith(f"/{model['name']}")
            assert model["name"] in node["widgets_values"]


def test_notes_name_every_file_and_link_known_pages_only(workflow):
    text = "\n".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in NOTES)
    for node in workflow["nodes"]:
        for widget, value in node.get("widgets_values_named", {}).items():
            if widget in FILES:
                assert value.removesuffix(".safetensors") in text, f"no note says where {value} comes from"
    assert set(re.findall(r"https?://[^)\s]+", text)) <= DOWNLOADS.keys() | PAGES


def test_prompts_have_the_reference_s_form(prompt):
    texts = [node["inputs"]["text"] for node in prompt.values() if node["class_type"] == "CLIPTextEncode"]
    texts += [
        composed(node["inputs"]) for node in prompt.values() if node["class_type"] == "HappyHorsePrompt"
    ]
    (film,) = (text for text in texts if "Dialogue:" in text)
    check_prompt(film)


def composed(inputs: dict) -> str:
    """What HappyHorse Prompt writes; nothing is to be complained of, but that two people need a medium shot."""
    fields = {name: inputs[name] for name in FIELDS}
    found = review(described(from_text(inputs["scene"]), **fields), frames=inputs["length"])
    complaints = [*found.findings, *(finding for line in found.lines for finding in line.findings)]
    assert {finding.code for finding in complaints} <= {"small-faces"}
    return found.prompt


def test_a_workflow_for_every_language():
    spoken = {}
    for name in WORKFLOWS:
        for node in read(f"workflows/api/{name}.json").values():
            if node["class_type"] == "HappyHorsePrompt":
                scene = from_text(node["inputs"]["scene"])
                spoken[name] = {line.language for line in scene.lines}
    assert spoken == {f"dialogue_{language.lower()}": {language} for language in LANGUAGES} | {
        "dialogue_two_languages": {"English", "Japanese"}
    }


def check_prompt(film: str):
    body, dialogue, sound = film.split("\n\n")
    words = [word for word in body.split() if re.search("[a-zA-ZÀ-ÿ]", word)]
    assert 150 <= len(words) <= 200
    rows = dialogue.removeprefix("Dialogue:\n").splitlines()
    for row in rows:
        said = re.fullmatch(r'<[^<>]+, \w+>: "([^"\n]+)"', row)[1]
        assert film.count(f'"{said}"') == 2
        if re.search(CJK, said):
            assert not any(re.match(CJK, one) and re.match(CJK, two) for one, two in pairwise(said))
    assert rows
    assert re.fullmatch(r"Background Sound:\n<[^<>]+>", sound)


def test_groups_do_not_overlap_and_nodes_neither(workflow):
    check_apart([group["bounding"] for group in workflow["groups"]], "groups")
    check_apart([[*node["pos"], *node["size"]] for node in workflow["nodes"]], "nodes")


def check_apart(boxes: list[list[float]], what: str):
    for number, (x, y, width, height) in enumerate(boxes):
        for left, top, wide, high in boxes[number + 1 :]:
            apart = x + width <= left or left + wide <= x or y + height <= top or top + high <= y
            assert apart, f"two {what} overlap at {left:.0f}, {top:.0f}"


def test_thumbnails_are_small_jpegs(name):
    with Image.open(ROOT / f"workflows/{name}.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.width <= 400


def test_the_blueprint_is_one_node_with_its_inside(nodes):
    whole = blueprint()
    (node,) = whole["nodes"]
    (inside,) = whole["definitions"]["subgraphs"]
    assert node["type"] == inside["id"]
    assert {part["type"] for part in inside["nodes"]} <= nodes.keys() | STOCK
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [[link[key] for key in keys] for link in inside["links"]]
    check_links(inside["nodes"], links, outside=(inside["inputNode"]["id"], inside["outputNode"]["id"]))
    check_slots(inside["nodes"], nodes)
    check_downloads(inside["nodes"])
    assert [entry["name"] for entry in node["inputs"]] == [entry["name"] for entry in inside["inputs"]]
    check_prompt(node["widgets_values"][0])
