"""A scene seen whole: the parts agree with one another, and what a report says is what was done."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from comfyui_happyhorse.conditioning.dialogue.document import FRAMINGS, PACES, Line, Scene, Shot, Speaker
from comfyui_happyhorse.conditioning.dialogue.languages import LANGUAGES
from comfyui_happyhorse.conditioning.dialogue.review import (
    SILENT_FRAMES,
    described,
    join_lines,
    review,
)
from comfyui_happyhorse.errors import ConditioningError, GeometryError

ANNA, BEN = Speaker("Anna", "young woman, red coat", "left"), Speaker("Ben", "old man, grey beard", "right")
TEXTS = {
    "Mandarin": "我们明天3点在哪里见面？",
    "Cantonese": "我哋聽日3點喺邊度見面呀？",
    "English": "Where shall we meet at 3 tomorrow?",
    "Japanese": "明日の3時にどこで会いましょうか。",
    "Korean": "내일 3시에 어디에서 만날까요?",
    "French": "Où est-ce qu'on se retrouve demain à 3 h ?",
    "German": "Wo treffen wir uns morgen um 3 Uhr?",
}


def scene(*lines, **fields) -> Scene:
    return Scene((ANNA, BEN), (Shot(lines),), **fields)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_line_goes_into_the_prompt_as_it_is_shown(language):
    found = review(scene(Line("Anna", language, TEXTS[language]), sound="rain"))
    (line,) = found.lines
    assert "3" not in line.prepared.spoken
    assert found.prompt.count(f'"{line.prepared.spaced}"') == 2
    assert found.timeline.frames % 4 == 1
    assert line.span.start == pytest.approx(0.3)
    assert line.span.end - line.span.start == pytest.approx(line.duration.natural)
    assert line.duration.fast < line.duration.natural < line.duration.slow
    assert line.visemes[0][0] == pytest.approx(line.span.start, abs=1e-3)
    assert line.visemes[-1] == (line.span.end, "X")
    assert not found.errors
    report = found.report()
    assert f"spoken as: {line.prepared.spoken}" in report
    for change in line.changes:
        assert f"changed “{change.before}” to “{change.after}”: {change.reason}" in report


def test_as_typed_it_is_warned_of():
    found = review(scene(Line("Anna", "English", "At 3.", spell_out=False)))
    assert found.lines[0].prepared.spaced == "At 3."
    assert any(each.level == "warning" and "3" in each.message for each in found.lines[0].findings)


def test_the_answer_is_json_and_says_the_same():
    found = review(scene(Line("Anna", "German", "Ja."), Line("Ben", "French", "Oui.")), frames=49)
    answer = json.loads(json.dumps(found.as_json()))
    assert answer["frames"] == 49
    assert answer["seconds"] == 1.96
    assert answer["prompt"] == found.prompt
    assert [line["spaced"] for line in answer["lines"]] == ["Ja.", "Oui."]
    assert answer["lines"][1]["start"] > answer["lines"][0]["end"]
    assert answer["tokens"] == {"count": found.tokens, "limit": 640, "exact": False}
    every = answer["findings"] + [each for line in answer["lines"] for each in line["findings"]]
    assert all(set(each) == {"level", "code", "message", "start", "end", "fix"} for each in every)


def test_a_tokeniser_counts_exactly():
    found = review(scene(Line("Anna", "German", "Ja.")), count_tokens=len)
    assert (found.tokens, found.is_exact) == (len(found.prompt), True)
    assert any(each.code == "too-many-tokens" for each in found.findings)


def test_lengths_fixed_and_automatic():
    short = scene(Line("Anna", "English", "No."))
    assert "under-full" not in [each.code for each in review(short).findings]
    assert "under-full" in [each.code for each in review(short, frames=125).findings]
    assert review(scene()).timeline.frames == SILENT_FRAMES
    long = scene(Line("Anna", "English", "word " * 40))
    assert [each.code for each in review(long, frames=49).errors] == ["line-longer-than-clip"]
    with pytest.raises(GeometryError, match="50 frames"):
        review(short, frames=50)


def test_an_unspoken_language_is_refused():
    with pytest.raises(ConditioningError, match="does not speak 'Italian'"):
        review(scene(Line("Anna", "Italian", "Ciao.")))


def test_what_fights_the_scene_leaves_the_negative_and_the_report_says_so():
    found = review(scene(Line("Anna", "German", "Ja.", pace="fast")))
    assert "gabbled" not in found.negative.text
    assert "without “a gabbled tempo”, because" in found.report()


def test_a_nodes_fields_come_before_the_scenes():
    given = Scene(
        (ANNA,), (Shot((), "close-up", "a lamp flickers"), Shot()), setting="a kitchen", mood="calm"
    )
    made = described(given, framing="wide shot", action="", setting="a garden", mood=" ", sound="")
    assert made.shots[0] == Shot((), "wide shot", "a lamp flickers")
    assert made.shots[1] == Shot()
    assert (made.setting, made.mood) == ("a garden", "calm")
    assert described(Scene(), framing="close-up", action="waits").shots == (Shot((), "close-up", "waits"),)


def test_lines_are_joined_with_their_cast():
    one = Scene((ANNA,), (Shot((Line("Anna", "German", "Ja."),)),))
    two = Scene((BEN,), (Shot((Line("Ben", "German", "Nein."),)),))
    both = join_lines(one, two)
    assert both.cast == (ANNA, BEN)
    assert [line.text for line in both.lines] == ["Ja.", "Nein."]
    assert join_lines(both, one).cast == (ANNA, BEN)
    with pytest.raises(ConditioningError, match="Two speakers are called 'Anna'"):
        join_lines(one, Scene((Speaker("Anna", "somebody else"),)))


words = some.text(max_size=40) | some.sampled_from(
    ["", "<eos>", "3:30 p.m.", 'say "this"', "😀", "\u202eabc", "王" * 30, "\n\n", "½ €", "가\u200b나", "…"]
)
seconds = some.none() | some.floats(0, 9_999)
any_line = some.builds(
    Line, some.sampled_from(["Anna", "Ben", "", "?"]), some.sampled_from(list(LANGUAGES)), words, words,
    some.sampled_from(PACES), seconds, seconds, some.booleans(),
)  # fmt: skip
any_shot = some.builds(Shot, some.lists(any_line, max_size=3).map(tuple), some.sampled_from(FRAMINGS), words)
any_scene = some.builds(
    Scene, some.lists(some.builds(Speaker, words, words), max_size=2).map(tuple),
    some.lists(any_shot, max_size=2).map(tuple), words, words, words, words, words, some.none() | words,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(any_scene, some.sampled_from([0, 5, 125]))
def test_any_scene_has_a_review(scene, frames):
    """Whatever a browser sends is answered: what is wrong is a finding, and every change of a line is told."""
    found = review(scene, frames=frames)
    json.dumps(found.as_json(), allow_nan=False).encode("utf-8", "surrogatepass")
    for line in found.lines:
        if line.prepared.spoken != line.line.text:
            assert line.changes
        rebuilt = line.line.text
        for change in sorted(line.prepared.cleaning, key=lambda each: -each.start):
            end = change.start + len(change.before)
            assert rebuilt[change.start : end] == change.before
            rebuilt = rebuilt[: change.start] + change.after + rebuilt[end:]
        assert rebuilt == line.prepared.cleaned
    assert found.timeline.frames % 4 == 1
    assert found.report()
