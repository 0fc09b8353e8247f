"""``convert`` on the command line: what it says when it is done, stopped or refused, and with which status."""

import io
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyui_happyhorse.cli.convert import InMegabytes, lora
from comfyui_happyhorse.cli.main import main
from comfyui_happyhorse.cli.progress import ProgressBars
from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.media.read import read_film

SHARED = "block.layers.3.mlp.down_proj"


@pytest.fixture
def source(tiny_models):
    return tiny_models / "diffusion_models" / "happyhorse_tiny_distilled.safetensors"


@pytest.fixture
def run(capsys):
    """``run(source, "--precision", "fp8")`` -> (status, what was printed, what was said of errors and progress)."""

    def command(*arguments):
        status = main(["convert", *map(str, arguments)])
        return status, *capsys.readouterr()

    return command


def write_lora(path, more=()):
    pair = {"A": 0.1 * torch.ones(2, 168), "B": 0.1 * torch.ones(64, 2)}
    tensors = {f"{SHARED}.lora_{key}.weight": tensor for key, tensor in pair.items()}
    save_file(tensors | {name: torch.ones(1) for name in more}, path)
    return path


def test_one_line_when_it_is_done(source, tmp_path, run):
    target = tmp_path / "x.safetensors"
    status, out, err = run(source, target, "--precision", "fp8")
    assert status == 0
    assert out == f"{target}: 0.89 MB in 107 tensors, fp8, checked.\n"
    writing, checking = err.splitlines()
    assert writing.startswith("      writing, MB [########################] 1/1")
    assert checking.startswith("     checking, MB [########################] 1/1")
    assert main(["inspect", str(target)]) == 0


def test_a_folder_and_several_loras(tiny_models, state_of, tmp_path, run):
    first, second = (write_lora(tmp_path / f"{name}.safetensors") for name in "ab")
    target = tmp_path / "x.safetensors"
    source = tiny_models / "diffusion_models" / "happyhorse_tiny_base"
    status, _, _ = run(source, target, "--precision", "bf16", "--lora", f"{first}:0.5", "--lora", second)
    assert status == 0
    before, after = state_of(source)[f"{SHARED}.weight"], load_file(target)[f"{SHARED}.weight"]
    # Every entry of up @ down is 0.02.
    torch.testing.assert_close(after.double(), before.double() + 1.5 * 0.02, rtol=2**-8, atol=1e-6)


@pytest.fixture
def state_of():
    return lambda folder: {
        name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()
    }


def test_what_of_a_lora_belongs_to_nothing_is_said(source, tmp_path, run):
    path = write_lora(tmp_path / "a.safetensors", ["text_model.q.lora_A.weight", "x.alpha"])
    _, out, _ = run(source, tmp_path / "x.safetensors", "--precision", "fp8", "--lora", path)
    assert "Keys of the LoRA that belong to nothing: 2 (first: text_model.q.lora_A.weight)." in out


def interrupt_after(monkeypatch, count):
    calls, report = [], InMegabytes.__call__

    def stop(self, *arguments):
        calls.append(arguments)
        if len(calls) == count:
            raise KeyboardInterrupt
        report(self, *arguments)

    monkeypatch.setattr(InMegabytes, "__call__", stop)


