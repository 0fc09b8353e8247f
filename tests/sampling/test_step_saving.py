"""Steps that are left out: which, by what estimate, at what error, and what they never change."""

import math
from dataclasses import replace

import pytest
import torch

from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.sampling.guidance import BaseGuidance
from comfyui_happyhorse.sampling.joint import PRESETS, sample, step_saver
from comfyui_happyhorse.sampling.schedule import flow_sigmas
from comfyui_happyhorse.sampling.step_saving import FEWEST_STEPS, Saved, StepSaver, check_step_saving
from comfyui_happyhorse.sampling.streams import SeededNoise, Streams, StreamShapes
from comfyui_happyhorse.sampling.super_resolution import GUIDED_PRESET, PRESET

SHAPES = StreamShapes((1, 2, 3, 2, 4), (1, 5, 9))
BASE = PRESETS["base"]
SIGMAS = flow_sigmas(32).tolist()


def conditional(x, sigma):
    """Smooth, and both streams feel each other."""
    video = 0.7 * x.video + torch.sin(2 * x.video + sigma) + 0.1 * x.audio.mean() + 0.2 * x.video[:, :, :1]
    return Streams(video, 0.5 * x.audio - 0.3 * torch.cos(x.audio) + 0.1 * x.video.mean())


def unconditional(x, sigma):
    return Streams(0.9 * x.video - 0.1, 0.8 * x.audio + 0.1 * sigma)


def still(value):
    """The same velocity everywhere."""
    return lambda x, _sigma: Streams(torch.full_like(x.video, value), torch.full_like(x.audio, 2 * value))


def noise(seed=7):
    return SeededNoise(seed, SHAPES)()


class Run:
    """A base run from one seed's noise; remembers where the network was asked."""

    def __init__(self, saver, seed=7, velocities=(conditional, unconditional), preset=BASE, **more):
        self.saver, self.asked = saver, []

        def positive(x, sigma):
            self.asked.append((SIGMAS.index(sigma), x))
            return velocities[0](x, sigma)

        self.out = sample(positive, velocities[1], noise(seed), preset, None, saver=saver, **more)

    @property
    def steps(self):
        return [step for step, _ in self.asked]


def distance(run, exact):
    """Relative L2 distance of the results, the larger of both streams."""
    pairs = zip(run.out, exact.out, strict=True)
    return max(((mine - wanted).norm() / wanted.norm()).item() for mine, wanted in pairs)


def same(run, other):
    return torch.equal(run.out.video, other.out.video) and torch.equal(run.out.audio, other.out.audio)


@pytest.fixture(scope="module")
def exact():
    return Run(None)


def test_off_is_off():
    for preset in (*PRESETS.values(), PRESET, GUIDED_PRESET, replace(BASE, steps=3)):
        assert step_saver(preset, 0.0) is None


@pytest.mark.parametrize("threshold", [0.0, 1e-6])
def test_where_nothing_is_reused_nothing_changes(exact, threshold):
    run = Run(StepSaver(threshold, SIGMAS))
    assert same(run, exact)
    assert run.steps == list(range(32))
    assert run.saver.saved == (32, 0, 0.0, 0.0)
    assert str(run.saver.saved).startswith("Step saving: all 32 steps were computed")


def test_the_error_grows_with_the_threshold_and_the_passes_fall(exact):
    runs = [Run(step_saver(BASE, threshold)) for threshold in (0.06, 0.1, 0.3, 1.0)]
    errors, passes = [distance(run, exact) for run in runs], [len(run.asked) for run in runs]
    told = [run.saver.saved for run in runs]
    assert 0 < errors[0] < errors[1] < errors[2] < errors[3]
    assert 32 > passes[0] > passes[1] > passes[2] >= passes[3] == 12
    assert told[0].error < told[1].error < told[2].error <= told[3].error
    assert all(run.saver.threshold >= saved.largest > 0 for run, saved in zip(runs, told, strict=True))
    assert [saved.computed for saved in told] == passes
    assert all(saved.computed + saved.reused == 32 for saved in told)


def test_first_and_last_steps_are_computed_and_no_more_than_three_reused_in_a_row():
    run = Run(step_saver(BASE, 1.0), velocities=(still(0.5), still(0.2)))
    assert run.steps == [0, 1, 2, 3, 7, 11, 15, 19, 23, 27, 30, 31]


def test_what_does_not_change_is_reused_without_an_error_and_guided_by_its_own_step():
    """The late guidance scale begins among reused steps: velocities are kept, not what guidance made of them."""
    velocities, late = (still(0.5), still(0.2)), 25
    preset = replace(BASE, guidance=BaseGuidance(late_from=int(1000 * SIGMAS[late])))
    run = Run(step_saver(preset, 0.01), velocities=velocities, preset=preset)
    assert late not in run.steps and late + 1 not in run.steps, "the test's own premise"
    assert same(run, Run(None, velocities=velocities, preset=preset))
    assert run.saver.saved == (12, 20, 0.0, 0.0)


