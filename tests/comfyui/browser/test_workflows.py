"""The example workflows, the blueprint and the latent's badge in ComfyUI's page, in both node renderers.

``HAPPYHORSE_PICTURES`` names a folder that keeps a screenshot of each workflow.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent.parent
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
BOTH = pytest.mark.parametrize("vue_nodes", [False, True], ids=["classic", "vue"])
# What the workflows name, so that nothing counts as missing; only those with a tiny stand-in are also run.
REAL_NAMES = {
    "diffusion_models/distill-merger_bf16.safetensors": "diffusion_models/happyhorse_tiny_distilled.safetensors",
    "text_encoders/t5gemma-9b-9b-ul2": "text_encoders/t5gemma_tiny",
    "vae/stable_audio_open_1.0.safetensors": "vae/oobleck_audio_tiny.safetensors",
    "vae/wan2.2_vae.safetensors": None,
    "vae/TurboV3-Wan22-TinyShallow_7_7.safetensors": None,
    "checkpoints/sd_xl_base_1.0.safetensors": None,
    "diffusion_models/daVinci-MagiHuman/base/model.safetensors.index.json": None,
    "diffusion_models/daVinci-MagiHuman/1080p_sr/model.safetensors.index.json": None,
}
PICTURES = {"LiteGraph.Canvas.MinFontSizeForLOD": 0, "Comfy.Minimap.Visible": False}
LARGE = {"width": 2400, "height": 1300}
# Moves the graph beside the page's own bars, as large as it fits; returns where it is, for a clipped picture.
FRAME = """() => {
    const boxes = [...app.graph.nodes.map(node => node.boundingRect), ...app.graph.groups.map(group => group._bounding)];
    const left = Math.min(...boxes.map(([x]) => x)) - 20, top = Math.min(...boxes.map(([, y]) => y)) - 20;
    const width = Math.max(...boxes.map(([x, , w]) => x + w)) + 20 - left;
    const height = Math.max(...boxes.map(([, y, , h]) => y + h)) + 20 - top;
    const canvas = app.canvas.canvas.getBoundingClientRect();
    const corner = [90, 110], scale = Math.min((canvas.width - 2 * corner[0]) / width, (canvas.height - 2 * corner[1]) / height);
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [corner[0] / scale - left, corner[1] / scale - top];
    app.canvas.setDirty(true, true);
    return { x: canvas.x + corner[0], y: canvas.y + corner[1], width: width * scale, height: height * scale };
}"""
BADGE = "() => document.querySelector('.happyhorse-latent-badge')?.textContent"
LATENT = "app.graph.nodes.find(node => node.type === 'HappyHorseEmptyLatent')"
SET_LENGTH = f"""length => {{
    const node = {LATENT};
    const widget = node.widgets.find(widget => widget.name === "length");
    widget.value = length;
    widget.callback(length);
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


@pytest.fixture(scope="module")
def files(comfy):
    """The files that the workflows name: stand-ins where the tiny set has one, else empty ones.

    Returns the names that the server gave to the picture and the voice.
    """
    for name, tiny in REAL_NAMES.items():
        file = comfy.base / "models" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        source = comfy.base / "models" / (tiny or "")
        if tiny is None:
            file.touch()
        elif source.is_dir():
            shutil.copytree(source, file)
        else:
            shutil.copyfile(source, file)
    picture = comfy.upload_image("example.png", np.random.default_rng(1).integers(0, 256, (80, 120, 3)))
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(14_400) / 48_000)
    voice = comfy.upload_audio("voice.wav", tone[None], 48_000)
    return {"example.png": picture, "voice.wav": voice}


def read(path: str) -> dict:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def complaints(page) -> list[str]:
    """Errors on the console that are about the pack."""
    return [line for line in page.console if "HappyHorse" in line and line.startswith(("error", "uncaught"))]


@BOTH
@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_loads_without_a_red_node(page, comfy, name, vue_nodes, tmp_path):
    comfy.post("/settings", PICTURES)
    page.open(vue_nodes)
    page.load(read(f"workflows/{name}.json"))
    assert page.red_nodes() == []
    assert page.prompt() == read(f"workflows/api/{name}.json")
    assert complaints(page) == []

    page.tab.set_viewport_size(LARGE)
    page.tab.wait_for_timeout(300)
    graph = page.tab.evaluate(FRAME)
    page.tab.wait_for_timeout(700)  # pictures and texts follow the canvas
    folder = Path(os.environ.get("HAPPYHORSE_PICTURES") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{'' if vue_nodes else '_classic'}.jpg"
    page.tab.screenshot(path=path, clip=graph, type="jpeg", quality=85)


def made_small(workflow: dict, tiny_names: dict, uploads: dict, mark: int) -> dict:
    """The UI workflow with the tiny models, few pixels, few steps and no image model; ``mark`` keeps runs apart."""
    for node in workflow["nodes"]:
        named = node.pop("widgets_values_named", {})  # the page takes these first
        values = node.get("widgets_values") or []
        values = [
            tiny_names.get(value, uploads.get(value, value)) if isinstance(value, str) else value
            for value in values
        ]
        if "precision" in named:
            values[list(named).index("precision")] = "float32"
        if node["type"] == "HappyHorseEmptyLatent":
            values = [64, 64, 5, 1]
        elif node["type"] == "HappyHorseSampler":
            values[:3] = [values[0] + mark, "fixed", 2]
        elif node["type"] == "HappyHorseMux":
            values[0] = f"shown_{mark}/{values[0]}"
        elif node["type"] == "VAELoader":  # it takes full-size networks only
            node["type"], values = "HappyHorseVideoDecoderLoader", [*values, "float32"]
        elif node["type"] == "VAEDecode":  # of the image model, which is left out
            node["type"], node["inputs"], values = "EmptyImage", [], [96, 64, 1, 0xFF8000]
        node["widgets_values"] = values
    return workflow


@BOTH
@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_queues_and_shows_its_film(page, comfy, files, tiny_names, name, vue_nodes):
    page.open(vue_nodes)
    page.load(made_small(read(f"workflows/{name}.json"), tiny_names, files, int(vue_nodes)))
    assert comfy.finish(page.queue())["status"]["status_str"] == "success"
    film = page.film()
    side = 256 if name == "text_to_film_1080p" else 64  # any size off the table is quadrupled
    assert (film["width"], film["height"]) == (side, side)
    if name.startswith("dialogue_"):  # its length comes from its lines
        assert 3 < film["duration"] < 8
    else:
        assert film["duration"] == pytest.approx((9 if name == "voice_to_film" else 5) / 25, abs=0.05)


@BOTH
@pytest.mark.usefixtures("files")
def test_the_blueprint_loads_and_hands_its_values_down(page, vue_nodes):
    page.open(vue_nodes)
    page.load(read("subgraphs/happyhorse_text_to_film.json"))
    assert page.red_nodes() == []
    inside = {node["class_type"]: node["inputs"] for node in page.prompt().values()}
    assert inside["CreateVideo"]["fps"] == 25
    (outside,) = page.tab.evaluate(
        "() => app.graph.nodes.map(node => node.widgets.map(w => [w.name, w.value]))"
    )
    values = dict(outside)
    assert inside["CLIPTextEncode"]["text"] == values["prompt"]
    assert inside["HappyHorseEmptyLatent"]["length"] == values["length"] == 125
    assert inside["HappyHorseModelLoader"]["model_name"] == values["model_name"]


@BOTH
@pytest.mark.usefixtures("files")
def test_the_badge_follows_the_latent(page, vue_nodes):
    page.open(vue_nodes)
    workflow = read("workflows/text_to_film.json")
    page.load(workflow)
    assert page.tab.evaluate(BADGE) == "5.00 s · 448×256 · 3709 tokens"  # 32·8·14 + 125
    page.tab.evaluate(SET_LENGTH, 101)
    assert page.tab.evaluate(BADGE) == "4.04 s · 448×256 · 3013 tokens"
    page.tab.evaluate(LINK_LENGTH)
    assert page.tab.evaluate(BADGE) == "? s · 448×256"
    page.tab.evaluate(UNLINK_LENGTH)
    assert page.tab.evaluate(BADGE) == "4.04 s · 448×256 · 3013 tokens"
    # It is no value of the graph's.
    assert page.tab.evaluate(f"() => {LATENT}.serialize().widgets_values") == [448, 256, 101, 1]
    assert complaints(page) == []


@BOTH
@pytest.mark.usefixtures("files")
def test_the_badge_follows_what_is_typed(page, vue_nodes):
    page.open(vue_nodes)
    page.load(read("workflows/text_to_film.json"))
    page.tab.evaluate(f"() => {{ app.canvas.ds.scale = 1; app.canvas.centerOnNode({LATENT}); }}")
    page.tab.wait_for_timeout(500)
    if vue_nodes:
        number = page.tab.evaluate(f"() => {LATENT}.id")
        page.tab.locator(f"[data-node-id='{number}'] input").nth(2).fill("53")
        page.tab.keyboard.press("Enter")
    else:  # the arrow at the right of the third number
        place = page.tab.evaluate(f"""() => {{
            const node = {LATENT}, widget = node.widgets[2];
            const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] - 22, node.pos[1] + widget.y + 10]);
            const box = app.canvas.canvas.getBoundingClientRect();
            return [x + box.x, y + box.y];
        }}""")
        page.tab.mouse.click(*place)
    page.tab.wait_for_timeout(300)
    tokens = "2.12 s · 448×256 · 1621 tokens" if vue_nodes else "5.16 s · 448×256 · 3825 tokens"
    assert page.tab.evaluate(BADGE) == tokens
