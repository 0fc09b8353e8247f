"""ComfyUI's page without ComfyUI: the frontend package's files in a headless Chromium, with canned answers.

No server listens and nothing leaves the browser: playwright answers whatever the page requests. What has no
answer gets a 404 and is listed with a test that fails.
"""

import contextlib
import importlib.resources
import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or "/usr/bin/chromium"
FLAGS = ("--no-sandbox", "--disable-gpu")  # root has no sandbox, and this page is our own
SIZE = {"width": 1600, "height": 900}
URL = "http://localhost/"  # by this name a page counts as secure, as ComfyUI's does
PACK = "/extensions/ComfyUI-HappyHorse/"
WIDGETS = {"INT", "FLOAT", "STRING", "COMBO", "BOOLEAN"}
PAGE_ONLY = {"IMAGEUPLOAD", "AUDIOUPLOAD", "AUDIO_UI"}  # buttons and players that the page adds by itself
# The least that frontend 1.49.6 starts and works with; to a run or a save it would say that it failed.
ANSWERS = {
    "/users": {"storage": "server", "migrated": True},
    "/features": {},
    "/system_stats": {"system": {"os": "linux", "argv": [], "comfyui_version": "0.31.0"}, "devices": []},
    "/userdata": [],
    "/userdata/comfy.templates.json": [],
    "/global_subgraphs": {},
    "/experiment/models": [],
}
# ``app`` is there before its first workflow, which would come over ours; the spinner goes when it has come.
READY = """() => window.app && window.LiteGraph?.registered_node_types.HappyHorseEmptyLatent
    && app.extensionManager?.spinner === false && app.extensionManager.workflow.activeWorkflow"""
# Two frames: the first applies what was changed, the second shows that it has been drawn.
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
RED_NODES = """() => {
    const known = LiteGraph.registered_node_types;
    const red = app.graph.nodes.filter(node => node.has_errors || !(node.type in known));
    const rings = [...document.querySelectorAll("[data-node-id] .ring-destructive-background")];
    const ringed = rings.map(ring => app.graph.getNodeById(ring.closest("[data-node-id]").dataset.nodeId));
    return [...new Set([...red, ...ringed].map(node => node.type))];
}"""
VALUES = """() => Object.fromEntries(app.graph.nodes.map(node => [
    node.id,
    Object.fromEntries(
        (node.widgets ?? []).filter(one => one.serialize !== false).map(one => [one.name, one.value])
    ),
]))"""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if report.failed and page:
        report.sections.append(("The page's console", "\n".join(page.console)))
        report.sections.append(("Not answered", "\n".join(sorted(page.unanswered))))
    return report


# For a module, not the session: while playwright runs, asyncio.run() is refused to every other test.
@pytest.fixture(scope="module")
def browser():
    """A Chromium of our own, driven by playwright."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}; CHROMIUM names another browser")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def static() -> Path:
    """The frontend package's own files."""
    package = pytest.importorskip(
        "comfyui_frontend_package",
        reason="the page is not installed: pip install --no-deps comfyui-frontend-package==1.49.6",
    )
    return Path(importlib.resources.files(package) / "static")


@pytest.fixture(scope="session")
def answers(root, nodes) -> dict:
    """What the page gets, by path: our nodes as their source says, stock ones as the workflows show them."""
    files = [json.loads(file.read_text(encoding="utf-8")) for file in (root / "workflows").glob("*.json")]
    placed = [node for file in files for node in file["nodes"]]
    known = {node["type"]: stock_node(node, placed) for node in placed if "Note" not in node["type"]}
    known["PrimitiveInt"] = definition("PrimitiveInt", {"value": ["INT", {}]}, ["INT"])
    for name, schema in nodes.items():
        inputs = {key: our_input(name, key, entry, placed) for key, entry in schema.inputs.items()}
        known[name] = definition(name, inputs, schema.outputs, schema.display_name, schema.description)
    words = {
        folder.name: {
            file.stem: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")
        }
        for folder in (root / "locales").iterdir()
    }
    scripts = [PACK + file.relative_to(root / "web").as_posix() for file in (root / "web").rglob("*.js")]
    return ANSWERS | {"/object_info": known, "/i18n": words, "/extensions": scripts}


