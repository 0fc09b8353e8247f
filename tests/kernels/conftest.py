"""What the kernels' tests share: kernels compiled for cards that are not here, and run by Triton's interpreter."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load(name: str):
    """A module of this folder that is no test."""
    place = importlib.util.spec_from_file_location(f"happyhorse_tests_kernels_{name}", HERE / f"{name}.py")
    sys.modules[place.name] = module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def aot(tmp_path_factory):
    """tests/kernels/aot.py, with a compiler cache of its own."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton_cache")))
        # Triton 3.10 turns the fusion of products and sums off by default, and 3.9 warns of it.
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
        yield load("aot")


@pytest.fixture(scope="session")
def interpreted():
    """tests/kernels/interpreted.py"""
    pytest.importorskip("triton")
    return load("interpreted")


@pytest.fixture(scope="session")
def counting():
    """tests/kernels/counting.py"""
    return load("counting")
