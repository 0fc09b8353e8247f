"""The dialogue editor with a canned route: alone on an empty page, and in ComfyUI's.

What the route really says is the business of tests/conditioning/dialogue and of tests/comfyui.
"""

import json
import re
from pathlib import Path

import pytest

from comfyui_happyhorse.conditioning.dialogue.document import FRAMINGS
from comfyui_happyhorse.conditioning.dialogue.languages import LANGUAGES

WEB = Path(__file__).resolve().parent.parent.parent.parent.parent / "web"
ROUTE = re.compile(r"/happyhorse/dialogue$")
SECONDS_A_LETTER, LEAD, GAP, TAIL, FPS = 0.1, 0.3, 0.4, 0.4, 25
SPOKEN = {"2": "two ", "7": "seven"}
# The editor by itself: what ComfyUI would be to it is a few functions.
ALONE = """<!doctype html><html class="dark-theme"><meta charset="utf-8">
<link rel="stylesheet" href="/dialogue_editor/editor.css">
<body style="margin: 0"><div style="width: 588px; height: 560px"></div>
<script type="module">
    import { Editor } from "/dialogue_editor/editor.js";
    import { wordsIn } from "/dialogue_editor/words.js";
    window.settled = 0;
    window.editor = new Editor({
        words: wordsIn("en"),
        fetch: (path, request) => fetch(path, request),
        canvas: () => null,
        around: () => ({ fields: { setting: "a pier" }, first: { framing: "close-up" }, frames: null, linked: false }),
        changed: () => {},
        settled: () => { window.settled += 1; },
    });
    document.querySelector("div").append(editor.root);
</script>"""
NODE = "app.graph.nodes.find(node => node.type === 'HappyHorsePrompt')"


def line(speaker, language, text, **fields):
    """A line as the scene's JSON has it."""
    usual = {"delivery": "", "pace": "natural", "start": None, "pause": None, "spell_out": True}
    return {"speaker": speaker, "language": language, "text": text} | usual | fields


def document(*lines):
    """What the widget holds for these lines of Anna and Ben."""
    cast = [
        {"name": "Anna", "description": "young woman, red coat", "side": "left", "voice": "low"},
        {"name": "Ben", "description": "old fisherman", "side": "right", "voice": ""},
    ]
    return {
        "version": 1,
        "frames": 0,
        "scene": {"cast": cast, "shots": [{"action": "", "lines": list(lines)}]},
    }


TALK = document(
    line("Anna", "English", "The sea again."),
    line("Ben", "German", "Seit 27 Jahren!!", delivery="hoarse", pace="slow", pause=0.8),
)


def finding(level, message, start=None, end=None, fix=None):
    return {"level": level, "code": "canned", "message": message, "start": start, "end": end, "fix": fix}


def reviewed(request: dict) -> dict:
    """What the canned route says: a tenth of a second a letter, digits as words, two exclamation marks are wrong."""
    now, lines = LEAD, []
    for given in (each for shot in request["scene"]["shots"] for each in shot["lines"]):
        text = given["text"]
        spoken = "".join(SPOKEN.get(letter, letter) for letter in text) if given["spell_out"] else text
        natural = SECONDS_A_LETTER * len(spoken)
        start = now if given["start"] is None else given["start"]
        now = start + natural + (GAP if given["pause"] is None else given["pause"])
        findings = []
        if "!!" in text:
            at = text.index("!!")
            findings.append(finding("warning", "“!!” is loud.", at, at + 2, text.replace("!!", "!")))
        if not text:
            findings.append(finding("error", "The line is empty."))
        lines.append(
            {
                "cleaned": text,
                "spoken": spoken,
                "spaced": text,
                "changes": [{"start": 0, "before": "2", "after": "two", "reason": "read as a number"}],
                "units": len(spoken),
                "unit": LANGUAGES[given["language"]].unit,
                "start": start,
                "end": start + natural,
                "slow": 1.3 * natural,
                "natural": natural,
                "fast": 0.8 * natural,
                "visemes": [[start, "B"], [start + natural / 2, "D"], [start + natural, "X"]],
                "findings": findings,
            }
        )
    frames = request["frames"] or 4 * int((now + TAIL) * FPS / 4) + 1
    ratio = sum(each["natural"] for each in lines) / (frames / FPS)
    return {
        "prompt": f"{request['scene'].get('setting', '')}: " + " / ".join(each["spaced"] for each in lines),
        "negative": "blurry",
        "frames": frames,
        "seconds": frames / FPS,
        "tokens": {"count": 320, "limit": 640, "exact": False},
        "fill": {"ratio": ratio, "level": "over" if ratio > 0.95 else "good"},
        "lines": lines,
        "findings": [finding("note", "The whole is fine.")],
        "report": "a report",
        "error": None,
    }


