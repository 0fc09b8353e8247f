"""HappyHorse Step Saving inside ComfyUI: what it leaves out, what it never changes, and beside which nodes it works.

``host_step_saving.py`` measures in ComfyUI's interpreter, on the CPU, with 16 steps; here is what must come out.
"""

import re

import pytest

STEPS = 16


@pytest.fixture(scope="module")
def report(host_program):
    return host_program("host_step_saving.py")


def reused(line):
    """(computed, reused) as the log says it."""
    found = re.match(r"Step saving: (\d+) steps computed, (\d+) reused; estimated relative error ", line)
    assert found, line
    return int(found[1]), int(found[2])


def test_passes_fall_and_the_error_grows_with_the_threshold(report):
    rows = report["thresholds"]["rows"]
    assert [row[0] for row in rows] == [0.0, 1e-6, 0.2, 0.5, 1.0]
    for _, passes, _, is_equal, _ in rows[:2]:
        assert passes == STEPS and is_equal
    assert rows[0][4] is None, "off says nothing"
    assert rows[1][4].startswith(f"Step saving: all {STEPS} steps were computed")
    passes, errors = [row[1] for row in rows[1:]], [row[2] for row in rows[1:]]
    assert passes[0] > passes[1] > passes[2] >= passes[3]
    assert errors[0] == 0 < errors[1] < errors[2] <= errors[3] < 1
    for _, taken, _, _, line in rows[2:]:
        assert reused(line) == (taken, STEPS - taken)


def test_it_saves_what_the_engine_saves(report):
    found = report["thresholds"]
    assert found["engine"] <= 1e-4
    assert reused(found["node said"]) == reused(found["engine saved"])


def test_the_model_itself_is_left_alone(report):
    assert report["thresholds"]["exact again"]
    assert report["thresholds"]["the second node counts"]
    assert report["seeds"]["nothing is left"]


def test_branches_come_in_one_call_or_in_two(report):
    apart, together = report["branches"]["3"], report["branches"]["5"]
    assert apart["samples in a call"] == [1]
    assert together["samples in a call"] == [2]
    for found in (apart, together):
        assert 0 < found["error"] < 1
        assert reused(found["line"])[1] > 2


def test_runs_know_nothing_of_each_other(report):
    found = report["seeds"]
    assert found["again"] and found["stopped"] and found["after a stop"]


def test_several_seeds_in_a_batch(report):
    found = report["seeds"]["batch"]
    assert all(0 < error < 1 for error in found["errors"])
    assert reused(found["line"])[1] > 2


@pytest.mark.parametrize("order", ["swap after", "swap before"])
def test_a_pass_that_is_saved_streams_no_block(report, order):
    found = report["others"][order]
    assert found["equal"]
    assert found["passes"] == 2 * reused(found["line"])[0]


def test_compiled(report):
    assert report["others"]["compiled"] <= 1e-5


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_stock_samplers(report, sampler):
    """Heun asks twice at every level but the first, and is answered alike."""
    found = report["others"][sampler]
    computed, left_out = reused(found["line"])
    assert computed + left_out == STEPS and left_out > 2
    assert found["passes"] == (2 * computed - 1 if sampler == "heun" else computed)
    assert 0 < found["error"] < 1


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            "distilled",
            r"SamplingError: Step saving is for the base model.* distilled model takes few \(8 here\)",
        ),
        ("sr_540p", r"SamplingError: Step saving is for the base model.* sr_540p model takes few \(5 here\)"),
        ("distilled, off", "ran"),
        ("too large", "SamplingError: A step-saving threshold of 1.5 is not a relative error"),
        ("few steps", "SamplingError: Step saving needs 16 steps or more, and this run has 8"),
        ("another model", "ConditioningError: model: "),
    ],
)
def test_refusals(report, what, words):
    assert re.match(words, report["refusals"][what])


def test_the_threshold_is_off_to_one(report):
    assert report["schema"] == ["threshold", 0.0, 1.0]
