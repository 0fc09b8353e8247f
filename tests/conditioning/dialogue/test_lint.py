"""Each rule finds its fault, in its place, and offers the right correction; a good scene has no findings."""

from dataclasses import replace

import pytest

from comfyui_happyhorse.conditioning.dialogue.compose import prepare
from comfyui_happyhorse.conditioning.dialogue.document import Line, Scene, Shot, Speaker
from comfyui_happyhorse.conditioning.dialogue.line_rules import line_findings
from comfyui_happyhorse.conditioning.dialogue.lint import lint
from comfyui_happyhorse.conditioning.dialogue.timeline import Span, Timeline

WOMAN = Speaker("A", "young woman, red coat", "left")
MAN = Speaker("B", "old man, grey beard", "right")


def span(line, start, end, natural=1.0):
    return Span(line, start, end, natural, natural, natural)


def film(seconds, spans, fill):
    return Timeline(round(seconds * 25), seconds, spans, fill, "good")


def good(text="Good morning to you.", language="English", **fields):
    return Scene((WOMAN,), (Shot((Line("A", language, text),)),), **fields)


def codes(scene, **numbers):
    return [found.code for found in lint(scene, **numbers)]


def test_a_good_scene_has_no_findings():
    assert lint(good(), tokens=400, negative="blur, noise") == ()
    assert lint(good(), timeline=film(5.0, (span(0, 0.3, 3.0),), 0.6)) == ()


@pytest.mark.parametrize(
    ("text", "language", "level", "code", "part", "fix"),
    [
        ("  ", "English", "error", "empty-line", None, None),
        ("…!", "English", "warning", "no-words", None, None),
        ("Hello.", "Spanish", "error", "unspoken-language", None, None),
        ("Hello <eos>there.", "English", "error", "special-token", "<eos>", "Hello there."),
        ("<b>Hi</b> you.", "English", "error", "special-token", "<b>", "Hi you."),
        ("<start_of_turn>Hi you.", "English", "error", "special-token", "<start_of_turn>", "Hi you."),
        ("<unused42> Hi you.", "English", "error", "special-token", "<unused42>", "Hi you."),
        ("I love > you.", "English", "error", "angle-bracket", ">", "I love you."),
        ('He said "no" twice.', "English", "error", "quote-in-line", '"no"', "He said ‘no’ twice."),
        ('彼は"はい"と言った。', "Japanese", "error", "quote-in-line", '"はい"', "彼は「はい」と言った。"),
        ('He said no" twice.', "English", "error", "quote-in-line", '"', "He said no twice."),
        ("“Never, he said.", "English", "warning", "unbalanced-quotes", "“", None),
        ("「はい、と言った。", "Japanese", "warning", "unbalanced-quotes", "「", None),
        ("One\ntwo then.", "English", "warning", "line-break", "\n", "One two then."),
        ("Come\u200e here.", "English", "warning", "direction-mark", "\u200e ", "Come here."),
        ("Come\u200b here.", "English", "warning", "hidden-character", "\u200b ", "Come here."),
        ("Ｏｋａｙ, come here.", "English", "note", "full-width", "Ｏｋａｙ", "Okay, come here."),
        ("Un e\u0301te\u0301 à Paris.", "French", "note", "not-composed", "e\u0301", "Un été à Paris."),
        ("Good morning 😀!", "English", "warning", "emoji", "😀", "Good morning!"),
        ("(sighs) Good morning.", "English", "warning", "stage-direction", "(sighs)", "Good morning."),
        ("Good *laughs* morning.", "English", "warning", "stage-direction", "*laughs*", "Good morning."),
        ("The FBI is here.", "English", "note", "acronym", "FBI", None),
        ("I TOLD YOU ALREADY!", "English", "note", "all-capitals", "I TOLD YOU ALREADY!", None),
        ("佢好𡃉。", "Cantonese", "note", "rare-character", "𡃉", "佢好㗎。"),
    ],
)
def test_a_fault_in_a_line_is_named_located_and_mended(text, language, level, code, part, fix):
    found = [each for each in lint(good(text, language)) if each.code == code]
    assert [each.level for each in found] == [level]
    assert found[0].line == 0 and found[0].fix == fix
    if part is not None:
        assert text[found[0].start : found[0].end] == part
    assert found[0].message[0].isupper() or not found[0].message[0].isalpha()


