"""Whose attention our MODEL computes with inside ComfyUI: the node, the host's options, other packs' overrides.

``host_attention.py`` measures in ComfyUI's interpreter, on the CPU; here is what must come out.
"""

import pytest

CALLS = {
    "global": 8,
    "local": 26,
}  # dense calls of a pass: a call a layer, and one for each frame of a local layer
CLOSE = 3e-6  # two ways to compute the same in float32, after eight layers


@pytest.fixture(scope="module")
def report(host_program):
    return host_program("host_attention.py")


@pytest.mark.parametrize("kind", CALLS)
def test_without_the_node_the_host_computes(report, kind):
    found = report[kind]
    assert found["plain calls"] == {"ours": 0, "theirs": CALLS[kind]}
    assert found["the model itself is left alone"]


@pytest.mark.parametrize("kind", CALLS)
def test_the_node_takes_ours_or_leaves_it_to_the_host(report, kind):
    auto, host = report[kind]["auto"], report[kind]["host"]
    assert auto["calls"]["theirs"] == 0 and auto["calls"]["ours"] >= CALLS["global"]
    assert 0 < auto["difference"] <= CLOSE
    assert auto["said"].startswith("Attention on cpu: definition.")
    assert host["calls"] == {"ours": 0, "theirs": CALLS[kind]}
    assert host["difference"] == 0
    assert host["said"] == "Attention as ComfyUI computes it: hosts, its own choice."
    assert report[kind]["host after auto"] == {"ours": 0, "theirs": CALLS[kind]}


def test_other_packs_overrides_count(report):
    found = report["others"]
    assert found["changes"] > 0.1, "the override of this test must be felt"
    assert found["kept by host"] == 0
    assert found["said"] == "Attention as another node has set it: double."
    assert found["replaced by auto"] <= CLOSE, "the last node of the graph decides"
    assert found["a later one counts"] == 0


def test_it_is_an_override_as_the_host_calls_one(report):
    found = report["override"]
    assert max(found["flat"], found["heads"], found["two samples"]) <= 1e-6
    assert found["masked is the host's"] == 0


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("cudnn", "cpu is not an NVIDIA card"),
        ("flash", "cpu is not an NVIDIA card"),
        ("flash3", "flash-attn-3 is not installed"),
        ("flash4", "flash-attn-4 is not installed"),
        ("sage", "sageattention is not installed"),
        ("int8", "cpu is not an NVIDIA card"),
    ],
)
def test_what_cannot_run_is_refused_by_the_node(report, choice, words):
    said = report["refusals"][choice]
    assert said.startswith(f"SamplingError: attention cannot run as {choice}: ")
    assert words in said and said.endswith("Set attention to auto, which takes what can run.")


def test_another_model_is_refused(report):
    assert report["refusals"]["another model"].startswith("ConditioningError: model: ")


def test_whose_attention_a_card_gets(report):
    found = dict(report["whose"])
    assert found.pop("node") is True
    assert found.pop("card") == "ours", "nobody chose anything"
    assert found.pop("cpu") == "the host's"
    assert {"--use-sage-attention", "--use-flash-attention", "--use-pytorch-cross-attention"} <= set(found)
    assert set(found.values()) == {"the host's"}


def test_what_is_offered_exists(report):
    choices, known = report["schema"]["choices"], report["schema"]["known"]
    assert choices[:2] == ["auto", "host"]
    assert set(choices[2:]) == set(known) - {"efficient"}