class Editor:
    """The first dialogue editor on a tab, as a user sees it, and the route that it asks."""

    line, document, reviewed = staticmethod(line), staticmethod(document), staticmethod(reviewed)
    talk = TALK

    def __init__(self, tab, value: str):
        """``value`` is the JavaScript of a function that returns the scene's text."""
        self.tab, self._value = tab, value
        self.root = tab.locator(".hh-editor").first
        self.areas = self.root.locator(".hh-line textarea")
        self.asked, self.say = [], lambda request: {"json": reviewed(request)}
        tab.set_default_timeout(20_000)  # a busy machine is no fault
        self.answer_route()

    def open(self, scene: dict | str):
        """Load a scene as a workflow does."""
        text = scene if isinstance(scene, str) else json.dumps(scene)
        self.tab.evaluate("text => editor.load(text)", text)
        self.settle()

    def answer_route(self, answer=None):
        """From now on the route answers what ``say`` returns of a request, or whatever ``answer`` does."""
        # Routed once: a question on its way while routes change would be answered twice.
        if not hasattr(self.tab, "dialogue"):
            self.tab.route(ROUTE, lambda route: self.tab.dialogue(route))
        self.tab.dialogue = answer or self._answer

    def _answer(self, route):
        request = route.request.post_data_json
        self.asked.append(request)
        route.fulfill(**self.say(request))

    def settle(self):
        """Wait until the answer to what was last typed is shown."""
        count = -1
        while count != len(self.asked):
            count = len(self.asked)
            self.tab.wait_for_timeout(160)

    @property
    def said(self) -> dict:
        """The answer to the last question."""
        return reviewed(self.asked[-1])

    def value(self) -> dict:
        return json.loads(self.tab.evaluate(self._value))

    def scene(self) -> dict:
        return self.value()["scene"]

    def lines(self) -> list[dict]:
        return [each for shot in self.scene()["shots"] for each in shot["lines"]]

    def texts(self) -> list[str]:
        """What the rows show, which is also what is saved."""
        shown = self.areas.evaluate_all("areas => areas.map(area => area.value)")
        assert shown == [each["text"] for each in self.lines()]
        return shown

    def row(self, number: int):
        return self.root.locator(".hh-line").nth(number)

    def field(self, number: int, name: str):
        return self.row(number).locator(f"[data-field={name}]")

    def span(self, number: int, part: str = ".hh-bar") -> tuple[float, float]:
        """Start and length of a line's bar or of its whiskers, in parts of its lane, as drawn."""
        return tuple(
            self.row(number).evaluate(
                """(row, part) => {
                    const lane = row.querySelector(".hh-lane").getBoundingClientRect();
                    const bar = row.querySelector(part).getBoundingClientRect();
                    return [(bar.x - lane.x) / lane.width, bar.width / lane.width];
                }""",
                part,
            )
        )

    def findings(self, number: int) -> list[str]:
        return self.row(number).locator(".hh-finding span:not(.hh-level)").all_inner_texts()


