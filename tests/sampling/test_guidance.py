"""Guidance of each stream against the formula, entry by entry, and where its strengths change."""

import pytest
import torch

from comfyui_happyhorse.sampling.guidance import BaseGuidance, FrameGuidance, guided, in_turn
from comfyui_happyhorse.sampling.schedule import flow_sigmas
from comfyui_happyhorse.sampling.streams import Streams


def streams(seed, frames=3):
    generator = torch.Generator().manual_seed(seed)
    return Streams(
        torch.randn(1, 2, frames, 2, 3, generator=generator), torch.randn(1, 4, 5, generator=generator)
    )


@pytest.fixture
def run():
    """Guides two fixed velocities by a rule at a level; gives the result and both velocities."""

    def call(rule, sigma, frames=3):
        positive, negative, x = streams(1, frames), streams(2, frames), streams(3, frames)
        asked = []

        def velocity(answer):
            def at(given, level):
                asked.append((given, level))
                return answer

            return at

        found = guided(in_turn(velocity(positive), velocity(negative)), rule)(x, sigma)
        assert len(asked) == 2
        assert all(given is x and level == sigma for given, level in asked)
        return found, positive, negative

    return call


@pytest.mark.parametrize(("sigma", "video_scale"), [(0.9998, 5.0), (0.3, 2.0)])
def test_base_rule_is_the_formula(close, run, sigma, video_scale):
    found, positive, negative = run(BaseGuidance(), sigma)
    v, n = positive.video.double(), negative.video.double()
    close(found.video, n + video_scale * (v - n), 1e-6)
    a, m = positive.audio.double(), negative.audio.double()
    close(found.audio, m + 5.0 * (a - m), 1e-6)


def test_scales_of_its_own_for_each_stream(close, run):
    found, positive, negative = run(BaseGuidance(3.0, 1.5, 7.0, late_from=600), 0.61)
    close(found.video, negative.video.double() + 3 * (positive.video.double() - negative.video), 1e-6)
    close(found.audio, negative.audio.double() + 7 * (positive.audio.double() - negative.audio), 1e-6)


def test_scale_one_is_the_conditional_velocity(close, run):
    for rule in (BaseGuidance(1.0, 1.0, 1.0), FrameGuidance(1.0, 1.0)):
        found, positive, _ = run(rule, 0.7)
        close(found.video, positive.video, 1e-6)
        close(found.audio, positive.audio, 1e-6)


def test_scale_zero_is_the_unconditional_velocity(run):
    found, _, negative = run(BaseGuidance(0.0, 0.0, 0.0), 0.7)
    assert torch.equal(found.video, negative.video)
    assert torch.equal(found.audio, negative.audio)


@pytest.mark.parametrize(
    ("sigma", "scale"), [(0.9998, 5.0), (0.5015, 5.0), (0.501, 5.0), (0.5009, 2.0), (0.5, 2.0), (0.4999, 2.0)]
)
def test_video_guidance_drops_at_timestep_500(sigma, scale):
    """The timestep has no fraction: 500.9 is 500, which is late; 501 is not."""
    assert BaseGuidance().video(sigma, torch.zeros(1)) == scale
    assert BaseGuidance().audio(sigma) == 5.0


def test_the_last_five_of_thirty_two_steps_are_late():
    scales = [BaseGuidance().video(sigma, torch.zeros(1)) for sigma in flow_sigmas(32).tolist()[:-1]]
    assert scales == [5.0] * 27 + [2.0] * 5


@pytest.mark.parametrize("frames", [1, 12, 13, 14, 20])
def test_the_leading_thirteen_frames_are_guided_less(close, run, frames):
    found, positive, negative = run(FrameGuidance(), 0.8, frames)
    for frame in range(frames):
        scale = 2.0 if frame <= 12 else 3.5
        v, n = positive.video[:, :, frame].double(), negative.video[:, :, frame].double()
        close(found.video[:, :, frame], n + scale * (v - n), 1e-6, f"frame {frame}")
    close(found.audio, positive.audio, 1e-6)


def test_leading_frames_are_never_guided_more():
    scale = FrameGuidance(video_scale=1.5, leading_scale=2.0).video(0.5, torch.zeros(1, 1, 20, 1, 1))
    assert scale.flatten().tolist() == [1.5] * 20
