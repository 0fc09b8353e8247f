"""Operations of the network: each a plain definition, and faster ways to run it where there are any."""

from .activation import ACTIVATIONS, activate, gelu7, swiglu7
from .attention import (
    AttentionBy,
    attention,
    attention_over_ranges,
    range_attention,
    range_log_sum_exp,
)
from .gate import gate_heads, gate_quantised, gate_rows, quantised_gate
from .gated_linear import feed_forward, is_fused, row_form
from .norm import (
    add_norm,
    add_norm_quantised,
    norm_quantised,
    norm_rows,
    quantised_add_norm,
    quantised_norm,
    rms_norm,
)
from .norm_rope import norm_rope
from .quantised import modality_linear
from .quantised_rows import QuantisedRows, RowForm
from .rotary import rotate

__all__ = [
    "ACTIVATIONS",
    "AttentionBy",
    "QuantisedRows",
    "RowForm",
    "activate",
    "add_norm",
    "add_norm_quantised",
    "attention",
    "attention_over_ranges",
    "feed_forward",
    "gate_heads",
    "gate_quantised",
    "gate_rows",
    "gelu7",
    "is_fused",
    "modality_linear",
    "norm_quantised",
    "norm_rope",
    "norm_rows",
    "quantised_add_norm",
    "quantised_gate",
    "quantised_norm",
    "range_attention",
    "range_log_sum_exp",
    "rms_norm",
    "rotate",
    "row_form",
    "swiglu7",
]
