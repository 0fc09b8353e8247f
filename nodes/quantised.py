"""Quantised weights in the host: its tensors around our stored forms, and layers that multiply with them.

ComfyUI moves, patches and saves a quantised weight as a comfy-kitchen ``QuantizedTensor``, whose layout knows how to
make numbers of it. FP8, INT8 and the 4-bit formats of ComfyUI have layouts there; NF4, GGUF blocks and INT8 padded to
whole groups get theirs here, so that all of it goes the host's own ways: LoRA, offloading, dynamic VRAM.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

import comfy.model_management
import comfy.ops
import comfy.quant_ops
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..kernels.gated_linear import rows_linear
from ..kernels.quantised import (
    BY_BLOCK,
    GGUF,
    QuantisedWeight,
    dequantise,
    linear,
    modality_linear,
    quantise_int8,
    quantise_nf4,
)
from ..kernels.quantised_rows import QuantisedRows
from ..model.config import MODALITIES
from ..model_loading.precision import PrecisionPolicy
from ..model_loading.quantised_layers import QuantisedEmbedding

NF4_LAYOUT, GGUF_LAYOUT, PADDED_LAYOUT = "HappyHorseNF4", "HappyHorseGGUF", "HappyHorsePaddedINT8"
# The names of a layout's tensors for each of a stored weight's; those of other formats are in BY_BLOCK.
NUMBERED = {"scale": "weight_scale"}
# Attributes of a layer that say that the host or another node takes part in its product.
HOST_CHANGES = (
    "weight_function",
    "weight_lowvram_function",
    "_prefetch",
    "_forward_hooks",
    "_forward_pre_hooks",
)
NF4_FIELDS = {"scale": "absmax", "quant_map": "quant_map"}


def host_tensor(weight: QuantisedWeight, dtype: torch.dtype):
    """The host's tensor around a stored weight; the numbers it stands for have ``dtype``."""
    _register()
    name, params = _layout(weight, dtype)
    return comfy.quant_ops.QuantizedTensor(weight.data, name, params)


def stored_weight(tensor) -> QuantisedWeight:
    """The stored weight inside a host's tensor."""
    params, settings = tensor._params, {}
    kind, fields = _FORMATS.get(tensor._layout_cls, (None, {}))
    if tensor._layout_cls == GGUF_LAYOUT:
        return QuantisedWeight(GGUF + params.kind, tensor._qdata, tuple(params.orig_shape))
    if tensor._layout_cls == NF4_LAYOUT:
        kind, fields = "nf4", NF4_FIELDS
        settings = {"blocksize": params.blocksize, "quant_type": params.quant_type}
    elif kind is None:
        kind, fields = "int8_tensorwise", NUMBERED
        if params.convrot:
            settings = {"convrot": True, "convrot_groupsize": params.convrot_groupsize}
    scales = {ours: getattr(params, theirs) for theirs, ours in fields.items()}
    return QuantisedWeight(kind, tensor._qdata, tuple(params.orig_shape), scales, settings)


_FORMATS = {
    "TensorCoreFP8E4M3Layout": ("float8_e4m3fn", NUMBERED),
    "TensorCoreFP8E5M2Layout": ("float8_e5m2", NUMBERED),
}


def _layout(weight: QuantisedWeight, dtype: torch.dtype):
    """(the layout's registered name, its parameters)"""
    about = {"orig_dtype": dtype, "orig_shape": weight.shape}
    if weight.format.startswith(GGUF):
        kind = weight.format.removeprefix(GGUF)
        return GGUF_LAYOUT, _layouts().GGUF.Params(scale=torch.ones(1), kind=kind, **about)
    if weight.format == "nf4":
        about |= {theirs: weight.scales[ours] for theirs, ours in NF4_FIELDS.items()}
        about |= {name: weight.settings[name] for name in ("blocksize", "quant_type")}
        return NF4_LAYOUT, _layouts().NF4.Params(**about)
    known = comfy.quant_ops.QUANT_ALGOS.get(weight.format)
    if known is None:
        raise CheckpointError(
            f"This ComfyUI cannot read {weight.format} weights; it knows {', '.join(comfy.quant_ops.QUANT_ALGOS)}. "
            "Update ComfyUI and comfy-kitchen, or convert the file."
        )
    name = known["comfy_tensor_layout"]
    if weight.format in BY_BLOCK:
        _, scales, settings = BY_BLOCK[weight.format]
        for theirs, (ours, read_as) in scales.items():
            if ours in weight.scales:
                about[theirs] = weight.scales[ours].view(read_as) if read_as else weight.scales[ours]
        about |= {field: weight.settings.get(field, default) for field, default in settings.items()}
    else:
        about["scale"] = weight.scales.get("weight_scale", torch.ones(()))
    if weight.group:
        about |= {"convrot": True, "convrot_groupsize": weight.group}
        if weight.data.shape[1] != weight.shape[1]:
            name = PADDED_LAYOUT
    return name, comfy.quant_ops.get_layout_class(name).Params(**about)


