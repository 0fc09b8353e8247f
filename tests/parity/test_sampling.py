"""Schedules, solvers and whole sampling loops against the golden files, with their injected noise."""

import json
from dataclasses import replace

import pytest
import torch

from comfyui_happyhorse.model.config import VARIANTS, TransformerConfig
from comfyui_happyhorse.model.transformer import JointTransformer
from comfyui_happyhorse.sampling import solvers
from comfyui_happyhorse.sampling.guidance import BaseGuidance, FrameGuidance
from comfyui_happyhorse.sampling.joint import PRESETS, sample
from comfyui_happyhorse.sampling.schedule import flow_sigmas, timesteps, zero_terminal_snr
from comfyui_happyhorse.sampling.step_saving import StepSaver
from comfyui_happyhorse.sampling.streams import Streams
from comfyui_happyhorse.sampling.super_resolution import PRESET, SuperResolution, prepare, super_resolve
from comfyui_happyhorse.shapes import floor_to_grid

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def settings(case, constants):
    """The case's settings over the reference's defaults."""
    return {**constants, **case.get("cfg", {})}


def preset_of(config, steps):
    """The pack's preset, with the numbers of a golden case."""
    is_guided = config["cfg_number"] == 2
    rule = BaseGuidance(config["video_txt_guidance_scale"], 2.0, config["audio_txt_guidance_scale"])
    row = PRESETS["base" if is_guided else "distilled"]
    return replace(row, steps=steps, shift=config["shift"], guidance=rule if is_guided else None)


@pytest.fixture(scope="session")
def constants(golden_folder):
    """The published defaults, or those of the golden folder; a case's own ``cfg`` overrides them."""
    file = golden_folder / "constants.json"
    given = json.loads(file.read_text())["evaluation_defaults"] if file.exists() else {}
    return {**DEFAULTS, **given}


DEFAULTS = {
    "shift": 5.0,
    "video_txt_guidance_scale": 5.0,
    "audio_txt_guidance_scale": 5.0,
    "cfg_number": 2,
    "sr_cfg_number": 2,
    "noise_value": 220,
    "sr_video_txt_guidance_scale": 3.5,
    "use_cfg_trick": True,
    "cfg_trick_start_frame": 13,
    "cfg_trick_value": 2.0,
    "sr_audio_noise_scale": 0.7,
}


def build(golden, prefix, dtype, local_layers, window, style):
    weights = golden.weights(prefix)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    everywhere = frozenset(range(1000)) - frozenset(local_layers)
    variant = replace(VARIANTS["base"], coordinates=style, window=window, global_layers=everywhere)
    with torch.device("meta"):
        network = JointTransformer(TransformerConfig.from_shapes(shapes, variant), dtype=dtype)
    wanted = network.state_dict()
    network.load_state_dict({name: t.to(wanted[name].dtype) for name, t in weights.items()}, assign=True)
    return network


def velocity(network, text, record=None):
    """A callable on streams; golden audio is [1, L, C], ours [1, C, L]."""

    @torch.no_grad()
    def call(x, _sigma):
        video, audio = network(x.video[0], x.audio[0], text)
        if record is not None:
            record.append((video[None], audio.T[None]))
        return Streams(video[None], audio[None])

    return call


