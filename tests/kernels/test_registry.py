"""Operations: which way runs, what is said of it, and how torch sees them."""

import logging

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from comfyui_happyhorse import kernels
from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.kernels import registry
from comfyui_happyhorse.kernels.registry import OPERATIONS, Op, forced, needs_triton


@pytest.fixture
def doubled():
    """x -> 2 x, with a way that takes what is positive and one that takes nothing."""

    def doubled_for_tests(x: Tensor, offset: float) -> Tensor:
        return 2 * x + offset

    op = Op(doubled_for_tests, lambda x, offset: torch.empty_like(x))

    @op.fast("never", refuses=lambda x, offset: "it is a test", launches=3)
    def _(*_):
        raise AssertionError

    @op.fast("shifted", refuses=lambda x, offset: None if x.min() > 0 else f"{x.min():g} is not positive")
    def _(x, offset):
        return x + x + offset + 1000

    yield op
    del OPERATIONS["doubled_for_tests"]


def test_the_first_way_that_does_not_refuse_runs(doubled):
    x = torch.tensor([1.0, 2.0])
    assert doubled.explain(x, 0.5) == {"never": "it is a test", "shifted": None}
    assert doubled.explain(-x, 0.5) == {"never": "it is a test", "shifted": "-2 is not positive"}
    assert doubled.chosen(x, 0.5) == "shifted" and doubled.chosen(-x, 0.5) == "definition"
    assert doubled(x, 0.5).tolist() == [1002.5, 1004.5]
    assert doubled(-x, 0.5).tolist() == [-1.5, -3.5]
    assert doubled(x=-x, offset=0.5).tolist() == [-1.5, -3.5]


def test_a_way_can_be_forced(doubled):
    x = torch.tensor([1.0, 2.0])
    with forced("definition"):
        assert doubled(x, 0.0).tolist() == [2, 4]
        with forced("shifted"):
            assert doubled(x, 0.0).tolist() == [1002, 1004]
        assert doubled(x, 0.0).tolist() == [2, 4]
    with (
        forced("never"),
        pytest.raises(SamplingError, match="doubled_for_tests cannot run as never: it is a test"),
    ):
        doubled(x, 0.0)
    with forced("unknown to it"):
        assert doubled(x, 0.0).tolist() == [1002, 1004]


def test_a_way_that_fails_is_not_replaced(doubled):
    @doubled.fast("broken", refuses=lambda x, offset: None)
    def _(*_):
        raise ValueError("broken on purpose")

    with forced("broken"), pytest.raises(ValueError, match="broken on purpose"):
        doubled(torch.ones(1), 0.0)


def test_a_card_that_gets_the_definition_is_warned_once(doubled, caplog, monkeypatch):
    """The arguments only have to say they are on CUDA for that."""
    monkeypatch.setattr(registry, "Tensor", _OnCard)
    with caplog.at_level(logging.DEBUG, registry.__name__):
        doubled._say("definition", (_OnCard(-1.0), 0.5))
        with forced("definition"):
            doubled._say("definition", (_OnCard(-1.0), 0.5))
        doubled._say("shifted", (_OnCard(1.0), 0.5))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "doubled_for_tests runs as its plain definition, which is slower. never: it is a test; "
            "shifted: -1 is not positive.",
        ),
        ("DEBUG", "doubled_for_tests runs as definition"),
        ("DEBUG", "doubled_for_tests runs as shifted"),
    ]


class _OnCard(float):
    is_cuda = True

    def min(self):
        return float(self)


def test_on_a_cpu_nobody_is_warned(doubled, caplog):
    with caplog.at_level(logging.DEBUG, registry.__name__):
        doubled(-torch.ones(1), 0.0)
        doubled(-torch.ones(1), 0.0)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def arguments(device="cpu"):
    """Small arguments of each elementwise operation."""
    torch.manual_seed(0)
    x, weight = torch.randn(6, 12, device=device), torch.randn(36, device=device)
    sizes, half = [3, 1, 2], torch.float16
    q, k, head = x.view(6, 2, 6), x[:, :6].view(6, 1, 6), torch.randn(18, device=device)
    return {
        "norm_rows": (x, weight, sizes, half),
        "add_norm": (x, x.to(half), weight, sizes, half),
        "norm_rope": (q, k, head, head, sizes, torch.randn(6, 6, device=device), half),
        "gate_rows": (q, x[:, :2], half),
        "activate": (x, "swiglu7", half, 8),
    }


