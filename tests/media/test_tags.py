"""Tags come back with their meaning, and ComfyUI's page finds its workflow."""

import json
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.media.codecs import CONTAINERS
from comfyui_happyhorse.media.formats import FilmFormat
from comfyui_happyhorse.media.mux import write_film
from comfyui_happyhorse.media.read import read_film
from comfyui_happyhorse.media.tags import without_braces_in_strings

FORMATS = {
    "mp4": FilmFormat(),
    "mov": FilmFormat("mov", "h264", "pcm"),
    "mkv": FilmFormat("mkv", "h264", "flac"),
    "webm": FilmFormat("webm", "vp9", "opus"),
}
FRAMES = torch.zeros(3, 64, 64, 3, dtype=torch.uint8)
NASTY = 'a } b :-{ "quoted" \\ back\\\\slash\nline\ttab {{ 火 🐎 é } \x01'
WORKFLOW = {"nodes": [{"id": 1, "widgets_values": [NASTY, "}{", "\\{"]}], "links": [], "version": 0.4}
PROMPT = {"1": {"class_type": "CLIPTextEncode", "inputs": {"text": NASTY}}}


def vint(data, at):
    """(value, bytes) of EBML's variable-length number, or None."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length()
    if not first or at + length > len(data):
        return None
    return int.from_bytes(data[at : at + length], "big") & ((1 << (7 * length)) - 1), length


def page_reads_webm(content):
    """{name: value} as the page's ebml.ts reads it (frontend 1.49.6): the first 2 MB, braces counted."""
    data, found, at = content[: 2 * 1024 * 1024], {}, 0
    if data[:4] != b"\x1a\x45\xdf\xa3":
        return {}

    def element(marker, start, end):
        while (start := data.find(marker, start, end)) >= 0:
            size = vint(data, start + 2)
            if size and size[0] > 0:
                begin = start + 2 + size[1]
                return data[begin : begin + size[0]]
            start += 1
        return None

    while (at := data.find(b"\x67\xc8", at)) >= 0:
        size = vint(data, at + 2)
        end = at + 2 + size[1] + size[0] if size else len(data) + 1
        if not size or size[0] <= 0 or end > len(data):
            at += 1
            continue
        name, value = (element(marker, at + 2 + size[1], end) for marker in (b"\x45\xa3", b"\x44\x87"))
        if name and value:
            found[name.decode().lower()] = value.split(b"\0")[0].decode()
        at = end
    return {name: page_parses(found[name]) for name in ("prompt", "workflow") if name in found}


def page_parses(text):
    """The JSON from the first brace to where the page thinks that it ends, or None."""
    text = text[text.find("{") :]
    depth, at = 1, 1
    while depth and at < len(text):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    try:
        return json.loads(text[:at]) if not depth else None
    except ValueError:
        return None


def write(folder, name, **tags):
    path = folder / f"film.{name}"
    return write_film(path, [FRAMES], None, format=FORMATS[name], metadata=tags)


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("container", CONTAINERS)
def test_tags_mean_the_same(tmp_path, container, ascii_only):
    texts = {
        name: json.dumps(value, ensure_ascii=ascii_only)
        for name, value in {"prompt": PROMPT, "workflow": WORKFLOW}.items()
    }
    write(tmp_path, container, **texts, comment="two\nlines { of text")
    back = read_film(tmp_path / f"film.{container}").metadata
    assert json.loads(back["prompt"]) == PROMPT
    assert json.loads(back["workflow"]) == WORKFLOW
    assert back["comment"] == "two\nlines { of text"


def test_the_page_finds_the_workflow_in_webm(tmp_path):
    write(tmp_path, "webm", prompt=json.dumps(PROMPT), workflow=json.dumps(WORKFLOW, ensure_ascii=False))
    found = page_reads_webm((tmp_path / "film.webm").read_bytes())
    assert found == {"prompt": PROMPT, "workflow": WORKFLOW}


@pytest.mark.parametrize("smile", [":-{", "a } b", "}{"])
def test_it_would_not_without_the_escapes(tmp_path, monkeypatch, smile):
    monkeypatch.setattr("comfyui_happyhorse.media.tags.without_braces_in_strings", lambda text: text)
    write(tmp_path, "webm", workflow=json.dumps({"nodes": [smile]}))
    assert page_reads_webm((tmp_path / "film.webm").read_bytes()) == {"workflow": None}


def test_only_webm_is_escaped(tmp_path):
    text = json.dumps(WORKFLOW)
    for container in ("mp4", "mov", "mkv"):
        write(tmp_path, container, workflow=text)
        assert read_film(tmp_path / f"film.{container}").metadata["workflow"] == text


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from('{}"\\'))


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(TEXT, st.recursive(TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner))),
    st.booleans(),
)
def test_any_json_is_read_by_counting_braces(value, ascii_only):
    text = without_braces_in_strings(json.dumps(value, ensure_ascii=ascii_only))
    assert page_parses(text) == value


@given(TEXT)
def test_text_that_is_no_json_is_left_alone(text):
    try:
        json.loads(text)
    except ValueError:
        assert without_braces_in_strings(text) == text


@pytest.mark.parametrize("size", [2_000_000, 2_200_000])
def test_a_webm_with_more_than_the_page_reads(tmp_path, caplog, size):
    write(tmp_path, "webm", workflow=json.dumps({"x": "y" * size}))
    found = page_reads_webm((tmp_path / "film.webm").read_bytes())
    assert ("workflow" in found) == (size < 2**21)
    assert ("not bring the workflow back" in caplog.text) == (size > 2**21)


def test_large_workflows_are_no_matter_in_mp4(tmp_path, caplog):
    write(tmp_path, "mp4", workflow=json.dumps({"x": "y" * 2_200_000}))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("tags", "content"),
    [
        (
            {"prompt": PROMPT, "workflow": WORKFLOW, "comment": "x"},
            WORKFLOW,
        ),  # the page loads it when dropped
        ({"prompt": PROMPT, "comment": "x"}, PROMPT),
        ({"comment": "x", "seed": 7}, {"comment": '"x"', "seed": "7"}),
    ],
)
def test_mkv_has_a_sidecar(tmp_path, tags, content):
    info = write(tmp_path, "mkv", **{name: json.dumps(value) for name, value in tags.items()})
    assert info.sidecar == tmp_path / "film.json"
    assert json.loads(info.sidecar.read_text(encoding="utf-8")) == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.json", "film.mkv"]


def test_others_have_none(tmp_path):
    for container in ("mp4", "mov", "webm"):
        assert write(tmp_path, container, workflow="{}").sidecar is None
    assert write(tmp_path, "mkv").sidecar is None
    assert {path.suffix for path in tmp_path.iterdir()} == {".mp4", ".mov", ".webm", ".mkv"}


def test_a_sidecar_that_has_no_place(tmp_path):
    (tmp_path / "film.json").mkdir()
    with pytest.raises(Exception, match=r"film\.json cannot be written: it is a folder"):
        write(tmp_path, "mkv", workflow="{}")
    assert [path.name for path in tmp_path.iterdir()] == ["film.json"]
