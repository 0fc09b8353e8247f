"""Weights in the block formats of GGML (GGUF files), back to numbers on the device they lie on.

A row is a run of blocks; a block is a fixed number of bytes that hold the same number of entries: a float16
scale, in some formats scales of sub-blocks, and each entry's bits, which lie apart in most. Every format here
does the arithmetic of ``gguf.quants.dequantize`` in its order, so float32 results are bit-equal to it. What
is rare (the other IQ types, TQ, MXFP4) is left to that library, on the CPU.

Letters: N blocks, E entries per block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError, missing_package

# The sixteen levels of IQ4_NL and IQ4_XS.
LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def dequantise(data: Tensor, kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [..., bytes per row] -> [..., entries per row], rounded once from float32 to ``dtype``.

    At its peak it holds the float32 result and one byte per entry or two; take a layer, or some rows, at a
    time. Raises CheckpointError for a type that cannot be read and for rows that are not whole blocks.
    """
    entries, size = block_size(kind)
    if data.dtype != torch.uint8 or data.dim() == 0 or data.shape[-1] % size:
        raise CheckpointError(
            f"{kind} takes bytes in blocks of {size} and was given {list(data.shape)} of {data.dtype}; "
            "the file does not fit its header: download it again."
        )
    blocks = data.reshape(-1, size)
    values = FORMATS[kind].read(blocks) if kind in FORMATS else _by_the_library(blocks, kind)
    return values.to(dtype).view(*data.shape[:-1], data.shape[-1] // size * entries)


@cache
def block_size(kind: str) -> tuple[int, int]:
    """Entries and bytes of one block of a GGML type; CheckpointError where the type cannot be read at all."""
    if kind in FORMATS:
        return BLOCK_TYPES[kind]
    library = _library(kind)
    try:
        row = library.GGMLQuantizationType[kind]
        entries, size = (int(number) for number in library.GGML_QUANT_SIZES[row])
        _by_the_library(torch.zeros(1, size, dtype=torch.uint8), kind)
    except (KeyError, NotImplementedError):
        raise CheckpointError(
            f"The GGUF type {kind} cannot be de-quantised here; take a file in Q8_0, Q6_K or one of "
            f"{', '.join(sorted(FORMATS))}."
        ) from None
    return entries, size


def _by_the_library(blocks: Tensor, kind: str) -> Tensor:
    library = _library(kind)
    values = library.quants.dequantize(blocks.cpu().numpy(), library.GGMLQuantizationType[kind])
    return torch.from_numpy(values).to(blocks.device)


def _library(kind: str):
    try:
        import gguf
    except ImportError:
        raise CheckpointError(str(missing_package("gguf", f"Reading GGUF weights of type {kind}"))) from None
    return gguf


def _q4_0(blocks: Tensor) -> Tensor:
    """scale, 32 x 4 bits: d (q - 8)"""
    return _signed(_unpack(blocks[:, 2:], 4, 16), 8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    """scale, minimum, 32 x 4 bits: d q + m"""
    return _unpack(blocks[:, 4:], 4, 16).float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: Tensor) -> Tensor:
    """scale, the fifth bits, 32 x 4 bits: d (q - 16)"""
    q = _unpack(blocks[:, 6:], 4, 16) | _unpack(blocks[:, 2:6], 1, 1) << 4
    return _signed(q, 16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    """scale, minimum, the fifth bits, 32 x 4 bits: d q + m"""
    q = _unpack(blocks[:, 8:], 4, 16) | _unpack(blocks[:, 4:8], 1, 1) << 4
    return q.float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    """scale, 32 signed bytes: d q"""
    return _signed_bytes(blocks[:, 2:]).mul_(_half(blocks, 0))


def _q2_k(blocks: Tensor) -> Tensor:
    """16 x (4 bits of scale, 4 of minimum), 256 x 2 bits, scale, minimum: (d s) q - (m t)"""
    factors, q = blocks[:, :16], _unpack(blocks[:, 16:80], 2, 32)
    scale, minimum = _half(blocks, 80) * (factors & 15).float(), _half(blocks, 82) * (factors >> 4).float()
    return _scaled(q.float(), scale, minimum)


def _q3_k(blocks: Tensor) -> Tensor:
    """256 third bits (set: no offset), 256 x 2 bits, 16 x 6 bits of scale, scale: (d (s - 32)) (q - 4)"""
    q = _unpack(blocks[:, 32:96], 2, 32) | _unpack(blocks[:, :32], 1, 32) << 2
    factors = _unpack(blocks[:, 96:104], 4, 8) | _unpack(blocks[:, 104:108], 2, 4) << 4
    return _scaled(_signed(q, 4), _half(blocks, 108) * _signed(factors, 32))


def _q4_k(blocks: Tensor) -> Tensor:
    """scale, minimum, 8 x 6 bits of both, 256 x 4 bits: (d s) q - (m t)"""
    return _scaled(_unpack(blocks[:, 16:], 4, 32).float(), *_scales_and_minima(blocks))


def _q5_k(blocks: Tensor) -> Tensor:
    """scale, minimum, 8 x 6 bits of both, 256 fifth bits, 256 x 4 bits: (d s) q - (m t)"""
    q = _unpack(blocks[:, 48:], 4, 32) | _unpack(blocks[:, 16:48], 1, 32) << 4
    return _scaled(q.float(), *_scales_and_minima(blocks))


def _q6_k(blocks: Tensor) -> Tensor:
    """256 x 4 bits, 256 x 2 bits above them, 16 signed bytes, scale: (d s) (q - 32)"""
    q = _unpack(blocks[:, :128], 4, 64) | _unpack(blocks[:, 128:192], 2, 32) << 4
    return _scaled(_signed(q, 32), _half(blocks, 208) * _signed_bytes(blocks[:, 192:208]))


def _iq4_nl(blocks: Tensor) -> Tensor:
    """scale, 32 x 4 bits that choose a level: d level(q)"""
    return _levels(_unpack(blocks[:, 2:], 4, 16)).mul_(_half(blocks, 0))


def _iq4_xs(blocks: Tensor) -> Tensor:
    """scale, 8 x 2 high and 4 low bits of scale, 256 x 4 bits: (d (s - 32)) level(q)"""
    factors = _unpack(blocks[:, 4:8], 4, 1) | _unpack(blocks[:, 2:4], 2, 1) << 4
    return _scaled(_levels(_unpack(blocks[:, 8:], 4, 16)), _half(blocks, 0) * _signed(factors, 32))


def _unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """[N, B] bytes -> [N, B * 8/bits]: of each run of ``width`` bytes first all lowest bits, then the next."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device).view(-1, 1)
    return (packed.unflatten(1, (-1, 1, width)) >> shifts).bitwise_and_((1 << bits) - 1).flatten(1)


def _half(blocks: Tensor, first: int) -> Tensor:
    """The float16 that begins at this byte of each block, as float32 [N, 1]."""
    return (
        blocks[:, first : first + 2].clone(memory_format=torch.contiguous_format).view(torch.float16).float()
    )


def _signed(q: Tensor, offset: int) -> Tensor:
    """q - offset, of values below 128."""
    return q.view(torch.int8).sub_(offset).float()


def _signed_bytes(q: Tensor) -> Tensor:
    return q.view(torch.int8).float()


def _levels(q: Tensor) -> Tensor:
    return torch.tensor(LEVELS, dtype=torch.float32, device=q.device)[q.int()]


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 8] each, of Q4_K and Q5_K: the first four lie whole in six bits, the others in 4 + 2."""
    low, high, mixed = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = torch.cat([low & 63, mixed & 15 | low >> 2 & 48], 1)
    minimum = torch.cat([high & 63, mixed >> 4 | high >> 2 & 48], 1)
    return _half(blocks, 0) * scale.float(), _half(blocks, 2) * minimum.float()


def _scaled(q: Tensor, scale: Tensor, minimum: Tensor | None = None) -> Tensor:
    """q [N, E] times scale [N, S], less minimum [N, S]: E/S entries share one. Works in place."""
    parts = q.unflatten(1, (scale.shape[1], -1)).mul_(scale[..., None])
    if minimum is not None:
        # The product is exact (11 + 6 + 5 bits at most), so that a fused multiply-add would give the same.
        parts.sub_(minimum[..., None])
    return q


class Format(NamedTuple):
    """One block type: its sizes, and the function from blocks [N, bytes] to float32 [N, entries]."""

    entries: int
    size: int  # bytes
    read: Callable[[Tensor], Tensor]


FORMATS = {
    "Q4_0": Format(32, 18, _q4_0),
    "Q4_1": Format(32, 20, _q4_1),
    "Q5_0": Format(32, 22, _q5_0),
    "Q5_1": Format(32, 24, _q5_1),
    "Q8_0": Format(32, 34, _q8_0),
    "Q2_K": Format(256, 84, _q2_k),
    "Q3_K": Format(256, 110, _q3_k),
    "Q4_K": Format(256, 144, _q4_k),
    "Q5_K": Format(256, 176, _q5_k),
    "Q6_K": Format(256, 210, _q6_k),
    "IQ4_NL": Format(32, 18, _iq4_nl),
    "IQ4_XS": Format(256, 136, _iq4_xs),
}
BLOCK_TYPES = {name: (entry.entries, entry.size) for name, entry in FORMATS.items()}
