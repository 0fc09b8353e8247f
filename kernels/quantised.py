"""Matrix products with weights that stay as they are stored: FP8, INT8 (plain and rotated), NF4, GGUF, the host's own.

The definition of every product is ``x @ dequantise(weight).T``. The formats below reach it in two ways. Weights
only: the stored numbers are exact in bfloat16 (FP8 has 4 significant bits, INT8 has 8), so they are multiplied as
they are and the scale, a number per tensor or per row, is applied to the result. With activations: the rows of x
are quantised too, which is what fast matrix units multiply; INT8 does so behind a Hadamard rotation only, because
outlier channels would take its range.

comfy-kitchen quantises, rotates and multiplies 8-bit numbers; bitsandbytes packs and unpacks NF4. Letters: N rows of
x, K inputs, M outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import missing_package
from . import gguf_blocks, nf4
from .pitch import fitting

logger = logging.getLogger(__name__)

FP8 = torch.float8_e4m3fn
FP8_LIMIT = 448.0
FP8_CAPABILITY = (8, 9)
FP8_ALIGNMENT = 16  # torch.scaled_mm on CUDA asks for it in K and M
GROUPS = (256, 64, 16, 4)  # sizes of a regular Hadamard matrix; ComfyUI's files use the first
# What is quantised beside the weight: nothing; for rotated INT8 the activations; for FP8 them as well.
Products = Literal["weights", "stored", "fast"]
GGUF = "gguf_"  # before a block type's name
PADDED = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")  # formats whose rows may have zeros behind them


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """A weight [M, K] in its stored form. ``scales`` have ComfyUI's names, such as "weight_scale"."""

    format: str
    data: Tensor  # may be packed, or of FP8 and INT8 padded along K with zeros
    shape: tuple[int, int]
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    # "convrot_groupsize", "blocksize" and the like
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def group(self) -> int:
        """Size of the groups of inputs that a Hadamard matrix rotates; 0 where none does."""
        return int(self.settings.get("convrot_groupsize", 256)) if self.settings.get("convrot") else 0

    @property
    def scale_count(self) -> int:
        """Numbers in "weight_scale": one, one a row, or none where a file has plain casts."""
        return self.scales["weight_scale"].numel() if "weight_scale" in self.scales else 0


