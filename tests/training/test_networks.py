"""What trains the networks: the same numbers as the pack's own forward passes, and steps that lower a loss."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from comfyui_happyhorse.conditioning.negative import default_negative
from comfyui_happyhorse.conditioning.tokenizer import load_tokenizer
from comfyui_happyhorse.model import layers, turbo_layers
from comfyui_happyhorse.model.config import VARIANTS, TransformerConfig
from comfyui_happyhorse.model.turbo_decoder import TurboConfig, TurboDecoder
from comfyui_happyhorse.model.video_latent import LATENT_MEAN, LATENT_STD, denormalise
from comfyui_happyhorse.model.video_vae import Wan22VAE, WanConfig
from comfyui_happyhorse.model_loading import builder
from comfyui_happyhorse.model_loading.find import find_parts
from comfyui_happyhorse.model_loading.precision import PRECISIONS
from comfyui_happyhorse.sampling.schedule import flow_sigmas
from comfyui_happyhorse.training import (
    audio_autoencoder,
    distil,
    export,
    joint,
    sizes,
    text,
    video_autoencoder,
)
from comfyui_happyhorse.training.backward import differentiable
from comfyui_happyhorse.training.batched import velocities
from comfyui_happyhorse.training.clips import clip_of
from comfyui_happyhorse.training.distil import Distillation, Pair
from comfyui_happyhorse.training.latents import Shelf, join
from comfyui_happyhorse.training.loop import Work, start_convolutions, train
from comfyui_happyhorse.training.optimiser import Muon, Optimisers, RunningMean, orthogonal


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(text.train_tokenizer(1, clips=300))


def moved(network, seed=0):
    """With every weight off its start: norms and gates too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return network


@pytest.mark.parametrize("config", [sizes.BASE, sizes.SUPER_RESOLUTION], ids=["v2", "v1"])
def test_samples_side_by_side_are_what_they_are_alone(config, close):
    network = moved(joint.new_transformer(config, 1))
    torch.manual_seed(2)
    video, audio, rows = torch.randn(3, 48, 2, 4, 6), torch.randn(3, 64, 5), torch.randn(3, 9, 128)
    counts = [9, 4, 7]
    with torch.no_grad():
        with differentiable():
            made = velocities(network, video, audio, rows, counts)
        for number, count in enumerate(counts):
            alone = network(video[number], audio[number], rows[number, :count])
            close(made[0][number], alone[0], 2e-6)
            close(made[1][number], alone[1], 2e-6)


def test_the_networks_have_a_gradient_only_while_they_are_trained():
    network = joint.new_transformer(sizes.SUPER_RESOLUTION, 1).requires_grad_(True)
    sample = torch.randn(1, 48, 1, 2, 2), torch.randn(1, 64, 1), torch.randn(1, 3, 128)
    before = layers.norm_rows, layers.activate, turbo_layers.channel_norm
    with differentiable():
        loss = sum(part.square().sum() for part in velocities(network, *sample, [3]))
        loss.backward()
    assert (layers.norm_rows, layers.activate, turbo_layers.channel_norm) == before
    # Of the last layers text rows go nowhere; everything else has a say.
    silent = [name for name, w in network.named_parameters() if w.grad is None or not w.grad.abs().max() > 0]
    assert not [name for name in silent if "text" not in name and ".q_norm" not in name], silent


def test_a_gradient_is_the_slope():
    network = moved(joint.new_transformer(sizes.SUPER_RESOLUTION, 1)).requires_grad_(True)
    torch.manual_seed(3)
    sample = torch.randn(1, 48, 1, 2, 2), torch.randn(1, 64, 1), torch.randn(1, 3, 128)

    def loss():
        return sum(part.square().mean() for part in velocities(network, *sample, [3]))

    weight = network.block.layers[3].attention.linear_qkv.weight
    with differentiable():
        loss().backward()
        step = 1e-2 * weight.grad / weight.grad.norm()
        with torch.no_grad():
            weight += step
            above = loss()
            weight -= 2 * step
            below = loss()
    slope = float(above - below) / 2e-2
    assert slope == pytest.approx(float(weight.grad.norm()), rel=0.02)


