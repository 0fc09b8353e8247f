"""From a plan to the driver: where the compiler is found, what is compiled once, and what a thread needs first."""

import ctypes
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.kernels.cuda import compiler, driver, gate, launch
from comfyui_happyhorse.kernels.cuda.launch import entries_at_once

BF16 = torch.bfloat16


class Driver:
    """What the driver would be asked, noted; contexts are numbers, 0 is none."""

    def __init__(self, context=7):
        self.context, self.asked, self.result = context, [], 0

    def cuCtxGetCurrent(self, context):
        context._obj.value = self.context or None
        return 0

    def cuDevicePrimaryCtxRetain(self, context, device):
        self.asked.append(f"retain {device}")
        context._obj.value = 5
        return 0

    def cuCtxSetCurrent(self, context):
        self.context = context.value
        return 0

    def cuModuleLoadData(self, module, cubin):
        assert self.context, "a module belongs to a context"
        self.asked.append(f"load {cubin.decode()}")
        return self.result

    def cuModuleGetFunction(self, function, module, name):
        self.asked.append(f"find {name.decode()}")
        return 0

    def cuLaunchKernel(self, function, *rest):
        assert self.context, "a kernel starts in a context"
        *sizes, stream, values, more = rest
        kinds = (ctypes.c_void_p, ctypes.c_longlong, ctypes.c_float)
        found = [kind.from_address(at).value for kind, at in zip(kinds, values, strict=True)]
        self.asked.append((sizes, stream.value, found, more))
        return self.result

    def cuGetErrorString(self, result, words):
        words._obj.value = b"an illegal memory access was encountered"
        return 0


@pytest.fixture
def fake(monkeypatch):
    """A driver that notes."""
    noted = Driver()
    monkeypatch.setattr(driver, "driver", lambda: noted)
    return noted


def test_a_start_as_the_driver_gets_it(fake):
    x = torch.zeros(3)
    driver.start(ctypes.c_void_p(1), "k", (3, 2), 128, [x, 1 << 40, 0.5], 0, 99)
    assert fake.asked == [([3, 2, 1, 128, 1, 1, 0], 99, [x.data_ptr(), 1 << 40, 0.5], None)]


def test_a_thread_without_a_context_gets_that_of_torch(fake):
    """ComfyUI runs graphs in a thread of its own, which may have asked the driver for nothing yet."""
    fake.context = 0
    driver.start(ctypes.c_void_p(1), "k", (1, 1), 32, [torch.zeros(1), 1, 1.0], 3, 0)
    assert fake.asked[0] == "retain 3" and fake.context == 5
    driver.load(b"cubin", "k", 3)
    assert fake.asked[2:] == ["load cubin", "find k"], "it has one now"


def test_what_the_driver_says_is_passed_on(fake):
    fake.result = 700
    with pytest.raises(
        SamplingError, match=r"could not start k with 3 x 2 blocks of 128 threads: an illegal"
    ):
        driver.start(ctypes.c_void_p(1), "k", (3, 2), 128, [torch.zeros(1), 1, 1.0], 0, 0)
    with pytest.raises(SamplingError, match=r"could not load k: an illegal memory access .* \(700\)"):
        driver.load(b"", "k", 0)


def test_each_text_is_compiled_once_for_each_card(fake, monkeypatch):
    compiled = []

    def compile_(text, name, architecture):
        compiled.append((text, name, architecture))
        return f"cubin{architecture}".encode()

    known = SimpleNamespace(
        architecture=compiler.Compiler(None, (12, 8), (75, 86)).architecture, compile=compile_
    )
    monkeypatch.setattr(launch, "find_compiler", lambda cuda: known)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ((8, 9), (7, 5))[device])
    plan, _ = gate.plan(torch.zeros(2, 3, 8), torch.zeros(2, 3), BF16)
    key = (plan.kernel, tuple(plan.constants.items()))
    launch._function.cache_clear()
    try:
        for device in (0, 1, 0, 1):
            launch._function(*key, device)
    finally:
        launch._function.cache_clear()
    assert compiled == [(plan.text(), "gate_kernel", 86), (plan.text(), "gate_kernel", 75)]
    assert fake.asked == ["load cubin86", "find gate_kernel", "load cubin75", "find gate_kernel"]


def test_no_library_is_no_error(monkeypatch):
    monkeypatch.setattr(compiler, "_places", lambda major: ["/nowhere/libnvrtc.so"])
    assert compiler.find_compiler.__wrapped__("12.8") is None
    assert compiler.find_compiler.__wrapped__(None) is None


def test_the_library_is_sought_where_wheels_put_it(monkeypatch, tmp_path):
    """torch's own folder on Windows, NVIDIA's beside it; last the system's own search."""
    for folder, name in (("torch/lib", "nvrtc64_120_0.dll"), ("nvidia/cu13/bin/x86_64", "nvrtc64_130_0.dll")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).touch()
    (tmp_path / "nvidia" / "cuda_nvrtc" / "lib").mkdir(parents=True)
    (tmp_path / "nvidia" / "cuda_nvrtc" / "lib" / "libnvrtc.so.12").touch()
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    spec = importlib.util.spec_from_loader("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "nvidia")]
    monkeypatch.setattr(compiler, "find_spec", {"nvidia": spec}.get)

    def places(system, major):
        monkeypatch.setattr(compiler.sys, "platform", system)
        return [Path(place).relative_to(tmp_path).as_posix() if tmp_path.name in place else place
                for place in compiler._places(major)]  # fmt: skip

    assert places("win32", 12) == ["torch/lib/nvrtc64_120_0.dll", "nvrtc64_120_0.dll"]
    assert places("win32", 13) == ["nvidia/cu13/bin/x86_64/nvrtc64_130_0.dll", "nvrtc64_130_0.dll"]
    assert places("linux", 12) == ["nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "libnvrtc.so.12"]
    assert places("linux", 13) == ["libnvrtc.so.13"]


def test_vectors_fit_what_they_read():
    """A power of two that divides sizes, and whose bytes, up to 16, divide strides and pointers."""
    rows = torch.zeros(4, 64, dtype=BF16)
    assert entries_at_once(8, [64], (rows, 1)) == 8
    assert entries_at_once(8, [64, 12], (rows, 1)) == 4
    assert entries_at_once(8, [], (rows[:, 4:], 1)) == 4
    assert entries_at_once(8, [], (rows[:, 4:], 2)) == 2
    assert entries_at_once(8, [], (rows[:, 1:], 1)) == 1
    assert entries_at_once(8, [], (torch.zeros(4, 66, dtype=BF16), 1)) == 2
    assert entries_at_once(8, [], (torch.zeros(4, 66), 1)) == 2
    assert entries_at_once(8, [], (torch.zeros(4, 68), 1)) == 8, "16 bytes are the most that is read at once"
