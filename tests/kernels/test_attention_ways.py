"""Which library computes attention: orders by card, reasons, words, and the layouts they are called in.

No card is here: what asks it is replaced, and packages that are not installed are stood in for by modules that
compute the same in float64.
"""

import logging
import sys
from contextlib import nullcontext
from types import ModuleType

import pytest
import torch
from torch.nn.attention import SDPBackend

from comfyui_happyhorse.errors import SamplingError
from comfyui_happyhorse.kernels import attention_ways as ways
from comfyui_happyhorse.kernels import cards
from comfyui_happyhorse.kernels.attention import attention, attention_over_ranges
from comfyui_happyhorse.kernels.range_plan import flatten
from comfyui_happyhorse.kernels.registry import forced

RANGES = flatten([((0, 6), (0, 3)), ((0, 6), (5, 9))])
TORCH_OWN = ("cudnn", "flash")
SWITCHES = ("flash_sdp_enabled", "cudnn_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled")


def qkv(dtype=torch.bfloat16, heads=6, groups=2, depth=16, rows=6, keys=9):
    random = torch.Generator().manual_seed(1)
    shapes = ((rows, heads, depth), (keys, groups, depth), (keys, groups, depth))
    return [torch.randn(shape, generator=random).to(dtype) for shape in shapes]


def in_float64(q, k, v):
    each = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(each, 1), v.double().repeat_interleave(each, 1)
    weights = (torch.einsum("qhd,khd->hqk", q, k) / q.shape[2] ** 0.5).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


@pytest.fixture
def card(monkeypatch):
    """``card((9, 0), "linux", can=...)``: as if tensors lay on such a card, where torch ``can`` use these kernels."""

    def make(capability, system="linux", can=("cudnn", "flash", "efficient"), installed=()):
        monkeypatch.setattr(cards, "has_card", lambda q: True)
        monkeypatch.setattr(cards, "capability", lambda q: capability)
        monkeypatch.setattr(cards.sys, "platform", system)
        monkeypatch.setattr(ways, "_is_installed", lambda module: module in installed)
        for name in ("cudnn", "flash", "efficient"):
            answer = name in can
            monkeypatch.setattr(
                torch.backends.cuda, f"can_use_{name}_attention", lambda params, answer=answer: answer
            )
        for op in (attention, attention_over_ranges):
            monkeypatch.setattr(op, "_said", set())

    return make


CHOSEN = [
    ((9, 0), "linux", ("cudnn", "flash"), (), "cudnn"),
    ((9, 0), "linux", ("flash",), (), "flash"),
    ((9, 0), "linux", ("flash",), ("flash_attn_interface",), "flash3"),
    ((9, 0), "linux", ("cudnn", "flash"), ("flash_attn_interface",), "cudnn"),
    ((10, 0), "linux", ("cudnn", "flash"), ("flash_attn.cute",), "cudnn"),
    ((10, 3), "linux", ("flash",), ("flash_attn.cute",), "flash4"),
    ((8, 0), "linux", ("cudnn", "flash"), ("flash_attn_interface",), "flash"),
    ((8, 9), "linux", ("cudnn", "flash"), ("sageattention", "comfy_kitchen"), "flash"),
    ((12, 0), "linux", ("cudnn",), (), "cudnn"),
    ((12, 0), "win32", ("cudnn", "flash"), (), "cudnn"),
    ((8, 6), "win32", ("cudnn",), (), "cudnn"),
    ((8, 6), "linux", ("efficient",), (), "efficient"),
    ((7, 5), "linux", ("cudnn", "flash", "efficient"), (), "efficient"),
    ((8, 6), "linux", (), (), "definition"),
]


@pytest.mark.parametrize(("capability", "system", "can", "installed", "wanted"), CHOSEN)
def test_the_first_that_can_of_the_cards_order(card, capability, system, can, installed, wanted):
    card(capability, system, can, installed)
    assert attention.chosen(*qkv()) == wanted