class Loop:
    """One case of a sampling file, run once and remembered with its steps."""

    def __init__(self, golden, name, case, precision, constants, steps=None, threshold=None):
        t = golden.tensors
        config = settings(case, constants)
        model, proxy = golden["model_config"], golden["data_proxy_config"]
        network = build(
            golden,
            "w.",
            PRECISIONS[precision],
            model["local_attn_layers"],
            proxy["frame_receptive_field"],
            proxy["coords_style"],
        )
        self.conditional, self.unconditional, self.steps = [], [], []
        positive = velocity(network, t[f"in.{name}.context"][0, : case["Lt"]], self.conditional)
        negative = velocity(network, t[f"in.{name}.context_null"][0, : case["Lt_null"]], self.unconditional)
        preset = preset_of(config, steps or case["steps"])
        sigmas = flow_sigmas(preset.steps, preset.shift)
        self.saver = None if threshold is None else StepSaver(threshold, sigmas.tolist())
        draws = iter(range(case["n_noise_draws"]))

        def noise():
            video, audio = (t[f"in.{name}.noise.{next(draws):03d}"] for _ in range(2))
            return Streams(video, audio.mT)

        start = Streams(t[f"in.{name}.video"], t[f"in.{name}.audio"].mT)
        voice = start.audio if case.get("a2v") else None
        final = sample(
            positive,
            negative,
            start,
            preset,
            noise,
            first_frame=t.get(f"in.{name}.image_latent"),
            voice=voice,
            keep_voice=False,  # the reference's distilled loop overwrites a given voice; ours keeps it by default
            on_step=lambda i, x, denoised: self.steps.append((x.video.clone(), x.audio.mT.clone())),
            saver=self.saver,
        )
        self.video, self.audio = final.video, final.audio.mT
        self.locked = voice is not None and preset.solver != "renoise"
        assert next(draws, None) is None, "the loop drew another number of noises"


loops = pytest.mark.golden("sampling_", without=["sampling_sr"])


@loops
def test_loop_in_float32(golden, constants, close):
    for name, case in golden["cases"].items():
        loop = Loop(golden, name, case, "fp32", constants)
        out = f"out.{name}.fp32"
        close(loop.video, golden.tensors[f"{out}.final_video"], 1e-4, f"{name} video")
        close(loop.audio, golden.tensors[f"{out}.final_audio"], 1e-4, f"{name} audio")
        close(
            torch.stack([v for v, _ in loop.steps]),
            golden.tensors[f"{out}.steps_video"],
            1e-4,
            f"{name} steps",
        )
        if (
            not loop.locked
        ):  # a locked voice is pinned before each step; what the solver makes of it is dropped
            close(
                torch.stack([a for _, a in loop.steps]),
                golden.tensors[f"{out}.steps_audio"],
                1e-4,
                f"{name} steps",
            )
        for kind, record in (("cond", loop.conditional), ("uncond", loop.unconditional)):
            if record:
                close(
                    torch.stack([v for v, _ in record]), golden.tensors[f"{out}.v_{kind}_video"], 1e-4, name
                )
                close(
                    torch.stack([a for _, a in record]), golden.tensors[f"{out}.v_{kind}_audio"], 1e-4, name
                )


@loops
def test_loop_in_bfloat16(golden, constants, within_bf16):
    for name, case in golden["cases"].items():
        loop = Loop(golden, name, case, "bf16", constants)
        distance = golden["bf16_vs_fp32"][name]
        within_bf16(loop.video, golden.tensors[f"out.{name}.bf16.final_video"], distance["final_video"], name)
        within_bf16(loop.audio, golden.tensors[f"out.{name}.bf16.final_audio"], distance["final_audio"], name)


