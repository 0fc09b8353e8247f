"""Solvers against their definitions in float64, on flows whose end is known, and with clean latents pinned."""

import math

import pytest
import torch

from comfyui_happyhorse.sampling.solvers import euler, renoise, sde, sde_angles, unipc

STEPS = range(1, 13)
SHIFTS = [1.0, 3.0, 5.0]


def schedule(steps, shift, end=0.0):
    """A float32 schedule; ``end`` above 0 stops before the last level."""
    levels = [0.999 * (1 - k / steps) for k in range(steps)]
    levels = [shift * u / (1 + (shift - 1) * u) for u in levels]
    return torch.tensor([*levels, end if end < levels[-1] else levels[-1] / 2]).tolist()


def wavy(x, sigma):
    """A velocity that depends on place and level, and bends."""
    return 0.6 * x + 0.3 * torch.sin(2.5 * x + 4 * sigma) - 0.2 * sigma


def literal_unipc(velocity, x, sigmas):
    """Order 2, data prediction, bh2, as the paper's update and its 2x2 system; every state in a list."""
    n = len(sigmas) - 1
    alpha = [1 - sigma for sigma in sigmas]
    lam = [
        math.inf if sigma == 0 else -math.inf if sigma == 1 else math.log(1 - sigma) - math.log(sigma)
        for sigma in sigmas
    ]
    xs, ms, ys, orders = [x], [], [], []
    for i in range(n):
        ms.append(xs[i] - sigmas[i] * velocity(xs[i], sigmas[i]))
        if i == 0:
            ys.append(xs[0])
        else:
            h = lam[i] - lam[i - 1]
            e = math.exp(-h) - 1
            base = sigmas[i] / sigmas[i - 1] * ys[i - 1] - alpha[i] * e * ms[i - 1]
            if orders[i - 1] == 1:
                ys.append(base - alpha[i] * e * 0.5 * (ms[i] - ms[i - 1]))
            else:
                r = (lam[i - 2] - lam[i - 1]) / h
                g1 = e / (-h) - 1
                b = torch.tensor([g1 / e, 2 * (g1 / (-h) - 0.5) / e], dtype=torch.float64)
                system = torch.tensor([[1.0, 1.0], [r, 1.0]], dtype=torch.float64)
                # Where r is infinite the first unknown is 0.
                rho = [0.0, b[0].item()] if math.isinf(r) else torch.linalg.solve(system, b).tolist()
                towards = rho[0] * (ms[i - 2] - ms[i - 1]) / r + rho[1] * (ms[i] - ms[i - 1])
                ys.append(base - alpha[i] * e * towards)
        orders.append(min(2, n - i, i + 1))
        if sigmas[i + 1] == 0:
            xs.append(ms[i])
            continue
        h = lam[i + 1] - lam[i]
        e = math.exp(-h) - 1
        following = sigmas[i + 1] / sigmas[i] * ys[i] - alpha[i + 1] * e * ms[i]
        if orders[i] == 2:
            r = (lam[i - 1] - lam[i]) / h
            following = following - alpha[i + 1] * e * 0.5 * (ms[i - 1] - ms[i]) / r
        xs.append(following)
    return xs[1:], ms


@pytest.fixture
def draws():
    """Noise that repeats itself for each solver run: a source, and the list of what it gave."""

    def start(seed=0):
        generator, given = torch.Generator().manual_seed(seed), []

        def noise():
            given.append(torch.randn(6, generator=generator, dtype=torch.float64).float())
            return given[-1]

        return noise, given

    return start


def start_of(seed=1):
    return torch.randn(6, generator=torch.Generator().manual_seed(seed))


def recorder(taken):
    return lambda step, x, denoised: taken.append((step, x, denoised))


@pytest.mark.parametrize("sigmas", [[1.0, 0.0], [1.0, 0.7, 0.2, 0.0], [0.9, 0.5, 0.1]])
def test_euler_is_exact_on_a_straight_flow(close, sigmas):
    torch.manual_seed(0)
    noise, data = torch.randn(5), torch.randn(5)
    start, end = (sigma * noise + (1 - sigma) * data for sigma in (sigmas[0], sigmas[-1]))
    close(euler(lambda x, sigma: noise - data, start, sigmas), end, 1e-6)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("end", [0.0, 0.02])
