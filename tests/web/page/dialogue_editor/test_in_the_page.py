"""The dialogue editor in the page that users have: its value, its place, and what is ComfyUI's and what is its own."""

import json

import pytest

EXECUTED = "output => app.graph.getNodeById(1).onExecuted(output)"
LINK = """() => {
    const source = LiteGraph.createNode("HappyHorseDialogueLine");
    source.pos = [-400, 0];
    app.graph.add(source);
    const node = app.graph.getNodeById(1);
    source.connect(0, node, node.inputs.findIndex(input => input.name === "lines"));
}"""
UNLINK = """() => {
    const node = app.graph.getNodeById(1);
    node.disconnectInput(node.inputs.findIndex(input => input.name === "lines"));
}"""
# How much an element's text stands out from the editor's ground, as WCAG counts it; a canvas resolves mixed colours.
CONTRAST = """element => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const luminance = (...layers) => {
        for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(
            value => value / 255 <= 0.03928 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = getComputedStyle(element.closest(".hh-editor")).backgroundColor;
    const [ground, ink] = [luminance(paper), luminance(paper, getComputedStyle(element).color)];
    return (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
}"""


def test_the_editor_stands_in_the_place_of_the_text(editor):
    assert editor.page.tab.locator(".hh-editor").count() == 1
    assert editor.texts() == ["The sea again.", "Seit 27 Jahren!!"]
    assert editor.page.prompt()["1"]["inputs"]["scene"] == json.dumps(
        editor.talk
    )  # as it was, until it is changed
    assert editor.page.values()["1"]["setting"] == "a pier"
    assert editor.page.complaints() == []


def test_the_route_is_asked_with_what_the_node_says_around_the_scene(editor):
    asked = editor.asked[-1]
    assert asked["frames"] == 0
    assert asked["scene"]["setting"] == "a pier"
    assert asked["scene"]["cast"] == editor.talk["scene"]["cast"]
    assert [shot["framing"] for shot in asked["scene"]["shots"]] == ["close-up"]
    assert asked["scene"]["shots"][0]["lines"] == editor.talk["scene"]["shots"][0]["lines"]
    editor.tab.evaluate(
        f"() => {{ const w = {editor.node}.widgets.find(w => w.name === 'length'); w.value = 101; w.callback(101); }}"
    )
    editor.settle()
    assert editor.asked[-1]["frames"] == 101
    assert "101" in editor.root.locator(".hh-length").inner_text()


def test_no_key_reaches_the_canvas(editor):
    """Each of these would do something to the selected node: delete, copy, mute, collapse, group."""
    before = editor.tab.evaluate("() => app.graph.serialize().nodes.map(n => [n.id, n.mode, n.flags])")
    zoom = editor.tab.evaluate("() => app.canvas.ds.scale")
    editor.tab.evaluate(f"() => app.canvas.selectNode({editor.node})")
    for target in (editor.areas.nth(0), editor.field(0, "pace"), editor.root.locator(".hh-icon").first):
        target.focus()
        for key in ("Delete", "Control+m", "Control+b", "Alt+c", "Control+g", "r", "Alt+=", "Control+c", "p"):
            editor.tab.keyboard.press(key)
    editor.tab.wait_for_timeout(100)
    assert (
        editor.tab.evaluate("() => app.graph.serialize().nodes.map(n => [n.id, n.mode, n.flags])") == before
    )
    assert editor.tab.evaluate("() => app.canvas.ds.scale") == zoom


def test_run_still_has_its_key(editor):
    editor.tab.evaluate("() => { window.ran = 0; app.queuePrompt = async () => { window.ran += 1; }; }")
    editor.areas.nth(0).focus()
    editor.tab.keyboard.press("Control+Enter")
    editor.tab.wait_for_timeout(200)
    assert editor.tab.evaluate("() => window.ran") == 1
    assert len(editor.texts()) == 2


