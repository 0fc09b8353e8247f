"""The dialogue editor in ComfyUI's page, asked and answered by the real rules, in both node renderers.

``HAPPYHORSE_PICTURES`` names a folder that keeps screenshots.
"""

import json
import os
from pathlib import Path

import pytest

BOTH = pytest.mark.parametrize("vue_nodes", [False, True], ids=["classic", "vue"])
# A line in each language, the same a little longer, and a language that it is not.
TALK = {
    "Mandarin": ("我从来没想过", "我们还能再看到大海。", "Japanese"),
    "Cantonese": ("我從來冇諗過", "我哋仲可以再見到大海。", "Korean"),
    "English": ("I never thought", " we would see the ocean again.", "Mandarin"),
    "Japanese": ("もう一度", "海が見られるとは思いませんでした。", "German"),
    "Korean": ("다시 바다를", " 보게 될 줄은 정말 몰랐어요.", "French"),
    "French": ("Je n'aurais jamais", " cru revoir la mer un jour.", "Korean"),
    "German": ("Ich hätte nie gedacht,", " dass wir das Meer noch einmal sehen.", "Cantonese"),
}
CAST = [
    {"name": "Anna", "description": "young woman, red coat", "side": "left", "voice": "low and warm"},
    {"name": "Ben", "description": "old fisherman, grey beard", "side": "right", "voice": "hoarse"},
]
SCENE_TEXT = "() => app.graph.nodes.find(node => node.type === 'HappyHorsePrompt').widgets[0].value"
SHOWN = """() => [...document.querySelectorAll(".hh-line")].map(row => [
    row.querySelector("textarea").value,
    ...[...row.querySelectorAll("select, input")].map(field => field.value),
    ...["left", "width"].map(name => row.querySelector(".hh-bar").style[name]),
    ...[...row.querySelectorAll(".hh-measure, .hh-said, .hh-finding")].map(part => part.textContent),
])"""


def graph(nodes, links=()):
    return {
        "version": 0.4,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": list(links),
        "groups": [],
        "config": {},
        "extra": {"ds": {"scale": 1, "offset": [0, 0]}},
    }


def node(number, kind, values, inputs=(), outputs=(), pos=(480, 120), size=(600, 760)):
    return {
        "id": number,
        "type": kind,
        "pos": list(pos),
        "size": list(size),
        "flags": {},
        "order": number,
        "mode": 0,
        "inputs": [{"name": name, "type": kind, "link": link} for name, kind, link in inputs],
        "outputs": [{"name": name, "type": kind, "links": links} for name, kind, links in outputs],
        "properties": {},
        "widgets_values": values,
    }


def prompt_values(scene) -> list:
    text = json.dumps({"version": 1, "frames": 0, "scene": scene}) if scene else ""
    return [text, "", "a pier at dusk", "medium close-up", "", "", "", "", 0]


def settle(tab):
    """Wait until nothing is asked any more and the answer is drawn."""
    tab.wait_for_load_state("networkidle")
    tab.wait_for_timeout(300)


def findings(row) -> str:
    return " ".join(row.locator(".hh-finding").all_inner_texts())


