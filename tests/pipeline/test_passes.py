"""Passes that are left out or shared: step saving, both guidance branches over swapped blocks, no audio head."""

from dataclasses import replace

import pytest
import torch

from comfyui_happyhorse.cli.main import main
from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.model.layers import MLP_ROWS, Block
from comfyui_happyhorse.model.transformer import JointTransformer
from comfyui_happyhorse.model_loading import builder
from comfyui_happyhorse.model_loading.block_swap import BlockSwapper, swap_blocks
from comfyui_happyhorse.model_loading.precision import PRECISIONS
from comfyui_happyhorse.pipeline import stages
from comfyui_happyhorse.pipeline.files import ModelFiles
from comfyui_happyhorse.pipeline.film import FilmRequest, make_film
from comfyui_happyhorse.sampling.joint import PRESETS, step_saver
from comfyui_happyhorse.sampling.super_resolution import GUIDED_PRESET, PRESET, SuperResolution
from comfyui_happyhorse.shapes import latent_size

BASE = FilmRequest("A man at a piano says hello.", 5, 64, 64, variant="base", steps=16, negative="noise")
SIZE = latent_size(64, 64, 5)
BLOCKS = 8
CPU = torch.device("cpu")


@pytest.fixture
def make(tiny_models, tmp_path):
    def run(request, **keywords):
        files = ModelFiles.locate(tiny_models, request, ModelFiles())
        return make_film(files, request, tmp_path / "film.mp4", policy=PRECISIONS["float32"], **keywords)

    return run


@pytest.fixture
def count(monkeypatch):
    """``count(cls, name)``: a list that grows with every call of a method."""

    def counted(cls, name):
        original, calls = getattr(cls, name), []

        def method(self, *args, **kwargs):
            calls.append((args, kwargs))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(cls, name, method)
        return calls

    return counted


def same(one, other):
    return torch.equal(one.video, other.video) and torch.equal(one.audio, other.audio)


def distance(one, other):
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(one, other, strict=True))


def test_a_saved_film_takes_fewer_passes_and_differs(make, count):
    passes = count(Block, "forward")
    exact = make(BASE)
    assert exact.saved is None
    assert len(passes) == 16 * 2 * BLOCKS
    films = []
    for threshold in (0.15, 0.5):
        passes.clear()
        films.append(make(replace(BASE, step_saving=threshold)))
        assert len(passes) == films[-1].saved.computed * 2 * BLOCKS
        assert films[-1].saved.computed + films[-1].saved.reused == 16
    few, many = films
    assert 0 < few.saved.reused < many.saved.reused
    assert 0 < distance(few.latents, exact.latents) < distance(many.latents, exact.latents)
    assert 0 < few.saved.error < many.saved.error


def test_a_pass_that_is_saved_streams_no_block(make, count):
    request = replace(BASE, step_saving=0.5)
    whole, entered = make(request), count(BlockSwapper, "_in_place")
    swapped = make(request, swapped=BLOCKS)
    assert same(swapped.latents, whole.latents)
    assert swapped.saved == whole.saved
    assert len(entered) in (whole.saved.computed * BLOCKS, whole.saved.computed * BLOCKS * 2)


def test_super_resolution_after_a_saved_base_is_computed_whole(make, count):
    passes = count(JointTransformer, "velocities")
    film = make(replace(BASE, step_saving=0.5, super_resolution="540p", sr_steps=3))
    assert len(passes) == 2 * film.saved.computed + 3


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (
            replace(BASE, variant="distilled", steps=None, step_saving=0.1),
            r"distilled model takes few \(8 here\)",
        ),
        (replace(BASE, steps=8, step_saving=0.1), "needs 16 steps or more, and this run has 8"),
        (replace(BASE, step_saving=-1), "threshold of -1 is not a relative error"),
    ],
)
def test_what_has_nothing_to_save_is_refused_before_anything_is_read(make, count, request_, words):
    read = count(ModelFiles, "check")
    with pytest.raises(SamplingError, match=words):
        make(request_)
    assert not read


