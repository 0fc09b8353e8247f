"""The dialogue editor by itself: what is typed, clicked and pressed, what is asked, and what is shown of the answer."""

import json
import re
import time
from pathlib import Path

import pytest

from comfyui_happyhorse.conditioning.dialogue.document import FRAMINGS, PACES, SIDES, Shot
from comfyui_happyhorse.conditioning.dialogue.languages import LANGUAGES

MODULES = Path(__file__).resolve().parent.parent.parent.parent.parent / "web/dialogue_editor"
TEXTS = {
    "Mandarin": "我从来没想过。",
    "Cantonese": "我從來冇諗過。",
    "English": "I never thought so.",
    "Japanese": "もう一度海が見たい。",
    "Korean": "다시 바다를 보게 돼요.",
    "French": "Je n'aurais jamais cru.",
    "German": "Ich hätte nie gedacht.",
}


def test_bars_findings_and_meters_show_what_the_route_said(alone):
    said = alone.said
    for number, each in enumerate(said["lines"]):
        start, width = alone.span(number)
        assert start == pytest.approx(each["start"] / said["seconds"], abs=0.004)
        assert width == pytest.approx(each["natural"] / said["seconds"], abs=0.004)
        start, width = alone.span(number, ".hh-range")
        assert start == pytest.approx((each["start"] + each["fast"]) / said["seconds"], abs=0.004)
        assert width == pytest.approx((each["slow"] - each["fast"]) / said["seconds"], abs=0.004)
    assert alone.findings(0) == []
    assert alone.findings(1) == ["“!!” is loud."]
    assert alone.root.locator(".hh-line mark").all_inner_texts() == ["!!"]
    assert alone.root.locator(".hh-said").all_inner_texts()[1] == "Seit two seven Jahren!!"
    assert alone.root.locator(".hh-spoken").nth(0).is_hidden()
    fill, tokens = alone.root.locator(".hh-word").all_inner_texts()
    assert fill == f"{round(100 * said['fill']['ratio'])} % {said['fill']['level']}"
    assert tokens == "about 320 / 640"
    assert alone.root.locator(".hh-summary > .hh-findings").inner_text() == "The whole is fine."
    shapes = alone.root.locator(".hh-mouths path").evaluate_all(
        "all => all.map(each => each.getAttribute('d'))"
    )
    assert [path.count("M") for path in shapes] == [2, 2]  # at rest, X, the mouth is closed
    alone.root.locator("summary").click()
    assert alone.root.locator(".hh-text").inner_text() == said["prompt"]
    alone.root.get_by_role("tab", name="Negative").click()
    assert alone.root.locator(".hh-text").inner_text() == "blurry"


@pytest.mark.parametrize("language", TEXTS)
def test_a_typed_line_moves_its_bar_and_changes_its_findings(alone, language):
    alone.field(1, "language").select_option(language)
    alone.areas.nth(1).fill("")
    alone.settle()
    assert alone.findings(1) == ["The line is empty."]
    alone.tab.keyboard.insert_text(TEXTS[language] + "!!")
    alone.settle()
    assert alone.findings(1) == ["“!!” is loud."]
    wide = alone.span(1)[1]
    alone.tab.keyboard.press("Backspace")
    alone.settle()
    assert alone.findings(1) == []
    said = alone.said
    assert alone.lines()[1] == alone.talk["scene"]["shots"][0]["lines"][1] | {
        "language": language,
        "text": TEXTS[language] + "!",
    }
    assert alone.span(1)[1] == pytest.approx(said["lines"][1]["natural"] / said["seconds"], abs=0.004) != wide


def test_a_text_that_comes_back_gets_its_marks_back(alone):
    """Before the text in between was answered, as by a letter typed and taken back at once."""
    alone.areas.nth(1).evaluate("""area => {
        for (const text of [area.value + "x", area.value]) {
            area.value = text;
            area.dispatchEvent(new Event("input", { bubbles: true }));
        }
    }""")
    alone.settle()
    assert alone.root.locator(".hh-line mark").all_inner_texts() == ["!!"]


def test_one_is_not_several(alone):
    alone.areas.nth(0).fill("A")
    alone.settle()
    assert alone.root.locator(".hh-measure").first.inner_text() == "0.1 s · 1 syllable"