class Projection:
    """What a quantised projection adds to the host's mixed-precision ``Linear``."""

    policy: PrecisionPolicy

    def hold(self, weight: QuantisedWeight) -> None:
        """Take a stored weight, as the host's loader would take it from a file."""
        self.format, self.blocks = weight.format, weight.format in BY_BLOCK
        tensor = host_tensor(weight, self.policy.dtype)
        self.quant_format, self.layout_type = weight.format, tensor._layout_cls
        self.weight = nn.Parameter(tensor, requires_grad=False)
        for name in ("input_scale", "pre_quant_scale"):
            if name in weight.scales:
                self.register_parameter(name, nn.Parameter(weight.scales[name], requires_grad=False))

    @property
    def products(self):
        """What is quantised beside the weight."""
        return self.policy.products

    @property
    def stored(self) -> QuantisedWeight | None:
        """The weight as it lies, for kernels that take more than this product; None where the host has a say in it.

        It has where it patches the weight while it casts it, has fetched it for this call, or has put a function of
        its own around the layer. A LoRA that it merged is in the stored numbers. Whether the weight lies where it is
        multiplied is the caller's to see.
        """
        weight = getattr(self, "weight", None)
        if (
            not isinstance(weight, comfy.quant_ops.QuantizedTensor)
            or weight.dtype != self.policy.dtype
            or getattr(self, "blocks", False)
            or any(getattr(self, name, None) for name in HOST_CHANGES)
            or getattr(self.forward, "__func__", None) is not type(self).forward
        ):
            return None
        return stored_weight_of(self, weight)

    def _multiply(self, x: Tensor | QuantisedRows, sizes) -> Tensor:
        comfy.ops.run_every_op()
        weight, _, stream = comfy.ops.cast_bias_weight(
            self,
            dtype=self.policy.dtype,
            device=x.device,
            bias_dtype=x.dtype,
            offloadable=True,
            compute_dtype=self.policy.dtype,
            # A LoRA that the host applies here stays as exact as it is: its sum is not quantised again.
            want_requant=False,
        )
        is_stored = isinstance(weight, comfy.quant_ops.QuantizedTensor)  # else the host has patched it
        stored = stored_weight_of(self, weight) if is_stored else weight
        if isinstance(x, QuantisedRows):
            out = rows_linear(x, stored, sizes)
        elif sizes is None:
            out = linear(x, stored, self.policy.products)
        else:
            out = modality_linear(x, stored, sizes, self.policy.products)
        comfy.ops.uncast_bias_weight(self, weight, None, stream)
        return out


def stored_weight_of(layer, tensor) -> QuantisedWeight:
    """The stored weight in ``tensor``, with what the layer holds beside it."""
    if getattr(layer, "blocks", False):
        _, scales, settings = BY_BLOCK[layer.format]
        names = {ours: getattr(tensor._params, theirs, None) for theirs, (ours, _) in scales.items()}
        names = {ours: scale for ours, scale in names.items() if scale is not None}
        settings = {field: getattr(tensor._params, field, default) for field, default in settings.items()}
        stored = QuantisedWeight(layer.format, tensor._qdata, tuple(tensor.shape), names, settings)
    else:
        stored = stored_weight(tensor)
    beside = {
        name: scale.to(tensor._qdata.device)
        for name in ("input_scale", "pre_quant_scale")
        if (scale := getattr(layer, name, None)) is not None
    }
    return dataclasses.replace(stored, scales={**stored.scales, **beside}) if beside else stored


def has_units(kind: str, x: Tensor) -> bool:
    """Whether the card multiplies this block format; on others the weight becomes numbers layer by layer."""
    ask = {
        "nvfp4": comfy.model_management.supports_nvfp4_compute,
        "mxfp8": comfy.model_management.supports_mxfp8_compute,
    }.get(kind)
    return ask is None or ask(x.device)


def host_layers(precision: PrecisionPolicy):
    """The layers a network is built of in the host where some of its weights are quantised."""
    mixed = comfy.ops.mixed_precision_ops({}, precision.dtype)

    class Linear(Projection, mixed.Linear):
        """A shared projection."""

        policy = precision

        def forward(self, x: Tensor) -> Tensor:
            if (
                getattr(self, "blocks", False)
                and precision.products != "weights"
                and has_units(self.format, x)
            ):
                return mixed.Linear.forward(self, x)  # the host multiplies its own block formats
            return self._multiply(x, None)

    class PerModalityLinear(Projection, mixed.Linear):
        """Stacked matrices [video | audio | text], cut in their stored form."""

        policy = precision

        def __init__(self, in_features, out_features, bias=False, device=None, dtype=None):
            super().__init__(in_features, out_features * MODALITIES, bias=bias, device=device, dtype=dtype)

        def forward(self, x: Tensor, sizes) -> Tensor:
            return self._multiply(x, sizes)

    class Embedding(comfy.ops.manual_cast.Embedding):
        """A table; one of GGUF blocks is read where it lies, only the rows that are asked for."""

        def hold(self, weight: QuantisedWeight) -> None:
            self.table = QuantisedEmbedding(weight, precision.dtype)
            self.weight = nn.Parameter(torch.empty(0, dtype=precision.dtype), requires_grad=False)

        def forward(self, ids: Tensor, **kwargs) -> Tensor:
            if not hasattr(self, "table"):
                return super().forward(ids, **kwargs)
            return self.table(ids.to(self.table.weight.device)).to(ids.device)

    class Layers:
        """``ops`` of our networks."""

        @staticmethod
        def Linear(in_features, out_features, bias=True, device=None, dtype=None):
            # What is float32 in every precision would be rounded by the host's mixed-precision layer.
            is_island = dtype == torch.float32 != precision.dtype
            layer = comfy.ops.manual_cast.Linear if is_island else Linear
            return layer(in_features, out_features, bias=bias, device=device, dtype=dtype)

    Layers.PerModalityLinear, Layers.Embedding = PerModalityLinear, Embedding
    return Layers