def relative(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.golden("sampling_base_cfg")
def test_step_saving(golden, constants, close):
    """Off: the golden loop. On, in 32 steps of the same network: fewer passes, and an error that grows with them."""
    for name, case in golden["cases"].items():
        given = (golden, name, case, "fp32", constants)
        off = Loop(*given, threshold=0.0)
        close(off.video, golden.tensors[f"out.{name}.fp32.final_video"], 1e-4, name)
        exact, zero = Loop(*given, steps=32), Loop(*given, steps=32, threshold=0.0)
        assert torch.equal(zero.video, exact.video) and torch.equal(zero.audio, exact.audio)
        passes, errors, estimates = [32], [0.0], [0.0]
        for threshold in (0.1, 0.2, 0.4):
            loop = Loop(*given, steps=32, threshold=threshold)
            passes.append(len(loop.conditional))
            assert len(loop.unconditional) == passes[-1] == loop.saver.saved.computed
            errors.append(relative(loop.video, exact.video))
            estimates.append(loop.saver.saved.error)
        assert passes == sorted(passes, reverse=True) and len(set(passes)) == 4, passes
        assert errors == sorted(errors) and errors[1] > 1e-3, errors
        assert estimates == sorted(estimates), estimates
        # What is told is the size of what is seen in the video; in the sound guidance multiplies it.
        assert all(0.4 < told / seen < 2.5 for told, seen in zip(estimates[1:], errors[1:], strict=True))


class TwoStages:
    """One case of a super-resolution file, both stages."""

    def __init__(self, golden, name, case, precision, constants, start_from_golden=False):
        t = golden.tensors
        config = settings(case, constants)
        proxy, dtype = golden["data_proxy_config"], PRECISIONS[precision]
        local = golden["sr_model_config_overrides"]["local_attn_layers"]
        window = proxy["frame_receptive_field"]
        base = build(golden, "w.base.", dtype, [], window, proxy["coords_style"])
        fine = build(golden, "w.sr.", dtype, local, window, "v1")
        context = t[f"in.{name}.context"][0, : case["Lt"]]
        negative = t[f"in.{name}.context_null"][0, : case["Lt_null"]]
        count = case["n_noise_draws_after_init"]
        draws = iter([t[f"in.{name}.noise.{i:03d}"] for i in range(count)])

        def noise():
            video, audio = next(draws), next(draws)
            return Streams(video, audio.mT)

        preset = preset_of(config, case["br_steps"])
        start = Streams(t[f"in.{name}.init_video"], t[f"in.{name}.init_audio"].mT)
        self.base = sample(velocity(base, context), velocity(base, negative), start, preset, noise)
        rule = FrameGuidance(
            config["sr_video_txt_guidance_scale"],
            config["cfg_trick_value"],
            config["cfg_trick_start_frame"] if config["use_cfg_trick"] else 0,
        )
        sr_preset = replace(
            PRESET,
            steps=case["sr_steps"],
            shift=config["shift"],
            guidance=rule if config["sr_cfg_number"] == 2 else None,
        )
        stage = SuperResolution(sr_preset, config["noise_value"], config["sr_audio_noise_scale"])
        height, width = (floor_to_grid(case[key]) // 16 for key in ("sr_height", "sr_width"))
        self.start = None
        self.steps = []
        if start_from_golden:
            out = f"out.{name}.fp32"
            self.start = Streams(t[f"{out}.sr_input_video"], t[f"{out}.sr_input_audio"].mT)
            self.final = sample(
                velocity(fine, context),
                velocity(fine, negative),
                self.start,
                sr_preset,
                noise,
                voice=self.start.audio,
                on_step=lambda i, x, denoised: self.steps.append(x.video.clone()),
            )
            return
        drawn = noise()
        self.start = prepare(self.base, height, width, drawn, stage)
        self.final = super_resolve(
            velocity(fine, context),
            velocity(fine, negative),
            self.base,
            height,
            width,
            lambda: drawn,
            stage,
            on_step=lambda i, x, denoised: self.steps.append(x.video.clone()),
        )
        assert next(draws, None) is None


two_stages = pytest.mark.golden("sampling_sr")


@two_stages
def test_super_resolution_in_float32(golden, constants, close):
    for name, case in golden["cases"].items():
        run = TwoStages(golden, name, case, "fp32", constants)
        out, t = f"out.{name}.fp32", golden.tensors
        close(run.base.video, t[f"{out}.base_video"], 1e-4, f"{name} base")
        close(run.base.audio.mT, t[f"{out}.base_audio"], 1e-4, f"{name} base")
        close(run.start.video, t[f"{out}.sr_input_video"], 1e-4, f"{name} start")
        close(run.start.audio.mT, t[f"{out}.sr_input_audio"], 1e-4, f"{name} start")
        # Two guidance passes make the stage chaotic: 1e-6 at its start moves its end by up to 6e-4.
        is_chaotic = settings(case, constants)["sr_cfg_number"] == 2
        close(run.final.video, t[f"{out}.final_video"], 1e-3 if is_chaotic else 1e-4, f"{name} final")
        close(run.final.audio.mT, t[f"{out}.final_audio"], 1e-4, f"{name} final")
        assert torch.equal(run.final.audio, run.base.audio)


@two_stages
def test_super_resolution_from_the_recorded_start(golden, constants, close):
    for name, case in golden["cases"].items():
        run = TwoStages(golden, name, case, "fp32", constants, start_from_golden=True)
        close(torch.stack(run.steps), golden.tensors[f"out.{name}.fp32.sr_steps_video"], 1e-4, name)
        close(run.final.video, golden.tensors[f"out.{name}.fp32.final_video"], 1e-4, name)


@two_stages
def test_super_resolution_in_bfloat16(golden, constants, within_bf16):
    for name, case in golden["cases"].items():
        run = TwoStages(golden, name, case, "bf16", constants)
        distance, out = golden["bf16_vs_fp32"][name], f"out.{name}.bf16"
        within_bf16(run.final.video, golden.tensors[f"{out}.final_video"], distance["final_video"], name)
        within_bf16(run.final.audio.mT, golden.tensors[f"{out}.final_audio"], distance["final_audio"], name)


schedulers = pytest.mark.golden("schedulers")


@schedulers
def test_schedule(golden):
    for steps in golden["steps_list"]:
        assert torch.equal(timesteps(steps, golden["shift"]), golden.tensors[f"out.timesteps.{steps}"].cpu())
        sigmas, wanted = flow_sigmas(steps, golden["shift"]), golden.tensors[f"out.sigmas.{steps}"].cpu()
        assert sigmas.dtype == torch.float32
        assert ((sigmas - wanted).abs() <= torch.finfo(torch.float32).eps * wanted.abs()).all()


@schedulers
@pytest.mark.parametrize("solver", ["unipc", "ddim", "sde"])
def test_solvers_on_a_synthetic_velocity(golden, close, solver):
    t = golden.tensors
    for steps in golden["steps_list"]:
        sigmas = flow_sigmas(steps, golden["shift"]).tolist()
        for stream in ("video", "audio"):
            taken, counter = [], iter(range(steps))

            def synthetic(x, _sigma, counter=counter):
                return 0.6 * x + 0.3 * torch.sin(2.5 * x + 0.4 * next(counter))

            keep = {"on_step": lambda i, x, denoised, taken=taken: taken.append(x)}
            if solver == "unipc":
                solvers.unipc(synthetic, t[f"in.{stream}"], sigmas, **keep)
            else:
                draws = iter(t[f"in.noise.{solver}.{steps}.{stream}"])
                noise = lambda draws=draws: next(draws)  # noqa: E731
                if solver == "ddim":
                    solvers.renoise(synthetic, t[f"in.{stream}"], sigmas, noise, **keep)
                else:
                    angles = golden["sde_thetas_used"][str(steps)]
                    solvers.sde(synthetic, t[f"in.{stream}"], sigmas, noise, angles, **keep)
            close(torch.stack(taken), t[f"out.{solver}.{steps}.{stream}"], 1e-5, f"{solver} {steps} {stream}")


@schedulers
def test_signal_table(golden, close):
    table = zero_terminal_snr()
    close(table, golden.tensors["out.zsnr_sigmas_1000_flip"].cpu(), 1e-6)
    assert table[220].item() == pytest.approx(golden["zsnr"]["index_220"], abs=1e-7)
    assert (1 - table[220] ** 2).sqrt().item() == pytest.approx(golden["zsnr"]["noise_coef_220"], abs=1e-7)
    assert table[999].item() == 0
