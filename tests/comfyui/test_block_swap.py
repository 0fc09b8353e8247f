"""Block swap inside ComfyUI: the same film bit for bit, and one owner for every weight.

``host_block_swap.py`` measures in ComfyUI's interpreter; here is what must come out.
"""

import pytest

PRECISIONS = ["bf16", "fp8", "fp8_rows", "fp8_fast", "int8", "nf4"]
BLOCKS, STEPS = 8, 2


@pytest.fixture(scope="module")
def report(host_program):
    return host_program("host_block_swap.py")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_swapped_and_plain_sampling_are_bit_equal(report, precision):
    """Every plan; LoRAs before the node, after it and on both sides; the loader's own MODEL stays as it was."""
    assert report["blocks"] == BLOCKS
    found = report["equal"][precision]
    assert len(found) == (12 if precision == "bf16" else 10)
    assert all(found.values()), found


@pytest.mark.parametrize("rows", [3, 5, 9])
@pytest.mark.parametrize("sampler", ["ours", "KSampler"])
def test_guidance_branches_go_through_a_block_together(report, sampler, rows):
    """The positive text has 5 rows; texts of other lengths share a pass too."""
    assert report["guidance"][f"{sampler}, {rows} rows"] == {"equal": True, "together": [2] * STEPS}


@pytest.mark.parametrize("case", ["a batch of two", "a small card"])
def test_samples_share_a_pass(report, case):
    assert report["guidance"][case] == {"equal": True, "together": [2] * STEPS}


def test_what_other_nodes_put_on_the_model_does_the_same(report):
    found = report["patched_by_others"]
    assert found["counted"]  # they change the film
    assert found["equal"] == [True, True]  # put on before the node, and after it
    assert found["counts"] == [{"block": STEPS, "attention": BLOCKS * STEPS, "wrapper": STEPS}] * 3
    assert found["ModelSamplingSD3"] == [True, True]
    assert found["compiled"] <= 1e-5  # embedders and heads are compiled, the blocks are not


@pytest.mark.parametrize(
    ("case", "answer", "raised"),
    [
        ("stopped", "InterruptProcessingException: ", 1),
        ("another error", "ValueError: of a node", 1),
        ("out of memory twice", "OutOfMemoryError: injected", 2),
    ],
)
def test_a_run_that_ends_early_frees_everything(report, case, answer, raised):
    found = report["failures"][case]
    assert (found["answer"], found["raised"], found["held"]) == (answer, raised, 0)
    assert found["then equal"]


def test_a_pass_that_fails_without_a_sampler_frees_everything(report):
    found = report["failures"]
    assert (found["alone"], found["alone, held"]) == ("ValueError: of a node", 0)


def test_a_second_node_changes_the_settings(report):
    assert report["failures"]["set twice"]
    assert "1 of 8 blocks on the device, 7 streamed, slots: 4" in report["failures"]["set twice, said"]


def test_stop_is_noticed_between_blocks(report):
    found = report["failures"]
    assert found["pressed"] == "InterruptProcessingException"
    assert found["pressed, blocks after it"] == 0
    assert found["held after"] == 0


def test_out_of_memory_leads_to_a_smaller_plan_and_the_same_film(report):
    found = report["failures"]["out of memory once"]
    assert (found["answer"], found["raised"], found["equal"], found["held"]) == ("accepted", 1, True, 0)
    (warning,) = found["warned"]
    assert "3 of 8 blocks on the device, slots: 3. Going on with 0 blocks, slots: 2" in warning
    first, second = found["plans"]
    assert "3 of 8 blocks on the device, 5 streamed, slots: 3" in first
    assert "0 of 8 blocks on the device, 8 streamed, slots: 2" in second
    assert found["then equal"]
    assert len(report["failures"]["out of memory twice"]["warned"]) == 1  # tried once a run
    assert report["failures"]["in two passes"] == "OutOfMemoryError: injected"
    assert report["failures"]["a retry of its own for each run"] == [True, True]
    assert report["failures"]["the last plan"]
    assert "slots: 1" in report["failures"]["the last plan, said"]


def test_clones_with_other_loras_share_the_slabs(report):
    found = report["clones"]
    assert found["one model"]
    assert found["in turn"] == [True] * 5
    assert found["slabs"] == 1  # the same memory each time
    assert found["written"] == found["patched"] == [0, 1, 3, 5]


def test_the_host_counts_what_the_swapper_takes(report):
    found = report["accounting"]
    assert found["size"] == found["expected size"]
    assert found["auto"] == 0  # asks for room for all blocks
    assert found["loaded"] == found["rest"] < found["plain"] / 5
    during = found["during"]
    assert during["held"] == found["size"] - found["rest"]
    assert during["loaded"] == found["rest"] + during["held"]
    assert found["after"] <= found["rest"]
    assert found["again"]


def test_the_host_leaves_the_blocks_alone(report):
    found = report["accounting"]
    assert found["names"]  # all of them are there to be patched
    assert found["listed blocks"] == [] and found["listed rest"] > 0
    assert found["backed up blocks"] == []
    assert found["backed up rest"] == ["diffusion_model.final_linear_video.weight"]
    assert found["moved blocks"] == []
    assert found["untouched"]
    assert found["saved"] == [True, True]


def test_memory_is_given_back_when_the_host_asks(report):
    found, during = report["accounting"], report["accounting"]["during"]
    assert during["freed between"] == during["held"] and during["held between"] == 0
    assert found["asked between passes"]
    assert during["held still"] == during["held"]  # inside a pass blocks are reading it
    assert found["slabs after unloading"] == found["slabs"] > 0
    assert found["slabs after unloading, memory short"] == 0
    assert "load the MODEL through ComfyUI" in found["said without weights"]


def test_auto_takes_what_is_free(report):
    found = report["auto_plans"]
    assert [found[case]["equal"] for case in ("nothing", "some", "all")] == [True] * 3
    assert found["nothing"]["held"] == found["slots"]
    assert found["slots"] < found["some"]["held"] <= found["some"]["room"]
    assert found["all"]["held"] == found["sizes"]


def test_nothing_is_left_without_a_model(report):
    assert report["ends"] == {"left": 0, "base left": False}


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("compiled before", "SamplingError", ["compile node after HappyHorse Block Swap"]),
        ("too many", "ConditioningError", ["blocks_to_swap: 9", "0 to 8"]),
        ("negative", "ConditioningError", ["blocks_to_swap: -1", "0 to 8"]),
        ("negative memory", "ConditioningError", ["vram_to_leave_free_gb -1"]),
        ("another model", "ConditioningError", ["a Linear came"]),
        ("weight wrapper", "SamplingError", ["block.layers.0.mlp.down_proj.weight"]),
        ("object patch", "SamplingError", ["block.layers.0.mlp,"]),
        ("LoRA hook", "SamplingError", ["LoRA hook", "HappyHorse LoRA Loader"]),
    ],
)
def test_what_cannot_be_swapped_is_refused(report, case, kind, words):
    answer = report["refusals"][case]
    assert answer.startswith(f"{kind}: ") and all(word in answer for word in words), answer
    assert report["refusals"]["after all"]