@pytest.mark.parametrize(
    "text",
    ['He said "no" <eos> (loudly) 😀 <', '\u200b< \u202eOne\ntwo" ＡＢ', '*a* *b* <b>c</b> "d" 😀😀'],
)
def test_fixes_one_after_the_other_leave_no_fixable_fault(text):
    line = Line("A", "English", text)
    for _ in range(20):
        fixes = [each.fix for each in line_findings(line, prepare(line)) if each.fix not in (None, line.text)]
        if not fixes:
            break
        line = replace(line, text=fixes[0])
    assert not fixes
    assert {each.level for each in line_findings(line, prepare(line))} <= {"note"}


def test_a_line_in_another_language_is_contradicted():
    found = lint(good("Ich habe dich so lange nicht gesehen.", "English"))
    assert [(each.code, each.line) for each in found] == [("contradicts-language", 0)]


def test_figures_sent_as_they_are_can_be_spelled_out():
    scene = Scene((WOMAN,), (Shot((Line("A", "English", "I have 3 dogs.", spell_out=False),)),))
    found = lint(scene)
    assert [each.code for each in found] == ["not-spelled"]
    assert (found[0].start, found[0].end, found[0].fix) == (7, 8, "I have three dogs.")


def test_what_cannot_be_spelled_out_is_shown():
    found = next(each for each in lint(good("Write to me@home.org now.")) if each.code == "not-spelled")
    assert "me@home.org" in found.message and found.fix is None


def test_a_language_by_another_name_is_guessed():
    found = lint(good("你好。", "Chinese"))[0]
    assert found.code == "unspoken-language" and "Did you mean Mandarin?" in found.message


@pytest.mark.parametrize(
    ("cast", "level", "code"),
    [
        ((WOMAN, MAN, Speaker("C", "boy, cap", "centre")), "warning", "many-speakers"),
        ((WOMAN, replace(MAN, side="")), "warning", "no-side"),
        ((WOMAN, replace(MAN, side="left")), "warning", "same-side"),
        ((WOMAN, Speaker("B", "young woman, green coat", "right")), "warning", "alike-speakers"),
        ((WOMAN, replace(MAN, name="A")), "error", "same-name"),
        ((Speaker("A", " "),), "error", "no-description"),
        ((Speaker("A", "Peter"),), "warning", "name-for-description"),
        ((Speaker("A", "a man with a long grey beard and a very old hat"),), "note", "long-description"),
        ((Speaker("A", "man <eos>"),), "error", "special-token"),
        ((Speaker("A", "man > boy"),), "error", "angle-bracket"),
        ((Speaker("A", "红衣女人"),), "warning", "not-english"),
    ],
)
def test_a_fault_in_the_cast_is_named(cast, level, code):
    found = [each for each in lint(replace(good(), cast=cast)) if each.code == code]
    assert found and {each.level for each in found} == {level}


def test_a_speaker_who_is_not_in_the_cast():
    scene = Scene((WOMAN,), (Shot((Line("Z", "English", "Good morning."),)),))
    found = [each for each in lint(scene) if each.code == "unknown-speaker"]
    assert found[0].line == 0 and found[0].level == "error" and "“Z”" in found[0].message


@pytest.mark.parametrize(
    ("field", "text", "code", "part"),
    [
        ("setting", "a hall; the camera pans left", "camera-move", "camera pans"),
        ("setting", "a hall, then zoom in", "camera-move", "zoom"),
        ("mood", "cuts to black", "camera-move", "cuts to"),
        ("appearance", "she walks in", "large-motion", "walks"),
        ("appearance", "folded hands", "hands", "hands"),
        ("lighting", "柔和", "not-english", "柔和"),
        ("setting", 'a sign "OPEN"', "quote-in-field", '"'),
        ("setting", "a\u200b hall", "hidden-character", "\u200b "),
        ("mood", "calm <pad>", "special-token", "<pad>"),
        ("sound", "rain and thunder", "several-sounds", None),
        ("sound", "rain <loud>", "angle-bracket", "<"),
    ],
)
def test_a_fault_in_a_field_is_named_and_located(field, text, code, part):
    found = lint(good(**{field: text}))
    assert [each.code for each in found] == [code]
    if part is not None:
        assert text[found[0].start : found[0].end] == part and field in found[0].message


