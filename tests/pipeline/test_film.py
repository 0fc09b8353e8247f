"""Whole films from the tiny set: what is asked for comes out, the same each time, and nothing half-done stays."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from comfyui_happyhorse.conditioning.voice import pad_voice, prepare_voice
from comfyui_happyhorse.errors import (
    CheckpointError,
    ConditioningError,
    GeometryError,
    HappyHorseError,
    MediaError,
    SamplingError,
)
from comfyui_happyhorse.media.frames import to_uint8
from comfyui_happyhorse.media.read import read_film
from comfyui_happyhorse.model_loading import builder
from comfyui_happyhorse.model_loading.precision import PRECISIONS
from comfyui_happyhorse.pipeline.files import ModelFiles
from comfyui_happyhorse.pipeline.film import FilmRequest, Voice, make_film
from comfyui_happyhorse.pipeline.stages import encode_picture, encode_voice

FLOAT32 = PRECISIONS["float32"]
CPU = torch.device("cpu")
SMALL = FilmRequest("A man at a piano says hello.", 9, 96, 64)


@pytest.fixture
def make(tiny_models, tmp_path):
    """Makes a film from the tiny set; keywords go to ``make_film``."""

    def run(request, name="film.mp4", models=tiny_models, **keywords):
        files = ModelFiles.locate(models, request, ModelFiles())
        return make_film(files, request, tmp_path / name, **{"policy": FLOAT32, **keywords})

    return run


def tone(pitch=440.0, seconds=0.36, sample_rate=48_000, channels=2):
    time = torch.arange(round(seconds * sample_rate)) / sample_rate
    return Voice((0.5 * torch.sin(2 * math.pi * pitch * time)).expand(channels, -1), sample_rate)


def picture():
    return torch.linspace(0, 255, 80 * 120 * 3).view(80, 120, 3).to(torch.uint8)


def pitch_of(waveform, sample_rate):
    spectrum = torch.fft.rfft(waveform[0] * torch.hann_window(waveform.shape[1]), 1 << 18).abs()
    return spectrum.argmax().item() * sample_rate / (1 << 18)


def blocks(frames):
    """Means of 16x16 pixels: what H.264 keeps even of noise."""
    return torch.nn.functional.avg_pool2d(frames.permute(0, 3, 1, 2).float(), 16)


@pytest.mark.parametrize(
    "request_",
    [
        SMALL,
        replace(SMALL, image=picture()),
        replace(SMALL, voice=tone()),
        replace(SMALL, voice=tone(), soundtrack="model"),
        replace(SMALL, image=picture(), voice=tone(), super_resolution="540p"),
        replace(SMALL, variant="base", steps=3, negative="noise"),
        replace(SMALL, super_resolution="1080p", sr_steps=2, sr_guided=True, negative="noise", num_frames=5),
        replace(SMALL, decoder="wan", num_frames=13),
    ],
    ids=["text", "picture", "voice", "voice-model-sound", "all-540p", "base", "1080p-guided", "wan"],
)
def test_films_read_back(make, request_):
    film = make(request_)
    reading = read_film(film.info.path)
    width, height = request_.final_size
    assert (reading.width, reading.height, reading.frames) == (width, height, request_.num_frames)
    assert (reading.video_codec, reading.audio_codec) == ("h264", "aac")
    assert reading.video_seconds == pytest.approx(request_.num_frames / 25, abs=1e-6)
    assert reading.audio_seconds == pytest.approx(request_.num_frames / 25, abs=1e-6)
    assert film.latents.video.shape == (1, 48, (request_.num_frames - 1) // 4 + 1, height // 16, width // 16)
    assert film.latents.audio.shape == (1, 64, request_.num_frames)
    assert all(torch.isfinite(latent).all() for latent in film.latents)
    assert reading.metadata["comment"] == request_.prompt


def test_the_file_holds_what_the_latents_decode_to(make, tiny_models):
    film = make(SMALL)
    decoder = builder.load_turbo_decoder(tiny_models / "vae" / "turbo_vae_tiny" / "turbo_tiny.ckpt", FLOAT32)
    wanted = blocks(to_uint8(decoder.decode(film.latents.video)))
    shown = blocks(read_film(film.info.path).decode_frames())
    error = (wanted - shown).abs().mean()
    assert error < 2  # of 255
    assert (wanted - shown.roll(1, 0)).abs().mean() > 3 * error


@pytest.mark.parametrize("policy", ["float32", "bf16"])
def test_same_seed_same_bytes(make, policy):
    request = replace(SMALL, image=picture(), super_resolution="540p", num_frames=5)
    keywords = {"policy": PRECISIONS[policy]}
    first = make(request, "first.mp4", **keywords).info.path.read_bytes()
    assert make(request, "second.mp4", **keywords).info.path.read_bytes() == first
    assert make(replace(request, seed=43), "third.mp4", **keywords).info.path.read_bytes() != first


def test_super_resolution_leaves_the_base_stage_as_it_is(make, tmp_path):
    plain, fine = tmp_path / "plain.safetensors", tmp_path / "fine.safetensors"
    make(SMALL, save_latents=plain)
    make(replace(SMALL, super_resolution="540p"), save_latents=fine)
    plain, fine = load_file(plain), load_file(fine)
    assert set(plain) == {"video", "audio"}
    assert torch.equal(fine["base_video"], plain["video"])
    assert torch.equal(fine["base_audio"], plain["audio"])
    assert torch.equal(fine["audio"], plain["audio"])
    assert fine["video"].shape == (1, 48, 3, 8, 12)


def test_saved_latents_say_how_they_were_made(make, tmp_path):
    make(replace(SMALL, seed=7), save_latents=tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert '"seed": 7' in file.metadata()["happyhorse"]


def test_super_resolution_has_a_seed_of_its_own(make):
    request = replace(SMALL, super_resolution="540p", num_frames=5, steps=2)
    default, same, other = (
        make(replace(request, sr_seed=seed)).latents.video for seed in (None, request.seed + 1, 5)
    )
    assert torch.equal(default, same)
    assert not torch.equal(default, other)


@pytest.mark.parametrize("variant", ["distilled", "base"])
def test_the_picture_is_the_first_frame_and_the_voice_is_kept(make, tiny_models, variant):
    voice = tone()
    film = make(replace(SMALL, variant=variant, steps=3, image=picture(), voice=voice))
    vae = builder.load_video_vae(tiny_models / "vae" / "Wan2.2_VAE_tiny.pth", FLOAT32)
    audio_vae = builder.load_audio_vae(tiny_models / "vae" / "oobleck_audio_tiny.safetensors")
    with torch.inference_mode():
        first = encode_picture(picture(), 96, 64, vae, CPU)
        sound = encode_voice(*voice, 9, audio_vae, CPU)
        assert torch.equal(sound, audio_vae.encode(pad_voice(prepare_voice(*voice), 9)))
    assert torch.equal(film.latents.video[:, :, :1], first)
    assert torch.equal(film.latents.audio, sound)


def test_the_picture_is_pinned_at_the_new_size_too(make, tiny_models):
    film = make(replace(SMALL, image=picture(), super_resolution="540p"))
    vae = builder.load_video_vae(tiny_models / "vae" / "Wan2.2_VAE_tiny.pth", FLOAT32)
    with torch.inference_mode():
        assert torch.equal(film.latents.video[:, :, :1], encode_picture(picture(), 192, 128, vae, CPU))


def test_the_users_own_sound_is_in_the_film(make):
    voice = tone(660.0)
    reading = read_film(make(replace(SMALL, voice=voice)).info.path)
    waveform = reading.decode_waveform()
    assert pitch_of(waveform, reading.sample_rate) == pytest.approx(660, rel=2e-3)
    assert waveform.abs().max() == pytest.approx(0.5, rel=0.1)


def test_a_voice_in_surround_sound_is_mixed_down(make):
    reading = read_film(make(replace(SMALL, voice=tone(channels=6))).info.path)
    assert reading.channels == 2
    assert pitch_of(reading.decode_waveform(), reading.sample_rate) == pytest.approx(440, rel=2e-3)


def test_stages_report_every_step_in_order(make):
    seen = []
    make(replace(SMALL, image=picture(), super_resolution="540p"), report=lambda *call: seen.append(call))
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == [
        "text",
        "picture",
        "film",
        "super-resolution",
        "picture and sound",
    ]
    assert [call[1:] for call in seen if call[0] == "film"] == [(done, 8) for done in range(9)]
    assert [call[1:] for call in seen if call[0] == "super-resolution"] == [(done, 5) for done in range(6)]
    assert seen[-1] == ("picture and sound", 9, 9)


@pytest.mark.parametrize("stage", ["text", "film", "picture and sound"])
def test_a_cancelled_film_leaves_nothing_and_the_next_run_is_fine(make, tmp_path, stage):
    def stop(name, done, total):
        if name == stage and done == total:
            raise KeyboardInterrupt

    reference = make(SMALL, "film.mp4").info.path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        make(SMALL, "film.mp4", report=stop)
    with pytest.raises(KeyboardInterrupt):
        make(SMALL, "other.mp4", report=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
    assert (tmp_path / "film.mp4").read_bytes() == reference
    assert make(SMALL, "film.mp4").info.path.read_bytes() == reference


def test_a_negative_for_the_distilled_model_is_mentioned(make, caplog):
    make(replace(SMALL, negative="noise"))
    assert "without a negative prompt" in caplog.text


def test_the_default_negative_is_used_by_the_base_model(make):
    request = replace(SMALL, variant="base", steps=2, num_frames=5)
    films = [make(replace(request, negative=negative)).latents.video for negative in (None, "noise")]
    assert not torch.equal(*films)


def damaged(tiny_models, tmp_path, name):
    """The tiny set with NaN in one tensor of the distilled transformer."""
    models = tmp_path / "models"
    shutil.copytree(tiny_models, models)
    file = models / "diffusion_models" / "happyhorse_tiny_distilled.safetensors"
    state = {key: tensor.clone() for key, tensor in load_file(file).items()}
    state[name].view(-1)[0] = float("nan")
    save_file(state, file)
    return models


def test_nan_in_weights_stops_at_the_first_step(make, tiny_models, tmp_path):
    models = damaged(tiny_models, tmp_path, "block.layers.3.mlp.down_proj.weight")
    with pytest.raises(SamplingError, match=r"Step 1 of 8 .*not numbers.*weights"):
        make(SMALL, models=models)
    assert not list(tmp_path.glob("*.mp4"))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"prompt": " \n\t "}, ConditioningError, "empty"),
        ({"width": 100}, GeometryError, "multiples of 32"),
        ({"width": 32}, GeometryError, "smallest side is 64"),
        ({"num_frames": 4}, GeometryError, "too few"),
        ({"num_frames": 10}, GeometryError, "nearest are 9"),
        ({"steps": -1}, SamplingError, "-1 steps"),
        ({"steps": 0}, SamplingError, "0 steps"),
        ({"image": torch.zeros(0, 5, 3, dtype=torch.uint8)}, ConditioningError, "empty"),
        ({"voice": Voice(torch.zeros(1, 0), 48_000)}, HappyHorseError, "voice"),
        ({"voice": Voice(torch.full((1, 9000), math.nan), 48_000)}, ConditioningError, "not finite"),
        ({"voice": tone(seconds=0.5)}, ConditioningError, "needs 13 frames; the film has 9"),
        ({"prompt": "x", "super_resolution": "540p"}, ConditioningError, "at least 2 text tokens"),
    ],
)
def test_bad_requests(make, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        make(replace(SMALL, **change))
    assert not list(tmp_path.iterdir())


def test_bad_places(make, tmp_path):
    def not_called(*_):
        raise AssertionError("work began before the folder was checked")

    with pytest.raises(MediaError, match="does not exist; make it"):
        make(SMALL, "nowhere/film.mp4", report=not_called)
    with pytest.raises(MediaError, match="does not exist; make it"):
        make(SMALL, save_latents=tmp_path / "nowhere" / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_missing_parts_are_named_before_any_work(tiny_models, tmp_path):
    request = replace(SMALL, image=picture())
    files = ModelFiles.locate(tiny_models, request, ModelFiles())
    for part in ("transformer", "text_encoder", "audio_vae", "turbo_decoder", "video_vae"):
        with pytest.raises(CheckpointError, match=f"--{part.replace('_', '-')}"):
            make_film(replace(files, **{part: None}), request, tmp_path / "x.mp4")
        with pytest.raises(CheckpointError, match=r"gone .* does not exist"):
            make_film(replace(files, **{part: tmp_path / "gone"}), request, tmp_path / "x.mp4")


def test_a_silent_voice_is_mentioned(make, caplog):
    make(replace(SMALL, voice=Voice(torch.zeros(1, 12_000), 48_000)))
    assert "silent" in caplog.text
