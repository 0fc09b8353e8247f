"""How long the parts of a film compute: multiplications and bytes, counted, over a machine's rates.

Letters: N rows of a sequence, D hidden.
"""

from __future__ import annotations

from ..model.config import MODALITIES, BlockSpec, TransformerConfig
from .live_bytes import Rows, Stored
from .machine import Rates

CPU_RATE = 3e11  # operations of a text encoder on a host's CPU
# performance.md: bytes that norms, rotary, activations and gates move, a token and layer, as one kernel each and not.
ELEMENTWISE_BYTES = {True: 3e5, False: 2.1e6}
SHARE_ROWS = 96  # rows that a share of the feed-forward costs more: products of few rows, and their start
TURBO_WORK, WAN_WORK, WAN_ENCODE_WORK = 1.33e7, 3.2e7, 1.2e6  # operations a pixel and latent frame
SOUND_WORK = 1.6e10  # operations an audio latent


def block_seconds(
    config: TransformerConfig,
    spec: BlockSpec,
    rows: Rows,
    stored: Stored,
    itemsize: int,
    rates: Rates,
    mlp_rows: int | None = None,
    fused: bool = True,
) -> float:
    """Of one block for one sequence: products, attention, what moves memory, and numbers made of stored ones."""
    n, d = rows.all, config.hidden_size
    queries, width = config.qkvg_split[0], sum(config.qkvg_split)
    up = spec.inner_size * (2 if spec.activation == "swiglu7" else 1)
    attention, mlp = d * width + queries * d, d * up + spec.inner_size * d
    shares = 1 if mlp_rows is None else -(-n // mlp_rows)
    waste = SHARE_ROWS * (shares - 1)
    products = 2 * (attention * n + mlp * (n + waste)) / product_rate(stored, itemsize, rates)
    pairs = local_pairs(rows, config.window) if spec.is_local else n * n
    attended = 4 * pairs * queries / (rates.attention if itemsize == 2 else rates.float32)
    moved = ELEMENTWISE_BYTES[fused] * (d / 5120) * n / rates.memory
    copies = MODALITIES if spec.per_modality else 1
    decoded = copies * (attention + mlp * shares) * {"fp8": 5, "int8_plain": 5, "decoded": 13}.get(stored, 0)
    return products + attended + moved + decoded / rates.memory


def product_rate(stored: Stored, itemsize: int, rates: Rates) -> float:
    """Operations per second of the projections."""
    if itemsize == 4:
        return rates.float32
    special = {"fp8_fast": rates.fp8, "int8": rates.int8}.get(stored)
    return special or rates.bf16


def local_pairs(rows: Rows, window: int) -> int:
    """Queries times the keys each sees in a local layer."""
    frames, rest = rows.video // rows.frame, rows.audio + rows.text
    seen = sum(min(f + window, frames - 1) - max(f - window, 0) + 1 for f in range(frames))
    return seen * rows.frame**2 + rows.video * rest + rest * rows.all