def test_lines_are_added_moved_and_removed_by_keys_alone(alone):
    press = alone.tab.keyboard.press
    alone.areas.nth(0).click()
    press("End")
    press("Enter")
    alone.tab.keyboard.type("Third")
    assert alone.texts() == ["The sea again.", "Third", "Seit 27 Jahren!!"]
    assert alone.lines()[1]["speaker"] == "Ben"  # two people take turns
    assert alone.lines()[1]["language"] == "German"  # in which he last spoke
    press("Alt+ArrowUp")
    assert alone.texts() == ["Third", "The sea again.", "Seit 27 Jahren!!"]
    press("Alt+ArrowUp")  # at the top it stays
    press("Alt+ArrowDown")
    press("Alt+ArrowDown")
    alone.tab.keyboard.type("!")  # the caret has come along
    assert alone.texts() == ["The sea again.", "Seit 27 Jahren!!", "Third!"]
    press("Control+Backspace")
    assert alone.texts() == ["The sea again.", "Seit 27 Jahren!!"]
    press("Control+z")
    assert alone.texts() == ["The sea again.", "Seit 27 Jahren!!", "Third!"]
    for _ in range(6):
        press("Control+z")
    assert alone.texts() == ["The sea again.", "Seit 27 Jahren!!"]
    for _ in range(6):
        press("Control+Shift+z")
    assert alone.texts() == ["The sea again.", "Seit 27 Jahren!!", "Third!"]
    press("Control+z")
    alone.tab.keyboard.type("?")  # what was taken back is now another story
    press("Control+Shift+z")
    assert alone.texts() == ["The sea again.", "Seit 27 Jahren!!", "Third?"]


def test_a_step_back_outside_the_editor_is_not_the_editor_s(alone):
    """A browser takes back what was typed last anywhere in the page."""
    alone.areas.nth(0).press("End")
    alone.tab.keyboard.type(" Now?")
    alone.tab.keyboard.press("Escape")
    assert alone.tab.evaluate("() => document.activeElement === document.body")
    alone.tab.keyboard.press("Control+z")
    assert alone.texts()[0] == "The sea again. Now?"


def test_arrows_walk_from_line_to_line(alone):
    focused = "() => document.activeElement.value"
    alone.areas.nth(0).click()
    alone.tab.keyboard.press("Control+End")
    alone.tab.keyboard.press("ArrowDown")
    assert alone.tab.evaluate(focused) == "Seit 27 Jahren!!"
    alone.tab.keyboard.press("Control+Home")
    alone.tab.keyboard.press("ArrowUp")
    assert alone.tab.evaluate(focused) == "The sea again."


def test_enter_that_chooses_a_word_adds_no_line(alone):
    alone.areas.nth(0).focus()
    alone.areas.nth(0).dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    alone.areas.nth(0).dispatch_event("keydown", {"key": "Enter", "keyCode": 229})
    assert len(alone.texts()) == 2
    alone.areas.nth(0).dispatch_event("keydown", {"key": "Enter"})
    assert len(alone.texts()) == 3


def test_a_route_that_fails_is_told_of_and_nothing_is_lost(alone):
    alone.say = lambda request: {"status": 400, "json": {"error": "The cast has no Zoë."}}
    alone.areas.nth(0).fill("Kept.")
    alone.settle()
    complaint = alone.root.get_by_role("alert")
    assert complaint.locator("span").inner_text() == "The cast has no Zoë. What you typed is kept."
    assert alone.texts()[0] == "Kept."
    alone.say = lambda request: {"status": 502, "body": "<html>"}
    complaint.get_by_role("button").click()
    alone.settle()
    assert "502" in complaint.inner_text()
    alone.answer_route(lambda route: route.abort("connectionrefused"))
    complaint.get_by_role("button").click()
    alone.tab.wait_for_timeout(300)
    assert "Failed to fetch" in complaint.inner_text()
    alone.say = lambda request: {"json": alone.reviewed(request)}
    alone.answer_route()
    complaint.get_by_role("button").click()
    alone.settle()
    assert complaint.is_hidden()
    assert alone.texts()[0] == "Kept."


