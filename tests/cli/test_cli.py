"""The command line from arguments to files, and what it says when something is wrong."""

import io
import math
import subprocess
import sys
import wave

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from comfyui_happyhorse.cli.main import main
from comfyui_happyhorse.cli.progress import ProgressBars, seconds
from comfyui_happyhorse.media.read import read_film


@pytest.fixture
def generate(tiny_models, tmp_path):
    """Runs ``generate`` on the tiny set at 96x64 and 9 frames; returns (status, path of the film)."""

    def run(*arguments, length=("--frames", "9"), prompt=("--prompt", "A singer.")):
        out = tmp_path / "film.mp4"
        size = ["--width", "96", "--height", "64", *length]
        status = main(
            [
                "generate",
                "--models",
                str(tiny_models),
                *size,
                *prompt,
                "--out",
                str(out),
                *map(str, arguments),
            ]
        )
        return status, out

    return run


def write_tone(path, seconds=0.5, sample_rate=22_050, pitch=440):
    values = [
        int(16_000 * math.sin(2 * math.pi * pitch * i / sample_rate))
        for i in range(round(seconds * sample_rate))
    ]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(b"".join(value.to_bytes(2, "little", signed=True) for value in values))


def test_demo(tmp_path, capsys):
    assert main(["demo", "--random", "--out", str(tmp_path)]) == 0
    films = sorted(tmp_path.glob("*.mp4"))
    assert [film.stem for film in films] == [
        "base_guided",
        "picture_to_film",
        "super_resolution",
        "text_to_film",
        "voice_to_film",
    ]
    for film in films:
        reading = read_film(film)
        assert (reading.video_codec, reading.audio_codec, reading.frames) == ("h264", "aac", 25)
        assert reading.video_seconds == reading.audio_seconds == 1.0
        waveform = reading.decode_waveform()
        assert torch.isfinite(waveform).all()
        assert waveform.shape == (2, 25 * 1764)
    assert (reading.width, reading.height) == (128, 64)
    assert read_film(tmp_path / "super_resolution.mp4").width == 256
    sheet = Image.open(tmp_path / "contact_sheet.png")
    assert sheet.width == 1280
    assert len(sheet.convert("L").getcolors()) > 50
    printed = capsys.readouterr().out
    assert "random" in printed
    assert "5 films" in printed
    # The voice is a scale that begins on A4, and it is the film's sound.
    waveform = read_film(tmp_path / "voice_to_film.mp4").decode_waveform()[0, : 44_100 // 4]
    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform)), 1 << 18).abs()
    assert spectrum.argmax().item() * 44_100 / (1 << 18) == pytest.approx(440, rel=5e-3)


def test_generate_text(generate, tmp_path, capsys):
    status, out = generate(
        "--precision", "float32", "--seed", 5, "--save-latents", tmp_path / "x.safetensors"
    )
    assert status == 0
    assert read_film(out).frames == 9
    assert load_file(tmp_path / "x.safetensors")["audio"].shape == (1, 64, 9)
    printed = capsys.readouterr()
    assert "film.mp4: 96x64, 9 frames, 0.36 s" in printed.out
    assert "8/8" in printed.err


def test_generate_from_a_picture_a_voice_and_a_prompt_file(generate, tmp_path):
    Image.new("RGB", (70, 50), "red").save(tmp_path / "x.png")
    write_tone(tmp_path / "x.wav")
    (tmp_path / "x.txt").write_text("Ein Mann sagt: „Grüß Gott.“", encoding="utf-8")
    status, out = generate(
        "--image", tmp_path / "x.png", "--audio", tmp_path / "x.wav", "--sr", "540p", "--sr-steps", 1,
        length=(), prompt=("--prompt-file", str(tmp_path / "x.txt")),
    )  # fmt: skip
    assert status == 0
    reading = read_film(out)
    assert (reading.width, reading.height) == (192, 128)
    assert reading.frames == 13  # half a second is 12.5 frames, and a voice is never cut
    assert reading.metadata["comment"] == "Ein Mann sagt: „Grüß Gott.“"


@pytest.mark.parametrize(("asked", "frames"), [("0.5", 13), ("0.44", 13), ("0.1", 5), ("0.36", 9)])
def test_seconds_become_the_nearest_count(generate, asked, frames):
    status, out = generate("--steps", 1, length=("--seconds", asked))
    assert status == 0
    assert read_film(out).frames == frames


