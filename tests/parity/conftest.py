"""Finds the golden files and hands them to the tests one by one.

``$HAPPYHORSE_GOLDEN`` (default: ``shared/golden`` beside the checkout) holds pairs ``X.json`` and
``X.safetensors``. A test marked ``@pytest.mark.golden("sampling_i2v")`` that takes the fixture ``golden``
runs once for every file whose name starts so; where there is none it skips and says which group is absent.
Nothing here knows a file's sizes: they come from its JSON.
"""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

FOLDER = Path(
    os.environ.get("HAPPYHORSE_GOLDEN") or Path(__file__).resolve().parents[3] / "shared" / "golden"
)


_read: dict = {}  # path -> Golden, for this session


class Golden:
    """One golden file: its JSON under ``golden[...]``, its tensors by full name."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.stem
        self.json = json.loads(path.read_text(encoding="utf-8"))
        tensors = path.with_suffix(".safetensors")
        self.tensors = load_file(tensors) if tensors.exists() else {}

    def __getitem__(self, key):
        return self.json[key]

    def get(self, key, default=None):
        return self.json.get(key, default)

    def weights(self, prefix="w."):
        """Tensors below ``prefix``, without it."""
        return {
            name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)
        }

    def __repr__(self):
        return self.name


def pytest_generate_tests(metafunc):
    mark = metafunc.definition.get_closest_marker("golden")
    if mark is None or "golden" not in metafunc.fixturenames:
        return
    left_out = mark.kwargs.get("without", ())
    found = {path for group in mark.args for path in FOLDER.glob(f"{group}*.json")}
    paths = sorted(path for path in found if not any(part in path.stem for part in left_out))
    if not paths:
        reason = f"no golden file {' or '.join(f'{group}*.json' for group in mark.args)} in {FOLDER} ($HAPPYHORSE_GOLDEN)"
        metafunc.parametrize(
            "golden", [pytest.param(None, marks=pytest.mark.skip(reason=reason))], ids=["absent"]
        )
        return
    metafunc.parametrize("golden", paths, ids=[path.stem for path in paths], indirect=True)


@pytest.fixture
def golden(request) -> Golden:
    """The golden file of this run of the test (read once a session)."""
    if request.param not in _read:
        _read[request.param] = Golden(request.param)
    return _read[request.param]


@pytest.fixture(scope="session")
def within_bf16():
    """``within_bf16(actual, golden_bf16, distance)``: relative L2 <= 3 x the recorded bf16-to-float32 distance."""

    def compare(actual, reference, distance, what=""):
        actual, reference = actual.double(), reference.double()
        assert actual.shape == reference.shape, f"{what} {actual.shape} != {reference.shape}"
        relative = ((actual - reference).norm() / reference.norm().clamp_min(1e-30)).item()
        assert relative <= 3 * distance["rel_l2"], f"{what}: {relative:.4g} > 3 x {distance['rel_l2']:.4g}"

    return compare


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Where the golden files are looked for."""
    return FOLDER
