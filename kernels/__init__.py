"""Operations of the network: each a plain definition, and faster ways to run it where there are any."""

from .activation import ACTIVATIONS, activate, gelu7, swiglu7
from .attention import (
    AttentionBy,
    attention,
    attention_over_ranges,
    range_attention,
    range_log_sum_exp,
)
from .gate import gate_heads, gate_rows
from .gated_linear import feed_forward, is_fused
from .norm import add_norm, norm_rows, rms_norm
from .norm_rope import norm_rope
from .quantised import modality_linear
from .rotary import rotate

__all__ = [
    "ACTIVATIONS",
    "AttentionBy",
    "activate",
    "add_norm",
    "attention",
    "attention_over_ranges",
    "feed_forward",
    "gate_heads",
    "gate_rows",
    "gelu7",
    "is_fused",
    "modality_linear",
    "norm_rope",
    "norm_rows",
    "range_attention",
    "range_log_sum_exp",
    "rms_norm",
    "rotate",
    "swiglu7",
]