@pytest.mark.parametrize("name", arguments())
def test_torch_knows_each_operation(name):
    """Schema, fake implementation and results agree: opcheck is torch's own judge of custom operations."""
    op, given = OPERATIONS[name], arguments()[name]
    assert op is getattr(kernels, name)
    torch.library.opcheck(op._op, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", arguments())
def test_each_passes_fake_tensors_of_a_card(name):
    with FakeTensorMode():
        fake = [
            torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="cuda")
            if isinstance(each, Tensor)
            else each
            for each in arguments()[name]
        ]
        results = OPERATIONS[name](*fake)
    wanted = OPERATIONS[name](*arguments()[name])
    for found, real in zip(*(r if isinstance(r, tuple) else (r,) for r in (results, wanted)), strict=True):
        assert found.is_cuda and found.shape == real.shape and found.dtype == real.dtype
        assert found.stride() == real.stride()


@pytest.mark.parametrize("name", arguments())
def test_a_way_that_takes_a_launch_says_so(name):
    assert OPERATIONS[name].ways["triton"].launches == 1


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("find_triton", "Triton is not installed"), ("has_compiler", "needs a C compiler")],
)
def test_what_triton_misses_is_named(monkeypatch, missing, reason):
    monkeypatch.setattr(registry, "find_triton", lambda: object())
    monkeypatch.setattr(registry, missing, lambda: None)
    with FakeTensorMode():
        assert reason in needs_triton(torch.empty(2, device="cuda"))


def test_cards_that_are_too_old_are_named(monkeypatch):
    card = torch.device("cuda:0")
    monkeypatch.setattr(registry, "_capability", lambda device: (8, 6))
    assert registry.refuses_capability(card, fp8=False) is None
    refused = registry.refuses_capability(card, fp8=True)
    assert refused == "FP8 in Triton needs compute capability 8.9 and this card has 8.6"
    monkeypatch.setattr(registry, "_capability", lambda device: (7, 5))
    refused = registry.refuses_capability(card, fp8=False)
    assert refused == "Triton needs compute capability 8.0 and this card has 7.5"
    monkeypatch.setattr(registry, "_capability", lambda device: None)
    assert registry.refuses_capability(card, fp8=True) is None


def test_tensors_of_two_devices_are_refused():
    pytest.importorskip("triton")
    with FakeTensorMode():
        reason = needs_triton(torch.empty(2, device="cuda"), torch.empty(2))
    assert reason == "the tensors lie on cpu, cuda:0, not on one device"


def test_two_copies_of_the_pack_both_work(root):
    """ComfyUI loads the folder under a name of its own; a tool beside it may import it by ours."""
    import importlib.util
    import sys

    name = "another_copy_of_the_pack"
    place = importlib.util.spec_from_file_location(name, root / "__init__.py")
    sys.modules[name] = importlib.util.module_from_spec(place)
    place.loader.exec_module(sys.modules[name])
    try:
        other = importlib.import_module(f"{name}.kernels")
        assert other.norm_rows is not kernels.norm_rows
        for each in (kernels, other, kernels):
            found = each.norm_rows(torch.full((1, 4), 3.0), torch.ones(4), [], torch.float32)
            torch.testing.assert_close(found, torch.full((1, 4), 2.0))
        with forced("triton"):  # of our copy
            with pytest.raises(SamplingError):
                kernels.norm_rows(torch.ones(1, 4), torch.ones(4), [], torch.float32)
            other.norm_rows(torch.ones(1, 4), torch.ones(4), [], torch.float32)
    finally:
        for module in [module for module in sys.modules if module.startswith(name)]:
            del sys.modules[module]