def keep(page, name, vue_nodes):
    if folder := os.environ.get("HAPPYHORSE_PICTURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(Path(folder) / f"dialogue_{name}_{'vue' if vue_nodes else 'classic'}.png")


@BOTH
def test_a_line_in_each_language_moves_its_bar_and_its_warning(page, vue_nodes):
    page.open(vue_nodes)
    scene = {"cast": CAST, "shots": [{"action": "", "lines": []}]}
    page.load(graph([node(1, "HappyHorsePrompt", prompt_values(scene))]))
    tab = page.tab
    tab.get_by_role("button", name="Line", exact=True).click()
    row, area = tab.locator(".hh-line"), tab.locator(".hh-line textarea")
    for language, (beginning, rest, other) in TALK.items():
        row.locator("[data-field=language]").select_option(language)
        area.fill("")
        area.press_sequentially(beginning, delay=15)
        settle(tab)
        assert "not written in" not in findings(row), language
        before = row.locator(".hh-measure").inner_text()
        area.press("End")
        area.press_sequentially(rest, delay=15)
        settle(tab)
        after = row.locator(".hh-measure").inner_text()
        assert float(after.split(" ")[0]) > float(before.split(" ")[0]) > 0, language
        right = findings(row)
        row.locator("[data-field=language]").select_option(other)
        settle(tab)
        wrong = findings(row)
        assert wrong != right, f"{language} under {other}: {wrong}"
        assert other in wrong or language in wrong
    assert tab.locator(".hh-complaint").is_hidden()


@BOTH
def test_ordered_by_keys_saved_and_loaded_in_a_new_page_it_is_the_same(page, vue_nodes):
    page.open(vue_nodes)
    scene = {"cast": CAST, "shots": [{"action": "", "lines": []}]}
    page.load(graph([node(1, "HappyHorsePrompt", prompt_values(scene))]))
    tab, press = page.tab, page.tab.keyboard.press
    tab.get_by_role("button", name="Line", exact=True).click()
    for language, (beginning, rest, _) in TALK.items():
        tab.keyboard.insert_text(beginning + rest)
        tab.locator(".hh-line:focus-within [data-field=language]").select_option(language)
        tab.locator(".hh-line textarea").last.focus()
        press("Enter")
    tab.keyboard.insert_text("On 3 May 2026 at 15:30, for $20, 5%!")
    tab.locator(".hh-line [data-field=language]").last.select_option("English")
    tab.locator(".hh-line textarea").last.focus()
    for _ in range(6):
        press("Alt+ArrowUp")
    settle(tab)
    order = [row[0] for row in tab.evaluate(SHOWN)]
    assert order[1].startswith("On 3 May")
    assert len(order) == 8
    shown, text, prompt = tab.evaluate(SHOWN), tab.evaluate(SCENE_TEXT), page.prompt()
    saved = tab.evaluate("() => app.graph.serialize()")
    keep(page, "languages", vue_nodes)
    page.open(vue_nodes)
    page.load(saved)
    tab.locator(".hh-line").first.wait_for()
    settle(tab)
    assert tab.evaluate(SCENE_TEXT) == text
    assert tab.evaluate(SHOWN) == shown
    assert page.prompt() == prompt


@BOTH
def test_a_run_with_lines_from_nodes_is_shown(page, comfy, vue_nodes):
    page.open(vue_nodes)
    mark = f"Guten Morgen, {'Vue' if vue_nodes else 'Welt'}."  # else the second run is the first one's result
    speaker = node(
        1,
        "HappyHorseSpeaker",
        ["Anna", "young woman, red coat", "any", ""],
        outputs=[("speaker", "HAPPYHORSE_SPEAKER", [1])],
        pos=(40, 120),
        size=(380, 200),
    )
    line = node(
        2,
        "HappyHorseDialogueLine",
        ["German", mark, "", "natural", -1, -1, True],
        inputs=[("speaker", "HAPPYHORSE_SPEAKER", 1), ("lines", "HAPPYHORSE_LINES", None)],
        outputs=[("lines", "HAPPYHORSE_LINES", [2])],
        pos=(40, 400),
        size=(380, 320),
    )
    prompt = node(
        3,
        "HappyHorsePrompt",
        prompt_values(None),
        inputs=[("lines", "HAPPYHORSE_LINES", 2), ("clip", "CLIP", None)],
        outputs=[("prompt", "STRING", [3])],
    )
    shown = node(4, "PreviewAny", [], inputs=[("source", "*", 3)], pos=(1140, 120), size=(300, 300))
    links = [
        [1, 1, 0, 2, 0, "HAPPYHORSE_SPEAKER"],
        [2, 2, 0, 3, 0, "HAPPYHORSE_LINES"],
        [3, 3, 0, 4, 0, "STRING"],
    ]
    page.load(graph([speaker, line, prompt, shown], links))
    assert page.red_nodes() == []
    assert "connected nodes" in page.tab.locator(".hh-linked p").inner_text()
    entry = comfy.finish(page.queue())
    assert entry["status"]["status_str"] == "success"
    said = page.tab.locator(".hh-linked li")
    said.wait_for(timeout=10_000)
    assert mark in said.inner_text()
    assert page.tab.locator(".hh-block").count() == 1
    page.tab.locator("summary").click()
    (text,) = entry["outputs"]["4"]["text"]
    assert page.tab.locator(".hh-text").evaluate("each => each.textContent") == text
    keep(page, "linked", vue_nodes)