@pytest.fixture(scope="module")
def empty_page(browser):
    """A tab with nothing but an editor."""
    with browser.new_context(viewport={"width": 600, "height": 700}) as context:
        tab = context.new_page()

        def answer(route):
            path = route.request.url.split("localhost", 1)[1]
            if path == "/":
                route.fulfill(body=ALONE, content_type="text/html")
            elif (WEB / path[1:]).is_file():
                route.fulfill(path=WEB / path[1:])
            else:
                route.fulfill(status=404)

        context.route("**/*", answer)
        tab.goto("http://localhost/")
        tab.wait_for_function("() => window.editor")
        yield tab


@pytest.fixture
def alone(empty_page) -> Editor:
    """An editor that nothing stands around, with TALK in it."""
    editor = Editor(empty_page, "() => editor.text")
    empty_page.evaluate("() => editor.load('')")
    editor.open(TALK)
    return editor


@pytest.fixture(scope="session")
def answers(answers, nodes) -> dict:
    """The page's answers, with the inputs of our two nodes as a server sends them."""
    assert {"scene", "framing", "length", "lines"} <= nodes["HappyHorsePrompt"].inputs.keys()
    known = dict(answers["/object_info"])
    prompt, text = json.loads(json.dumps(known["HappyHorsePrompt"])), ["STRING", {"default": ""}]
    prompt["input"] = {
        "required": dict.fromkeys(nodes["HappyHorsePrompt"].inputs, text)
        | {
            "scene": ["STRING", {"default": "", "multiline": True}],
            "framing": ["COMBO", {"options": list(FRAMINGS), "default": "medium close-up"}],
            "length": ["INT", {"default": 0, "min": 0, "max": 4097}],
        },
        "optional": {"lines": ["HAPPYHORSE_LINES", {}], "clip": ["CLIP", {}]},
    }
    for name in prompt["input"]["optional"]:
        prompt["input"]["required"].pop(name, None)
    line = {"input": {"required": {"text": text}}, "output": ["HAPPYHORSE_LINES"]}
    known |= {"HappyHorsePrompt": prompt, "HappyHorseDialogueLine": known["HappyHorseDialogueLine"] | line}
    return answers | {"/object_info": known}


class NodeEditor(Editor):
    """The editor in HappyHorse Prompt, in ComfyUI's page."""

    node = NODE

    def __init__(self, page):
        super().__init__(page.tab, f"() => {NODE}.widgets.find(widget => widget.name === 'scene').value")
        self.page = page

    def open(self, scene: dict | str):
        """A new workflow of one prompt node with this scene."""
        text = scene if isinstance(scene, str) else json.dumps(scene)
        values = {"scene": text, "setting": "a pier", "framing": "close-up", "length": 0}
        order = ["scene", "appearance", "setting", "framing", "action", "lighting", "mood", "sound", "length"]
        node = {
            "id": 1,
            "type": "HappyHorsePrompt",
            "pos": [500, 120],
            "size": [600, 760],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "widgets_values": [values.get(name, "") for name in order],
        }
        view = {"ds": {"scale": 1, "offset": [0, 0]}}
        graph = {
            "version": 0.4,
            "last_node_id": 1,
            "last_link_id": 0,
            "nodes": [node],
            "links": [],
            "groups": [],
        }
        self.page.load(graph | {"config": {}, "extra": view})
        self.root.wait_for()
        self.settle()


@pytest.fixture
def editor(page) -> NodeEditor:
    """A new workflow with TALK in its prompt node."""
    editor = NodeEditor(page)
    editor.open(TALK)
    return editor


@pytest.fixture
def open_editor(open_page):
    """``open_editor(settings)`` is the editor as a user with these settings sees it."""

    def open_with(settings: dict) -> NodeEditor:
        editor = NodeEditor(open_page(settings))
        editor.open(TALK)
        return editor

    return open_with
