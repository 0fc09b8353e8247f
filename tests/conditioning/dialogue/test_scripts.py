"""Right labels pass, wrong ones are contradicted, with the words that say so."""

import json
import os
import time
from pathlib import Path

import pytest

from comfyui_happyhorse.conditioning.dialogue.languages import LANGUAGES
from comfyui_happyhorse.conditioning.dialogue.scripts import check_language, contradicts
from comfyui_happyhorse.conditioning.dialogue.spacing import space
from comfyui_happyhorse.errors import ConditioningError

GOLDEN = Path(
    os.environ.get("HAPPYHORSE_GOLDEN") or Path(__file__).resolve().parents[4] / "shared" / "golden"
)
SHORT = Path(__file__).with_name("short_lines.txt")


def short_lines() -> dict[str, list[str]]:
    """{language: lines}"""
    lines, language = {}, ""
    for row in SHORT.read_text(encoding="utf-8").splitlines():
        if row.startswith("["):
            language = row[1:-1]
        elif row and not row.startswith("#"):
            lines.setdefault(language, []).append(row)
    return lines


def test_golden_labels():
    file = GOLDEN / "dialogue.json"
    if not file.exists():
        pytest.skip(f"{file} is not there; set HAPPYHORSE_GOLDEN")
    golden = json.loads(file.read_text(encoding="utf-8"))
    right = [contradicts(line["text"], line["language"]) for line in golden["lines"]]
    wrong = [contradicts(line["text"], line["language"]) for line in golden["wrong_label"]]
    assert sum(right) <= 0.05 * len(right)
    assert sum(wrong) >= 0.95 * len(wrong)


# Wrong labels found when the lists were first whole: 98.8 % of the odd lines, which were looked at, and 98.6 % of
# the even ones, held out until then. 216 lines written afterwards: 96.5 %, then 97.4 % with markers added. No right
# label was contradicted in any of these.
@pytest.mark.parametrize("half", [0, 1], ids=["looked-at", "held-out"])
def test_short_lines(half):
    lines = {language: rows[half::2] for language, rows in short_lines().items()}
    assert lines.keys() == LANGUAGES.keys()
    assert all(len(rows) >= 30 for rows in lines.values())
    assert [row for language, rows in lines.items() for row in rows if contradicts(row, language)] == []
    wrong = [
        contradicts(row, label)
        for language, rows in lines.items()
        for row in rows
        for label in LANGUAGES
        if label != language
    ]
    assert len(wrong) > 1500
    assert sum(wrong) >= 0.98 * len(wrong)


def test_spacing_changes_no_verdict():
    for language, rows in short_lines().items():
        for row in rows[::6]:
            for label in LANGUAGES:
                assert contradicts(space(row), label) == contradicts(row, label), (language, label, row)


@pytest.mark.parametrize(
    ("text", "label", "reads_as", "word"),
    [
        ("Könnten Sie die Frage wiederholen?", "English", "German", "Könnten"),
        ("Oui, bien sûr.", "English", "French", "Oui"),
        ("No way!", "French", "English", "No"),
        ("Merci beaucoup", "German", "French", "Merci"),
        ("我们明天在哪里见面？", "Cantonese", "Mandarin", "们"),
        ("佢哋嚟緊。", "Mandarin", "Cantonese", "佢"),
        ("東京大学", "Mandarin", "Japanese", "東京大学"),
        ("ちょっと待って！", "Mandarin", "Japanese", "ちょっと"),
        ("잠깐만!", "Japanese", "Korean", "잠깐만"),
        ("大丈夫です。", "Korean", "Japanese", "大丈夫"),
        ("Guten Tag!", "Mandarin", "German", "Guten"),
        ("大家早上好", "English", "Mandarin", "大家早上好"),
        ("我从来没想过。", "Japanese", "Mandarin", "我"),
        ("Привет!", "English", "Cyrillic script", "Привет"),
    ],
)
def test_the_message_names_language_and_words(text, label, reads_as, word):
    assert contradicts(text, label)
    (finding,) = check_language(text, label)
    assert finding.code == "contradicts-language"
    assert f"labelled {label} but reads as {reads_as}" in finding.message
    assert f"“{word}”" in finding.message
    assert text[finding.start : finding.end] == word


def test_scripts_are_errors_and_words_are_warnings():
    assert check_language("Guten Tag!", "Korean")[0].level == "error"
    assert check_language("Guten Tag!", "English")[0].level == "warning"


@pytest.mark.parametrize("text", ["", "...", "OK!", "123", "😀", "Hm, hm."])
@pytest.mark.parametrize("language", LANGUAGES)
def test_what_says_nothing_is_compatible(text, language):
    assert not contradicts(text, language)
    assert check_language(text, language) == ()


@pytest.mark.parametrize(
    ("text", "language", "level", "code", "words", "fix"),
    [
        ("他說得對，這裡很漂亮。", "Mandarin", "note", "traditional", "說", "他说得对，这里很漂亮。"),
        ("我们说這件事吧。", "Mandarin", "warning", "mixed-han", "這", "我们说这件事吧。"),
        ("佢话听日嚟。", "Cantonese", "note", "simplified", "话", None),
        ("佢話聽日嚟说。", "Cantonese", "warning", "mixed-han", "说", None),
        ("你说なに？", "Japanese", "warning", "simplified", "说", None),
        ("大家可以一齊出去行山", "Cantonese", "note", "no-cantonese-words", None, None),
        ("用 Photoshop 改一下。", "Mandarin", "note", "mixed-script", "Photoshop", None),
        ("I like the 寿司 here, it is wonderful.", "English", "warning", "mixed-script", "寿司", None),
        ("이것은 すし 입니다.", "Korean", "warning", "mixed-script", "すし", None),
    ],
)
def test_script_within_a_line(text, language, level, code, words, fix):
    found = [finding for finding in check_language(text, language) if finding.code == code]
    assert [(finding.level, finding.code, finding.fix) for finding in found] == [(level, code, fix)]
    if words:
        assert text[found[0].start : found[0].end] == words


def test_no_finding_on_the_plainest_line_of_each():
    for language, text in {
        "English": "I never thought we would see the ocean again.",
        "French": "Je n'aurais jamais cru revoir la mer un jour.",
        "German": "Ich hätte nie gedacht, dass wir das Meer noch einmal sehen.",
        "Japanese": "もう一度海が見られるとは思いませんでした。",
        "Korean": "다시 바다를 보게 될 줄은 정말 몰랐어요.",
        "Mandarin": "我从来没想过我们还能再看到大海。",
        "Cantonese": "我從來冇諗過我哋仲可以再見到大海。",
    }.items():
        assert check_language(text, language) == ()


def test_capitals_are_read_too():
    assert contradicts("ICH HABE KEINE AHNUNG", "English")
    assert not contradicts("I HAVE NO IDEA", "English")
    assert contradicts("I HAVE NO IDEA", "Mandarin")


def test_a_language_the_model_does_not_speak():
    with pytest.raises(ConditioningError, match="does not speak 'Klingon'; it speaks Mandarin"):
        contradicts("Hello", "Klingon")


@pytest.mark.parametrize("text", ["你" * 100_000, "a. " * 33_000])
def test_100_kb_do_not_hang(text):
    begin = time.process_time()
    for language in LANGUAGES:
        check_language(text, language)
    assert time.process_time() - begin < 4
