"""What one layer of the real width launches and moves on a card, counted on tensors that have only shapes.

5 s at 448x256 with 400 text tokens: N = 4110. "Own" are launches and bytes beside matrix products and attention.
"""

import pytest
import torch

from comfyui_happyhorse.kernels import gate_heads
from comfyui_happyhorse.kernels.registry import OPERATIONS
from comfyui_happyhorse.model.config import BlockSpec, TransformerConfig
from comfyui_happyhorse.model.layers import Block, Context

SIZES = (3584, 126, 400)
COUNT = sum(SIZES)
WIDTH, HEADS, KEY_HEADS, ENTRIES = 5120, 40, 8, 128
SHARED = BlockSpec(False, "swiglu7", 13652)
PER_MODALITY = BlockSpec(True, "swiglu7", 13652)
GELU = BlockSpec(True, "gelu7", 20480)


@pytest.fixture
def count(counting):
    """``count(spec, fused)``: the traffic of one block, as it would run with Triton or as its definitions."""
    pytest.importorskip("triton")

    def run(spec, fused, mlp_rows=None):
        config = TransformerConfig(WIDTH, HEADS, KEY_HEADS, ENTRIES, 192, 64, 3584, 16, (spec,))
        with torch.device("meta"):
            block = Block(config, spec, dtype=torch.bfloat16)
            x, rope = torch.empty(COUNT, WIDTH), torch.empty(COUNT, 96)
            # Attention is not counted; like cuDNN and FlashAttention it lays its result out as the queries.
            context = Context(SIZES, rope, [], lambda q, k, v: torch.empty_like(q), mlp_rows)
            with torch.no_grad(), counting.Traffic(OPERATIONS, fused=fused) as traffic:
                out = block(x, context)
        assert out.shape == x.shape and out.dtype == torch.float32
        return traffic

    return run


def kilobytes(traffic):
    return traffic.moved / COUNT / 1000


def test_a_shared_layer_is_twelve_launches(count):
    found = count(SHARED, fused=True)
    assert found.names == ["norm_rows", "norm_rope", "gate_rows", "add_norm", "activate", "add"]
    attention = 1
    assert found.products == 4
    assert found.launches + found.products + attention <= 12
    # 61 for the two norms and sum, 31 for the first norm, 26 q and k, 21 gate, 82 activation, 51 the last sum.
    assert kilobytes(found) == pytest.approx(270.8, abs=0.1)
    assert kilobytes(found) <= 300


def test_a_layer_per_modality_adds_only_its_products(count):
    """Three products for one, and each time their runs joined: 179 KB a token that a product into place would save."""
    found = count(PER_MODALITY, fused=True)
    assert [name for name in found.names if name != "cat"] == count(SHARED, fused=True).names
    assert found.names.count("cat") == 4 and found.products == 12
    joined = 2 * 2 * (7208 + WIDTH + 2 * 13652 + WIDTH) / 1000
    assert kilobytes(found) == pytest.approx(270.8 + joined, abs=0.2)


def test_the_definition_is_no_straw_man(count):
    """Eager, in float32 between products: the reference's own figures are 62 operations and 2.1 MB a token."""
    found = count(SHARED, fused=False)
    assert found.products == 4
    assert abs(found.launches - 62) <= 3, found.names
    assert kilobytes(found) == pytest.approx(2100, rel=0.03)


@pytest.mark.parametrize("spec", [SHARED, PER_MODALITY, GELU], ids=["shared", "per modality", "GELU"])
def test_fusion_saves_most_of_the_traffic(count, spec):
    fused, definition = count(spec, fused=True), count(spec, fused=False)
    assert fused.moved < definition.moved / (5 if spec.per_modality else 7)
    assert fused.launches < definition.launches / 6


def test_a_layer_in_shares_adds_no_more_than_its_shares(count):
    """Per share: norm, activation, the copy to its place; the sum before is one of its own."""
    found = count(SHARED, fused=True, mlp_rows=COUNT // 2)
    assert found.names.count("norm_rows") == 1 + 2 and found.names.count("activate") == 2
    assert found.names.count("add") == 2 and "add_norm" not in found.names


def test_counting_sees_an_unfused_step(count, monkeypatch):
    """The gate is worth something only if it fails: a gate by its definition shows in launches and in bytes."""
    wanted = count(SHARED, fused=True)
    monkeypatch.setattr(
        "comfyui_happyhorse.model.layers.gate_rows",
        lambda out, gate, dtype: gate_heads(out, gate).flatten(1).to(dtype),
    )
    found = count(SHARED, fused=True)
    assert found.launches >= wanted.launches + 2
    assert found.moved > wanted.moved + COUNT * WIDTH * 2
