"""What the figures were taken on: card, link, clocks, and the versions of all that computes."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata

import torch

PACKAGES = (
    "triton",
    "comfy-kitchen",
    "comfyui-happyhorse",
    "flash-attn",
    "sageattention",
    "einops",
    "bitsandbytes",
)
QUERY = "driver_version,pcie.link.gen.current,pcie.link.width.current,clocks.sm,clocks.mem,power.limit"


def machine(device: torch.device) -> dict[str, str]:
    """Clocks are read, never set."""
    facts = {"torch": torch.__version__, "python": platform.python_version(), "system": platform.platform()}
    facts |= {name: version(name) for name in PACKAGES}
    if device.type != "cuda":
        return {"device": "cpu: a walk through the measurement, its figures mean nothing"} | facts
    facts = {"device": torch.cuda.get_device_name(device)} | facts
    facts["compute capability"] = "{}.{}".format(*torch.cuda.get_device_capability(device))
    facts["cuda"] = str(torch.version.cuda)
    facts["cudnn"] = str(torch.backends.cudnn.version())
    return facts | _from_nvidia_smi(device)


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _from_nvidia_smi(device: torch.device) -> dict[str, str]:
    try:
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        lines = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout.splitlines()
        return dict(zip(QUERY.split(","), lines[device.index or 0].split(", "), strict=True))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return {"driver": "nvidia-smi does not say"}
