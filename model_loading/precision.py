"""How weights are stored and multiplied, one frozen row per policy.

Whatever the policy, the adapter, all norms, the final heads and the rotary frequencies stay float32: the
network builds those parameters in float32, and the builder gives every parameter the dtype it was built in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import CheckpointError


@dataclass(frozen=True, slots=True)
class PrecisionPolicy:
    """The dtype of the large projections and of what enters and leaves them."""

    name: str
    dtype: torch.dtype


PRECISIONS = {
    policy.name: policy
    for policy in (
        PrecisionPolicy("bf16", torch.bfloat16),  # the reference's
        PrecisionPolicy("float32", torch.float32),  # no rounding anywhere; for tests and comparison
    )
}


def precision(name: str) -> PrecisionPolicy:
    """The policy of that name."""
    if name not in PRECISIONS:
        raise CheckpointError(f"There is no precision '{name}'; there are {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]