@pytest.mark.parametrize(
    "capability", [(5, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (11, 0), (12, 1), (13, 0)]
)
@pytest.mark.parametrize("system", ["linux", "win32"])
def test_every_card_has_an_order_that_loses_nothing(capability, system):
    for rows, known in (
        (ways.PREFERENCES, attention.ways),
        (ways.RANGE_PREFERENCES, attention_over_ranges.ways),
    ):
        row = cards.preferred(rows, capability, system)
        assert row.source
        assert set(row.order) <= set(known)
        assert not any(name in ways.LIBRARIES and ways.LIBRARIES[name].is_lossy for name in row.order)


def test_windows_run_as_dense_calls_where_a_fast_kernel_does_them(card):
    card((9, 0))
    assert attention_over_ranges.chosen(*qkv(), RANGES, None) == "frames"
    assert attention_over_ranges.chosen(*qkv(), RANGES, None, "flash") == "frames"
    card((8, 6), can=("efficient",))
    assert (
        attention_over_ranges.explain(*qkv(), RANGES, None)["frames"]
        == "its dense calls would run as efficient"
    )
    assert attention_over_ranges.chosen(*qkv(), RANGES, None, "efficient") == "frames", "as it was asked"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": torch.float32}, "torch.float32 is not torch.bfloat16 or torch.float16"),
        ({"heads": 5}, "5 query heads are not a multiple of 2 key heads"),
    ],
)
def test_what_no_fast_kernel_takes(card, change, words):
    card((9, 0), installed=("flash_attn_interface", "sageattention", "comfy_kitchen"))
    reasons = attention.explain(*qkv(**change))
    assert {name for name, reason in reasons.items() if reason == words} >= {
        "cudnn",
        "flash",
        "flash3",
        "sage",
        "int8",
    }


def test_reasons_of_cards_and_packages(card):
    card((8, 0), can=())
    reasons = attention.explain(*qkv())
    assert reasons["cudnn"] == f"torch {torch.__version__} cannot use it for q (6, 6, 16) and k (9, 2, 16)"
    assert reasons["flash3"] == "the Python package flash-attn-3 is not installed"
    card((8, 0), installed=("flash_attn_interface", "sageattention"))
    assert attention.explain(*qkv())["flash3"] == "sm_80 is older than sm_90"
    assert (
        attention.explain(*qkv())["sage"] == "sageattention takes heads of 64, 96, 128 values, these have 16"
    )
    card((10, 0), installed=("flash_attn_interface",))
    assert attention.explain(*qkv())["flash3"] == "flash-attn-3 has no kernel for sm_100"
    assert set(attention.explain(*(part.to("meta") for part in qkv()))) == set(ways.LIBRARIES)


def test_a_kernel_that_is_switched_off_is_not_taken(card, monkeypatch):
    card((9, 0))
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: False)
    assert attention.chosen(*qkv()) == "flash"
    assert "cudnn_sdp_enabled() is False" in attention.explain(*qkv())["cudnn"]


@pytest.mark.parametrize("name", [*ways.LIBRARIES])
def test_a_forced_way_that_cannot_run_says_why(card, name):
    card((5, 0), can=())
    reason = attention.explain(*qkv())[name]
    assert reason
    for choose in (lambda: attention(*qkv(), name), lambda: attention.chosen(*qkv(), way=name)):
        with pytest.raises(SamplingError) as error:
            choose()
        assert str(error.value) == f"attention cannot run as {name}: {reason}."
    with forced(name), pytest.raises(SamplingError, match=f"cannot run as {name}"):
        attention(*qkv())


def test_an_unknown_way_is_an_error():
    with pytest.raises(SamplingError, match=r"attention knows no way 'cuddn'; it has cudnn, flash"):
        attention(*qkv(), "cuddn")


def test_a_slow_way_is_said_once_with_the_reasons(card, caplog):
    card((7, 5), can=("efficient",))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert attention.chosen(*qkv()) == "efficient"
    assert [record.getMessage() for record in caplog.records] == [
        "attention runs as efficient, several times slower than the others (flash: sm_75 is older than sm_80; "
        "cudnn: sm_75 is older than sm_80)."
    ]
    caplog.clear()
    card((9, 0), can=())
    with caplog.at_level(logging.WARNING):
        assert attention.chosen(*qkv(torch.float32)) == "definition"
        assert attention.chosen(*qkv(torch.float32), "definition") == "definition"
    assert len(caplog.records) == 1
    assert "runs as definition" in caplog.text and "torch.float32 is not" in caplog.text


def test_the_cpu_runs_the_definition_and_warns_of_nothing(caplog, close):
    attention._said.clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            close(attention(*qkv(torch.float32)), in_float64(*qkv(torch.float32)), 1e-6)
    assert [record.getMessage() for record in caplog.records] == ["attention runs as definition on cpu"]


