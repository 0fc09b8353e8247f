"""Imports this checkout as ``comfyui_happyhorse``, the way ComfyUI imports its folder."""

import importlib.util
import os
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


def load(name: str):
    """A module of these tests that is no test: importlib mode gives them no package to import it from."""
    place = importlib.util.spec_from_file_location(f"happyhorse_tests_{name}", ROOT / "tests" / f"{name}.py")
    sys.modules[place.name] = module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def pytest_generate_tests(metafunc):
    """A test that takes ``title`` runs for every form of a transformer's file."""
    if "title" in metafunc.fixturenames:
        metafunc.parametrize("title", load("forms").FORMS)


@pytest.fixture(scope="session", autouse=True)
def _caches_of_our_own(tmp_path_factory):
    """The user's cache folder is not for tests, nor for the programs they start."""
    folder, before = str(tmp_path_factory.mktemp("caches")), dict(os.environ)
    os.environ.update(XDG_CACHE_HOME=folder, LOCALAPPDATA=folder)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def definition():
    """tests/definition.py: the transformer in float64."""
    return load("definition")


@pytest.fixture(scope="session")
def form_writer():
    """tests/forms.py: a transformer in every layout and precision."""
    return load("forms")


@pytest.fixture(scope="session")
def forms(form_writer):
    """{title: Form}"""
    return form_writer.FORMS


@pytest.fixture(scope="session")
def as_stored(form_writer):
    """``as_stored(state, form)``: tensors, metadata and what they mean in float64."""
    return form_writer.stored_as


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
