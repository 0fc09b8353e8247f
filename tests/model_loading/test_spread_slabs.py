"""Slabs hold rows of inputs that are no whole multiple of 64 with the zeros that a card's layers have."""

import pytest
import torch

from comfyui_happyhorse.kernels.pitch import wide
from comfyui_happyhorse.model.config import BlockSpec, TransformerConfig
from comfyui_happyhorse.model.layers import Block, Context
from comfyui_happyhorse.model_loading.block_swap import swap_blocks
from comfyui_happyhorse.model_loading.host_weights import Slab
from comfyui_happyhorse.model_loading.precision import precision
from comfyui_happyhorse.model_loading.quantised_layers import QuantisedLinear

SPECS = (BlockSpec(False, "swiglu7", 44), BlockSpec(True, "gelu7", 172))
SIZES = (9, 3, 2)


@pytest.mark.parametrize("kept", ["bf16", "fp8", "fp8_fast", "int8", "int8_weights", "nf4"])
def test_swapped_blocks_multiply_whole_rows(kept):
    """The down-projection's 44 and 172 inputs as 64 and 192: its bytes, its zeros, and the blocks' numbers."""
    config, policy = TransformerConfig(64, 4, 2, 16, 12, 4, 4, 1, SPECS), precision(kept)
    random = torch.Generator().manual_seed(0)
    blocks = torch.nn.ModuleList(Block(config, spec, dtype=torch.bfloat16) for spec in SPECS)
    for block in blocks.requires_grad_(False):
        for name, module in list(block.named_modules()):
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(torch.randn(module.weight.shape, generator=random) * 0.2)
                if policy.quantise:
                    block.set_submodule(
                        name, QuantisedLinear(policy.quantise(module.weight), policy.products)
                    )
    x = torch.randn(14, 64, generator=random)
    context = Context(SIZES, torch.zeros(14, 12), ())
    wanted = x
    for block in blocks:
        wanted = block(wanted, context)
    downs = [block.mlp.down_proj for block in blocks]
    shapes = [layer.weight.shape for layer in downs]
    spread = kept not in ("int8", "nf4")
    for block, layer, inputs in zip(blocks, downs, (64, 192), strict=True):
        stowed = next(part for part in Slab(block).tensors if part.layer is layer and part.key == "weight")
        columns = inputs if spread else layer.weight.shape[1]
        assert stowed.nbytes == layer.weight.shape[0] * columns * layer.weight.itemsize
    with swap_blocks(blocks, torch.device("cpu"), resident=frozenset({0}), slots=1).resident() as swapper:
        found = swapper.run_blocks(x, context)
        again = swapper.run_blocks(x, context)
        assert [layer.weight.shape for layer in downs] == shapes
    if spread:
        assert [wide(layer.weight).shape[1] for layer in downs] == [64, 192]
        assert not any(wide(layer.weight)[:, layer.weight.shape[1] :].float().any() for layer in downs)
    assert torch.equal(found, again)
    assert (found - wanted).abs().max() <= 2**-7 * wanted.abs().max()
