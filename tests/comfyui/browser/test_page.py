"""The browser half of the harness, on a stock workflow: what is fine is not red, what is missing is."""

import pytest
from PIL import Image

WIDTH, HEIGHT, FRAMES, FPS = 96, 64, 10, 25
PROMPT = "{a horse} says: \"}{\" and 'neigh'"  # braces end a JSON tag early where it is read carelessly
BOTH = pytest.mark.parametrize("vue_nodes", [False, True], ids=["classic", "vue"])


def node(number, kind, inputs, outputs, values):
    return {
        "id": number,
        "type": kind,
        "pos": [340 * number, 100],
        "size": [300, 200],
        "flags": {},
        "order": number,
        "mode": 0,
        "inputs": [{"name": name, "type": kind, "link": link} for name, kind, link in inputs],
        "outputs": [{"name": name, "type": name, "links": links} for name, links in outputs],
        "properties": {},
        "widgets_values": values,
    }


@pytest.fixture
def workflow(request):
    """A UI workflow that saves ten frames of one colour as an MP4, with a note beside it."""
    prefix = request.node.name  # another for each test: ComfyUI answers an equal graph with the earlier file
    return {
        "version": 0.4,
        "last_node_id": 4,
        "last_link_id": 2,
        "nodes": [
            node(1, "EmptyImage", [], [("IMAGE", [1])], [WIDTH, HEIGHT, FRAMES, 0xFF8000]),
            node(
                2, "CreateVideo", [("images", "IMAGE", 1), ("audio", "AUDIO", None)], [("VIDEO", [2])], [FPS]
            ),
            node(3, "SaveVideo", [("video", "VIDEO", 2)], [], [prefix, "auto", "auto"]),
            node(4, "Note", [], [], [PROMPT]),
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "VIDEO"]],
        "groups": [],
        "config": {},
        "extra": {},
    }


@BOTH
def test_a_stock_workflow_runs_and_shows_its_film(page, comfy, workflow, vue_nodes, tmp_path):
    page.open(vue_nodes)
    page.load(workflow)
    assert page.red_nodes() == []
    drawn_by_vue = page.tab.locator("[data-node-id]").count()
    assert drawn_by_vue == (len(workflow["nodes"]) if vue_nodes else 0)
    prompt = page.prompt()
    assert (prompt["1"]["inputs"]["width"], prompt["3"]["inputs"]["video"]) == (WIDTH, ["2", 0])

    entry = comfy.finish(page.queue())
    assert entry["status"]["status_str"] == "success"
    film = page.film()
    assert (film["width"], film["height"]) == (WIDTH, HEIGHT)
    assert film["duration"] == pytest.approx(FRAMES / FPS, abs=1 / FPS)

    page.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50  # something is drawn


@BOTH
def test_what_is_missing_is_red(page, workflow, vue_nodes):
    page.open(vue_nodes)
    workflow["nodes"].append(node(5, "NoSuchNode", [], [], []))
    page.load(workflow)
    assert page.red_nodes() == ["NoSuchNode"]
    page.wait_for_complaint("NoSuchNode")

    workflow["nodes"][-1] = node(5, "VAELoader", [], [("VAE", [])], ["no_such_file.safetensors"])
    page.load(workflow)
    assert page.red_nodes() == ["VAELoader"]
    page.wait_for_complaint("no_such_file.safetensors")


def test_a_refused_prompt_raises(page, workflow):
    page.open()
    workflow["nodes"][1]["inputs"][0]["link"] = None
    workflow["links"] = workflow["links"][1:]
    page.load(workflow)
    with pytest.raises(RuntimeError, match="Required input is missing"):
        page.queue()
    assert "CreateVideo" in page.red_nodes()


def test_a_dropped_film_brings_its_workflow_back(page, comfy, workflow):
    page.open()
    page.load(workflow)
    prompt = page.prompt()
    (file,) = comfy.files(comfy.finish(page.queue()))
    page.drop("film.mp4", comfy.view(**file), "video/mp4")
    assert sorted(page.node_types()) == ["CreateVideo", "EmptyImage", "Note", "SaveVideo"]
    assert page.prompt() == prompt
    note = page.tab.evaluate("() => app.graph.nodes.find(node => node.type === 'Note').widgets[0].value")
    assert note == PROMPT
    assert page.red_nodes() == []


def test_a_film_from_the_api_comes_back_as_a_graph(page, comfy, workflow):
    page.open()
    page.load(workflow)
    (file,) = comfy.files(comfy.run(page.prompt()))
    page.drop("film.mp4", comfy.view(**file), "video/mp4")
    assert sorted(page.node_types()) == ["CreateVideo", "EmptyImage", "SaveVideo"]
