"""Operations of the network: each a plain definition, later with faster ways to run it."""

from .activation import ACTIVATIONS, gelu7, swiglu7
from .attention import attention, gate_heads, range_attention, range_log_sum_exp
from .norm import rms_norm
from .quantised import modality_linear
from .rotary import rotate

__all__ = [
    "ACTIVATIONS",
    "attention",
    "gate_heads",
    "gelu7",
    "modality_linear",
    "range_attention",
    "range_log_sum_exp",
    "rms_norm",
    "rotate",
    "swiglu7",
]
