"""What the nodes compute inside ComfyUI against the engine's own numbers, and what they refuse.

The host_*.py programs measure in ComfyUI's interpreter; here is what must come out.
"""

import shutil

import pytest


@pytest.fixture(scope="session")
def measure(host_program, tiny_models):
    """Runs a program with a models folder of the user's own beside the tiny set."""

    def prepare(work):
        database = work / "database"
        database.mkdir()
        source = tiny_models / "diffusion_models" / "happyhorse_tiny_distilled.safetensors"
        shutil.copy(source, database / "mystery.safetensors")

    return lambda program: host_program(program, prepare)


@pytest.fixture(scope="session")
def report(measure):
    """Everything ``host_numbers.py`` measured."""
    return measure("host_numbers.py")


@pytest.fixture(scope="session")
def stock_report(measure):
    """Everything ``host_stock.py`` measured."""
    return measure("host_stock.py")


MODES = ("text", "picture", "voice", "picture and voice")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", ["distilled", "base"])
def test_the_sampler_is_the_command_line(report, variant, mode):
    assert report["samplers"][f"{variant}, {mode}"] <= 1e-5
    if "voice" in mode:
        assert report["samplers"][f"{variant}, {mode}: voice changed"] == 0


@pytest.mark.parametrize("target", ["540p", "1080p"])
def test_super_resolution_is_the_command_line(report, target):
    assert report["samplers"][f"super-resolution {target}"] <= 1e-5


@pytest.mark.parametrize("sampler", ["stock euler", "stock lcm", "distilled in parts", "base in parts"])
def test_stock_samplers_and_our_parts_are_the_engine(report, sampler):
    assert report["stock sampling"][sampler] <= 1e-5


def test_stock_ksampler(report):
    found = report["stock sampling"]
    assert found["KSampler same seed"] == 0
    assert found["KSampler other seed"] > 0.1
    assert not any(value for name, value in found.items() if name.endswith("not finite"))


def test_a_batch_is_looped(report):
    assert report["stock sampling"]["batch shape"] == [2, 48, 3, 4, 6]
    assert report["stock sampling"]["batch samples alike"] > 0.1


def test_lora(report):
    found = report["host features"]
    assert found["LoRA changes"] > 0.01
    assert found["LoRA at strength 0"] == 0
    assert found["LoRA against merged by hand"] <= 1e-5
    assert found["after LoRA as before"] == 0


def test_attention_overrides_wrappers_and_block_replacements_are_used(report):
    found = report["host features"]
    # Two steps of eight layers, one network call each.
    assert found["calls"] == {"attention": 16, "wrapper": 2, "block": 2}
    assert found["patched but the same"] == 0


def test_streams_come_apart_and_together(report):
    assert report["host features"]["separate and concat"] == 0


@pytest.mark.parametrize("decoder", ["turbo", "wan"])
def test_stock_video_decoding(report, decoder):
    found = report["decoding"]
    assert found[f"{decoder}: VAEDecode"] <= 1e-5
    assert found[f"{decoder}: ours"] <= 1e-5
    assert found[f"{decoder}: one tile"] <= 1e-5
    # Of a range of 1. Random networks make noise that depends on everything around it, the tile's edge too;
    # a misplaced tile differs as much as another moment of the film does.
    assert found[f"{decoder}: tiled, mean difference"] < 0.15 < found[f"{decoder}: tiled, against noise"]


def test_sound(report):
    found = report["decoding"]
    assert found["stock sound rate"] == 44_100
    assert found["stock sound samples"] == 17 * 1764
    assert found["stock sound"] <= 1e-5
    assert found["our sound"] <= 1e-5
    assert found["stock sound encoded"] <= 1e-5
    assert found["tone, Hz"] == pytest.approx(440, abs=0.2)
    assert found["tone, seconds"] == 5


def test_an_empty_negative_is_the_default_one(report):
    assert report["empty negative"]["as the default"] == 0
    assert report["empty negative"]["as another"] > 0.01


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("plain latent", ["latent: a plain latent (1, 4, 8, 8) came", "HappyHorse Empty Latent"]),
        ("foreign latent", ["latent:", "(1, 16, 3, 4, 6)", "expected video [B, 48, T, h, w]"]),
        ("uneven latent", ["latent:", "9 frames", "8 latents"]),
        ("SR model in the base slot", ["model:", "sr_540p came", "base or distilled"]),
        ("base model in the SR slot", ["sr_model:", "base came", "sr_540p"]),
        ("540p model for 1080p", ["sr_model:", "sr_540p came", "sr_1080p"]),
        ("a VAE as a model", ["model:", "HappyHorse Model Loader"]),
        ("another text encoder", ["positive/negative:", "32 values", "reads 64"]),
        ("no negative", ["negative:", "nothing is connected"]),
        ("empty positive", ["positive:", "empty"]),
        ("empty positive for SR", ["positive:", "empty"]),
        ("plain mask", ["latent: a plain mask (1, 64, 96) came"]),
        ("VAEs swapped", ["video_vae:", "64 latent channels", "expected 48"]),
        ("audio VAE for a picture", ["vae:", "expected 48"]),
        ("Turbo for a picture", ["vae:", "Turbo decoder cannot encode", "Wan 2.2 VAE"]),
        ("video VAE for a voice", ["audio_vae:", "expected 64"]),
        ("strange audio", ["audio:", "(100,)"]),
        ("NaN audio", ["9000 of 9000"]),
        ("NaN audio into the mux", ["The film's sound", "9000 are not numbers"]),
        ("odd size", ["100x64", "96x64"]),
        ("odd length", ["10 frames", "nearest are 9"]),
        ("SR without its VAE", ["vae:", "nothing is connected"]),
        ("audio VAE as a transformer", ["not the audio-video transformer", "Oobleck audio autoencoder"]),
        ("variant not in the name", ["variant: 'mystery.safetensors'", "Choose one of base"]),
    ],
)
def test_wrong_connections_are_refused_by_name(report, case, words):
    answer = report["refusals"][case]
    kind, _, message = answer.partition(": ")
    assert kind.endswith("Error") and kind not in ("TypeError", "RuntimeError", "AttributeError"), answer
    assert all(word in message for word in words), answer


def test_the_stock_wan_vae(stock_report):
    """ComfyUI's own Wan 2.2 network, from the same random file of full size, in float32."""
    assert stock_report["video"]["first frame encoded"] <= 1e-4
    assert stock_report["video"]["film decoded"] <= 1e-4


def test_the_stock_oobleck_vae_is_corrected(stock_report):
    """By mean, without its random draw, and at the rates of this model."""
    assert stock_report["audio"]["voice"] <= 1e-4
    assert stock_report["audio"]["sound"] <= 1e-4
    assert stock_report["audio"]["rates"] == [44_100, 44_100]
    assert stock_report["audio"]["samples"] == [9 * 1764, 9 * 1764]


def test_torch_compile(stock_report):
    assert stock_report["compile"]["graphs"] > 0
    assert stock_report["compile"]["difference"] <= 1e-5
