"""ComfyUI's page in a headless Chromium (``CHROMIUM``, default ``/usr/bin/chromium``), driven by playwright."""

import base64
import json
import os
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",  # Chromium has none for root, and this page is our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SIZE = {"width": 1600, "height": 900}
# ``app`` is there before its first workflow, which would come over ours; the spinner goes when it has come.
READY = """() => window.app && window.LiteGraph && Object.keys(LiteGraph.registered_node_types).length > 100
    && app.extensionManager?.spinner === false && app.extensionManager.workflow.activeWorkflow"""
# Two frames: the first applies what was changed, the second shows that it has been drawn.
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
RED_NODES = """() => {
    const red = new Set();
    const visit = graph => {
        for (const node of graph.nodes) {
            if (node.has_errors || (!node.subgraph && !(node.type in LiteGraph.registered_node_types)))
                red.add(node.type);
            if (node.subgraph) visit(node.subgraph);
        }
    };
    visit(app.rootGraph ?? app.graph);
    for (const ring of document.querySelectorAll("[data-node-id] .ring-destructive-background"))
        red.add(app.graph.getNodeById(ring.closest("[data-node-id]").dataset.nodeId).type);
    return [...red].sort();
}"""
DROP = """([name, type, content]) => {
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], name, { type }));
    const canvas = document.querySelector("#graph-canvas");
    const { x, y, width, height } = canvas.getBoundingClientRect();
    const where = { clientX: x + width / 2, clientY: y + height / 2, bubbles: true, cancelable: true };
    for (const kind of ["dragenter", "dragover", "drop"])
        canvas.dispatchEvent(new DragEvent(kind, { ...where, dataTransfer }));
}"""
PLAYABLE = "() => [...document.querySelectorAll('video')].some(video => video.readyState >= 2)"
FILM = """() => {
    const video = [...document.querySelectorAll("video")].find(video => video.readyState >= 2);
    return { src: video.src, width: video.videoWidth, height: video.videoHeight, duration: video.duration };
}"""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if report.failed and page:
        report.sections.append(("The page's console", "\n".join(page.console)))
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


@pytest.fixture
def page(browser, comfy):
    """ComfyUI's page as a user new to this browser sees it; a test opens it in the renderer it wants."""
    with browser.new_context(viewport=SIZE) as context:
        yield Page(context.new_page(), comfy)


class Page:
    """One tab with ComfyUI in it."""

    def __init__(self, tab, comfy):
        self.tab, self.console = tab, []  # playwright's page; what was logged, errors included
        self._comfy = comfy
        tab.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: self.console.append(f"uncaught: {error}"))

    def open(self, vue_nodes: bool = False):
        """Load the page with classic (canvas) or with Vue nodes and wait until it can be used."""
        # A user who has not seen the tutorial gets the template browser over the canvas.
        self._comfy.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue_nodes})
        self.tab.goto(self._comfy.url)
        self.tab.wait_for_function(READY)

    def load(self, workflow: dict):
        """Open a UI workflow as a new tab of the page."""
        self.tab.evaluate("async workflow => { await app.loadGraphData(workflow); }", workflow)
        self.tab.evaluate(DRAWN)

    def node_types(self) -> list[str]:
        """The types of the nodes on the canvas."""
        return self.tab.evaluate("() => app.graph.nodes.map(node => node.type)")

    def red_nodes(self) -> list[str]:
        """Types of the nodes marked as wrong: not installed, a missing model, an error of the last run."""
        return self.tab.evaluate(RED_NODES)

    def wait_for_complaint(self, text: str, timeout: float = 30):
        """Wait until the page's box of errors, which fades in and out, holds this text."""
        self.tab.locator("[data-testid=error-overlay]", has_text=text).wait_for(timeout=1000 * timeout)

    def prompt(self) -> dict:
        """The canvas as an API workflow."""
        return self.tab.evaluate("async () => (await app.graphToPrompt()).output")

    def queue(self) -> str:
        """Press run; returns the prompt's id."""
        with self.tab.expect_response(
            lambda answer: answer.url.endswith("/prompt") and answer.request.method == "POST"
        ) as answer:
            self.tab.evaluate("() => app.queuePrompt(0)")
        if not answer.value.ok:
            raise RuntimeError(f"the prompt was refused: {answer.value.text()}")
        return json.loads(answer.value.body())["prompt_id"]

    def film(self, timeout: float = 30) -> dict:
        """``{"src", "width", "height", "duration"}`` of the first video in a node, once it can play."""
        self.tab.wait_for_function(PLAYABLE, timeout=1000 * timeout)
        return self.tab.evaluate(FILM)

    def drop(self, filename: str, content: bytes, mime_type: str, timeout: float = 30):
        """Clear the canvas, drop a file on it, and wait for the nodes that come with the file."""
        self.tab.evaluate("() => app.graph.clear()")
        self.tab.evaluate(DROP, [filename, mime_type, base64.b64encode(content).decode()])
        self.tab.wait_for_function("() => app.graph.nodes.length > 0", timeout=1000 * timeout)
        self.tab.evaluate(DRAWN)

    def screenshot(self, path: Path):
        """The page as PNG or JPEG, by the path's suffix."""
        self.tab.screenshot(path=path)
