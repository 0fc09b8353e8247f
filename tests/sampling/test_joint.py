"""Whole runs on lambda velocities: what is drawn and when, what is locked, and when a run is stopped."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.sampling import solvers
from comfyui_happyhorse.sampling.guidance import BaseGuidance
from comfyui_happyhorse.sampling.joint import PRESETS, SamplingPreset, sample
from comfyui_happyhorse.sampling.schedule import flow_sigmas
from comfyui_happyhorse.sampling.streams import SeededNoise, Streams, StreamShapes
from comfyui_happyhorse.sampling.super_resolution import GUIDED_PRESET, PRESET

SHAPES = StreamShapes((1, 2, 3, 2, 4), (1, 5, 9))
ALL_PRESETS = [
    *PRESETS.values(),
    PRESET,
    GUIDED_PRESET,
    SamplingPreset("straight", 4, "euler", None),
    SamplingPreset("stochastic", 6, "sde", BaseGuidance()),
]
presets = pytest.mark.parametrize("preset", ALL_PRESETS, ids=lambda preset: preset.name)


def randn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditional(x, sigma):
    """Both streams feel each other, so what is locked in one is felt in the other."""
    video = 0.7 * x.video + torch.sin(2 * x.video + sigma) + 0.1 * x.audio.mean() + 0.2 * x.video[:, :, :1]
    return Streams(video, 0.5 * x.audio - 0.3 * torch.cos(x.audio) + 0.1 * x.video.mean())


def unconditional(x, sigma):
    return Streams(0.9 * x.video - 0.1, 0.8 * x.audio + 0.1 * sigma)


def run(preset, seed=7, velocity=conditional, negative=unconditional, **more):
    noise = SeededNoise(seed, SHAPES)
    start = noise()
    return sample(velocity, negative, start, preset, noise, **more)


@pytest.fixture
def first_frame():
    return randn((1, 2, 1, 2, 4), 100)


@pytest.fixture
def voice():
    return randn((1, 5, 9), 101)


def test_presets_are_the_published_ones():
    base, distilled = PRESETS["base"], PRESETS["distilled"]
    assert (base.steps, base.solver, base.shift) == (32, "unipc", 5.0)
    assert base.guidance == BaseGuidance(5.0, 2.0, 5.0, 500)
    assert (distilled.steps, distilled.solver, distilled.shift, distilled.guidance) == (
        8,
        "renoise",
        5.0,
        None,
    )
    assert sorted(PRESETS) == ["base", "distilled"]


def test_streams_lie_end_to_end_and_come_back():
    video, audio = torch.arange(48.0).view(SHAPES.video), 100 + torch.arange(45.0).view(SHAPES.audio)
    streams = Streams(video, audio)
    assert StreamShapes.of(streams) == SHAPES
    flat = SHAPES.pack(streams)
    assert flat.tolist() == [[*range(48), *range(100, 145)]]
    back = SHAPES.unpack(flat)
    assert torch.equal(back.video, video)
    assert torch.equal(back.audio, audio)


@pytest.mark.parametrize("seed", [0, 42, 2**40])
def test_seeded_noise_is_video_then_audio_from_one_generator(seed):
    """As ComfyUI draws nested latents: the second draw goes on where the first one ended."""
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = SeededNoise(seed, SHAPES)
    for _ in range(3):
        drawn = noise()
        assert torch.equal(drawn.video, torch.randn(SHAPES.video, generator=generator))
        assert torch.equal(drawn.audio, torch.randn(SHAPES.audio, generator=generator))
        assert drawn.video.dtype == drawn.audio.dtype == torch.float32


def test_the_distilled_run_step_by_step(close, first_frame):
    """(1 - s')*denoised + s'*noise on both streams, video noise drawn first, frame 0 overwritten before."""
    generator, sigmas = torch.Generator().manual_seed(7), flow_sigmas(8).tolist()
    video, audio = (
        torch.randn(shape, generator=generator).double() for shape in (SHAPES.video, SHAPES.audio)
    )
    for sigma, following in pairwise(sigmas):
        video[:, :, :1] = first_frame
        flow = conditional(Streams(video, audio), sigma)
        fresh = [torch.randn(shape, generator=generator).double() for shape in (SHAPES.video, SHAPES.audio)]
        video = (1 - following) * (video - sigma * flow.video) + following * fresh[0]
        audio = (1 - following) * (audio - sigma * flow.audio) + following * fresh[1]
    video[:, :, :1] = first_frame
    found = run(PRESETS["distilled"], negative=None, first_frame=first_frame)
    close(found.video, video, 1e-5)
    close(found.audio, audio, 1e-5)


def test_a_guided_run_step_by_step(close):
    """Euler for plain sums: both velocities, the video's scale by the timestep, the audio's its own."""
    preset = SamplingPreset("guided", 12, "euler", BaseGuidance(4.0, 1.5, 3.0))
    generator, sigmas = torch.Generator().manual_seed(7), flow_sigmas(12).tolist()
    video, audio = (
        torch.randn(shape, generator=generator).double() for shape in (SHAPES.video, SHAPES.audio)
    )
    for sigma, following in pairwise(sigmas):
        free = Streams(video, audio)
        positive, negative = conditional(free, sigma), unconditional(free, sigma)
        scale = 4.0 if math.floor(1000 * sigma) > 500 else 1.5
        video = video + (following - sigma) * (negative.video + scale * (positive.video - negative.video))
        audio = audio + (following - sigma) * (negative.audio + 3.0 * (positive.audio - negative.audio))
    found = run(preset)
    close(found.video, video, 2e-5)
    close(found.audio, audio, 2e-5)


def test_the_base_run_is_unipc_on_each_stream_alone():
    """Two schedulers of their own, or one over both laid end to end: the same, for a flow without guidance."""

    def velocity(x, sigma):
        return Streams(torch.sin(2 * x.video + sigma), 0.5 * x.audio - sigma)

    preset = replace(PRESETS["base"], steps=9, guidance=None)
    start = SeededNoise(7, SHAPES)()
    sigmas = flow_sigmas(9).tolist()
    found = run(preset, velocity=velocity, negative=None)
    video = solvers.unipc(lambda x, sigma: torch.sin(2 * x + sigma), start.video, sigmas)
    audio = solvers.unipc(lambda x, sigma: 0.5 * x - sigma, start.audio, sigmas)
    assert torch.equal(found.video, video)
    assert torch.equal(found.audio, audio)


@presets
def test_velocities_are_asked_once_a_step_at_the_schedule_s_levels(preset):
    asked = {"positive": [], "negative": []}

    def counted(name, velocity):
        def call(x, sigma):
            assert StreamShapes.of(x) == SHAPES
            asked[name].append(sigma)
            return velocity(x, sigma)

        return call

    run(preset, velocity=counted("positive", conditional), negative=counted("negative", unconditional))
    levels = flow_sigmas(preset.steps, preset.shift).tolist()[:-1]
    assert asked["positive"] == levels
    assert asked["negative"] == (levels if preset.guidance else [])


@presets
def test_noise_is_drawn_once_a_step_or_never(preset):
    draws = []

    def noise():
        draws.append(1)
        return Streams(torch.zeros(SHAPES.video), torch.zeros(SHAPES.audio))

    sample(conditional, unconditional, SeededNoise(0, SHAPES)(), preset, noise)
    assert len(draws) == (preset.steps if preset.solver in ("renoise", "sde") else 0)


@presets
@pytest.mark.parametrize("locks", ["first_frame", "voice", "both"])
def test_clean_latents_are_seen_and_come_back_bit_equal(preset, first_frame, voice, locks):
    known = {"first_frame": first_frame, "voice": voice}
    known = known if locks == "both" else {locks: known[locks]}
    seen = []

    def watching(x, sigma):
        seen.append(x)
        return conditional(x, sigma)

    found = run(preset, velocity=watching, **known)
    assert len(seen) == preset.steps
    for x in [*seen, found]:
        if "first_frame" in known:
            assert torch.equal(x.video[:, :, :1], first_frame)
        if "voice" in known:
            assert torch.equal(x.audio, voice)
    free = run(preset)
    assert not torch.equal(found.video[:, :, 1:], free.video[:, :, 1:])  # they are listened to
    if "voice" not in known:
        assert not torch.equal(found.audio, free.audio)


@presets
def test_only_renoising_lets_a_voice_go_and_only_when_asked(preset, voice):
    """Then the voice is where the audio starts, as in the reference, and another one is made of it."""
    found = run(preset, voice=voice, keep_voice=False)
    if preset.solver != "renoise":
        assert torch.equal(found.audio, voice)
        return
    noise = SeededNoise(7, SHAPES)
    wanted = sample(conditional, unconditional, Streams(noise().video, voice), preset, noise)
    assert torch.equal(found.video, wanted.video)
    assert torch.equal(found.audio, wanted.audio)
    assert not torch.equal(found.audio, voice)


@presets
def test_what_the_start_holds_under_a_lock_does_not_matter(preset, first_frame, voice):
    noise = SeededNoise(7, SHAPES)
    start = noise()
    start.video[:, :, 0], start.audio[:] = math.nan, math.inf
    found = sample(conditional, unconditional, start, preset, noise, first_frame=first_frame, voice=voice)
    wanted = run(preset, first_frame=first_frame, voice=voice)
    assert torch.equal(found.video, wanted.video)
    assert torch.equal(found.audio, wanted.audio)


@presets
def test_a_seed_gives_the_same_bits_and_another_seed_others(preset):
    first, again, other = run(preset), run(preset), run(preset, seed=8)
    assert torch.equal(first.video, again.video)
    assert torch.equal(first.audio, again.audio)
    assert not torch.equal(first.video, other.video)
    assert not torch.equal(first.audio, other.audio)


@presets
def test_each_step_is_reported_with_its_prediction(preset):
    steps, seen = [], []

    def watching(x, sigma):
        velocity = conditional(x, sigma)
        seen.append((x, sigma, velocity))
        return velocity

    report = lambda step, x, denoised: steps.append((step, x, denoised))  # noqa: E731
    found = run(replace(preset, guidance=None), velocity=watching, on_step=report)
    assert [step for step, _, _ in steps] == list(range(preset.steps))
    for (_, _, denoised), (x, sigma, velocity) in zip(steps, seen, strict=True):
        torch.testing.assert_close(denoised.video, x.video - sigma * velocity.video)
        torch.testing.assert_close(denoised.audio, x.audio - sigma * velocity.audio)
    for (_, after, _), (x, _, _) in zip(steps, seen[1:], strict=False):
        assert torch.equal(after.video, x.video)
        assert torch.equal(after.audio, x.audio)
    assert torch.equal(steps[-1][1].video, found.video)
    assert StreamShapes.of(steps[0][1]) == StreamShapes.of(steps[0][2]) == SHAPES


@pytest.mark.parametrize("step", [1, 3, 8])
def test_a_number_that_is_none_stops_the_run_at_its_step(step):
    """Two bad video values and one bad audio value, in the message with step, level and remedy."""
    sigma = flow_sigmas(8).tolist()[step - 1]
    asked = []

    def velocity(x, level):
        asked.append(level)
        out = conditional(x, level)
        if level == sigma:
            out.video[0, 1, 2, 0, :2] = math.nan
            out.audio[0, 4, 8] = -math.inf
        return out

    message = rf"Step {step} of 8 \(sigma {sigma:.4f}\) gave 2 video and 1 audio values .* float32"
    with pytest.raises(SamplingError, match=message):
        run(PRESETS["distilled"], velocity=velocity)
    assert len(asked) == step


def test_a_start_that_is_not_finite_is_not_blamed_on_the_weights():
    start = SeededNoise(0, SHAPES)()
    start.audio[0, 0, 3] = math.nan
    with pytest.raises(SamplingError, match=r"Step 1 of 8 .* gave 0 video and 1 audio .* not finite either"):
        sample(lambda x, sigma: x, None, start, PRESETS["distilled"], SeededNoise(1, SHAPES))


def test_a_guided_preset_needs_a_negative():
    with pytest.raises(SamplingError, match=r"'base' .* negative prompt"):
        run(PRESETS["base"], negative=None)


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("first_frame", (1, 2, 1, 2, 2), (1, 2, 1, 2, 4)),
        ("first_frame", (1, 2, 2, 2, 4), (1, 2, 1, 2, 4)),
        ("first_frame", (1, 3, 1, 2, 4), (1, 2, 1, 2, 4)),
        ("voice", (1, 5, 8), (1, 5, 9)),
        ("voice", (1, 1, 9), (1, 5, 9)),
    ],
)
def test_latents_of_another_film_are_refused(name, shape, wanted):
    """Even where they would broadcast."""
    with pytest.raises(SamplingError) as caught:
        run(PRESETS["distilled"], **{name: torch.zeros(shape)})
    assert name.replace("_", " ") in str(caught.value)
    assert str(shape) in str(caught.value)
    assert str(wanted) in str(caught.value)


@pytest.mark.parametrize(("name", "shape"), [("first_frame", (1, 2, 1, 2, 4)), ("voice", (1, 5, 9))])
def test_damaged_latents_are_refused_before_the_first_step(name, shape):
    latent, asked = torch.zeros(shape), []
    latent.view(-1)[3] = math.inf
    with pytest.raises(SamplingError, match=f"{name.replace('_', ' ')}'s latent holds NaN or infinite"):
        run(PRESETS["distilled"], velocity=lambda x, sigma: asked.append(sigma), **{name: latent})
    assert not asked