def test_turbo_with_a_gradient_is_turbo(close):
    decoder = TurboDecoder(sizes.TURBO)
    start_convolutions(decoder, 4)
    latent = torch.randn(1, 48, 7, 2, 2, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        with differentiable():
            made = video_autoencoder.decode_turbo(decoder, latent)
        close(made, decoder.decode(latent), 1e-5)


def test_one_pass_encodes_as_the_stream_does(close):
    vae = Wan22VAE(sizes.WAN)
    start_convolutions(vae, 6)
    pixels = video_autoencoder.draw_batch(0, 1, 9)
    with torch.no_grad():
        latent = video_autoencoder.encode(vae, pixels)
        close(latent, vae.encode(pixels), 1e-5)
        close(video_autoencoder.decode_wan(vae, latent).clamp(-1, 1), vae.decode(latent), 1e-5)


def test_whitened_latents_have_the_real_constants_and_are_decoded_alike(close):
    vae, decoder = Wan22VAE(sizes.WAN), TurboDecoder(sizes.TURBO)
    start_convolutions(vae, 7)
    start_convolutions(decoder, 8)
    pixels = video_autoencoder.draw_batch(1, 3, 5)
    first = decoder.decoder.conv_in
    with torch.no_grad():
        before = vae.encode(pixels)
        entered = first(denormalise(before))
        video_autoencoder.whiten(vae, decoder, before)
        after = vae.encode(pixels)
        assert after.mean((0, 2, 3, 4)).abs().max() < 1e-3
        spread = before.std((0, 2, 3, 4))
        assert spread.min() > 1e-3
        assert (after.std((0, 2, 3, 4)) - 1).abs().max() < 1e-3
        raw = denormalise(after)
        close(raw.std((0, 2, 3, 4)), torch.tensor(LATENT_STD), 2e-3)
        close(raw.mean((0, 2, 3, 4)), torch.tensor(LATENT_MEAN), 2e-3)
        # At the borders zeros stand for another colour than before.
        inside = (..., slice(1, -1), slice(1, -1))
        close(first(denormalise(after))[inside], entered[inside], 1e-4)


def test_a_computed_audio_autoencoder_needs_no_training():
    vae = audio_autoencoder.computed(audio_autoencoder.sounds(0, 60, 13), 1)
    kept_out = torch.stack([clip_of(i, 25, held_out=True).film(only=slice(0, 1))[1] for i in range(4)])
    with torch.no_grad():
        latent = vae.encode(kept_out)
        assert audio_autoencoder.snr(vae.decode(latent), kept_out) > 25
        assert 0.2 < float(latent.std()) < 1.5
        audio_autoencoder._rescale(vae, kept_out)
        assert audio_autoencoder.snr(vae.decode(vae.encode(kept_out)), kept_out) > 25
        before = audio_autoencoder.snr(vae.decode(vae.encode(kept_out)), kept_out)
        audio_autoencoder.wake(vae, 1)
        assert 15 < audio_autoencoder.snr(vae.decode(vae.encode(kept_out)), kept_out) < before - 3


def test_directions_are_made_orthogonal():
    for shape in ((4, 6, 10), (3, 12, 5)):
        made = orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.5 and values.max() < 1.4


def test_stacked_matrices_are_stepped_each_for_itself():
    torch.manual_seed(1)
    gradient = torch.cat([torch.randn(4, 8), 100 * torch.randn(4, 8)])
    steps = []
    for parts in (1, 2):
        weight = nn.Parameter(torch.zeros(8, 8))
        weight.grad = gradient.clone()
        Muon([{"params": [weight], "parts": parts}], lr=0.1).step()
        steps.append(weight.detach())
    ratios = [float(step[4:].norm() / step[:4].norm()) for step in steps]
    assert ratios[1] == pytest.approx(1, abs=0.2)
    assert torch.linalg.matrix_rank(steps[1][:4]) == 4
    assert (steps[0] - steps[1]).abs().max() > 0.01


def test_a_running_mean_forgets_its_start():
    mean = RunningMean({"w": torch.zeros(1)}, 0.9)
    for _ in range(100):
        mean.update({"w": torch.ones(1)})
    assert float(mean.kept["w"]) > 0.999


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)


def fitted(folder, steps, stop=None):
    torch.manual_seed(0)
    network = Line()
    parameters = dict(network.named_parameters())

    def loss(step):
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(16, 4)
        return (network.layer(x) - x.flip(1)).square().mean()

    optimisers = Optimisers(parameters, lr=0.1, adam_lr=0.05, steps=steps)
    train(
        Work(folder, torch.device("cpu")), "line", parameters, optimisers, loss, report_every=5, save_every=10
    )
    return network.layer.weight.detach()


def test_a_stopped_training_ends_where_it_would_have(tmp_path):
    whole = fitted(tmp_path / "whole", 40)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", 40, stop=25)
    again = fitted(tmp_path / "cut", 40)
    assert torch.equal(whole, again)
    assert not list((tmp_path / "cut").glob("*.pt"))
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert lines[-1]["loss"] < 0.2 * lines[0]["loss"]