def test_euler_steps_along_the_velocity(close, steps, end):
    sigmas, taken = schedule(steps, 5.0, end), []
    euler(wavy, start_of(), sigmas, on_step=recorder(taken))
    x = start_of().double()
    for i in range(steps):
        velocity = wavy(x, sigmas[i])
        close(taken[i][2], x - sigmas[i] * velocity, 1e-5)
        x = x + (sigmas[i + 1] - sigmas[i]) * velocity
        close(taken[i][1], x, 1e-5)
    assert [step for step, _, _ in taken] == list(range(steps))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("end", [0.0, 0.02])
def test_unipc_is_the_paper_s_update(close, steps, shift, end):
    """Also where the schedule stops above 0: only there does the order of the last step show."""
    sigmas, taken = schedule(steps, shift, end), []
    final = unipc(wavy, start_of(), sigmas, on_step=recorder(taken))
    xs, ms = literal_unipc(wavy, start_of().double(), sigmas)
    for (step, x, denoised), wanted, prediction in zip(taken, xs, ms, strict=True):
        close(x, wanted, 1e-5, f"step {step}")
        close(denoised, prediction, 1e-5, f"prediction {step}")
    close(final, xs[-1], 1e-5)


@pytest.mark.parametrize("steps", STEPS)
def test_unipc_starts_at_pure_noise(close, steps):
    """At sigma 1 the log-SNR is minus infinity; the limits of every term are finite."""
    sigmas, taken = torch.linspace(1, 0, steps + 1).tolist(), []
    unipc(wavy, start_of(), sigmas, on_step=recorder(taken))
    xs, _ = literal_unipc(wavy, start_of().double(), sigmas)
    for (step, x, _), wanted in zip(taken, xs, strict=True):
        close(x, wanted, 1e-5, f"step {step}")


def gaussian_flow(mean, spread):
    """Velocity and exact path of data ~ N(mean, spread^2): x = alpha*mean + sqrt(alpha^2 spread^2 + sigma^2) z."""

    def velocity(x, sigma):
        alpha = 1 - sigma
        variance = alpha**2 * spread**2 + sigma**2
        denoised = mean + spread**2 * alpha / variance * (x - alpha * mean)
        return (x - denoised) / sigma

    def path(z, sigma):
        alpha = 1 - sigma
        return alpha * mean + math.sqrt(alpha**2 * spread**2 + sigma**2) * z

    return velocity, path


def test_unipc_converges_at_second_order():
    """Twice the steps, a quarter of the error, where Euler has half; levels are even in log-SNR."""
    velocity, path = gaussian_flow(0.7, 0.4)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    errors = {unipc: [], euler: []}
    for steps in (16, 32, 64, 128):
        levels = torch.linspace(-1.0, 1.5, steps + 1, dtype=torch.float64)
        sigmas = torch.sigmoid(-levels).tolist()  # ln(1 - sigma) - ln(sigma) = level
        for solver, found in errors.items():
            found.append(
                (solver(velocity, path(z, sigmas[0]), sigmas) - path(z, sigmas[-1])).abs().max().item()
            )
    for coarse, fine in zip(errors[unipc], errors[unipc][1:], strict=False):
        assert 3.8 < coarse / fine < 4.4
    for coarse, fine in zip(errors[euler], errors[euler][1:], strict=False):
        assert 1.9 < coarse / fine < 2.1
    assert errors[unipc][-1] < 0.02 * errors[euler][-1]


@pytest.mark.parametrize("solver", [euler, unipc])
def test_a_right_prediction_is_reached(close, solver):
    data = torch.linspace(-1, 1, 6)
    close(solver(lambda x, sigma: (x - data) / sigma, start_of(), schedule(6, 5.0)), data, 1e-5)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("end", [0.0, 0.02])
def test_renoise_mixes_the_prediction_with_fresh_noise(close, draws, steps, end):
    sigmas, taken, (noise, given) = schedule(steps, 5.0, end), [], draws()
    renoise(wavy, start_of(), sigmas, noise, on_step=recorder(taken))
    x = start_of().double()
    for i in range(steps):
        denoised = x - sigmas[i] * wavy(x, sigmas[i])
        x = sigmas[i + 1] * given[i].double() + (1 - sigmas[i + 1]) * denoised
        close(taken[i][1], x, 1e-5)
        close(taken[i][2], denoised, 1e-5)
    assert len(given) == steps  # at the last step too
    assert not torch.equal(given[0], given[-1]) or steps == 1