def test_a_late_answer_to_an_old_question_is_not_shown(alone):
    held = []
    alone.answer_route(lambda route: held.append(route))
    aborted = []
    alone.tab.on("requestfailed", lambda request: aborted.append(request.post_data_json))
    alone.areas.nth(0).fill("old")
    alone.tab.wait_for_timeout(250)
    alone.areas.nth(0).fill("newer")
    alone.tab.wait_for_timeout(250)
    assert [each.request.post_data_json["scene"]["shots"][0]["lines"][0]["text"] for each in held] == [
        "old",
        "newer",
    ]
    assert [each["scene"]["shots"][0]["lines"][0]["text"] for each in aborted] == ["old"]
    held[1].fulfill(json=alone.reviewed(held[1].request.post_data_json))
    alone.tab.wait_for_timeout(100)
    assert alone.root.locator(".hh-measure").first.inner_text() == "0.5 s · 5 syllables"


def test_fast_typing_asks_at_most_every_120_ms(alone):
    alone.areas.nth(0).fill("")
    alone.settle()
    asked, started = len(alone.asked), time.monotonic()
    alone.areas.nth(0).press_sequentially("x" * 40, delay=10)
    alone.settle()
    took = time.monotonic() - started
    assert 2 <= len(alone.asked) - asked <= took / 0.12 + 2
    assert alone.asked[-1]["scene"]["shots"][0]["lines"][0]["text"] == "x" * 40


def test_a_run_tells_the_exact_tokens(alone):
    review = alone.said
    review["tokens"] = {"count": 401, "limit": 640, "exact": True}
    alone.tab.evaluate("review => editor.ran(review)", review)
    assert alone.root.locator(".hh-word").nth(1).inner_text() == "401 / 640"
    review["lines"][0]["cleaned"], review["tokens"]["count"] = "Of an earlier text.", 5
    alone.tab.evaluate("review => editor.ran(review)", review)
    assert alone.root.locator(".hh-word").nth(1).inner_text() == "401 / 640"


def test_a_fix_and_the_reading_are_one_click(alone):
    alone.root.get_by_role("button", name="Apply this fix").click()
    alone.settle()
    assert alone.texts()[1] == "Seit 27 Jahren!"
    assert alone.findings(1) == []
    row = alone.root.locator(".hh-line").nth(1)
    row.get_by_role("button", name="say as typed").click()
    alone.settle()
    assert alone.lines()[1]["spell_out"] is False
    assert row.locator(".hh-said").inner_text() == "said as typed"
    row.get_by_role("button", name="spell out").click()
    alone.settle()
    assert alone.lines()[1]["spell_out"] is True
    assert row.locator(".hh-said").inner_text() == "Seit two seven Jahren!"
    alone.tab.keyboard.press("Control+z")
    alone.tab.keyboard.press("Control+z")
    alone.tab.keyboard.press("Control+z")
    assert alone.texts()[1] == "Seit 27 Jahren!!"


def test_a_message_leads_to_its_words(alone):
    alone.areas.nth(1).fill("😀 é!!")  # three of what Python counts, four of what the page counts
    alone.settle()
    alone.root.locator(".hh-places").click()
    chosen = (
        "() => { const a = document.activeElement; return a.value.slice(a.selectionStart, a.selectionEnd); }"
    )
    assert alone.tab.evaluate(chosen) == "!!"
    assert alone.root.locator(".hh-line mark").inner_text() == "!!"


def test_the_cast_can_be_renamed_past_another_s_name_and_taken_away(alone):
    name = alone.root.locator(".hh-speaker [data-field=name]")
    name.nth(0).fill("")
    name.nth(0).press_sequentially("Benno", delay=5)
    assert [each["speaker"] for each in alone.lines()] == ["Benno", "Ben"]
    alone.root.get_by_role("button", name="Add a speaker").click()
    alone.tab.keyboard.type("Zoë")
    assert [each["name"] for each in alone.scene()["cast"]] == ["Benno", "Ben", "Zoë"]
    alone.field(0, "speaker").select_option(label="Zoë")
    name.nth(1).fill("Bert")
    alone.root.get_by_role("button", name="Remove this speaker").nth(1).click()
    assert [each["speaker"] for each in alone.lines()] == ["Zoë", "Bert"]  # the name stays where it was said
    assert [each["name"] for each in alone.scene()["cast"]] == ["Benno", "Zoë"]


def test_several_pasted_lines_become_several(alone):
    alone.areas.nth(0).focus()
    alone.tab.keyboard.press("Control+End")
    alone.tab.evaluate("""() => {
        const clipboardData = new DataTransfer();
        clipboardData.setData("text", " And\\r\\n\\nthen\\nthere is more");
        document.activeElement.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
    }""")
    assert alone.texts() == ["The sea again.And", "then", "there is more", "Seit 27 Jahren!!"]
    alone.tab.keyboard.press("Control+z")
    assert alone.texts() == ["The sea again.", "Seit 27 Jahren!!"]


