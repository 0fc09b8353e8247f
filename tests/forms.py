"""Writes a transformer in every layout and precision that people have, and says in float64 what it holds.

Loaded by conftest.py as the fixture ``forms``. Shares no code with the pack; only NF4 is packed by bitsandbytes.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

PROJECTIONS = ("linear_qkv.weight", "linear_proj.weight", "up_gate_proj.weight", "down_proj.weight")
MODALITIES = ("video", "audio", "text")


@dataclass(frozen=True)
class Form:
    """One way to store a transformer."""

    letter: str
    precision: str  # what inspect calls it
    dtype: torch.dtype | None = torch.bfloat16  # of the projections; None: float32 throughout
    by_row: bool = False
    scale: str | None = None  # name of the scale, after the weight's or the layer's name
    marks: str | None = None  # "tensors", "metadata" or "old": how a ComfyUI file says its format
    prefix: str = ""
    is_split: bool = False
    package: str = "file"  # file, shards, diffusers, pipeline
    is_rotated: bool = False


FP8, INT8, NF4 = torch.float8_e4m3fn, torch.int8, torch.uint8
FORMS = {
    "A bf16": Form("A", "bf16", package="shards"),
    "A float32": Form("A", "float32", None, package="shards"),
    "B bf16": Form("B", "bf16"),
    "B float32": Form("B", "float32", None),
    "C plain cast": Form("C", "fp8", FP8),
    "C merged from D": Form("D", "fp8", FP8, scale="{weight}.__fp8_scale"),
    "D fp8": Form("D", "fp8", FP8, scale="{weight}.__fp8_scale", package="shards"),
    "E bf16": Form("E", "bf16", is_split=True),
    "E int8": Form("E", "int8", INT8, by_row=True, scale="{weight}._scale", is_split=True),
    "F bf16": Form("F", "bf16", package="diffusers"),
    "G bf16": Form("G", "bf16", package="pipeline"),
    "H bf16": Form("H", "bf16", prefix="model.diffusion_model."),
    "H fp8": Form("H", "fp8", FP8, scale="{layer}.weight_scale", marks="tensors", prefix="diffusion_model."),
    "H fp8 rows": Form("H", "fp8", FP8, by_row=True, scale="{layer}.weight_scale", marks="metadata"),
    "H e5m2": Form("H", "fp8_e5m2", torch.float8_e5m2, scale="{layer}.weight_scale", marks="tensors"),
    "H int8": Form("H", "int8", INT8, scale="{layer}.weight_scale", marks="tensors"),
    "H int8 rows": Form(
        "H", "int8", INT8, True, "{layer}.weight_scale", "metadata", prefix="model.diffusion_model."
    ),
    "H int8 convrot": Form("H", "int8", INT8, True, "{layer}.weight_scale", "metadata", is_rotated=True),
    "H int8 convrot marked": Form(
        "H", "int8", INT8, True, "{layer}.weight_scale", "tensors", "diffusion_model.", is_rotated=True
    ),
    "B nf4": Form("B", "nf4", NF4),
    "F int8 of bitsandbytes": Form("F", "int8", INT8, True, scale="{layer}.SCB", package="diffusers"),
    "H old fp8": Form("H", "fp8", FP8, scale="{layer}.scale_weight", marks="old"),
}
LIMITS = {FP8: 448.0, torch.float8_e5m2: 57344.0, INT8: 127.0}
FORMATS = {FP8: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2", INT8: "int8_tensorwise"}


def row_ranges(name: str, state: dict[str, Tensor]) -> dict[str, slice]:
    """{name of a part in layout E: its rows in the published tensor}, counted out by hand."""
    head = name.rsplit(".attention.", 1)[0].rsplit(".mlp.", 1)[0]
    head_dim = 128 if state["adapter.rope.bands"].shape[0] == 16 else 16
    per_modality = state[f"{head}.attention.q_norm.weight"].shape[0] == 3 * head_dim
    rows = state[name].shape[0] // (3 if per_modality else 1)
    heads = state[f"{head}.attention.linear_proj.weight"].shape[1] // head_dim
    sizes = {"": rows}
    if name.endswith("linear_qkv.weight"):
        keys = (rows - heads - heads * head_dim) // 2
        sizes = {"q": heads * head_dim, "k": keys, "v": keys, "g": heads}
    ranges, start = {}, 0
    for modality in MODALITIES if per_modality else ("",):
        for part, size in sizes.items():
            stem = name.removesuffix("qkv.weight") + part if part else name.removesuffix(".weight")
            ranges[f"{stem}_{modality}.weight" if modality else f"{stem}.weight"] = slice(start, start + size)
            start += size
    assert start == state[name].shape[0]
    return ranges


def quantised(weight: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """(stored, scale) with the scale's shape as the form has it."""
    limit = LIMITS[form.dtype]
    largest = weight.float().abs().amax(1, keepdim=True) if form.by_row else weight.float().abs().max()
    scale = largest / limit
    values = weight.float() / scale
    return (values.round() if form.dtype == INT8 else values).clamp(-limit, limit).to(form.dtype), scale


def hadamard(size: int) -> Tensor:
    """The regular Hadamard matrix of ConvRot, orthogonal, in float64: Kronecker powers of one of four rows."""
    step = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float64)
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(matrix, step)
    return matrix / math.sqrt(size)