def test_what_is_denied_is_not_asked_for():
    assert codes(good(setting="a hall, no zoom, without any hands")) == []
    assert codes(good(setting="a frying pan on the wall, high-handed decor")) == []


def test_shots_framings_and_lines_beyond_what_the_model_does_well():
    line = Line("A", "English", "Good morning to you.")
    scene = Scene((WOMAN,), (Shot((line, line, line)), Shot((line,), "wide shot")))
    assert codes(scene) == ["several-shots", "small-faces", "many-lines"]


def test_a_pasted_body_is_held_against_its_lines():
    filler = "plain words of a body " * 32
    spoken = 'he says "Good morning to you." '
    assert codes(good(body=filler + spoken)) == []
    assert codes(good(body=filler)) == ["line-not-in-body"]
    assert codes(good(body=filler + spoken + spoken)) == ["line-repeated"]
    assert codes(good(body=filler + spoken + 'and "Go!"')) == ["unlisted-quote"]
    assert "unbalanced-quotes" in codes(good(body=filler + spoken + '"'))
    assert codes(good(body=filler + spoken + "\nDialogue: none")) == ["repeated-section"]
    assert codes(good(body=filler + spoken + "<bos>")) == ["special-token"]
    assert codes(good(body=filler + spoken + "The camera follows.")) == ["camera-move"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (19, "body-short"),
        (99, "body-short"),
        (149, "body-short"),
        (150, None),
        (200, None),
        (201, "body-long"),
    ],
)
def test_the_length_of_a_body(words, expected):
    body = "word " * (words - 4) + '"Good morning to you."'
    found = lint(good(body=body))
    assert [each.code for each in found] == ([expected] if expected else [])
    if words < 100:
        assert "blurred" in found[0].message


@pytest.mark.parametrize(
    ("timeline", "expected"),
    [
        (film(5.0, (span(0, 0.3, 5.2, natural=5.2),), 1.04), ["line-longer-than-clip", "over-full"]),
        (film(5.0, (span(0, 0.0, 4.6, natural=4.6),), 0.96), ["over-full"]),
        (film(5.0, (span(0, 0.3, 1.3),), 0.2), ["under-full"]),
        (film(5.0, (span(0, 1.0, 4.8, natural=3.8),), 0.76), ["ends-late"]),
        (film(5.0, (span(0, 3.0, 5.5, natural=2.5),), 0.5), ["line-outside-clip"]),
        (film(5.0, (span(0, 0.3, 2.3, natural=2.0), span(1, 2.0, 3.0)), 0.6), ["lines-overlap"]),
    ],
)
def test_time(timeline, expected):
    found = lint(good(), timeline=timeline)
    assert [each.code for each in found] == expected
    if expected[0] == "line-longer-than-clip":
        assert found[0].line == 0 and "5.2 s" in found[0].message and "5.9 s" in found[0].message


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(600, []), (601, ["many-tokens"]), (640, ["many-tokens"]), (641, ["too-many-tokens"])],
)
def test_tokens(tokens, expected):
    assert codes(good(), tokens=tokens) == expected


def test_a_users_negative_is_held_against_the_scene():
    found = lint(good(sound="soft piano music"), negative="blur, music, crowd noise")
    assert [each.code for each in found] == ["negative-fights-scene"]
    assert "“music”" in found[0].message


def test_errors_come_first_then_the_film():
    line = Line("A", "English", "Good morning <eos> <3")
    found = lint(Scene((WOMAN,), (Shot((replace(line, text="Hi 😀."), line)),), mood="she walks"))
    levels = [each.level for each in found]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert [each.line for each in found if each.level == "error"] == [1, 1]


def test_a_line_without_end_is_cut_for_checking_only():
    found = lint(good("word " * 20_000))
    endless = next(each for each in found if each.code == "endless-line")
    assert endless.level == "error" and "99,999" in endless.message


@pytest.mark.parametrize(
    "text", ["(" * 50_000, '"' * 50_000, "<" * 50_000, "*a" * 25_000, "😀" * 25_000, "“" * 50_000]
)
def test_fifty_thousand_signs_are_few_findings(text):
    scene = good(text, setting=text, body=text)
    assert len(lint(scene)) < 30
