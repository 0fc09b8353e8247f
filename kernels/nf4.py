"""NF4, four bits a weight in blocks of 64, packed and unpacked by bitsandbytes."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import missing_package

if TYPE_CHECKING:
    from .quantised import QuantisedWeight

BLOCK = 64


def pack(weight: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, object]]:
    """[M, K] -> (two numbers a byte [M*K/2, 1], {"absmax" of each block, "quant_map" of 16 levels}, settings)"""
    data, state = functional().quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, compress_statistics=False, quant_type="nf4"
    )
    return data, {"absmax": state.absmax, "quant_map": state.code}, {"blocksize": BLOCK, "quant_type": "nf4"}


def unpack(weight: QuantisedWeight) -> Tensor:
    """[M, K] in float32."""
    library = functional()
    state = library.QuantState(
        absmax=weight.scales["absmax"].float(),
        # Flat, as the blocks run: on the CPU bitsandbytes 0.50 begins a new block with every row of a matrix whose
        # width is no whole number of blocks, and is off by a quarter (64 x 144).
        shape=torch.Size([math.prod(weight.shape)]),
        code=weight.scales["quant_map"].float(),
        blocksize=int(weight.settings["blocksize"]),
        quant_type=str(weight.settings["quant_type"]),
        dtype=torch.float32,
    )
    return library.dequantize_4bit(weight.data, state).view(weight.shape)


def flat_absmax(nested: Tensor, levels: Tensor, absmax: Tensor, blocksize: int, offset: float) -> Tensor:
    """The largest number of each block, where a file stores those quantised themselves."""
    values = levels.float()[nested.flatten().long()]
    return values * absmax.float().repeat_interleave(blocksize)[: values.numel()] + offset


def functional():
    """bitsandbytes.functional, or an error that names the package."""
    # While it is imported it warns of kernels for other uses that it does not find.
    quiet, level = logging.getLogger("bitsandbytes"), logging.getLogger("bitsandbytes").level
    quiet.setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional
    except ImportError:
        raise missing_package("bitsandbytes", "Computing with NF4 weights") from None
    finally:
        quiet.setLevel(level)
    return bitsandbytes.functional