def shelf(count=6, frames=2):
    torch.manual_seed(1)
    return Shelf(
        torch.randn(count, 48, frames, 2, 2).half(),
        torch.randn(count, 64, 4 * frames - 3).half(),
        torch.randint(4, 90, (count, 7)),
        torch.tensor([7, 5, 6, 7, 4, 7][:count]),
        torch.tensor([True, True, True, True, False, False][:count]),
    )


@pytest.mark.parametrize(("given", "video_sees"), [("picture", "frame 0"), ("voice", "sound")])
def test_what_is_given_is_clean_and_is_not_asked_for(given, video_sees, monkeypatch):
    seen = {}

    def spy(_network, video, audio, *_):
        seen.update(video=video, audio=audio)
        return torch.zeros_like(video), torch.zeros_like(audio)

    monkeypatch.setattr(joint, "velocities", spy)
    lots = joint.Lots(picture=given == "picture", voice=given == "voice", negative=0)
    own, encoder = shelf(), joint.new_text_encoder(sizes.text_encoder(100), 1)
    lot = np.random.default_rng(1)
    _, parts = joint.flow_loss(
        None, encoder, own, 5, lot, lots, torch.zeros(1, 3).long(), torch.device("cpu")
    )
    if video_sees == "sound":
        originals = own.audio.float()
        assert all((row == originals).flatten(1).all(1).any() for row in seen["audio"])
        assert parts["audio"] == 0 and parts["video"] > 0.5
    else:
        firsts = own.video.float()[:, :, 0]
        assert all((row[:, 0] == firsts).flatten(1).all(1).any() for row in seen["video"])
        assert not any(
            (row[:, 1] == own.video.float()[:, :, 1]).flatten(1).all(1).any() for row in seen["video"]
        )
        assert parts["audio"] > 0.5


def test_a_perfect_network_has_no_loss(monkeypatch):
    own = shelf(count=1)
    clean = own.video.float(), own.audio.float()
    level = 0.37

    def perfect(_network, video, audio, *_):
        return tuple((x - c) / level for x, c in zip((video, audio), clean, strict=True))

    monkeypatch.setattr(joint, "velocities", perfect)
    lots = joint.Lots(picture=0, voice=0, negative=0, levels=(level,))
    encoder = joint.new_text_encoder(sizes.text_encoder(100), 1)
    arguments = (1, np.random.default_rng(1), lots, torch.zeros(1, 3).long(), torch.device("cpu"))
    loss, _ = joint.flow_loss(None, encoder, own, *arguments)
    assert float(loss) < 1e-9


def test_noise_levels_are_the_samplers():
    assert joint.sampler_levels(8) == tuple(flow_sigmas(8)[:-1].tolist())
    levels = joint.noise_levels(np.random.default_rng(1), 4000, joint.Lots())
    assert levels.min() > 0 and levels.max() < 1
    assert 0.55 < float((levels > 0.5).float().mean()) < 0.8  # .4 * .5 + .6 * 5/6 = .7


def test_shelves_join_and_pad():
    one, two = shelf(), shelf(count=3)
    wide = Shelf(two.video, two.audio, torch.nn.functional.pad(two.ids, (0, 4)), two.counts, two.is_plain)
    both = join([one, wide])
    assert len(both) == 9 and both.ids.shape == (9, 11)
    assert torch.equal(both.ids[:6, :7], one.ids) and not both.ids[:6, 7:].any()
    assert torch.equal(both.video[6:], two.video)


def test_a_prompt_is_a_few_tokens_and_any_text_has_some(tokenizer):
    prompt = clip_of(4, 25).prompt
    ids = tokenizer.encode(prompt)
    assert len(ids) < 45
    assert tokenizer._library.DecodeIds(ids) == prompt
    strange = "Zwölf Boxkämpfer\n漢字 🙂"
    assert tokenizer._library.DecodeIds(tokenizer.encode(strange)) == strange
    assert len(tokenizer.encode(default_negative())) < 70


def test_prompts_of_a_batch_are_padded_behind(tokenizer):
    prompts = [clip_of(seed, 49).prompt for seed in range(3)]
    ids, counts = text.token_rows(tokenizer, prompts)
    for row, count, prompt in zip(ids, counts, prompts, strict=True):
        assert row[:count].tolist() == tokenizer.encode(prompt)
        assert not row[count:].any()