@pytest.mark.parametrize("steps", [1, 4, 7, 8])
@pytest.mark.parametrize("own", [False, True])
def test_sde_turns_predicted_noise_into_fresh_noise(close, draws, steps, own):
    angles = [0.5, 0.0, 1.0, 0.25, 0.8, 0.1, 0.6, 0.3][:steps] if own else None
    sigmas, taken, (noise, given) = schedule(steps, 5.0), [], draws()
    sde(wavy, start_of(), sigmas, noise, angles, on_step=recorder(taken))
    x = start_of().double()
    for i in range(steps):
        pattern = 1.0 * (i % 2 == 1) if i < 3 * steps // 4 else 1.0 * (i % 3 == 0)
        theta = angles[i] if own else pattern
        velocity = wavy(x, sigmas[i])
        denoised = x - sigmas[i] * velocity
        predicted = x - sigmas[i] * velocity + velocity
        turned = math.cos(math.pi * theta / 2) * predicted + math.sin(math.pi * theta / 2) * given[i].double()
        x = (1 - sigmas[i + 1]) * denoised + sigmas[i + 1] * turned
        close(taken[i][1], x, 1e-5)
    assert len(given) == steps


def test_sde_angles_of_eight_steps():
    assert sde_angles(8) == [0, 1, 0, 1, 0, 1, 1, 0]
    assert sde_angles(5) == [0, 1, 0, 1, 0]


SOLVERS = {
    "euler": lambda velocity, x, sigmas, noise, **more: euler(velocity, x, sigmas, **more),
    "unipc": lambda velocity, x, sigmas, noise, **more: unipc(velocity, x, sigmas, **more),
    "renoise": renoise,
    "sde": sde,
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("garbage", [1e6, math.nan])
def test_pinned_entries_are_seen_and_returned_and_nothing_else_is_touched(draws, solver, garbage):
    """Entries 0 and 4 are known. What the start holds there reaches neither the velocity nor the rest."""
    is_known = torch.tensor([True, False, False, False, True, False])
    known = torch.tensor([0.3, 0, 0, 0, -1.7, 0])
    seen = []

    def velocity(x, sigma):
        seen.append(x)
        return wavy(x, sigma)

    def pin(x):
        return torch.where(is_known, known, x)

    dirty, sigmas, taken = torch.where(is_known, torch.tensor(garbage), start_of()), schedule(6, 5.0), []
    found = solver(velocity, dirty, sigmas, draws()[0], pin=pin, on_step=recorder(taken))
    free = solver(wavy, start_of(), schedule(6, 5.0), draws()[0])
    assert len(seen) == 6
    for x in [*seen, found]:
        assert torch.equal(x[is_known], known[is_known])
    for (_, _, denoised), x, sigma in zip(taken, seen, sigmas, strict=False):
        assert torch.equal(denoised, x - sigma * wavy(x, sigma))  # the solver goes on from what was seen
    # The velocity is entry by entry, and so is every solver.
    assert torch.equal(found[~is_known], free[~is_known])


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_a_velocity_sees_pinned_neighbours_at_every_step(draws, solver):
    """A velocity that mixes entries: pinning by hand before each call gives the same bits."""
    is_known, known = torch.tensor([True] + [False] * 5), torch.full((6,), 0.9)

    def pin(x):
        return torch.where(is_known, known, x)

    def mixing(x, sigma):
        return wavy(x, sigma) + x.roll(1) * 0.3

    pinned = solver(mixing, start_of(), schedule(6, 5.0), draws()[0], pin=pin)
    by_hand = solver(lambda x, sigma: mixing(pin(x), sigma), start_of(), schedule(6, 5.0), draws()[0])
    assert torch.equal(pinned[1:], by_hand[1:])
    assert pinned[0] == known[0]


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_one_velocity_a_step_at_the_step_s_level(draws, solver):
    levels, taken, sigmas = [], [], schedule(7, 3.0)

    def velocity(x, sigma):
        levels.append(sigma)
        return wavy(x, sigma)

    solver(velocity, start_of(), sigmas, draws()[0], on_step=recorder(taken))
    assert levels == sigmas[:-1]
    assert [step for step, _, _ in taken] == list(range(7))


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_the_shape_does_not_matter(draws, solver):
    """A row of six and a block of 2 x 3 end the same."""
    flat = solver(wavy, start_of(), schedule(5, 5.0), draws()[0])
    noise = draws()[0]
    block = solver(wavy, start_of().view(2, 3), schedule(5, 5.0), lambda: noise().view(2, 3))
    assert torch.equal(block.flatten(), flat)
