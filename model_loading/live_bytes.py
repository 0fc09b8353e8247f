"""Predicts what each stage holds on the device beside its weights: closed formulas over the code as it is.

Every formula lists the moments of a computation at which much is alive, each as bytes for a row (a token, a
cell of a latent) times rows; the largest counts. tests/model_loading/test_planner.py compares them with counts of
the code itself on tensors without values, so whoever changes what the code keeps changes a line here.

Letters: N rows, D hidden, Dq and Dk all heads' entries of queries and of keys, F the fused projection's outputs,
I and U outputs of the activation and of what goes into it, R = 4D bytes of the float32 residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..kernels.quantised import FP8_ALIGNMENT, GROUPS
from ..model.audio_vae import OobleckConfig
from ..model.config import MODALITIES, BlockSpec, TransformerConfig
from ..model.text_encoder import T5GemmaConfig

FLOAT = 4  # bytes
SMALL = 1 << 20  # vectors, tables and what the allocator rounds up
# How a projection's weight is kept; "decoded" stands for every format whose numbers are made before each product.
Stored = Literal["plain", "fp8", "fp8_fast", "int8", "int8_plain", "decoded"]

# What a run of the sampler keeps beside a pass of the network, in copies of the latents in float32: the start, the
# state, its known part and mask, the last predictions and, with guidance, the first branch's velocity.
SAMPLER_COPIES = {"distilled": 5.3, "base": 8.3, "sr": 7.6, "sr guided": 8.6}

# Of the Turbo decoder in bfloat16: where a piece may have so many bytes for each pixel of the picture, at most so
# many bytes for each pixel live, (film of one window, longer film). Below the last row nothing shrinks any more.
TURBO_BYTES = (
    (2304, 10540, 15140),
    (2200, 10540, 12600),
    (2060, 10540, 11880),
    (1910, 10540, 11140),
    (1540, 10540, 10680),
    (1120, 7840, 10680),
    (780, 7260, 8500),
    (510, 4660, 6680),
    (380, 4180, 5620),
    (255, 3660, 4360),
    (190, 2960, 3720),
    (127, 2820, 3300),
    (96, 2640, 3120),
    (0, 2640, 2970),
)
WAN_DECODED, WAN_DECODED_FIRST, WAN_ENCODED = 7700, 4520, 1392  # bytes a pixel in bfloat16


@dataclass(frozen=True, slots=True)
class Rows:
    """A sequence by modality: rows of video, audio and text, and of one latent frame of video."""

    video: int
    audio: int
    text: int
    frame: int

    @property
    def all(self) -> int:
        return self.video + self.audio + self.text

    def seen(self, window: int) -> int:
        """The most rows that a local layer gathers for one frame."""
        frames = self.video // self.frame
        return min(frames, 2 * window + 1) * self.frame + self.audio + self.text


def projection_bytes(stored: Stored, itemsize: int, rows: int, inputs: int, outputs: int, parts: int) -> int:
    """What a projection makes, its result included; ``parts`` matrices for as many runs of rows."""
    one = itemsize * rows * outputs
    result = one * (2 if parts > 1 else 1)  # the runs, and joined
    matrix = inputs * outputs
    if stored in ("fp8", "int8_plain"):  # the matrix in bfloat16
        return max(result, 2 * matrix + one)
    if stored == "fp8_fast":
        wide, tall = (-(-size // FP8_ALIGNMENT) * FP8_ALIGNMENT for size in (inputs, outputs))
        padded = wide * tall if (wide, tall) != (inputs, outputs) else 0
        doubled = inputs if wide != inputs else 0
        return max(
            itemsize * rows * inputs,
            rows * (wide + doubled),
            rows * (wide + doubled) + padded + itemsize * rows * tall,
            result,
        )
    if stored == "int8":
        wide = -(-inputs // GROUPS[0]) * GROUPS[0]
        rotated, quantised = itemsize * rows * wide, rows * wide
        padded = rotated if wide != inputs else 0
        return max(padded + rotated + quantised, padded + quantised + one, result)
    if stored == "decoded":  # numbers in float32, then in bfloat16, of all parts together
        return max(6 * matrix * parts, 2 * matrix * parts + result)
    return result


def attention_bytes(
    config: TransformerConfig, spec: BlockSpec, rows: Rows, stored: Stored, itemsize: int, fused: bool = True
) -> dict[str, int]:
    """Moments of a block's attention, beside the residual stream that comes in.

    ``fused``: each operation runs as one kernel, which keeps its results only; else as its definition.
    """
    n, b, d = rows.all, itemsize, config.hidden_size
    queries, keys, _, heads = config.qkvg_split
    width, parts, r = sum(config.qkvg_split), MODALITIES if spec.per_modality else 1, FLOAT * d
    projected, kept = n * b * width, n * b * (width + queries + keys)
    out = n * b * queries
    near = 2 * b * keys * rows.seen(config.window) + rows.frame * (b * queries + FLOAT * heads)
    moments = {
        "norm": n * b * d,
        "qkv": n * b * d + projection_bytes(stored, b, n, d, width, parts),
        "attention": kept + out + (near if spec.is_local else n * FLOAT * heads),
        "gate": kept + 2 * out,
        "output": kept + 2 * out + projection_bytes(stored, b, n, queries, d, parts),
    }
    if fused:
        return moments
    more = 1 if spec.per_modality else 0  # the norms' runs before they are joined
    cast = 0 if b == FLOAT else FLOAT  # a float32 copy of what is bfloat16
    rotated = 6 * config.bands / config.head_dim
    return moments | {
        "norm": n * r * (2 + more),
        "query norm": projected + n * queries * (cast + FLOAT * (2 + more)),
        "rotation": projected + round(n * FLOAT * queries * (2 + rotated)),
        "gate": kept + out + n * (queries * (cast + FLOAT) + 2 * FLOAT * heads),
    }


def mlp_bytes(
    config: TransformerConfig,
    spec: BlockSpec,
    rows: int,
    stored: Stored,
    itemsize: int,
    mlp_rows: int | None = None,
    fused: bool = True,
) -> dict[str, int]:
    """Moments of a block's feed-forward layer, beside the residual stream that comes in and its sum."""
    d, inner, b, parts = config.hidden_size, spec.inner_size, itemsize, MODALITIES if spec.per_modality else 1
    is_gated = spec.activation == "swiglu7"
    up, r, more = inner * (2 if is_gated else 1), FLOAT * d, 1 if spec.per_modality else 0
    n, outside = rows, rows * b * d  # the rows' norm, or with shares the result
    if mlp_rows is not None and mlp_rows < rows:
        count = -(-rows // mlp_rows)
        n = -(-rows // count) + (parts if parts > 1 else 0)  # a row of every modality at least
        outside += n * (b * d + (r if parts > 1 else 0))
    moments = {
        "mlp up": outside + projection_bytes(stored, b, n, d, up, parts),
        "activation": outside + n * b * (up + inner),
        "mlp down": outside + n * b * inner + projection_bytes(stored, b, n, inner, d, parts),
        "sum": 2 * rows * b * d + rows * r,
    }
    if fused:
        return moments
    # Four arrays of the activation's width live at once; GELU's first takes the place of its float32 copy.
    cast = 0 if b == FLOAT else FLOAT * up
    activation = cast + 4 * FLOAT * inner if is_gated else 3 * FLOAT * inner
    return moments | {
        "mlp norm": rows * b * d + n * r * (2 + more),
        "activation": outside + n * (b * up + activation),
    }


def block_bytes(
    config: TransformerConfig,
    spec: BlockSpec,
    rows: Rows,
    stored: Stored,
    itemsize: int,
    mlp_rows: int | None = None,
    together: int = 1,
    fused: bool = True,
) -> dict[str, int]:
    """Moments of one block inside a pass, with the residual streams and rotary table that live around it.

    ``together`` sequences go through each block in turn. The embedded rows live as long as the pass, beside
    what comes into the block; while the feed-forward runs there is also what comes out of attention.
    """
    n = rows.all
    stream = n * FLOAT * config.hidden_size
    around = 2 * together * stream + n * FLOAT * 6 * config.bands
    moments = attention_bytes(config, spec, rows, stored, itemsize, fused)
    later = mlp_bytes(config, spec, n, stored, itemsize, mlp_rows, fused)
    moments |= {name: stream + nbytes for name, nbytes in later.items()}
    return {name: around + nbytes for name, nbytes in moments.items()}


def network_bytes(
    config: TransformerConfig,
    rows: Rows,
    stored: Stored,
    itemsize: int,
    mlp_rows: int | None = None,
    together: int = 1,
    fused: bool = True,
) -> int:
    """What one pass of the transformer holds at its peak beside weights, latents and text."""
    odd = (
        rows.all * itemsize * FP8_ALIGNMENT if stored == "fp8_fast" else 0
    )  # columns behind a view of a product
    return (
        SMALL
        + odd
        + max(
            nbytes
            for spec in set(config.blocks)
            for nbytes in block_bytes(
                config, spec, rows, stored, itemsize, mlp_rows, together, fused
            ).values()
        )
    )


def text_bytes(config: T5GemmaConfig, tokens: int, stored: Stored, itemsize: int) -> int:
    """What encoding a prompt holds beside weights."""
    d, inner = config.hidden_size, config.intermediate_size
    kept = (
        tokens * itemsize * (4 * d + config.head_dim)
    )  # stream, its sum with attention, norm, result; rotary
    product = projection_bytes(stored, itemsize, tokens, d, inner, 1)
    return SMALL + kept + max(tokens * itemsize * 3 * inner, tokens * itemsize * 2 * inner + product)


def turbo_bytes(
    pixels: int, frames: int, window: int, piece_bytes: int | None, itemsize: int, ahead: int = 1
) -> int:
    """What decoding ``frames`` latent frames of a picture of so many pixels holds.

    ``ahead`` windows of pixels wait on the device while the next is decoded: one on CUDA. Their conversion, four
    frames at a time, comes when a window is done and takes less.
    """
    scale = itemsize / 2
    room = float("inf") if piece_bytes is None else piece_bytes / pixels / scale
    row = next(row for row in TURBO_BYTES if room >= row[0])
    is_alone = frames <= window
    waiting = 0 if is_alone else ahead * itemsize * 3 * 4 * (window + 2)
    return SMALL + round(pixels * (scale * row[1 if is_alone else 2] + waiting))


def wan_decode_bytes(pixels: int, frames: int, itemsize: int, ahead: int = 1) -> int:
    """The same for the Wan decoder, which goes on a latent frame at a time."""
    each = WAN_DECODED if frames > 1 else WAN_DECODED_FIRST
    return SMALL + round(pixels * (each * itemsize / 2 + ahead * itemsize * 12))


def wan_encode_bytes(pixels: int, itemsize: int) -> int:
    """What encoding one picture holds."""
    return SMALL + round(pixels * WAN_ENCODED * itemsize / 2)


def sound_bytes(config: OobleckConfig, latents: int) -> int:
    """What decoding sound holds: four and a half copies of the last width at full rate, or one large weight."""
    rate = config.samples_per_latent
    widest = config.decoder.widths[-1] * rate * FLOAT
    weights = max(
        2 * stride * wide * narrow * FLOAT
        for wide, narrow, stride in zip(
            config.decoder.widths, config.decoder.widths[1:], config.decoder.strides, strict=False
        )
    )
    return SMALL + max(round(4.5 * widest * latents), round(weights * 1.02))