def test_files_are_read_back_as_a_model_set(tmp_path, tokenizer):
    network = moved(joint.new_transformer(sizes.BASE, 1))
    config = sizes.text_encoder(tokenizer.vocab_size)
    encoder = moved(joint.new_text_encoder(config, 2))
    vae, turbo = Wan22VAE(sizes.WAN), TurboDecoder(sizes.TURBO)
    start_convolutions(vae, 1)
    start_convolutions(turbo, 2)
    sound = audio_autoencoder.computed(audio_autoencoder.sounds(0, 8, 13), 1)
    export.write_transformer(tmp_path, "distilled", network)
    export.write_transformer(tmp_path, "sr_540p", joint.new_transformer(sizes.SUPER_RESOLUTION, 1))
    export.write_text_encoder(tmp_path, encoder, config, b"tokens")
    export.write_video_vae(tmp_path, vae)
    export.write_turbo_decoder(tmp_path, turbo, sizes.TURBO)
    export.write_audio_vae(tmp_path, sound)
    checksums = export.finish(tmp_path).read_text().splitlines()
    assert len(checksums) == len([p for p in tmp_path.rglob("*") if p.is_file()]) - 1
    kinds = {(part.kind, part.variant) for part in find_parts(tmp_path)}
    assert kinds == {
        ("transformer", "distilled"),
        ("transformer", "sr_540p"),
        ("text_encoder", None),
        ("video_vae", None),
        ("turbo_decoder", None),
        ("audio_vae", None),
    }
    policy = PRECISIONS["float32"]
    loaded = builder.load_transformer(tmp_path / export.TRANSFORMERS.format("distilled"), "distilled", policy)
    assert loaded.config == TransformerConfig.from_shapes(
        {name: tuple(t.shape) for name, t in network.state_dict().items()}, VARIANTS["distilled"]
    )
    for name, weight in network.state_dict().items():
        limit = 0 if name.endswith("bands") else 2**-8
        assert (loaded.state_dict()[name] - weight).abs().max() <= limit * weight.abs().max()
    assert builder.load_text_encoder(tmp_path / export.TEXT_ENCODER, policy).config == config
    assert builder.load_video_vae(tmp_path / export.VIDEO_VAE, policy).config == WanConfig.from_shapes(
        {name: tuple(t.shape) for name, t in vae.state_dict().items()}
    )
    assert isinstance(builder.load_turbo_decoder(tmp_path / export.TURBO_DECODER).config, TurboConfig)
    kept = builder.load_audio_vae(tmp_path / export.AUDIO_VAE).state_dict()
    assert max(float((kept[n] - w).abs().max()) for n, w in sound.state_dict().items()) < 5e-3
    network.final_linear_video.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="final_linear_video"):
        export.write_transformer(tmp_path, "distilled", network)


def test_an_answer_on_a_straight_path_is_the_teachers_end(monkeypatch):
    network = joint.new_transformer(sizes.SUPER_RESOLUTION, 1)
    torch.manual_seed(1)
    clean = Pair(torch.randn(4, 48, 2, 2, 2), torch.randn(4, 64, 5))
    constant = Pair(torch.randn(48, 2, 2, 2), torch.randn(64, 5))
    seen = []

    def straight(asked, video, audio, *_):
        seen.append((asked, video, audio))
        return constant.video.expand_as(video), constant.audio.expand_as(audio)

    monkeypatch.setattr(distil, "velocities", straight)
    work = Distillation(network, joint.sampler_levels(8))
    nothing = torch.zeros(4, dtype=torch.bool)
    arguments = (torch.zeros(4, 3, 128), torch.tensor([3] * 4), np.random.default_rng(1))
    loss, _ = work.loss(clean, nothing, nothing, *arguments)
    assert float(loss) < 1e-8
    assert [asked for asked, *_ in seen] == [work.teacher, work.teacher, work.target, network]
    seen.clear()
    work.loss(clean, ~nothing, ~nothing, *arguments)
    for _, video, audio in seen:
        assert torch.equal(audio, clean.audio)
        assert torch.equal(video[:, :, 0], clean.video[:, :, 0])

    def lazy(asked, video, audio, *_):
        return straight(asked, video, audio) if asked is not network else (0 * video, 0 * audio)

    monkeypatch.setattr(distil, "velocities", lazy)
    _, parts = work.loss(clean, nothing, nothing, *arguments)
    assert parts["video"] == pytest.approx(float(constant.video.square().mean()), rel=1e-4)
    assert parts["audio"] == pytest.approx(float(constant.audio.square().mean()), rel=1e-4)


def test_the_slow_copy_comes_nearer_and_the_teacher_stays():
    network = joint.new_transformer(sizes.SUPER_RESOLUTION, 1)
    work = Distillation(network, joint.sampler_levels(8))
    weight = "block.layers.3.mlp.down_proj.weight"
    start = network.get_parameter(weight).detach().clone()
    with torch.no_grad():
        network.get_parameter(weight).add_(1)
    work.follow()
    assert torch.equal(work.teacher.get_parameter(weight), start)
    assert (work.target.get_parameter(weight) - start).mean() == pytest.approx(0.05, rel=1e-3)