def dequantise(weight: QuantisedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """[M, K] as numbers: computed in float32, rounded once."""
    return format_of(weight.format).dequantise(weight).to(dtype)


def linear(x: Tensor, weight: QuantisedWeight | Tensor, products: Products = "stored") -> Tensor:
    """x [..., K] -> [..., M] in x's dtype."""
    if not isinstance(weight, QuantisedWeight):
        return F.linear(x, weight)
    rows = x.reshape(-1, x.shape[-1])
    return format_of(weight.format).linear(rows, weight, products).reshape(*x.shape[:-1], weight.shape[0])


def modality_linear(
    x: Tensor, weight: QuantisedWeight | Tensor, sizes: Sequence[int], products: Products = "stored"
) -> Tensor:
    """x [N, K] of modalities in order, ``sizes`` their rows; ``weight`` stacks one [M, K] for each -> [N, M]."""
    if isinstance(weight, QuantisedWeight) and not can_cut_rows(weight):
        weight = dequantise(weight, x.dtype)
    rows = weight.shape[0] // len(sizes)
    parts = (row_range(weight, i * rows, (i + 1) * rows) for i in range(len(sizes)))
    runs = zip(x.split(list(sizes)), parts, strict=True)
    return torch.cat([linear(run, part, products) for run, part in runs])


def row_range(weight: QuantisedWeight | Tensor, start: int, stop: int) -> QuantisedWeight | Tensor:
    """Rows [start, stop) of a weight, taken from its stored numbers and scales."""
    if not isinstance(weight, QuantisedWeight):
        return weight[start:stop]
    return format_of(weight.format).rows(weight, start, stop)


def can_cut_rows(weight: QuantisedWeight) -> bool:
    """Whether ``row_range`` takes stored numbers; otherwise it gives numbers that were de-quantised."""
    return format_of(weight.format).rows is not _dequantised_rows


def stored_inputs(weight: QuantisedWeight) -> int:
    """K and the zeros stored behind it, for FP8 and INT8; K for what is packed."""
    return weight.data.shape[1] if weight.format in PADDED else weight.shape[1]


def format_of(name: str) -> Format:
    """The row of ``FORMATS``; every block type of GGUF, "gguf_Q6_K" and the like, is one format."""
    return FORMATS[GGUF if name.startswith(GGUF) else name]


def quantise_fp8(weight: Tensor, *, by_row: bool = False) -> QuantisedWeight:
    """[M, K] -> FP8 e4m3 with one scale per tensor or per row: amax / 448."""
    largest = weight.float().abs().amax(1, keepdim=True) if by_row else weight.float().abs().amax()
    return fp8_with_scale(weight, fp8_scale(largest))


def fp8_scale(largest: Tensor) -> Tensor:
    """The scale at which the largest number becomes 448; 1 for zeros."""
    return torch.where(largest > 0, largest / FP8_LIMIT, torch.ones_like(largest)).float()


def fp8_with_scale(weight: Tensor, scale: Tensor) -> QuantisedWeight:
    """[M, K] -> FP8 e4m3 with the scale given, [] or [M, 1]."""
    data = (weight.float() / scale).clamp_(-FP8_LIMIT, FP8_LIMIT).to(FP8)
    return QuantisedWeight("float8_e4m3fn", data, tuple(weight.shape), {"weight_scale": scale})


def rotation_group(inputs: int) -> int:
    """The group size for K inputs: 256, or less where the weight is smaller than a group."""
    return next((size for size in GROUPS if size <= inputs), GROUPS[-1])


def quantise_int8(weight: Tensor, *, rotate: bool = True) -> QuantisedWeight:
    """[M, K] -> INT8 with a scale per row, rotated in groups of inputs; K is padded with zeros to whole groups."""
    shape, settings = tuple(weight.shape), {}
    weight = weight.float()
    if rotate:
        group = rotation_group(shape[1])
        weight = F.pad(weight, (0, -shape[1] % group))
        settings = {"convrot": True, "convrot_groupsize": group}
        data, scale = kitchen_ops().quantize_int8_convrot_weight(weight, group)
    else:
        data, scale = kitchen_ops().quantize_int8_rowwise(weight)
    return QuantisedWeight("int8_tensorwise", data, shape, {"weight_scale": scale}, settings)


def quantise_nf4(weight: Tensor) -> QuantisedWeight:
    """[M, K] -> bitsandbytes' NF4 in blocks of 64 along the flattened weight."""
    data, scales, settings = nf4.pack(weight)
    return QuantisedWeight("nf4", data, tuple(weight.shape), scales, settings)


def fp8_activations(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(FP8 rows, their scale): one number for all of x, by its largest entry unless ``scale`` is given.

    The scale is the reciprocal of a number of x's dtype, because the quantiser multiplies by it in that dtype.
    """
    if scale is None:
        largest = x.abs().amax().float()
        inverse = torch.where(largest > 0, FP8_LIMIT / largest, torch.ones_like(largest)).to(x.dtype)
        scale = inverse.float().reciprocal()
    return kitchen().quantize_per_tensor_fp8(x, scale, FP8), scale.float()


def fp8_product(x: Tensor, scale: Tensor, weight: QuantisedWeight, dtype: torch.dtype) -> Tensor:
    """FP8 rows x [N, K], or wider with zeros after K, with one scale -> [N, M]."""
    # Zeros where the matrix units ask for whole multiples; they change nothing.
    whole = max(x.shape[1] + -x.shape[1] % FP8_ALIGNMENT, weight.data.shape[1])
    wide = whole - weight.data.shape[1]
    tall = -weight.shape[0] % FP8_ALIGNMENT
    stored = weight.data
    if whole > x.shape[1]:
        x = F.pad(x.view(torch.uint8), (0, whole - x.shape[1])).view(FP8)
    if wide or tall:
        stored = F.pad(stored.view(torch.uint8), (0, wide, 0, tall)).view(stored.dtype)
    # One scale for the weight goes into the product, before its only rounding. One per row is applied to the result.
    is_single = weight.scale_count == 1
    if is_single:
        factor = weight.scales["weight_scale"].float().reshape(())
    else:
        factor = torch.ones((), dtype=torch.float32, device=x.device)
    out = kitchen().scaled_mm_v2.scaled_mm_v2(x, stored.t(), scale, factor, out_dtype=torch.bfloat16)
    out = out[:, : weight.shape[0]].to(dtype)
    return out if is_single else _scale_result(out, weight)


def kitchen():
    """The package comfy_kitchen, or an error that names it."""
    try:
        import comfy_kitchen
        import comfy_kitchen.tensor
    except ImportError:
        raise missing_package("comfy-kitchen", "Computing with 8-bit weights") from None
    return comfy_kitchen


def kitchen_ops():
    """Its operations as torch knows them."""
    kitchen()
    return torch.ops.comfy_kitchen


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store a weight."""

    dequantise: Callable[[QuantisedWeight], Tensor]
    linear: Callable[[Tensor, QuantisedWeight, Products], Tensor]
    rows: Callable[[QuantisedWeight, int, int], QuantisedWeight | Tensor]


def _scaled(weight: QuantisedWeight) -> Tensor:
    values = weight.data[:, : weight.shape[1]].float()
    return values if "weight_scale" not in weight.scales else values * _column(weight)


def _column(weight: QuantisedWeight) -> Tensor:
    """The weight's scale as [] or [M, 1] in float32."""
    scale = weight.scales["weight_scale"].float()
    return scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(())


def _scale_result(out: Tensor, weight: QuantisedWeight) -> Tensor:
    if "weight_scale" not in weight.scales:
        return out
    # In place, with the scale as a vector in float32: computed in float32 and rounded once, and on CUDA without
    # a float32 copy of what may be 65,000 rows of 27,304 numbers.
    return out.mul_(weight.scales["weight_scale"].float().reshape(-1))


def _scaled_product(x: Tensor, weight: QuantisedWeight) -> Tensor:
    """x [N, K], or with zeros after K, by the stored numbers in x's dtype, and the scale applied to the result."""
    numbers = weight.data.to(x.dtype)
    return _scale_result(F.linear(fitting(x, numbers.shape[1]), numbers), weight)


def _fp8_linear(x: Tensor, weight: QuantisedWeight, products: Products) -> Tensor:
    if products != "fast" or weight.data.dtype != FP8 or not _has_fp8_units(x.device):
        return _scaled_product(x, weight)
    data, scale = fp8_activations(x, weight.scales.get("input_scale"))
    return fp8_product(data, scale, weight, x.dtype)


@cache
def _has_fp8_units(device: torch.device) -> bool:
    """Says once where a card has none: its weights are then multiplied in the rows' dtype."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else FP8_CAPABILITY
    if capability < FP8_CAPABILITY:
        logger.warning(
            "%s has compute capability %d.%d and multiplies FP8 from 8.9 on; only the weights are FP8.",
            torch.cuda.get_device_name(device),
            *capability,
        )
    return capability >= FP8_CAPABILITY


def _dequantise_int8(weight: QuantisedWeight) -> Tensor:
    if not weight.group:
        return _scaled(weight)
    scale = _column(weight).expand(weight.data.shape[0], 1)
    numbers = kitchen_ops().dequantize_int8_convrot_weight(weight.data, scale.contiguous(), weight.group)
    return numbers[:, : weight.shape[1]]


def _int8_linear(x: Tensor, weight: QuantisedWeight, products: Products) -> Tensor:
    if not weight.group:
        return _scaled_product(x, weight)
    if products == "weights":
        return _weights_only(fitting(x, weight.shape[1]), weight, products)
    x = fitting(x, weight.data.shape[1])  # which may come with zeros after K already
    return kitchen().int8_linear(
        x, weight.data, weight.scales["weight_scale"], None, x.dtype, True, weight.group
    )


def _stored_rows(weight: QuantisedWeight, start: int, stop: int) -> QuantisedWeight:
    count = weight.shape[0]
    # A scale per row is cut with its rows; "input_scale" and one for all rows are not.
    scales = {
        name: scale[start:stop] if name == "weight_scale" and scale.numel() == count > 1 else scale
        for name, scale in weight.scales.items()
    }
    shape = (stop - start, weight.shape[1])
    return QuantisedWeight(weight.format, weight.data[start:stop], shape, scales, weight.settings)


def _weights_only(x: Tensor, weight: QuantisedWeight, _: Products) -> Tensor:
    return F.linear(x, dequantise(weight, x.dtype))


def _dequantised_rows(weight: QuantisedWeight, start: int, stop: int) -> Tensor:
    return dequantise(weight)[start:stop]


def _dequantise_gguf(weight: QuantisedWeight) -> Tensor:
    return gguf_blocks.dequantise(weight.data, weight.format.removeprefix(GGUF))


def _dequantise_by_kitchen(weight: QuantisedWeight) -> Tensor:
    """The formats that ComfyUI reads and we only pass on, each through its own layout."""
    layout, scales, settings = BY_BLOCK[weight.format]
    layout = getattr(kitchen().tensor, layout)
    known = {name: weight.scales[stored].view(dtype) if dtype else weight.scales[stored]
             for name, (stored, dtype) in scales.items() if stored in weight.scales}  # fmt: skip
    known |= {name: weight.settings.get(name, default) for name, default in settings.items()}
    params = layout.Params(**known, orig_dtype=torch.float32, orig_shape=weight.shape)
    numbers = layout.dequantize(weight.data, params)[: weight.shape[0], : weight.shape[1]].float()
    smoothing = weight.scales.get("pre_quant_scale")  # multiplies what enters the layer
    return numbers if smoothing is None else numbers * smoothing.float().reshape(1, -1)


E8M0 = getattr(torch, "float8_e8m0fnu", torch.uint8)
# format -> (layout, {its scale: (name in a file, dtype to read it as)}, {its setting: default})
BY_BLOCK = {
    "mxfp8": ("TensorCoreMXFP8Layout", {"scale": ("weight_scale", E8M0)}, {}),
    "nvfp4": (
        "TensorCoreNVFP4Layout",
        {"scale": ("weight_scale_2", None), "block_scale": ("weight_scale", FP8)},
        {},
    ),
    "convrot_w4a4": (
        "TensorCoreConvRotW4A4Layout",
        {"scale": ("weight_scale", None)},
        {"convrot_groupsize": 256, "quant_group_size": 64, "linear_dtype": "int4"},
    ),
    "asym_w4a8_int8": (
        "AsymW4A8Int8Layout",
        {
            "scale": ("weight_s_rel", FP8),
            "s_channel": ("weight_s_channel", None),
            "codebook": ("weight_codebook", None),
        },
        {"group_size": 16, "convrot_groupsize": 256},
    ),
}
_FP8 = Format(_scaled, _fp8_linear, _stored_rows)
FORMATS = {
    "float8_e4m3fn": _FP8,
    "float8_e5m2": _FP8,
    "int8_tensorwise": Format(_dequantise_int8, _int8_linear, _stored_rows),
    "nf4": Format(nf4.unpack, _weights_only, _dequantised_rows),
    GGUF: Format(_dequantise_gguf, _weights_only, _stored_rows),
    **dict.fromkeys(BY_BLOCK, Format(_dequantise_by_kitchen, _weights_only, _dequantised_rows)),
}
