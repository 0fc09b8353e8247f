"""Finds the golden files and hands them to the tests one by one.

``$HAPPYHORSE_GOLDEN`` (default: ``shared/golden`` beside the checkout) holds pairs ``X.json`` and
``X.safetensors``. A test marked ``@pytest.mark.golden("sampling_i2v")`` that takes the fixture ``golden``
runs once for every file whose name starts so; where there is none it skips and says which group is absent.
Nothing here knows a file's sizes: they come from its JSON.

``$HAPPYHORSE_DEVICE`` (default: the CPU) is where their tensors lie and the engine runs, in whole float32. Where it is
set, the run ends with a list of which way each operation took for each file. A device that cannot be used is an error.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from comfyui_happyhorse.kernels import registry

FOLDER = Path(
    os.environ.get("HAPPYHORSE_GOLDEN") or Path(__file__).resolve().parents[3] / "shared" / "golden"
)


DEVICE_VARIABLE = "HAPPYHORSE_DEVICE"
PATHS = (
    "happyhorse_paths"  # a report's property: {operation: {way: why it was the definition}} of a golden file
)


def device_named(name: str | None) -> torch.device:
    """The device that the golden suite runs on; pytest's UsageError for one that cannot calculate here."""
    try:
        device = torch.device(name or "cpu")
        total = torch.ones(2, device=device).sum().item()
    except Exception as error:  # every backend has its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise pytest.UsageError(
            f"{DEVICE_VARIABLE}={name}: this device cannot be used here ({reason}). Name one that torch finds, such "
            "as cuda, or unset the variable to run the golden suite on the CPU."
        ) from None
    assert total == 2
    return device


DEVICE = device_named(os.environ.get(DEVICE_VARIABLE))

_read: dict = {}  # path -> Golden, for this session


class Golden:
    """One golden file: its JSON under ``golden[...]``, its tensors by full name."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.stem
        self.json = json.loads(path.read_text(encoding="utf-8"))
        tensors = path.with_suffix(".safetensors")
        self.tensors = load_file(tensors, device=str(DEVICE)) if tensors.exists() else {}

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
def device() -> torch.device:
    """Where the golden tensors lie."""
    return DEVICE


@pytest.fixture(autouse=True)
def _whole_float32():
    """TF32 keeps 10 bits of the mantissa: no golden file would be met."""
    if DEVICE.type != "cuda":
        yield
        return
    # Not monkeypatch, which cannot put back what these modules answer for.
    libraries = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [library.allow_tf32 for library in libraries]
    try:
        for library in libraries:
            library.allow_tf32 = False
        yield
    finally:
        for library, was in zip(libraries, before, strict=True):
            library.allow_tf32 = was


@pytest.fixture(autouse=True)
def _paths(request, monkeypatch):
    """Notes which way every operation runs as in a test of a golden file, where a device was named."""
    if not os.environ.get(DEVICE_VARIABLE) or "golden" not in request.fixturenames:
        return
    taken = {}

    def noting(operation, way, run, note):
        def noted(*args, **kwargs):
            ways = taken.setdefault(operation.__name__, {})
            if way not in ways:
                ways[way] = note(*args, **kwargs)
            return run(*args, **kwargs)

        return noted

    for operation in registry.OPERATIONS.values():

        def why_not(*args, operation=operation, **kwargs):
            reasons = operation.explain(*args, **kwargs)
            return "; ".join(f"{name}: {reason or 'not preferred'}" for name, reason in reasons.items())

        definition = noting(operation, registry.DEFINITION, operation.definition, why_not)
        monkeypatch.setattr(operation, "definition", definition)
        for name, way in operation.ways.items():
            noted = way._replace(run=noting(operation, name, way.run, lambda *args, **kwargs: ""))
            monkeypatch.setitem(operation.ways, name, noted)
    name = request.getfixturevalue("golden").name
    request.node.user_properties.append(
        (PATHS, {name: taken})
    )  # now: the report is made before this test's end


def pytest_terminal_summary(terminalreporter):
    """Which way ran, by golden file, and once for each operation why it was the definition."""
    files, reasons = {}, {}
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    noted = [value for report in reports for key, value in report.user_properties if key == PATHS]
    for name, taken in (item for each in noted for item in each.items()):
        ways_of = files.setdefault(name, {})
        for operation, ways in taken.items():
            ways_of.setdefault(operation, set()).update(ways)
            reasons[operation] = next(filter(None, ways.values()), reasons.get(operation))
    if not files:
        return
    terminalreporter.section(f"golden suite on {DEVICE}: ways by file")
    for name, operations in sorted(files.items()):
        ways = ", ".join(
            f"{operation} {'+'.join(sorted(ways))}" for operation, ways in sorted(operations.items())
        )
        terminalreporter.line(f"{name}: {ways or 'torch alone, no operation of ours'}")
    for operation, why in sorted(reasons.items()):
        if why:
            terminalreporter.line(f"{operation} as its definition: {why}")


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
