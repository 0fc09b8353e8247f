"""Noise levels and the signal table against their formulas, in Python's own arithmetic."""

import math

import pytest
import torch

from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.sampling.schedule import SIGMA_MAX, flow_sigmas, timesteps, zero_terminal_snr


def literal_sigmas(steps, shift):
    levels = []
    for k in range(steps):
        u = 0.9990000128746033 * (1 - k / steps)
        levels.append(shift * u / (1 + (shift - 1) * u))
    return [*levels, 0.0]


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 32, 250, 333])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
def test_sigmas_are_the_formula_rounded_once(steps, shift):
    sigmas = flow_sigmas(steps, shift)
    assert sigmas.dtype == torch.float32
    wanted = torch.tensor(literal_sigmas(steps, shift), dtype=torch.float64)
    assert sigmas.shape == wanted.shape
    # Half a unit in the last place of float32, and float64's own noise.
    assert ((sigmas.double() - wanted).abs() <= 2.0**-24 * wanted * (1 + 1e-6)).all()
    assert (sigmas.diff() < 0).all()


def test_the_first_and_last_levels():
    assert SIGMA_MAX == 0.9990000128746033
    assert flow_sigmas(8)[0].item() == pytest.approx(0.9998, abs=1e-6)
    assert flow_sigmas(8)[-1].item() == 0
    assert torch.equal(flow_sigmas(8), flow_sigmas(8, 5.0))


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [(8, [999, 972, 937, 892, 833, 749, 624, 416]), (5, [999, 952, 882, 768, 555]), (1, [999])],
)
def test_published_timesteps(steps, wanted):
    assert timesteps(steps).tolist() == wanted


def test_five_of_thirty_two_timesteps_are_late():
    assert sum(timestep <= 500 for timestep in timesteps(32).tolist()) == 5


@pytest.mark.parametrize("shift", [1.0, 2.5, 5.0])
def test_timesteps_are_cut_and_not_rounded(shift):
    wanted = [int(1000 * sigma) for sigma in literal_sigmas(40, shift)[:-1]]
    assert timesteps(40, shift).tolist() == wanted
    assert timesteps(40, shift).dtype == torch.int64


@pytest.mark.parametrize(
    ("steps", "shift", "message"),
    [
        (0, 5.0, "0 steps"),
        (-3, 5.0, "-3 steps"),
        (8, 0.0, "shift of 0"),
        (8, -1.0, "shift of -1"),
        (8, math.nan, "nan"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(steps, shift, message):
    for made in (flow_sigmas, timesteps):
        with pytest.raises(SamplingError, match=message):
            made(steps, shift)


def test_the_signal_table_ends_in_nothing():
    signals, product = [], 1.0
    first, last = math.sqrt(0.00085), math.sqrt(0.012)
    for k in range(1000):
        product *= 1 - (first + (last - first) * k / 999) ** 2
        signals.append(math.sqrt(product))
    end, stretch = signals[-1], signals[0] / (signals[0] - signals[-1])
    wanted = torch.tensor([(signal - end) * stretch for signal in signals], dtype=torch.float64)
    table = zero_terminal_snr()
    assert table.dtype == torch.float32
    assert (table.double() - wanted).abs().max() <= 2e-7
    assert table[999].item() == 0
    assert table[0].item() == pytest.approx(math.sqrt(1 - 0.00085), abs=1e-7)
    assert table[220].item() == pytest.approx(0.83891040, abs=1e-7)
    assert (1 - table[220] ** 2).sqrt().item() == pytest.approx(0.54426956, abs=1e-7)