def test_saved_and_loaded_again_it_is_the_same(editor):
    editor.areas.nth(0).fill("Ein “Zitat” – und 27 Möwen \\ {x}")
    editor.tab.keyboard.press("Enter")
    editor.tab.keyboard.insert_text("海が見たい。")
    editor.field(1, "language").select_option("Japanese")
    editor.field(1, "start").fill("4,5")
    editor.field(1, "pause").fill("0.25")
    editor.field(1, "delivery").fill("whispers")
    editor.field(1, "pace").select_option("very fast")
    editor.root.get_by_role("button", name="Shot", exact=True).click()
    editor.root.locator(".hh-shot input").nth(1).fill("Gulls cry.")
    editor.settle()
    rows, prompt = editor.texts(), editor.page.prompt()
    marks = editor.root.locator("mark, .hh-measure").all_inner_texts()
    saved = editor.tab.evaluate("() => app.graph.serialize()")
    assert editor.lines()[1] == editor.line(
        "Ben", "Japanese", "海が見たい。", start=4.5, pause=0.25, delivery="whispers", pace="very fast"
    ) | {"speaker": editor.lines()[1]["speaker"]}
    editor.open("")
    editor.page.load(saved)
    editor.settle()
    assert editor.texts() == rows
    assert editor.page.prompt() == prompt
    assert editor.root.locator("mark, .hh-measure").all_inner_texts() == marks
    assert editor.field(1, "start").input_value() == "4.5"
    assert editor.tab.evaluate("() => app.graph.serialize()")["nodes"] == saved["nodes"]


def test_comfyui_s_undo_brings_the_earlier_scene_back(editor):
    editor.areas.nth(0).click()
    editor.tab.keyboard.press("Control+a")
    editor.tab.keyboard.type("Gone.")
    editor.tab.keyboard.press("Escape")
    editor.tab.mouse.click(300, 700)  # the canvas
    editor.tab.wait_for_timeout(100)
    assert editor.texts()[0] == "Gone."
    editor.tab.keyboard.press("Control+z")
    editor.tab.wait_for_function(f"() => {editor.node}.widgets[0].value.includes('The sea again.')")
    editor.settle()
    assert editor.texts()[0] == "The sea again."
    editor.tab.keyboard.press("Control+y")
    editor.tab.wait_for_function(f"() => {editor.node}.widgets[0].value.includes('Gone.')")


def test_a_step_made_by_keys_alone_is_a_step_of_comfyui_s(editor):
    editor.areas.nth(1).focus()
    editor.tab.keyboard.press("Enter")
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    known = editor.tab.evaluate(f"() => {tracker}.activeState.nodes[0].widgets_values[0]")
    assert known == editor.tab.evaluate(f"() => {editor.node}.widgets[0].value")
    assert len(json.loads(known)["scene"]["shots"][0]["lines"]) == 3
    editor.tab.locator("#graph-canvas").focus()
    editor.tab.keyboard.press("Control+z")
    editor.tab.wait_for_function("() => document.querySelectorAll('.hh-line').length === 2")
    assert editor.texts() == ["The sea again.", "Seit 27 Jahren!!"]


def test_two_editors_do_not_know_of_each_other(editor):
    editor.tab.evaluate(f"""() => {{
        const copy = {editor.node}.clone();
        copy.pos = [-700, 120];
        app.graph.add(copy);
    }}""")
    editor.tab.wait_for_function("() => document.querySelectorAll('.hh-editor').length === 2")
    values = (
        "() => app.graph.nodes.map(node => JSON.parse(node.widgets[0].value).scene.shots[0].lines[0].text)"
    )
    assert editor.tab.evaluate(values) == ["The sea again."] * 2
    editor.areas.nth(0).fill("Only here.")
    assert sorted(editor.tab.evaluate(values)) == ["Only here.", "The sea again."]


def test_in_a_subgraph_it_keeps_its_scene(editor):
    editor.areas.nth(0).fill("Down below.")
    editor.tab.evaluate(f"() => {{ app.graph.convertToSubgraph(new Set([{editor.node}])); }}")
    editor.tab.wait_for_timeout(100)
    (inside,) = [node for node in editor.page.prompt().values() if node["class_type"] == "HappyHorsePrompt"]
    assert json.loads(inside["inputs"]["scene"])["scene"]["shots"][0]["lines"][0]["text"] == "Down below."
    editor.tab.evaluate("() => app.canvas.openSubgraph(app.graph.nodes[0].subgraph, app.graph.nodes[0])")
    editor.root.wait_for()
    editor.areas.nth(0).fill("Deeper.")
    editor.tab.evaluate("() => app.canvas.setGraph(app.rootGraph)")
    (inside,) = [node for node in editor.page.prompt().values() if node["class_type"] == "HappyHorsePrompt"]
    assert "Deeper." in inside["inputs"]["scene"]


