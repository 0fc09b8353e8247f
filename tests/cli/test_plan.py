"""``plan`` on the command line: the table, machines that are described, JSON, refusals with status 1."""

import json

import pytest
import torch

from comfyui_happyhorse.cli.main import main
from comfyui_happyhorse.model_loading.machine import COMMON, GB


def test_a_described_machine(capsys):
    assert main(["plan", "--gpu-memory", "16", "--ram", "64", "--precision", "fp8", "--link", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "448x256 for 5.0 s in fp8 fits (16 GB card, as fast as an RTX 4060 Ti, 15.5 GB"
    )
    assert [line.split("  ")[0] for line in lines[2:7]] == ["stage", "text", "film", "sound", "decoding"]
    assert lines[-1].endswith("The link carries 20.0 GB/s.")


def test_without_a_card_it_says_so_and_plans_for_common_ones(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a card here, and it is planned for")
    assert main(["plan", "--ram", "64", "--precision", "fp8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "There is no CUDA card here and --gpu-memory is not given: the plans are for common"
    )
    assert all(f"({size} GB card, as fast as an " in out for size in COMMON)


def test_json(capsys):
    assert (
        main(["plan", "--gpu-memory", "12", "--ram", "64", "--sr", "1080p", "--frames", "29", "--json"]) == 0
    )
    (found,) = json.loads(capsys.readouterr().out)["plans"]
    assert found["fits"] is True
    assert found["film"]["final_size"] == [1920, 1088]
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert list(stages) == ["text", "film", "super-resolution", "sound", "decode"]
    for stage in stages.values():
        assert stage["vram"] <= found["machine"]["vram_free"] == 11.5 * GB
        assert len(stage["resident"]) + stage["swapped"] == stage["blocks"]


def test_headers_of_files_decide(tiny_models, capsys):
    """A tiny set fits everywhere and is not the published size."""
    command = [
        "plan",
        "--models",
        str(tiny_models),
        "--gpu-memory",
        "4",
        "--ram",
        "16",
        "--sr",
        "540p",
        "--json",
    ]
    assert main(command) == 0
    (found,) = json.loads(capsys.readouterr().out)["plans"]
    weights = {stage["name"]: stage["weights"] for stage in found["stages"]}
    assert all(size < 10e6 for size in weights.values()), weights


def test_without_triton_it_takes_more(capsys):
    lives = []
    for more in ([], ["--no-triton"]):
        assert main(["plan", "--gpu-memory", "80", "--ram", "64", "--precision", "fp8", "--json", *more]) == 0
        (found,) = json.loads(capsys.readouterr().out)["plans"]
        lives.append(next(stage["live"] for stage in found["stages"] if stage["name"] == "film"))
    assert lives[1] > 2 * lives[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu-memory", "-3"], "-3 GB for the card's memory is no machine's"),
        (["--gpu-memory", "nan"], "is no machine's"),
        (["--gpu-memory", "8", "--ram", "0"], "0 GB for the host's memory"),
        (["--gpu-memory", "8", "--link", "-1"], "-1 GB/s for the link"),
        (
            ["--gpu-memory", "8", "--card", "Voodoo"],
            "There is no card 'Voodoo' in the table; there are H200, ",
        ),
        (["--gpu-memory", "8", "--frames", "100"], "100 frames cannot be made"),
        (["--gpu-memory", "8", "--seconds", "-1"], "A film of -1 seconds"),
        (["--gpu-memory", "8", "--seconds", "10000"], "the most are 600 s"),
        (["--gpu-memory", "8", "--width", "450"], "450x256 is not made of multiples of 32"),
        (["--gpu-memory", "8", "--steps", "0"], "0 steps cannot be planned for"),
        (["--gpu-memory", "8", "--models", "/nowhere"], "/nowhere does not exist"),
    ],
)
def test_refusals(options, words, capsys):
    assert main(["plan", *options]) == 1
    assert words in capsys.readouterr().err
