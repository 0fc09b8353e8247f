"""Films saved by HappyHorseMux in the page: played in the node, and dropped back onto the canvas."""

import pytest

PROMPT = "{a horse} says: \"}{\" and 'neigh' :-{"  # braces end a JSON tag early where it is read carelessly
BOTH = pytest.mark.parametrize("vue_nodes", [False, True], ids=["classic", "vue"])


def workflow(prefix, film_format):
    """UI workflow: ten frames of one colour into the mux, with a note beside it."""
    frames = {
        "id": 1,
        "type": "EmptyImage",
        "pos": [100, 100],
        "size": [300, 150],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
        "properties": {},
        "widgets_values": [96, 64, 10, 0xFF8000],
    }
    mux = {
        "id": 2,
        "type": "HappyHorseMux",
        "pos": [500, 100],
        "size": [380, 420],
        "flags": {},
        "order": 1,
        "mode": 0,
        "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
        "outputs": [
            {"name": "VIDEO", "type": "VIDEO", "links": []},
            {"name": "path", "type": "STRING", "links": []},
        ],
        "properties": {},
        "widgets_values": [prefix, film_format, 25, 80, "8", "off", "exact", ""],
    }
    note = {
        "id": 3,
        "type": "Note",
        "pos": [100, 350],
        "size": [300, 100],
        "flags": {},
        "order": 2,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [PROMPT],
    }
    return {
        "version": 0.4,
        "last_node_id": 3,
        "last_link_id": 1,
        "nodes": [frames, mux, note],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
        "groups": [],
        "config": {},
        "extra": {},
    }


@BOTH
@pytest.mark.parametrize("film_format", ["mp4-h264-aac", "webm-vp9-opus", "mkv-ffv1-flac"])
def test_the_film_plays_in_the_node(page, comfy, request, film_format, vue_nodes):
    page.open(vue_nodes)
    page.load(workflow(f"page/{request.node.name}".replace("[", "_").replace("]", ""), film_format))
    assert page.red_nodes() == []
    entry = comfy.finish(page.queue())
    assert entry["status"]["status_str"] == "success"
    film = page.film()
    assert (film["width"], film["height"]) == (96, 64)
    assert film["duration"] == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize(
    ("film_format", "kind"), [("mp4-h264-aac", "video/mp4"), ("webm-vp9-opus", "video/webm")]
)
def test_a_dropped_film_brings_its_workflow_back(page, comfy, film_format, kind):
    page.open()
    page.load(workflow(f"drop/{film_format}", film_format))
    prompt = page.prompt()
    (file,) = comfy.files(comfy.finish(page.queue()))
    page.drop(file["filename"], comfy.view(**file), kind)
    assert sorted(page.node_types()) == ["EmptyImage", "HappyHorseMux", "Note"]
    assert page.prompt() == prompt
    note = page.tab.evaluate("() => app.graph.nodes.find(node => node.type === 'Note').widgets[0].value")
    assert note == PROMPT
    assert page.red_nodes() == []
