"""Importing the pack does nothing but define things."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys, tempfile
import torch

def forbidden(what):
    def call(*_, **__):
        raise AssertionError(what + " was called at import")
    return call

for name in ("is_available", "device_count", "current_device", "_lazy_init", "get_device_properties"):
    setattr(torch.cuda, name, forbidden("torch.cuda." + name))
torch.compile = forbidden("torch.compile")
torch.manual_seed = forbidden("torch.manual_seed")
tempfile.mkdtemp = forbidden("tempfile.mkdtemp")
import logging
logging.basicConfig = forbidden("logging.basicConfig")

import comfyui_happyhorse as pack
count = 0
for module in pkgutil.walk_packages(pack.__path__, "comfyui_happyhorse."):
    parts = module.name.split(".")
    if parts[1] in ROOMS and parts[-1] != "__main__":
        importlib.import_module(module.name)
        count += 1
host = {"comfy", "comfy_api", "folder_paths", "nodes", "server"} & set(sys.modules)
assert not host, host
print(count)
"""
ROOMS = {
    "errors",
    "shapes",
    "kernels",
    "model",
    "model_loading",
    "conditioning",
    "sampling",
    "media",
    "pipeline",
    "cli",
}


def test_no_device_is_asked_nothing_is_compiled_and_no_host_is_imported(root, tmp_path):
    (tmp_path / "comfyui_happyhorse").symlink_to(root, target_is_directory=True)
    program = PROGRAM.replace("ROOMS", repr(ROOMS))
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) > 40  # modules