def test_an_empty_node_is_begun_with_one_click(alone):
    alone.open("")
    alone.root.get_by_role("button", name="Line", exact=True).click()
    alone.tab.keyboard.type("Hello.")
    assert alone.lines() == [alone.line("Speaker 1", "English", "Hello.")]
    assert alone.scene()["cast"] == [{"name": "Speaker 1", "description": "", "side": "", "voice": ""}]


def test_shots_are_cut_and_joined(alone):
    alone.root.get_by_role("button", name="Shot", exact=True).click()
    alone.tab.keyboard.type("Cut.")
    alone.root.locator(".hh-shot").nth(1).locator("select").select_option("wide shot")
    assert [len(shot["lines"]) for shot in alone.scene()["shots"]] == [2, 1]
    alone.settle()
    assert [shot["framing"] for shot in alone.asked[-1]["scene"]["shots"]] == ["close-up", "wide shot"]
    assert [shot.get("framing") for shot in alone.scene()["shots"]] == [None, "wide shot"]
    alone.areas.nth(2).focus()
    alone.tab.keyboard.press("Alt+ArrowUp")
    assert [len(shot["lines"]) for shot in alone.scene()["shots"]] == [3, 0]
    alone.root.get_by_role("button", name="Join to the shot before").last.click()
    assert [len(shot["lines"]) for shot in alone.scene()["shots"]] == [3]


def test_what_a_newer_version_wrote_is_not_lost(alone):
    newer = json.loads(json.dumps(alone.talk))
    newer["later"], newer["scene"]["weather"] = {"a": 1}, "rain"
    newer["scene"]["shots"][0]["lines"][0]["accent"] = "Scots"
    alone.open(newer)
    alone.areas.nth(0).fill("Changed.")
    newer["scene"]["shots"][0]["lines"][0]["text"] = "Changed."
    assert alone.value() == newer


def test_every_control_has_a_name_and_its_place_in_the_order(alone):
    """By Tab from the first line's speaker through its fields to the next line; nothing is without a label."""
    alone.field(0, "speaker").focus()
    names = []
    for _ in range(10):
        names.append(alone.tab.evaluate("() => document.activeElement.dataset.field ?? 'button'"))
        alone.tab.keyboard.press("Tab")
    assert names == [
        "speaker",
        "language",
        "delivery",
        "pace",
        "start",
        "pause",
        "button",
        "text",
        "speaker",
        "language",
    ]
    unnamed = alone.root.locator(":is(input, select, textarea, button, ul, [role])").evaluate_all(
        "all => all.filter(each => !each.ariaLabel && !each.textContent && each.role !== 'status'"
        " && !each.matches('.hh-findings, [role=alert]')).map(each => each.outerHTML)"
    )
    assert unnamed == []
    meter = alone.root.get_by_role("meter", name="Fill")
    assert meter.get_attribute("aria-valuetext").endswith("good")


def test_the_lists_are_those_of_python():
    text = (MODULES / "scene.js").read_text(encoding="utf-8")
    assert f'const FRAMING = "{Shot().framing}";' in text
    for name, rows in (("LANGUAGES", LANGUAGES), ("PACES", PACES), ("SIDES", SIDES), ("FRAMINGS", FRAMINGS)):
        assert json.loads(re.search(rf"const {name} = (\[.*?\]);", text)[1]) == list(rows), name


def test_every_phrase_has_six_languages():
    text = (MODULES / "words.js").read_text(encoding="utf-8")
    table = re.search(r"const PHRASES = \{\n(.*?)\n\};", text, re.DOTALL)[1]
    rows = re.findall(r'^ {4}"?([\w -]+)"?: \[(.*?)\],$', table, re.MULTILINE | re.DOTALL)
    assert len(rows) == len(re.findall(r"^ {4}\S", table, re.MULTILINE)) - table.count("\n    ],") > 70
    for key, row in rows:
        assert len(re.findall(r'"(?:[^"\\]|\\.)*"', row)) == 6, key
    used = set(
        re.findall(r"words\.(\w+)", "".join(f.read_text(encoding="utf-8") for f in MODULES.glob("*.js")))
    )
    made = {"seconds", "units", "span", "range", "length", "js"}
    assert used - made <= {key for key, _ in rows}