def test_lines_from_other_nodes_take_the_place_of_one_s_own(editor):
    asked = len(editor.asked)
    editor.tab.evaluate(LINK)
    editor.settle()
    assert editor.root.locator(".hh-linked p").inner_text().startswith("Lines come from the connected nodes.")
    assert editor.areas.first.is_hidden()
    assert len(editor.asked) == asked
    review = editor.reviewed(
        {"scene": editor.document(editor.line("Zoë", "French", "Au revoir."))["scene"], "frames": 0}
    )
    editor.tab.evaluate(EXECUTED, {"review": [json.dumps(review)]})
    assert "Au revoir." in editor.root.locator(".hh-linked li").inner_text()
    assert editor.root.locator(".hh-block").count() == 1
    assert editor.page.values()["1"]["scene"] == json.dumps(editor.talk)
    editor.tab.evaluate(UNLINK)
    editor.settle()
    assert editor.root.locator(".hh-linked").is_hidden()
    assert editor.texts() == ["The sea again.", "Seit 27 Jahren!!"]
    assert editor.root.locator(".hh-block").count() == 2


def test_a_line_is_dragged_to_a_time_and_let_go_again(editor):
    block = editor.root.locator(".hh-block").nth(1)
    box, track = block.bounding_box(), editor.root.locator(".hh-track").bounding_box()
    said = editor.said
    editor.tab.mouse.move(box["x"] + 20, box["y"] + 8)
    editor.tab.mouse.down()
    editor.tab.mouse.move(box["x"] + 20 + track["width"] / said["seconds"], box["y"] + 8, steps=4)
    editor.tab.mouse.up()
    editor.settle()
    assert editor.lines()[1]["start"] == pytest.approx(said["lines"][1]["start"] + 1, abs=0.05)
    assert editor.tab.evaluate(f"() => {editor.node}.pos[0]") == 500  # not the node
    block.focus()
    editor.tab.keyboard.press("ArrowLeft")
    editor.settle()
    assert editor.lines()[1]["start"] == pytest.approx(said["lines"][1]["start"] + 0.9, abs=0.05)
    editor.tab.keyboard.press("Delete")
    editor.settle()
    assert editor.lines()[1]["start"] is None


def test_the_wheel_scrolls_the_lines_and_not_the_canvas(editor):
    editor.open(editor.document(*(editor.line("Anna", "English", f"Line {n}.") for n in range(30))))
    editor.areas.nth(0).click()  # Vue nodes leave the wheel to the canvas until then
    box = editor.root.locator(".hh-scroll").bounding_box()
    scale = editor.tab.evaluate("() => app.canvas.ds.scale")
    editor.tab.mouse.move(box["x"] + 200, box["y"] + 100)
    editor.tab.mouse.wheel(0, 300)
    editor.tab.wait_for_timeout(200)
    assert editor.root.locator(".hh-scroll").evaluate("each => each.scrollTop") == 300
    assert editor.tab.evaluate("() => app.canvas.ds.scale") == scale
    editor.tab.keyboard.down("Control")
    editor.tab.mouse.wheel(0, 100)
    editor.tab.keyboard.up("Control")
    editor.tab.wait_for_timeout(200)
    assert editor.tab.evaluate("() => app.canvas.ds.scale") < scale


def test_what_is_no_scene_is_told_of_and_kept(editor):
    editor.open("Anna: hello")
    assert "This is no scene" in editor.root.get_by_role("alert").inner_text()
    assert editor.page.values()["1"]["scene"] == "Anna: hello"
    assert editor.page.prompt()["1"]["inputs"]["scene"] == "Anna: hello"
    editor.root.get_by_role("button", name="start anew").click()
    assert editor.page.values()["1"]["scene"] == ""
    assert editor.root.get_by_role("button", name="Line", exact=True).is_visible()


def test_it_speaks_the_user_s_language(open_editor):
    editor = open_editor({"Comfy.Locale": "fr"})
    assert editor.field(1, "language").locator("option:checked").inner_text() == "Allemand"
    assert editor.root.locator(".hh-measure").first.inner_text() == "1,4 s · 14 syllabes"
    assert editor.root.locator(".hh-word").nth(1).inner_text() == "environ 320 / 640"


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_it_can_be_read_in_light_and_dark(open_editor, palette):
    editor = open_editor({"Comfy.ColorPalette": palette})
    is_dark = editor.tab.evaluate("() => document.querySelector('.dark-theme') !== null")
    assert is_dark is (palette == "dark")
    least = {".hh-line textarea": 7, ".hh-said >> nth=1": 4, ".hh-who >> nth=0": 3, ".hh-who >> nth=1": 3}
    least |= {".hh-finding >> nth=0": 7, ".hh-measure >> nth=0": 4, ".hh-word >> nth=0": 3, ".hh-length": 4}
    for selector, ratio in least.items():
        assert editor.root.locator(selector).first.evaluate(CONTRAST) >= ratio, selector
