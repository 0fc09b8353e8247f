"""In ComfyUI text features come from disk, and the encoder's weights are read only where they do not."""

import shutil

import pytest

NOTHING = {"opened": 0, "tensors": 0, "mapped": 0, "whole": 0}
PRECISIONS = ("auto", "bf16", "float32", "fp8", "int8", "nf4")


@pytest.fixture(scope="session")
def reports(host_program):
    """What ``host_text_cache.py`` measured in a new user's folder, and in a second process with that folder."""
    folders = []

    def prepare(work):
        if folders:
            shutil.copytree(folders[0] / "user", work / "user")
        folders.append(work)

    return [host_program("host_text_cache.py", prepare) for _ in range(2)]


@pytest.fixture(scope="session")
def report(reports):
    return reports[0]


def test_after_a_restart_no_weights_are_read(reports):
    first, second = (report["restart"] for report in reports)
    assert (first["entries"], second["entries"]) == (1, 1)
    assert first["reading"]["whole"] == 1
    assert first["reading"]["mapped"] == 2  # both shards: the check sees reading where there is some
    assert second["reading"] == NOTHING
    assert first["same"]
    assert second["same"]


def test_loading_reads_headers_and_samples_only(report):
    for loading in (report["restart"]["loading"], report["hits"]["loading"]):
        assert loading["opened"] > 0
        assert (loading["tensors"], loading["mapped"], loading["whole"]) == (0, 0, 0)
    assert report["hits"]["held after loading"] == [True, 0]


def test_the_second_prompt_reads_no_weights_again(report):
    found = report["hits"]
    assert found["first A horse says hello."]["whole"] == 1
    assert found["first Rain."] == NOTHING
    assert found["first empty"] == NOTHING


@pytest.mark.parametrize("text", ["A horse sa", "Rain.", "", "default"])
def test_known_words_are_bit_equal_and_read_nothing(report, text):
    found = report["hits"]
    if text == "default":
        [text] = [
            name.removeprefix("same ")
            for name in found
            if name.startswith("same ") and name not in ("same A horse sa", "same Rain.", "same ")
        ]
    assert found[f"again {text}"] == NOTHING
    assert found[f"same {text}"] == [True, True]


def test_the_mark_of_an_empty_prompt_survives(report):
    # "", " ", words, and the default negative prompt typed out: with the cache, then without.
    assert report["hits"]["empty is marked"] == [True, True, False, False] * 2
    assert report["hits"]["entries"] == 3  # the typed one has the features of the empty one


def test_every_way_to_ask_gives_the_same(report):
    found = report["hits"]
    assert found["keys"] == ["pooled_output"]
    assert found["another loader"] == NOTHING
    assert found["another loader same"]
    assert found["forms"] == [True, True, True]
    assert found["added"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(report, precision):
    found = report["precisions"][precision]
    assert found["missed"] == 1
    assert found["hit"] == NOTHING
    assert found["same"] == [True, True]
    assert not found["other"]  # another precision has features of its own


def test_the_host_counts_and_frees(report):
    found = report["memory"]
    assert found["before"] == 0
    size, module = found["counted"]
    assert size == module > 100_000
    assert found["loaded"]
    assert found["records"] == 0
    assert found["freed"] == [True, True, True]
    assert found["hit"] == NOTHING
    assert found["records after a hit"] == 0
    assert found["miss"]["whole"] == 1
    assert found["let go"] == [True, True, 0]
    assert found["gone with its CLIP"]


def test_the_hosts_questions_read_nothing(report):
    found = report["host"]
    assert found["reads"] == NOTHING
    assert found["unread"] == [False, True, True]
    assert found["read"] == [True, False]
    assert found["apart"]


def test_what_nodes_touch_is_there(report):
    found = report["host"]
    assert found["patcher"] == [True] * 9
    assert found["touched, known words"] == NOTHING
    assert found["kept while asked for"]
    assert found["touched, new words"]["whole"] == 0  # the weights are those of its patcher
    assert found["loaded again"]


def test_clones_use_the_cache(report):
    assert report["patched"]["clones"] == [[True, 0], [True, 0]]


def test_a_patched_clip_bypasses_it(report):
    found = report["patched"]
    assert found["patches taken"]
    assert found["changes"]
    assert found["as merged"] <= 4e-3  # the host's sum is rounded once more
    assert found["not kept"] == [1, True]
    assert found["base as before"] == [True, 2]
    assert found["clone of patched"]
    assert found["patched in place"] == [True, True, 2]
    assert found["retargeted is changed"]
    assert found["replaced module is changed"]


def test_hooks(report):
    found = report["hooked"]
    assert found["only on conditioning"] == [True, True, False, 0]
    assert found["scheduled"] == [["clip_end_percent", "clip_start_percent", "hooks"], True, 1, True]


def test_another_file_under_the_same_name(report):
    assert report["replaced"] == dict.fromkeys(
        (
            "under its own key",
            "hit",
            "old words are other words",
            "not under the old",
            "refused when loading",
        ),
        True,
    )


def test_clearing(report):
    found = report["clearing"]
    assert found["before"] > 0
    assert found["after"] == 0
    assert found["text"] == found["wanted"]
    assert found["folder"] == "user/happyhorse/text_features"
    assert found["runs again"]
    assert found["is output"]
    assert found["off keeps nothing"] == 0
    assert found["loader keeps"] == 1