@pytest.mark.parametrize("name", TORCH_OWN)
def test_torchs_kernels_run_alone_or_not_at_all(name):
    """On a CPU cuDNN is no choice: an error, where torch left to itself would take another; and nothing stays switched."""
    before = [getattr(torch.backends.cuda, switch)() for switch in SWITCHES]
    run, q = ways.LIBRARIES[name].run, qkv(torch.float32)
    if name == "flash":
        torch.testing.assert_close(run(*q).double(), in_float64(*q), rtol=1e-5, atol=1e-6)
    else:
        with pytest.raises(RuntimeError, match=r"kernel|backend"):
            run(*q)
    assert [getattr(torch.backends.cuda, switch)() for switch in SWITCHES] == before


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (5, 1), (4, 4)])
def test_the_efficient_kernel_sees_key_heads_without_copies(monkeypatch, close, heads, groups):
    switched = []
    monkeypatch.setattr(ways, "sdpa_kernel", lambda backend: switched.append(backend) or nullcontext())
    q, k, v = qkv(torch.float32, heads, groups)
    close(ways.efficient(q, k, v), in_float64(q, k, v), 1e-6)
    assert switched == [SDPBackend.EFFICIENT_ATTENTION]
    parts = ways._by_group(q, k, v)
    assert [part.untyped_storage().data_ptr() for part in parts] == [
        part.untyped_storage().data_ptr() for part in (q, k, v)
    ]
    assert [tuple(part.shape) for part in parts] == [
        (groups, heads // groups, rows, 16) for rows in (6, 9, 9)
    ]


def stand_in(calls, heads_first, extra=()):
    """A package's function on [1, L, H, D] or [1, H, L, D], in float64; it refuses keys that were repeated."""

    def function(q, k, v, **options):
        calls.append((tuple(k.shape), options))
        parts = [(part[0].transpose(0, 1) if heads_first else part[0]) for part in (q, k, v)]
        out = in_float64(*parts).to(q.dtype)
        out = out.transpose(0, 1)[None] if heads_first else out[None]
        return (out, *extra) if extra else out

    return function


@pytest.mark.parametrize(
    ("name", "module", "function", "heads_first", "extra"),
    [
        ("flash3", "flash_attn_interface", "flash_attn_func", False, ()),
        ("flash3", "flash_attn_interface", "flash_attn_func", False, (None,)),
        ("flash4", "flash_attn.cute", "flash_attn_func", False, (None,)),
        ("sage", "sageattention", "sageattn", False, ()),
        ("int8", "comfy_kitchen", "int8_attention", True, ()),
    ],
)
def test_packages_get_grouped_heads_in_their_layout(
    monkeypatch, close, name, module, function, heads_first, extra
):
    calls = []
    for part in [module.partition(".")[0], module]:
        package = ModuleType(part)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, part, package)
    setattr(sys.modules[module], function, stand_in(calls, heads_first, extra))
    q, k, v = qkv(torch.float32, rows=6, keys=9)
    out = ways.LIBRARIES[name].run(q, k, v)
    close(out, in_float64(q, k, v), 1e-6)
    assert out.is_contiguous()
    assert calls[0][0] == ((1, 2, 9, 16) if heads_first else (1, 9, 2, 16)), "no key head is repeated"
    if name == "sage":
        assert calls[0][1] == {"tensor_layout": "NHD", "is_causal": False}


def test_int8_asks_the_package(card, monkeypatch):
    card((8, 9), installed=("comfy_kitchen",))
    package = ModuleType("comfy_kitchen")
    monkeypatch.setitem(sys.modules, "comfy_kitchen", package)
    assert attention.explain(*qkv())["int8"] == "this comfy-kitchen has no INT8 attention; update it"
    package.int8_attention_is_available = lambda device: False
    assert "CUDA extension did not load" in attention.explain(*qkv())["int8"]
    package.int8_attention_is_available = lambda device: True
    assert attention.explain(*qkv())["int8"] is None
    assert attention.chosen(*qkv(), "int8") == "int8"
    assert attention.chosen(*qkv()) == "flash", "nothing lossy without being asked for"


@pytest.mark.parametrize("keys", [317, 1200])
def test_bfloat16_is_within_the_gate(keys):
    """5e-3 of the result in the Frobenius norm, against float64 of the same inputs, heads as in the model."""
    q, k, v = qkv(torch.bfloat16, 10, 2, 128, 65, keys)
    error = (attention(q, k, v).double() - in_float64(q, k, v)).norm() / in_float64(q, k, v).norm()
    assert error <= 5e-3