def definition(name: str, inputs: dict, outputs: list[str], display_name: str = "", description: str = ""):
    """A node as ``/object_info`` has it; which inputs are optional does not matter to a whole graph."""
    return {
        "name": name,
        "display_name": display_name or name,
        "description": description,
        "category": "HappyHorse",
        "python_module": "custom_nodes.ComfyUI-HappyHorse",
        "input": {"required": inputs},
        "output": outputs,
        "output_name": outputs,
        "output_is_list": [False] * len(outputs),
        "output_node": False,
    }


def our_input(name: str, key: str, entry, placed: list[dict]) -> list:
    if entry.type == "AUTOGROW":
        template = {"input": {"required": {}, "optional": {"track": ["AUDIO", {}]}}, "prefix": "track_"}
        return ["COMFY_AUTOGROW_V3", {"template": template | {"min": 0, "max": 7}}]
    control = {"control_after_generate": True} if entry.has_control else {}
    return [entry.type, control | choices(name, key, entry.type, placed)]


def stock_node(node: dict, placed: list[dict]) -> dict:
    inputs = {
        entry["name"]: [entry["type"], choices(node["type"], entry["name"], entry["type"], placed)]
        for entry in node["inputs"]
        if entry["type"] not in PAGE_ONLY
    }
    return definition(node["type"], inputs, [output["type"] for output in node["outputs"]])


def choices(name: str, key: str, kind: str, placed: list[dict]) -> dict:
    """What the workflows choose from a list is on it, as if every file that they name were there."""
    if kind != "COMBO":
        return {}
    values = (node["widgets_values_named"].get(key) for node in placed if node["type"] == name)
    return {"options": list(dict.fromkeys(values))}


@pytest.fixture(scope="module")
def open_page(browser, static, root, answers):
    """``open_page(settings)`` is the page as a user with these settings sees it."""
    with contextlib.ExitStack() as contexts:

        def open_with(settings: dict) -> Page:
            context = contexts.enter_context(browser.new_context(viewport=SIZE))
            settings = {"Comfy.TutorialCompleted": True} | settings  # else the templates cover the canvas
            return Page(context, static, root / "web", answers | {"/settings": settings})

        yield open_with


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "vue"])
def page(request, open_page):
    """The page in either node renderer, once for all tests of a module: it takes seconds to start."""
    return open_page({"Comfy.VueNodes.Enabled": request.param})


class Page:
    """One tab with ComfyUI's page in it."""

    def __init__(self, context, static: Path, web: Path, answers: dict):
        self.vue_nodes = answers["/settings"].get("Comfy.VueNodes.Enabled", False)
        self.console, self.unanswered = [], set()  # lines, errors included; requests that got a 404
        self._folders, self._answers = {PACK: web, "/": static}, answers
        context.route("**/*", self._answer)
        context.route_web_socket("**/ws*", lambda socket: None)  # open, and silent
        self.tab = context.new_page()
        self.tab.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        self.tab.on("pageerror", lambda error: self.console.append(f"uncaught: {error.stack or error}"))
        self.tab.goto(URL)
        self.tab.wait_for_function(READY)

    def _answer(self, route):
        url = urlsplit(route.request.url)
        path = url.path.removeprefix("/api")
        if url.hostname == "localhost" and path.startswith("/settings/"):
            return route.fulfill()  # what a user sets lasts as long as the page
        if url.hostname == "localhost" and path in self._answers:
            return route.fulfill(json=self._answers[path])
        for prefix, folder in self._folders.items():
            file = folder / (path.removeprefix(prefix) or "index.html")
            if url.hostname == "localhost" and path.startswith(prefix) and file.is_file():
                return route.fulfill(path=file)
        self.unanswered.add(f"{route.request.method} {route.request.url}")
        return route.fulfill(status=404)

    def load(self, workflow: dict):
        """Open a UI workflow as a new tab of the page; what was on the console is forgotten."""
        self.console.clear()
        self.tab.evaluate("async workflow => { await app.loadGraphData(workflow); }", workflow)
        self.tab.evaluate(DRAWN)

    def complaints(self) -> list[str]:
        """Errors on the console that are about the pack."""
        return [
            line for line in self.console if "HappyHorse" in line and line.startswith(("error", "uncaught"))
        ]

    def red_nodes(self) -> list[str]:
        """Types of the nodes that the page does not know or finds wrong."""
        return self.tab.evaluate(RED_NODES)

    def values(self) -> dict[str, dict]:
        """What the nodes' widgets hold, by the node's id, as far as it would be saved."""
        return self.tab.evaluate(VALUES)

    def prompt(self) -> dict:
        """The canvas as an API workflow."""
        return self.tab.evaluate("async () => (await app.graphToPrompt()).output")
