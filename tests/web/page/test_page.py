"""The badge, the workflows and the translations in the page that users have, without a ComfyUI behind it."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent.parent
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
BADGE = "() => document.querySelector('.happyhorse-latent-badge')?.textContent"
LATENT = "app.graph.nodes.find(node => node.type === 'HappyHorseEmptyLatent')"
SET = f"""([name, value]) => {{
    const widget = {LATENT}.widgets.find(widget => widget.name === name);
    widget.value = value;
    widget.callback(value);
}}"""
LINK_LENGTH = f"""() => {{
    const node = {LATENT};
    const source = LiteGraph.createNode("PrimitiveInt");
    app.graph.add(source);
    source.connect(0, node, node.inputs.findIndex(input => input.name === "length"));
}}"""
UNLINK_LENGTH = f"""() => {{
    const node = {LATENT};
    node.disconnectInput(node.inputs.findIndex(input => input.name === "length"));
}}"""
# The arrow at the right of the number, where the canvas draws it.
LENGTH_ARROW = f"""() => {{
    const node = {LATENT}, widget = node.widgets.find(widget => widget.name === "length");
    const right = node.pos[0] + node.size[0];
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([right - 22, node.pos[1] + widget.y + 10]);
    const box = app.canvas.canvas.getBoundingClientRect();
    return [x + box.x, y + box.y];
}}"""
SPEAKS = f"""async ([workflow, title]) => {{
    await app.extensionManager.command.execute("Comfy.RefreshNodeDefinitions");
    await app.loadGraphData(workflow);
    return {LATENT}.constructor.title === title;
}}"""


def read(path: str) -> dict:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def test_the_page_starts_with_our_script_and_our_nodes(page, nodes):
    known = page.tab.evaluate("() => Object.keys(LiteGraph.registered_node_types)")
    assert nodes.keys() <= set(known)
    assert "HappyHorse.LatentBadge" in page.tab.evaluate("() => app.extensions.map(each => each.name)")
    assert page.complaints() == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_loads_as_it_was_written(page, nodes, name):
    workflow = read(f"workflows/{name}.json")
    page.load(workflow)
    assert page.red_nodes() == []
    drawn_by_vue = page.tab.locator("[data-node-id]").count()
    assert drawn_by_vue == (len(workflow["nodes"]) if page.vue_nodes else 0)
    values = page.values()
    for node in workflow["nodes"]:
        if node["type"] in nodes:
            assert values[str(node["id"])] == node.get("widgets_values_named", {}), node["type"]
    assert page.prompt() == read(f"workflows/api/{name}.json")
    assert page.complaints() == []


def test_the_badge_follows_the_latent(page):
    page.load(read("workflows/text_to_film.json"))
    assert page.tab.evaluate(BADGE) == "5.00 s · 448×256 · 3709 tokens"  # 32·8·14 + 125
    page.tab.evaluate(SET, ["length", 101])
    assert page.tab.evaluate(BADGE) == "4.04 s · 448×256 · 3013 tokens"  # 26·8·14 + 101
    page.tab.evaluate(SET, ["width", 256])
    page.tab.evaluate(SET, ["batch_size", 3])
    assert page.tab.evaluate(BADGE) == "4.04 s · 256×256 · 1765 tokens · 3 films"  # 26·8·8 + 101
    page.tab.evaluate(LINK_LENGTH)
    assert page.tab.evaluate(BADGE) == "? s · 256×256 · 3 films"
    page.tab.evaluate(UNLINK_LENGTH)
    assert page.tab.evaluate(BADGE) == "4.04 s · 256×256 · 1765 tokens · 3 films"
    # It is no value of the graph's.
    assert page.tab.evaluate(f"() => {LATENT}.serialize().widgets_values") == [256, 256, 101, 3]
    assert page.complaints() == []


def test_the_badge_follows_what_is_typed(page):
    page.load(read("workflows/text_to_film.json"))
    page.tab.evaluate(f"() => {{ app.canvas.ds.scale = 1; app.canvas.centerOnNode({LATENT}); }}")
    page.tab.wait_for_timeout(500)
    if page.vue_nodes:
        number = page.tab.evaluate(f"() => {LATENT}.id")
        page.tab.locator(f"[data-node-id='{number}'] input").nth(2).fill("53")
        page.tab.keyboard.press("Enter")
    else:
        page.tab.mouse.click(*page.tab.evaluate(LENGTH_ARROW))
    page.tab.wait_for_timeout(300)
    length = page.tab.evaluate(f"() => {LATENT}.widgets[2].value")
    assert length == 53 if page.vue_nodes else length > 125
    tokens = ((length - 1) // 4 + 1) * 8 * 14 + length
    assert page.tab.evaluate(BADGE) == f"{length / 25:.2f} s · 448×256 · {tokens} tokens"


def test_a_node_that_is_not_there_is_red(page):
    workflow = read("workflows/text_to_film.json")
    (latent,) = (node for node in workflow["nodes"] if node["type"] == "HappyHorseEmptyLatent")
    latent["type"] = "HappyHorseGone"
    page.load(workflow)
    assert page.red_nodes() == ["HappyHorseGone"]


def test_nodes_speak_the_user_s_language(open_page):
    page = open_page({"Comfy.Locale": "fr"})
    words = read("locales/fr/nodeDefs.json")["HappyHorseEmptyLatent"]
    # The page may take up our nodes before it has its own French, and then stays English until told again.
    page.tab.wait_for_function(SPEAKS, arg=[read("workflows/text_to_film.json"), words["display_name"]])
    labels = page.tab.evaluate(f"() => {LATENT}.inputs.map(input => [input.name, input.localized_name])")
    assert dict(labels) == {name: entry["name"] for name, entry in words["inputs"].items()}