def group_of(columns: int) -> int:
    """The size of rotated groups that a file of ours has."""
    return max(size for size in (4, 16, 64, 256) if size <= columns)


def rotated(rows: Tensor) -> Tensor:
    """Rows in float64, padded with zeros to whole groups, each group times the Hadamard matrix."""
    group = group_of(rows.shape[1])
    padded = torch.nn.functional.pad(rows.double(), (0, -rows.shape[1] % group))
    return (padded.unflatten(1, (-1, group)) @ hadamard(group).T).flatten(1)


def unrotated(rows: Tensor, columns: int) -> Tensor:
    """The inverse, without the padding."""
    group = group_of(columns)
    return (rows.double().unflatten(1, (-1, group)) @ hadamard(group)).flatten(1)[:, :columns]


def packed_nf4(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """({ending of the name: tensor}, the values in float64), in blocks of 64."""
    import bitsandbytes.functional as library

    about = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
    said = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    if weight.is_meta:
        count = weight.numel()
        sizes = {"": ((count + 1) // 2, 1), ".absmax": (-(-count // 64),), ".quant_map": (16,)}
        tensors = {
            ending: torch.empty(size, dtype=torch.float32, device="meta") for ending, size in sizes.items()
        }
        tensors[""] = tensors[""].to(torch.uint8)
        return tensors | {".quant_state.bitsandbytes__nf4": said}, weight.double()
    data, state = library.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    tensors = {
        "": data,
        ".absmax": state.absmax,
        ".quant_map": state.code,
        ".quant_state.bitsandbytes__nf4": said,
    }
    bytes_ = data.flatten().long()
    levels = state.code.double()[torch.stack([bytes_ >> 4, bytes_ & 15], 1).flatten()]
    largest = state.absmax.double().repeat_interleave(64)[: levels.numel()]
    return tensors, (levels * largest).view(weight.shape)


def stored_as(state: dict[str, Tensor], form: Form):
    """(tensors of the file, its metadata, {published name: value in float64}); meta tensors stay meta."""
    tensors, layers = {}, {}
    values = {name: tensor.double() for name, tensor in state.items()}
    for name, tensor in state.items():
        is_projection = name.endswith(PROJECTIONS)
        ranges = row_ranges(name, state) if form.is_split and is_projection else {name: slice(None)}
        for part, rows in ranges.items():
            layer = part.removesuffix(".weight")
            piece = tensor[rows] if tensor.ndim else tensor
            if form.dtype is None:
                tensors[part] = piece.float()
            elif not is_projection or form.dtype == torch.bfloat16:
                tensors[part] = piece
            elif form.dtype == NF4:
                parts, values[name][rows] = packed_nf4(piece)
                tensors |= {part + ending: value for ending, value in parts.items()}
            elif form.scale is None:
                tensors[part] = piece.to(form.dtype)
                values[name][rows] = tensors[part].double()
            else:
                data, scale = quantised(rotated(piece) if form.is_rotated else piece, form)
                tensors[part + ("._data" if form.scale.endswith("._scale") else "")] = data
                tensors[form.scale.format(weight=part, layer=layer)] = scale
                if not form.is_rotated:
                    values[name][rows] = data.double() * scale.double()
                else:
                    values[name] = unrotated(data.double() * scale.double(), tensor.shape[1])
                if form.scale.endswith("SCB"):
                    tensors[form.scale.format(weight=part, layer=layer)] = scale.flatten() * 127
                    tensors[f"{layer}.weight_format"] = torch.zeros((), dtype=torch.uint8)
                if form.letter == "E":
                    tensors[f"{layer}.input_scale"] = tensors[f"{layer}.output_scale"] = torch.ones(())
                layers[layer] = {"format": FORMATS[form.dtype]}
                if form.is_rotated:
                    layers[layer] |= {"convrot": True, "convrot_groupsize": group_of(tensor.shape[1])}
                    layers[layer]["orig_shape"] = list(tensor.shape)
    metadata = {}
    if form.marks == "tensors":
        for layer, settings in layers.items():
            tensors[f"{layer}.comfy_quant"] = torch.tensor(
                list(json.dumps(settings).encode()), dtype=torch.uint8
            )
    elif form.marks == "metadata":
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    elif form.marks == "old":
        tensors["scaled_fp8"] = torch.zeros(2, dtype=FP8)
    return {form.prefix + name: tensor for name, tensor in tensors.items()}, metadata, values


def write(tensors: dict[str, Tensor], metadata: dict[str, str], folder: Path, form: Form) -> Path:
    """Write as the form packs its files; returns what a person would name."""
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    if form.package == "file":
        save_file(tensors, folder / "x.safetensors", metadata=metadata)
        return folder / "x.safetensors"
    at = folder / "transformer" if form.package == "pipeline" else folder
    at.mkdir(exist_ok=True)
    stem = "model" if form.package == "shards" else "diffusion_pytorch_model"
    names, shards = list(tensors), {}
    for number in (1, 2):
        file = f"{stem}-0000{number}-of-00002.safetensors"
        part = names[number - 1 :: 2]
        save_file({name: tensors[name] for name in part}, at / file)
        shards |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1} | metadata, "weight_map": shards}
    (at / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    if form.package == "pipeline":
        (folder / "model_index.json").write_text("{}")
    return folder