def test_stopped_by_hand_and_gone_on_with(source, tmp_path, run, capsys, monkeypatch):
    target = tmp_path / "x.safetensors"
    with monkeypatch.context() as during:
        interrupt_after(during, 30)
        with pytest.raises(SystemExit) as stop:
            run(source, target, "--precision", "int8")
    assert stop.value.code == 130
    said = capsys.readouterr()
    assert said.out == "" and said.err.endswith("Stopped. The same command goes on where it was.\n")
    assert not target.exists()
    status, out, _ = run(source, target, "--precision", "int8")
    assert (status, out.splitlines()[0]) == (0, "30 weights had been finished before.")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_file_in_use_is_mentioned(source, tmp_path, run, monkeypatch):
    target, replace, failures = (
        tmp_path / "x.safetensors",
        os.replace,
        [PermissionError(13, "Access is denied")],
    )
    target.write_bytes(b"in use")

    def busy(a, b):
        if failures:
            raise failures.pop()
        replace(a, b)

    monkeypatch.setattr(os, "replace", busy)
    status, out, _ = run(source, target, "--precision", "bf16")
    assert status == 0
    assert "The older file was in use and is now x.safetensors.old; remove it when you like." in out
    assert (tmp_path / "x.safetensors.old").read_bytes() == b"in use"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{source}", "{folder}/x.pt"], "should end in .safetensors"),
        (["{source}", "{source}"], "is what is converted"),
        (["/nowhere.safetensors", "{folder}/x.safetensors"], "nowhere.safetensors does not exist"),
        (["{source}", "{folder}/x.safetensors", "--lora", "/none.safetensors"], "none.safetensors does not exist"),
        (["{source}", "{folder}/x.safetensors", "--lora", "/none.safetensors:much"], "'much' is no strength"),
        (["{source}", "{folder}/x.safetensors", "--embed-tokenizer", "/x.json"], "goes into a text encoder's file"),
    ],
)  # fmt: skip
def test_refusals_are_one_message_and_status_1(source, tmp_path, run, arguments, words):
    filled = [text.format(source=source, folder=tmp_path) for text in arguments]
    status, out, err = run(*filled, "--precision", "fp8")
    assert (status, out) == (1, "")
    assert err.startswith("error: ") and words in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [["a", "b"], ["a", "b", "--precision", "int4"], ["a", "--precision", "fp8"]]
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["convert", *arguments])
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("C:\\x.safetensors", "C:\\x.safetensors", 1.0),
        ("C:\\x.safetensors:0.5", "C:\\x.safetensors", 0.5),
        ("c:/models/x.safetensors:2e-1", "c:/models/x.safetensors", 0.2),
        ("here:0.5", "here:0.5", 1.0),  # a file of that name is there
    ],
)
def test_a_file_and_its_strength(tmp_path, monkeypatch, text, name, strength):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here:0.5").touch()
    path, number = lora(text)
    assert (str(path), number) == (name, strength)


@pytest.mark.parametrize(
    "text", ["a.safetensors:", "a.safetensors:x", "a.safetensors:nan", "a.safetensors:inf"]
)
def test_no_strength(text):
    with pytest.raises(CheckpointError, match=r"is no strength; give a number, such as 0\.8"):
        lora(text)


def test_the_bar_counts_megabytes_and_draws_each_once():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    report = InMegabytes(ProgressBars(screen := Terminal()))
    for done in range(0, 15_000_001, 100_000):
        report("writing", done, 15_000_000)
    report("checking", 15_000_000, 15_000_000)
    drawn = screen.getvalue().split("\x1b[K")[1:]
    assert [line.split("]")[1].split()[0] for line in drawn] == [*(f"{n}/15" for n in range(16)), "15/15"]
    assert "writing, MB [####" in drawn[5] and "checking, MB" in drawn[-1]
    assert screen.getvalue().count("\n") == 2


def test_a_film_from_a_text_encoder_with_its_tokeniser_inside(tiny_models, tmp_path, run):
    """The whole way: converted, alone in a folder but for its settings, found and used."""
    encoder, folder = tiny_models / "text_encoders" / "t5gemma_tiny", tmp_path / "encoder"
    folder.mkdir()
    shutil.copy(encoder / "config.json", folder)
    target = folder / "t5gemma_fp8.safetensors"
    tokenizer = encoder / "tokenizer.json"
    assert run(encoder, target, "--precision", "fp8", "--embed-tokenizer", tokenizer)[0] == 0
    film = [
        "generate", "--models", str(tiny_models), "--text-encoder", str(target), "--width", "64", "--height", "64",
        "--frames", "5", "--steps", "1", "--prompt", "A singer.", "--out", str(tmp_path / "x.mp4"),
    ]  # fmt: skip
    assert main(film) == 0
    assert read_film(tmp_path / "x.mp4").frames == 5
    # Without it there is none to be found.
    assert run(encoder, target, "--precision", "fp8")[0] == 0
    assert main(film) == 1
