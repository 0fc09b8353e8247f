"""``HAPPYHORSE_DEVICE``: where the golden suite runs, what it says of the ways it ran, and devices that are not there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def conftest():
    """This folder's conftest.py as a module of its own."""
    place = importlib.util.spec_from_file_location("happyhorse_parity_conftest", HERE / "conftest.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def run(device, root, *tests):
    """pytest on tests of this folder, as a user starts it."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(HERE / test for test in tests),
    ]
    environment = {**os.environ, "HAPPYHORSE_DEVICE": device}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    return result.returncode, result.stdout + result.stderr


def test_on_the_cpu_it_says_which_way_ran_for_each_file(root, golden_folder):
    if not (golden_folder / "unit_ops.json").exists():
        pytest.skip(f"no golden file unit_ops.json in {golden_folder} ($HAPPYHORSE_GOLDEN)")
    status, said = run(
        "cpu", root, "test_unit_ops.py::test_attention", "test_unit_ops.py::test_packing_and_unpacking"
    )
    lines = said.splitlines()
    assert status == 0, said
    assert any("golden suite on cpu: ways by file" in line for line in lines)
    assert "unit_ops: attention definition, attention_over_ranges definition" in lines
    why = next(line for line in lines if line.startswith("attention as its definition: "))
    assert "cudnn: cpu is not an NVIDIA card" in why


def test_a_device_that_is_not_there_is_an_error_and_not_a_skip(root):
    status, said = run("cuda:99", root, "test_unit_ops.py")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "HAPPYHORSE_DEVICE=cuda:99: this device cannot be used here (" in said
    assert "skipped" not in said and "passed" not in said


@pytest.mark.parametrize("name", ["cuda:99", "meta", "no such", "xpu:7"])
def test_devices_that_cannot_calculate_here(conftest, name):
    with pytest.raises(
        pytest.UsageError, match=f"^HAPPYHORSE_DEVICE={name}: this device cannot be used here"
    ) as told:
        conftest.device_named(name)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", [None, "", "cpu"])
def test_the_cpu_is_the_default(conftest, name):
    assert conftest.device_named(name) == torch.device("cpu")


@pytest.mark.golden("unit_ops")
def test_golden_tensors_lie_there(golden, device):
    assert {tensor.device.type for tensor in golden.tensors.values()} == {device.type}


def test_products_are_in_whole_float32(device):
    if device.type == "cuda":
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    found = (x.to(device) @ x.to(device).T).cpu().double()
    wanted = x.double() @ x.double().T
    assert (found - wanted).norm() <= 2e-6 * wanted.norm()  # TF32 is off by 3e-4
