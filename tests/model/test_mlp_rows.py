"""Feed-forward layers over shares of the rows: the same numbers, whatever the share."""

from dataclasses import replace

import pytest
import torch

from comfyui_happyhorse.model.config import BlockSpec, TransformerConfig
from comfyui_happyhorse.model.layers import Context, FeedForward, equal_shares
from comfyui_happyhorse.model_loading.precision import precision
from comfyui_happyhorse.model_loading.quantised_layers import QuantisedLinear

SHARED, PER_MODALITY = BlockSpec(False, "swiglu7", 44), BlockSpec(True, "gelu7", 48)
SIZES = (41, 7, 2)  # text has fewer rows than there are shares


def layer_of(spec, dtype, quantised=None):
    config = TransformerConfig(32, 4, 2, 8, 8, 4, 4, 1, (spec,))
    layer = FeedForward(config, spec, dtype=dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name in ("up_gate_proj", "down_proj"):
        weight = getattr(layer, name).weight
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
        if quantised:
            policy = precision(quantised)
            setattr(layer, name, QuantisedLinear(policy.quantise(weight), policy.products))
    layer.pre_norm.weight.copy_(torch.randn(layer.pre_norm.weight.shape, generator=generator) * 0.1)
    return layer


def ulps(actual, reference):
    """The largest difference in last places of bfloat16."""
    whole = reference.abs().max()
    return ((actual.double() - reference.double()).abs().max() / (whole * 2.0**-8)).item()


@pytest.mark.parametrize("spec", [SHARED, PER_MODALITY], ids=["shared", "per modality"])
@pytest.mark.parametrize("rows", [1, 3, 16, 49])
@pytest.mark.parametrize("kept", ["float32", "bf16", "fp8", "int8", "nf4"])
def test_shares_do_not_show(spec, rows, kept):
    """Within one last place: a product of fewer rows may be summed in another order by the library."""
    dtype = torch.float32 if kept == "float32" else torch.bfloat16
    layer = layer_of(spec, dtype, kept if kept in ("fp8", "int8", "nf4") else None)
    x = torch.randn(sum(SIZES), 32, generator=torch.Generator().manual_seed(1))
    context = Context(SIZES, torch.zeros(sum(SIZES), 6), ())
    whole = layer(x, context)
    shared = layer(x, replace(context, mlp_rows=rows))
    assert shared.dtype == whole.dtype
    assert ulps(shared, whole) <= (1e-3 if kept == "float32" else 1)
    # A row of another share, or of another modality's matrix, would be off by the size of the numbers.
    assert (shared.float() - whole.float()).abs().max() < 0.02 * whole.float().abs().max()


def test_as_many_rows_as_there_are_is_no_share():
    layer = layer_of(SHARED, torch.bfloat16)
    x = torch.randn(sum(SIZES), 32, generator=torch.Generator().manual_seed(1))
    context = Context(SIZES, torch.zeros(sum(SIZES), 6), ())
    assert torch.equal(layer(x, replace(context, mlp_rows=50)), layer(x, context))


def test_every_row_is_in_a_share_and_no_range_is_empty():
    shares = equal_shares((10, 3, 1), 4)
    assert shares == [
        [(0, 2), (10, 11), (13, 14)],
        [(2, 5), (10, 11), (13, 14)],
        [(5, 7), (11, 12), (13, 14)],
        [(7, 10), (12, 13), (13, 14)],
    ]
    assert equal_shares((7,), 3) == [[(0, 2)], [(2, 4)], [(4, 7)]]


def test_what_lives_between_the_projections_shrinks():
    """The widest tensor a share makes is its own rows', not all."""
    layer, widest = layer_of(SHARED, torch.bfloat16), []
    layer.up_gate_proj.register_forward_hook(lambda _, given, made: widest.append(made.shape[0]))
    x = torch.randn(50, 32)
    layer(x, Context(SIZES, torch.zeros(50, 6), (), mlp_rows=16))
    assert widest == [12, 13, 12, 13]
