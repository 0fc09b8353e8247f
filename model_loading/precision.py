"""How weights are stored and multiplied, one frozen row per policy.

Whatever the policy, the adapter, all norms, the final heads and the rotary frequencies stay float32, and of the text
encoder everything but its projections stays in the policy's dtype: only the large projections are ever quantised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..kernels.quantised import (
    Products,
    QuantisedWeight,
    quantise_fp8,
    quantise_int8,
    quantise_nf4,
)


@dataclass(frozen=True, slots=True)
class PrecisionPolicy:
    """What the large projections are kept as, and what is multiplied."""

    name: str
    dtype: torch.dtype  # of what enters and leaves a projection, and of weights that are not quantised
    keeps: Callable[[QuantisedWeight], bool] | None = None  # stored weights that stay as they are
    quantise: Callable[[Tensor], QuantisedWeight] | None = None  # what becomes of all others
    products: Products = "stored"


def _is_fp8(weight: QuantisedWeight) -> bool:
    return weight.format == "float8_e4m3fn"


PRECISIONS = {
    policy.name: policy
    for policy in (
        PrecisionPolicy("auto", torch.bfloat16, keeps=lambda weight: True),  # as the file has them
        PrecisionPolicy("bf16", torch.bfloat16),  # the reference's
        PrecisionPolicy("fp8", torch.bfloat16, _is_fp8, quantise_fp8, "weights"),
        PrecisionPolicy(
            "fp8_rows",
            torch.bfloat16,
            lambda weight: _is_fp8(weight) and weight.scale_count > 1,
            lambda weight: quantise_fp8(weight, by_row=True),
            "weights",
        ),
        PrecisionPolicy("fp8_fast", torch.bfloat16, _is_fp8, quantise_fp8, "fast"),
        PrecisionPolicy("int8", torch.bfloat16, lambda weight: weight.group > 0, quantise_int8),
        PrecisionPolicy("nf4", torch.bfloat16, lambda weight: weight.format == "nf4", quantise_nf4),
        PrecisionPolicy(
            "int8_weights",
            torch.bfloat16,
            lambda weight: weight.format == "int8_tensorwise" and not weight.group,
            lambda weight: quantise_int8(weight, rotate=False),
            "weights",
        ),
        PrecisionPolicy("float32", torch.float32),  # no rounding anywhere; for tests and comparison
    )
}


def precision(name: str) -> PrecisionPolicy:
    """The policy of that name."""
    if name not in PRECISIONS:
        raise CheckpointError(f"There is no precision '{name}'; there are {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]