def test_parts_named_one_by_one(tiny_models, tmp_path):
    status = main([
        "generate",
        "--transformer", str(tiny_models / "diffusion_models" / "happyhorse_tiny_base"),
        "--text-encoder", str(tiny_models / "text_encoders" / "t5gemma_tiny"),
        "--turbo-decoder", str(tiny_models / "vae" / "turbo_vae_tiny" / "turbo_tiny.ckpt"),
        "--audio-vae", str(tiny_models / "vae" / "oobleck_audio_tiny.safetensors"),
        "--variant", "base", "--steps", "2", "--width", "64", "--height", "64", "--frames", "5",
        "--prompt", "x", "--out", str(tmp_path / "x.mp4"),
    ])  # fmt: skip
    assert status == 0
    assert read_film(tmp_path / "x.mp4").frames == 5


def test_off_the_table_sizes_are_mentioned(generate, capsys):
    generate("--steps", 1)
    advice = "WARNING: 96x64 is not a size the model is known to be good at; the nearest are 448x256"
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image", "/nowhere.png"], "nowhere.png"),
        (["--audio", "/nowhere.wav"], "nowhere.wav"),
        (["--negative", "/nowhere.txt"], "nowhere.txt"),
        (["--frames", "8"], "8 frames cannot be made"),
        (["--device", "quantum"], "'quantum' cannot be used"),
        (["--transformer", "/nowhere.safetensors"], "--transformer"),
        (["--models", "/nowhere"], "--models"),
        (["--prompt", " "], "prompt is empty"),
    ],
)
def test_refusals_are_one_message_and_status_1(generate, tmp_path, capsys, arguments, words):
    status, _ = generate(*arguments)
    assert status == 1
    *_, message = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ") and words in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [[], ["generate"], ["generate", "--prompt", "x", "--sr", "4k"], ["dance"]]
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_an_interrupt_is_status_130(generate, monkeypatch, tmp_path, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("comfyui_happyhorse.cli.generate.make_film", interrupted)
    status, _ = generate()
    assert status == 130
    assert "Stopped" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_demo_says_what_it_is_told(tmp_path, capsys):
    """The trained set: a mouth that moves with its voice, and the words that it does not know are named."""
    assert main(["demo", "--out", str(tmp_path), "--say", "hello big moon"]) == 0
    printed = capsys.readouterr().out
    assert "does not know big" in printed
    assert "hello, moon" in printed
    reading = read_film(tmp_path / "said.mp4")
    frames, sound = reading.decode_frames(), reading.decode_waveform()
    assert (reading.width, reading.height, reading.frames) == (64, 64, 49)
    mouth = (frames[:, 34:58, 18:46].float().mean(-1) < 70).float().mean((1, 2))
    level = sound.mean(0).unflatten(0, (49, -1)).square().mean(1).sqrt()
    assert torch.corrcoef(torch.stack([mouth, level]))[0, 1] > 0.5
    red, green, blue = frames[:, 16, 24:40].float().mean((0, 1))  # the forehead is yellow
    assert min(red, green) > 1.6 * blue


def test_models(tmp_path, capsys):
    assert main(["models", "--demo", str(tmp_path / "d")]) == 0
    assert "diffusion_models/happyhorse_demo_distilled.safetensors" in capsys.readouterr().out.replace(
        "\\", "/"
    )
    assert (tmp_path / "d" / "text_encoders" / "t5gemma_demo" / "tokenizer.model").exists()
    assert main(["models", "--tiny", str(tmp_path / "m")]) == 0
    assert "diffusion_models/happyhorse_tiny_distilled.safetensors" in capsys.readouterr().out.replace(
        "\\", "/"
    )
    assert (tmp_path / "m" / "vae" / "Wan2.2_VAE_tiny.pth").exists()


def test_progress_knows_the_time_left():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now = iter([10.0, 10.0, 12.0, 12.0, 18.0, 18.0])
    screen = Terminal()
    bars = ProgressBars(screen, clock=lambda: next(now))
    bars("film", 0, 4)
    bars("film", 1, 4)
    bars("film", 4, 4)
    drawn = screen.getvalue().split("\x1b[K")
    assert "0/4  loading" in drawn[1]
    assert "1/4  6.0 s left" in drawn[2]
    assert "4/4  2.0 s" in drawn[3] or "4/4  8.0 s" in drawn[3]


def test_progress_off_a_terminal_is_one_line_a_stage():
    stream = io.StringIO()
    bars = ProgressBars(stream)
    for done in range(4):
        bars("film", done, 3)
    assert stream.getvalue().count("\n") == 1
    assert "3/3" in stream.getvalue()


@pytest.mark.parametrize(
    ("duration", "text"), [(4.21, "4.2 s"), (59.94, "59.9 s"), (65.2, "1:05"), (3_725, "1:02:05")]
)
def test_durations(duration, text):
    assert seconds(duration) == text


def test_the_module_runs_as_a_program(root, tmp_path):
    (tmp_path / "comfyui_happyhorse").symlink_to(root, target_is_directory=True)
    command = [sys.executable, "-m", "comfyui_happyhorse", "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(word in result.stdout for word in ("demo", "generate", "models"))