def test_on_the_command_line(tiny_models, tmp_path, capsys):
    arguments = ["generate", "--models", str(tiny_models), "--prompt", "A singer.", "--frames", "5"]
    arguments += ["--width", "64", "--height", "64", "--out", str(tmp_path / "film.mp4")]
    (tmp_path / "negative.txt").write_text("noise")
    base = ["--variant", "base", "--negative", str(tmp_path / "negative.txt"), "--steps", "16"]
    assert main([*arguments, *base, "--step-saving", "0.5"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Step saving: ") and " reused; estimated relative error " in first
    assert second.endswith("64x64, 5 frames, 0.20 s")
    assert main([*arguments, "--step-saving", "0.2"]) == 1
    assert "distilled model takes few (8 here)" in capsys.readouterr().err


def network(tiny_models, variant="base"):
    names = {"base": "happyhorse_tiny_base", "sr_540p": "happyhorse_tiny_sr_540p.safetensors"}
    path = tiny_models / "diffusion_models" / names[variant]
    return builder.load_transformer(path, variant, PRECISIONS["bf16"])


def text(config, rows, seed):
    return torch.randn(rows, config.text_features, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def stage(tiny_models):
    """``stage(kind, placed)``: latents of a guided stage, run for a few steps by a network placed so."""

    @torch.inference_mode()
    def run(kind, place):
        net = network(tiny_models, "base" if kind == "film" else "sr_540p")
        prompts = text(net.config, 7, 1), text(net.config, 5, 2)
        with place(net) as placed:
            if kind == "film":
                preset = replace(PRESETS["base"], steps=16)
                saver = step_saver(preset, 0.5)
                out = stages.sample_film(net, *prompts, SIZE, 3, preset, placed=placed, saver=saver)
                assert saver.saved.reused
                return out
            base = stages.Streams(torch.ones(SIZE.video_shape), torch.ones(SIZE.audio_shape))
            settings = SuperResolution(replace(GUIDED_PRESET, steps=3))
            return stages.enlarge_film(net, *prompts, base, 96, 96, 3, settings, placed=placed)

    return run


class Place:
    """All blocks on the device, or streamed, for each branch or for both together."""

    def __init__(self, way):
        self.way = way

    def __call__(self, net):
        self.swapper = swap_blocks(net.block.layers, CPU)
        return self

    def __enter__(self):
        if self.way == "whole":
            return stages.WHOLE
        self.held = self.swapper.resident()
        swapper = self.held.__enter__()
        together = swapper.run_together if self.way == "together" else None
        return stages.Placed(swapper.run_blocks, MLP_ROWS, together)

    def __exit__(self, *error):
        if self.way != "whole":
            self.held.__exit__(*error)


@pytest.mark.parametrize("kind", ["film", "super-resolution"])
def test_two_guidance_branches_share_a_pass_over_swapped_blocks(stage, count, kind):
    whole, entered = stage(kind, Place("whole")), count(BlockSwapper, "_in_place")
    assert not entered
    apart = stage(kind, Place("apart"))
    each = len(entered)
    entered.clear()
    together = stage(kind, Place("together"))
    assert each == 2 * len(entered) > 0
    assert same(apart, whole) and same(together, whole)


def test_a_single_branch_needs_no_sharing(tiny_models):
    net = network(tiny_models)
    with Place("together")(net) as placed:
        one = stages.TextVelocity(net, text(net.config, 7, 1), placed)
        assert stages.side_by_side(one, None) is None
        assert stages.side_by_side(one, one) is not None


@pytest.fixture
def with_audio_heads(monkeypatch):
    """``with_audio_heads()``: from now on they are asked for, whether anyone listens or not."""
    plain = stages.TextVelocity.__init__

    def always(self, *args, wants_audio):
        plain(self, *args, wants_audio=wants_audio or True)

    return lambda: monkeypatch.setattr(stages.TextVelocity, "__init__", always)


@pytest.mark.parametrize("guided", [False, True])
def test_super_resolution_asks_for_no_audio(tiny_models, with_audio_heads, guided):
    net, heard = network(tiny_models, "sr_540p"), []
    net.final_linear_audio.register_forward_hook(lambda *_: heard.append(1))
    negative = text(net.config, 5, 2) if guided else None
    base = stages.Streams(torch.ones(SIZE.video_shape), torch.ones(SIZE.audio_shape))
    settings = SuperResolution(replace(GUIDED_PRESET if guided else PRESET, steps=3))

    @torch.inference_mode()
    def run():
        return stages.enlarge_film(net, text(net.config, 7, 1), negative, base, 96, 96, 3, settings)

    silent = run()
    assert not heard
    with_audio_heads()
    assert same(run(), silent)
    assert len(heard) == (6 if guided else 3)


@pytest.mark.parametrize("variant", ["base", "distilled"])
def test_a_film_with_a_given_voice_asks_for_no_audio(tiny_models, with_audio_heads, variant):
    net = network(tiny_models)
    prompts = text(net.config, 7, 1), text(net.config, 5, 2)
    voice, heard = torch.full(SIZE.audio_shape, 0.3), []
    net.final_linear_audio.register_forward_hook(lambda *_: heard.append(1))

    @torch.inference_mode()
    def run():
        preset = replace(PRESETS[variant], steps=3)
        negative = prompts[1] if preset.guidance else None
        return stages.sample_film(net, prompts[0], negative, SIZE, 3, preset, voice=voice)

    silent = run()
    assert not heard
    assert torch.equal(silent.audio, voice)
    with_audio_heads()
    assert same(run(), silent)
    assert heard