def test_decisions_and_figures_follow_the_formula():
    """Written out once more in float64, from the latents of the run itself."""
    threshold, seen = 0.12, []
    Run(step_saver(BASE, threshold), on_step=lambda step, x, _: seen.append(x))
    entered = [noise(), *seen[:-1]]
    run = Run(step_saver(BASE, threshold))

    def change(new, old):
        pairs = zip(new, old, strict=True)
        return max(((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in pairs)

    kept, rates, errors, in_a_row, asked = None, [], {}, 0, []
    for step, (x, sigma) in enumerate(zip(entered, SIGMAS[:-1], strict=True)):
        error = max(rates) * change(x, kept[0]) if rates else math.inf
        if 4 <= step < 30 and in_a_row < 3 and error <= threshold:
            errors[step], in_a_row = error, in_a_row + 1
            continue
        asked.append(step)
        found = [velocity(x, sigma) for velocity in (conditional, unconditional)]
        if kept is not None:
            rates = [change(new, old) / change(x, kept[0]) for new, old in zip(found, kept[1], strict=True)]
        kept, in_a_row = (x, found), 0
    assert run.steps == asked
    assert 5 < len(errors) < 20, "the test's own premise"
    whole = sum(e * (SIGMAS[step] - SIGMAS[step + 1]) for step, e in errors.items()) / SIGMAS[0]
    saved = run.saver.saved
    assert saved == Saved(
        len(asked), len(errors), pytest.approx(max(errors.values()), rel=1e-4), pytest.approx(whole, rel=1e-4)
    )


def test_the_estimate_is_of_the_right_size():
    """Of every step that is reused, the velocity's true error beside the estimate."""
    seen, saver = [], step_saver(BASE, 0.2)
    run = Run(saver, on_step=lambda step, x, _: seen.append(x))
    entered = [noise(), *seen[:-1]]
    ratios = []
    for step in sorted(set(range(32)) - set(run.steps)):
        last = max(s for s in run.steps if s < step)
        errors = []
        for velocity in (conditional, unconditional):
            true, reused = velocity(entered[step], SIGMAS[step]), velocity(entered[last], SIGMAS[last])
            errors += [((a - b).norm() / a.norm()).item() for a, b in zip(reused, true, strict=True)]
        ratios.append(max(errors))
    estimates = [error for error, _ in saver._errors]
    ratios = sorted(estimate / true for estimate, true in zip(estimates, ratios, strict=True))
    assert len(ratios) > 8
    assert 0.5 < ratios[len(ratios) // 2] < 2
    assert ratios[0] > 0.2 and ratios[-1] < 5


@pytest.mark.parametrize("where", ["positive video", "positive audio", "negative video", "negative audio"])
def test_a_branch_or_stream_that_changes_has_all_computed(where):
    """All but one of the four are still."""

    def branch(name):
        def velocity(x, sigma):
            out = still(0.5)(x, sigma)
            grown = 1.5 ** SIGMAS.index(sigma)
            video, audio = (grown if f"{name} {stream}" == where else 1 for stream in ("video", "audio"))
            return Streams(out.video * video, out.audio * audio)

        return velocity

    run = Run(step_saver(BASE, 0.01), velocities=(branch("positive"), branch("negative")))
    assert run.steps == list(range(32))


def test_a_picture_and_a_voice_stay_as_they_are():
    """Latents that are given do not move, and what a network says of a given voice may be nothing."""

    def silent(velocity):
        return lambda x, sigma: velocity(x, sigma)._replace(audio=torch.zeros_like(x.audio))

    frame, voice = torch.ones(1, 2, 1, 2, 4), torch.full((1, 5, 9), 0.3)
    run = Run(
        step_saver(BASE, 0.2),
        velocities=(silent(conditional), silent(unconditional)),
        first_frame=frame,
        voice=voice,
    )
    assert torch.equal(run.out.video[:, :, :1], frame)
    assert torch.equal(run.out.audio, voice)
    assert 0 < run.saver.saved.reused < 20


def test_runs_know_nothing_of_each_other():
    """Other seeds, and a run that was stopped in the middle."""
    wanted = {seed: Run(step_saver(BASE, 0.2), seed) for seed in (7, 8)}
    assert not same(wanted[7], wanted[8])

    def stops(x, sigma):
        if sigma < SIGMAS[20]:
            raise KeyboardInterrupt
        return conditional(x, sigma)

    with pytest.raises(KeyboardInterrupt):
        Run(step_saver(BASE, 0.2), velocities=(stops, unconditional))
    for seed in (8, 7):
        again = Run(step_saver(BASE, 0.2), seed)
        assert same(again, wanted[seed])
        assert again.saver.saved == wanted[seed].saver.saved


@pytest.mark.parametrize(
    ("preset", "threshold", "words"),
    [
        (PRESETS["distilled"], 0.1, r"distilled model takes few \(8 here\)"),
        (PRESET, 0.1, r"super-resolution model takes few \(5 here\)"),
        (GUIDED_PRESET, 0.1, r"super-resolution model takes few \(5 here\)"),
        (replace(BASE, steps=FEWEST_STEPS - 1), 0.1, "needs 16 steps or more, and this run has 15"),
        (BASE, -0.1, "threshold of -0.1 is not a relative error"),
        (BASE, 1.5, "threshold of 1.5 is not a relative error"),
        (BASE, math.nan, "threshold of nan is not a relative error"),
    ],
)
def test_what_is_refused(preset, threshold, words):
    with pytest.raises(SamplingError, match=words):
        step_saver(preset, threshold)


def test_the_fewest_steps_are_saved_from():
    check_step_saving(1.0, "base", FEWEST_STEPS, saves_steps=True)
    assert step_saver(replace(BASE, steps=FEWEST_STEPS), 0.5).sigmas == flow_sigmas(FEWEST_STEPS).tolist()


class Host:
    """A host's sampler: branches in one call or in several, latents that are written into afterwards."""

    def __init__(self, threshold=0.5, samples=1):
        self.saver, self.passes, self.samples = StepSaver(threshold, SIGMAS), [], samples

    def step(self, sigma, *calls, moved=0.0):
        """Velocities of each branch, for ``calls`` like "ab" (one call, two branches) or "a", "b"."""
        found = {}
        for names in calls:
            x = Streams(torch.ones(self.samples, 2, 1, 2, 2), torch.ones(self.samples, 3, 4))
            x.video[-1] += moved

            def compute(names=names, x=x):
                self.passes.append((sigma, names))
                return [Streams(2 * x.video, 3 * x.audio) for _ in names]

            out = self.saver(sigma, dict.fromkeys(names, x), compute)
            found |= dict(zip(names, (v.video.clone() for v in out), strict=True))
            x.video.fill_(-100)  # what was lent is used for something else
        return found

    def up_to(self, step, *calls):
        for number in range(step):
            self.step(SIGMAS[number], *calls, moved=0.001 * number)


@pytest.mark.parametrize("calls", [("ab",), ("a", "b"), ("b", "a")], ids=str)
def test_one_decision_a_step_however_branches_come(calls):
    host = Host()
    host.up_to(4, *calls)
    assert host.saver.saved[:2] == (4, 0)
    made = len(host.passes)
    for number, moved in ((4, 0.01), (5, 0.02), (6, 0.03)):
        found = host.step(SIGMAS[number], *calls, moved=moved)
        # As they were computed at step 3, whatever has been written into the latents since.
        assert all(torch.equal(v, torch.full_like(v, 2 * (1 + 0.001 * 3))) for v in found.values())
        assert found.keys() == {"a", "b"}
    assert len(host.passes) == made
    assert host.saver.saved[:2] == (4, 3)
    found = host.step(SIGMAS[7], *calls, moved=0.04)
    assert len(host.passes) == made + len(calls)
    assert all(torch.equal(v, torch.full_like(v, 2 * (1 + 0.04))) for v in found.values())


def test_an_unknown_branch_and_another_size_are_computed():
    host = Host()
    host.up_to(4, "a")
    host.step(SIGMAS[4], "ab", moved=0.01)
    assert host.passes[-1] == (SIGMAS[4], "ab")
    host.samples = 2
    host.step(SIGMAS[5], "ab", moved=0.01)
    assert host.passes[-1] == (SIGMAS[5], "ab")
    assert host.saver.saved[:2] == (5, 1), "step 4 was to be reused, step 5 not"
    host.step(SIGMAS[6], "ab", moved=0.01)
    assert host.passes[-1] == (SIGMAS[6], "ab"), "of this size one pass alone says nothing of the next"


def test_one_sample_of_a_batch_that_moves_has_all_computed():
    for samples in (1, 2):  # over both samples at once the change would be 0.017
        host = Host(0.02, samples)
        host.up_to(4, "a")
        host.step(SIGMAS[4], "a", moved=0.003 + 0.024)
        assert host.passes[-1] == (SIGMAS[4], "a")


def test_levels_between_steps_count_as_the_later_one():
    """Samplers of higher order ask twice a step."""
    host = Host()
    host.up_to(3, "a")
    between = (SIGMAS[28] + SIGMAS[29]) / 2
    host.step(between, "a", moved=0.003)
    assert host.passes[-1][0] != between, "step 29 of 32 may be reused"
    last = (SIGMAS[29] + SIGMAS[30]) / 2
    host.step(last, "a", moved=0.003)
    assert host.passes[-1][0] == last, "step 30 may not"
