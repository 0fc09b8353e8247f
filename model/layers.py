"""The transformer's layers: norms, projections per modality, gated attention, feed-forward.

Rows of a sequence are sorted by modality, so what differs per modality is a split into three runs, never
a permutation. Letters: N tokens, D hidden, H query heads, G key heads, E head entries.

Precision, as in the reference: norms, rotary, activation, gate and the residual stream are float32; what
enters and leaves a projection has the projections' dtype (bfloat16, or float32 to switch rounding off).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..kernels import (
    ACTIVATIONS,
    attention,
    gate_heads,
    modality_linear,
    range_attention,
    rms_norm,
    rotate,
)
from ..kernels.attention import Range
from .config import MODALITIES, BlockSpec, TransformerConfig

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [N, H, E], k and v [M, G, E] -> [N, H, E]


@dataclass(frozen=True, slots=True)
class Context:
    """What every block of one forward pass shares."""

    sizes: tuple[int, int, int]  # rows of video, audio, text
    rope: Tensor  # [N, 6B]
    ranges: Sequence[tuple[Range, Range]]  # what a local block's rows see
    attend: Attend = attention


class RMSNorm(nn.Module):
    """RMS norm with weights stored as deviations from one, in float32."""

    def __init__(self, size: int, *, per_modality: bool = False):
        super().__init__()
        self.per_modality = per_modality
        count = size * (MODALITIES if per_modality else 1)
        self.weight = nn.Parameter(torch.zeros(count, dtype=torch.float32), requires_grad=False)

    def forward(self, x: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        return rms_norm(x, self.weight, sizes if self.per_modality else None)


class PerModalityLinear(nn.Linear):
    """A projection whose weight stacks one matrix per modality: rows [video | audio | text].

    A host with its own ``Linear`` supplies its own class of this name, with the same ``forward``.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, dtype: torch.dtype | None = None
    ):
        super().__init__(in_features, out_features * MODALITIES, bias=bias, dtype=dtype)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """[N, in] -> [N, out]; ``sizes`` are the rows of each modality, in order."""
        return modality_linear(x, self.weight, sizes)


def projection(
    per_modality: bool, in_features: int, out_features: int, *, ops, dtype: torch.dtype
) -> nn.Module:
    """A bias-free projection from the injected layers, with stacked matrices where weights differ."""
    layer = getattr(ops, "PerModalityLinear", PerModalityLinear) if per_modality else ops.Linear
    return layer(in_features, out_features, bias=False, dtype=dtype)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary q and k and one sigmoid gate per head."""

    def __init__(self, config: TransformerConfig, spec: BlockSpec, *, ops=nn, dtype: torch.dtype):
        super().__init__()
        self.split, self.head_dim, self.dtype = config.qkvg_split, config.head_dim, dtype
        self.per_modality, self.is_local = spec.per_modality, spec.is_local
        self.pre_norm = RMSNorm(config.hidden_size, per_modality=spec.per_modality)
        self.linear_qkv = projection(
            spec.per_modality, config.hidden_size, sum(self.split), ops=ops, dtype=dtype
        )
        self.q_norm = RMSNorm(config.head_dim, per_modality=spec.per_modality)
        self.k_norm = RMSNorm(config.head_dim, per_modality=spec.per_modality)
        self.linear_proj = projection(
            spec.per_modality, self.split[0], config.hidden_size, ops=ops, dtype=dtype
        )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[N, D] float32 -> [N, D] in the projections' dtype."""
        sizes = (context.sizes,) if self.per_modality else ()
        fused = self.linear_qkv(self.pre_norm(x, context.sizes).to(self.dtype), *sizes)
        q, k, v, gate = fused.split(self.split, dim=-1)
        q, k, v = (rows.unflatten(-1, (-1, self.head_dim)) for rows in (q, k, v))
        q = rotate(self.q_norm(q, context.sizes), context.rope).to(self.dtype)
        k = rotate(self.k_norm(k, context.sizes), context.rope).to(self.dtype)
        if self.is_local:
            out = range_attention(q, k, v, context.ranges, context.attend)
        else:
            out = context.attend(q, k, v)
        return self.linear_proj(gate_heads(out, gate).flatten(1).to(self.dtype), *sizes)


class FeedForward(nn.Module):
    """Norm, up-projection, clamped activation, down-projection."""

    def __init__(self, config: TransformerConfig, spec: BlockSpec, *, ops=nn, dtype: torch.dtype):
        super().__init__()
        self.per_modality, self.dtype = spec.per_modality, dtype
        self.activation = ACTIVATIONS[spec.activation]
        width = spec.inner_size * (2 if spec.activation == "swiglu7" else 1)
        self.pre_norm = RMSNorm(config.hidden_size, per_modality=spec.per_modality)
        self.up_gate_proj = projection(spec.per_modality, config.hidden_size, width, ops=ops, dtype=dtype)
        self.down_proj = projection(
            spec.per_modality, spec.inner_size, config.hidden_size, ops=ops, dtype=dtype
        )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[N, D] float32 -> [N, D] in the projections' dtype."""
        sizes = (context.sizes,) if self.per_modality else ()
        up = self.up_gate_proj(self.pre_norm(x, context.sizes).to(self.dtype), *sizes)
        return self.down_proj(self.activation(up).to(self.dtype), *sizes)


class Block(nn.Module):
    """One pre-norm residual layer."""

    def __init__(self, config: TransformerConfig, spec: BlockSpec, *, ops=nn, dtype: torch.dtype):
        super().__init__()
        self.attention = Attention(config, spec, ops=ops, dtype=dtype)
        self.mlp = FeedForward(config, spec, ops=ops, dtype=dtype)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[N, D] float32 -> [N, D] float32: what a branch adds may be rounded, the sum is not."""
        x = x + self.attention(x, context)
        return x + self.mlp(x, context)
