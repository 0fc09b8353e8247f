"""Imports this checkout as ``comfyui_happyhorse``, the way ComfyUI imports its folder."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAME = "comfyui_happyhorse"

# Our nodes/ must not hide ComfyUI's nodes.py, so the checkout itself stays off the path.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]

spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py")
sys.modules[NAME] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[NAME])


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's folder."""
    return ROOT


@pytest.fixture(scope="session")
def close():
    """``close(actual, reference, limit)``: max |difference| <= limit * max |reference|, shapes equal."""
    import torch

    def compare(actual, reference, limit=1e-5, what=""):
        assert tuple(actual.shape) == tuple(reference.shape), f"{what} {actual.shape} != {reference.shape}"
        difference = (actual.double() - reference.double()).abs().max().item()
        scale = reference.double().abs().max().item()
        assert torch.isfinite(actual).all(), f"{what} is not finite"
        assert difference <= limit * scale, (
            f"{what} differs by {difference:.3g} of {scale:.3g} ({difference / max(scale, 1e-30):.3g} > {limit:g})"
        )

    return compare


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """A folder with the tiny model set; tests that change files copy them first."""
    from comfyui_happyhorse.model_loading.tiny import write_tiny_set

    folder = tmp_path_factory.mktemp("models")
    write_tiny_set(folder)
    return folder
