"""Times the dialogue editor: from a key going down to the frame that shows the line's new bar.

    python benchmarks/editor_latency.py [--lines 2 8 40] [--keys 30]

Chromium (``CHROMIUM``, default /usr/bin/chromium) types into the editor on an empty page; the real rules answer it over
HTTP on this machine. Prints a Markdown table; a row over the goal is marked. Needs playwright.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "comfyui_happyhorse"
GOAL = 150  # milliseconds
TYPING = 60  # milliseconds between two keys of somebody who types fast
BURST = 12  # keys
REST = 400  # milliseconds after which nothing is on its way
TYPES = {".js": "text/javascript", ".css": "text/css"}
TEXT = "I never thought we would see the ocean again."
PAGE = """<!doctype html><html class="dark-theme"><meta charset="utf-8">
<link rel="stylesheet" href="/dialogue_editor/editor.css">
<div style="width: 588px; height: 620px"></div>
<script type="module">
    import { Editor } from "/dialogue_editor/editor.js";
    import { wordsIn } from "/dialogue_editor/words.js";
    const editor = new Editor({
        words: wordsIn("en"),
        fetch: (path, request) => fetch(path, request),
        canvas: () => null,
        around: () => ({ fields: {}, first: {}, frames: null, linked: false }),
        changed: () => {},
        settled: () => {},
    });
    document.querySelector("div").append(editor.root);
    editor.load(SCENE);
    window.drawn = [];
    addEventListener("keydown", event => { window.pressed = event.timeStamp; }, true);
    // The bar's number is written with the bar, and anew even where it stays the same.
    new MutationObserver(() => requestAnimationFrame(() => drawn.push(performance.now()))).observe(
        document.querySelector(".hh-measure"), { childList: true });
    window.ready = true;
</script>"""
REACHED = "() => window.drawn.some(time => time > window.pressed)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, nargs="+", default=[2, 8, 40], help="lines in the scene")
    parser.add_argument("--keys", type=int, default=30, help="keys to time in each row")
    options = parser.parse_args()
    answer = load_rules()
    print("| lines | typing | median ms | 95 % ms | route alone ms | goal |")
    print("|---|---|---|---|---|---|")
    for count in options.lines:
        scene = scene_of(count)
        route = timed(lambda scene=scene: answer({"scene": scene, "frames": 0}))
        with serve(answer, scene) as url, open_tab(url) as tab:
            for title, measure in (
                ("a key after a rest", one_key),
                (f"{BURST} keys, {TYPING} ms apart", burst),
            ):
                times = sorted(measure(tab) for _ in range(options.keys))
                worst = times[int(0.95 * (len(times) - 1))]
                met = "met" if worst <= GOAL else f"over {GOAL}"
                print(
                    f"| {count} | {title} | {statistics.median(times):.0f} | {worst:.0f} | {route:.1f} | {met} |"
                )


def load_rules():
    """What answers a request, from this checkout."""
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py")
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
    from comfyui_happyhorse.conditioning.dialogue.review import review
    from comfyui_happyhorse.conditioning.dialogue.scene_json import from_json

    return lambda request: review(from_json(request["scene"]), frames=request["frames"]).as_json()


def scene_of(count: int) -> dict:
    cast = [{"name": name, "description": f"{name}, in a red coat"} for name in ("Anna", "Ben")]
    lines = [{"speaker": cast[n % 2]["name"], "language": "English", "text": TEXT} for n in range(count)]
    return {"cast": cast, "shots": [{"lines": lines}]}


def timed(call) -> float:
    """Milliseconds, the best of five."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return min(times)


@contextlib.contextmanager
def serve(answer, scene: dict) -> Iterator[str]:
    """The address of the page, the editor's files and the route."""
    text = json.dumps({"version": 1, "frames": 0, "scene": scene})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if self.path == "/":
                return self._send(PAGE.replace("SCENE", json.dumps(text)).encode(), "text/html")
            file = ROOT / "web" / self.path.removeprefix("/")
            return self._send(
                file.read_bytes() if file.is_file() else b"", TYPES.get(file.suffix, "text/plain")
            )

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(json.dumps(answer(request)).encode(), "application/json")

        def handle(self):
            # A question that the editor has given up is answered to nobody.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                super().handle()

        def _send(self, body: bytes, content_type: str):
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def open_tab(url: str):
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or "/usr/bin/chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 620, "height": 660})
        tab.goto(url)
        tab.wait_for_function("() => window.ready && window.drawn.length")
        tab.locator(".hh-line textarea").first.focus()
        tab.keyboard.press("Control+End")
        yield tab
        browser.close()


def one_key(tab) -> float:
    """Milliseconds from one key to its bar."""
    tab.wait_for_timeout(REST)
    tab.evaluate("() => { window.drawn.length = 0; }")
    tab.keyboard.press("o")
    tab.wait_for_function(REACHED)
    return tab.evaluate("() => window.drawn.find(time => time > window.pressed) - window.pressed")


def burst(tab) -> float:
    """Milliseconds from the last of several keys to the bar with all of them."""
    tab.wait_for_timeout(REST)
    tab.evaluate("() => { window.drawn.length = 0; }")
    for _ in range(BURST):
        tab.keyboard.press("o")
        tab.wait_for_timeout(TYPING)
    tab.wait_for_function(REACHED)
    tab.wait_for_timeout(REST)
    took = tab.evaluate("() => window.drawn.at(-1) - window.pressed")
    for _ in range(BURST):
        tab.keyboard.press("Backspace")
    return took


if __name__ == "__main__":
    main()