def load_weights(network: nn.Module, weights: dict[str, Tensor | QuantisedWeight]) -> None:
    """Give a network of ``host_layers`` its weights; plain tensors are adopted, not copied."""
    plain = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    for name, weight in weights.items():
        if isinstance(weight, QuantisedWeight):
            network.get_submodule(name.removesuffix(".weight")).hold(weight)
    for name, value in plain.items():
        path, _, leaf = name.rpartition(".")
        module = network.get_submodule(path)
        if leaf in module._buffers:
            module._buffers[leaf] = value
        else:
            setattr(module, leaf, nn.Parameter(value, requires_grad=False))


def describe(weights: dict[str, Tensor | QuantisedWeight]) -> str:
    """What most of the weights are stored as, for the log: "float8_e4m3fn" or "bfloat16"."""
    sizes: dict[str, int] = {}
    for weight in weights.values():
        is_plain = isinstance(weight, Tensor)
        name = str(weight.dtype).removeprefix("torch.") if is_plain else weight.format
        sizes[name] = sizes.get(name, 0) + (weight.numel() if is_plain else math.prod(weight.shape))
    return max(sizes, key=lambda name: sizes[name])


@lru_cache(maxsize=1)
def _layouts():
    """Our layouts, made late: comfy-kitchen may be missing, and then nothing here is needed."""
    if not getattr(comfy.quant_ops, "_CK_AVAILABLE", False):
        raise CheckpointError(
            "Quantised weights need the Python package 'comfy-kitchen', which ComfyUI could not import: "
            "pip install comfy-kitchen"
        )
    base = comfy.quant_ops.QuantizedLayout
    from comfy_kitchen.tensor.base import BaseLayoutParams

    class Stored(base):
        """A layout whose numbers our kernels make."""

        @classmethod
        def dequantize(cls, qdata, params):
            weight = stored_weight(comfy.quant_ops.QuantizedTensor(qdata, cls.name, params))
            return dequantise(weight, params.orig_dtype)

        @classmethod
        def get_plain_tensors(cls, qtensor):
            return (qtensor._qdata,)

    class NF4(Stored):
        """bitsandbytes' NF4."""

        name = NF4_LAYOUT

        @dataclasses.dataclass(frozen=True)
        class Params(BaseLayoutParams):
            quant_map: Tensor
            blocksize: int
            quant_type: str

            def _tensor_fields(self):
                return ["scale", "quant_map"]

        @classmethod
        def quantize(cls, tensor, **_):
            return _quantised(quantise_nf4(tensor.float()), tensor.dtype)

        @classmethod
        def state_dict_tensors(cls, qdata, params):
            return {"": qdata, ".absmax": params.scale, ".quant_map": params.quant_map}

    class GGUFBlocks(Stored):
        """A block type of GGUF."""

        name = GGUF_LAYOUT

        @dataclasses.dataclass(frozen=True)
        class Params(BaseLayoutParams):
            kind: str

        @classmethod
        def quantize(cls, *_, **__):
            raise CheckpointError("A LoRA cannot be merged into GGUF weights. Load a bf16, FP8 or INT8 file.")

        @classmethod
        def state_dict_tensors(cls, qdata, _):
            return {"": qdata}

    class PaddedINT8(comfy.quant_ops.get_layout_class("TensorWiseINT8Layout")):
        """The host's rotated INT8 for weights whose inputs are no whole groups."""

        @classmethod
        def quantize(cls, tensor, **_):
            return _quantised(quantise_int8(tensor), tensor.dtype)

    return _Made(NF4, GGUFBlocks, PaddedINT8)


@dataclasses.dataclass(frozen=True)
class _Made:
    """Our layout classes."""

    NF4: type
    GGUF: type
    padded: type


def _quantised(weight: QuantisedWeight, dtype: torch.dtype):
    return weight.data, _layout(weight, dtype)[1]


def _register() -> None:
    layouts = _layouts()
    for name, layout in (
        (NF4_LAYOUT, layouts.NF4),
        (GGUF_LAYOUT, layouts.GGUF),
        (PADDED_LAYOUT, layouts.padded),
    ):
        comfy.quant_ops.register_layout_class(name, layout)
