"""Every layout loads through one call and holds exactly what it says; every damaged one is refused by name."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.kernels.quantised import dequantise
from comfyui_happyhorse.model_loading import builder
from comfyui_happyhorse.model_loading.checkpoint import Checkpoint
from comfyui_happyhorse.model_loading.header import Stored
from comfyui_happyhorse.model_loading.inspect import packaging
from comfyui_happyhorse.model_loading.keys import KINDS, map_names
from comfyui_happyhorse.model_loading.layouts import read_layout
from comfyui_happyhorse.model_loading.precision import PRECISIONS
from comfyui_happyhorse.model_loading.quantised_layers import QuantisedLinear

GOLDEN = Path(
    os.environ.get("HAPPYHORSE_GOLDEN") or Path(__file__).resolve().parents[3] / "shared" / "golden"
)
QKV = "block.layers.0.attention.linear_qkv.weight"  # stacked per modality
SHARED = "block.layers.3.mlp.down_proj.weight"


@pytest.fixture
def written(state, forms, as_stored, write_form):
    """``written("D fp8", change=…)`` writes that form, its tensors changed first; (path, values in float64)."""

    def run(title, change=lambda tensors, _: None):
        form = forms[title]
        tensors, metadata, values = as_stored(state, form)
        change(tensors, metadata)
        return write_form(tensors, metadata, form), values

    return run


INEXACT = ("H int8 convrot", "H int8 convrot marked", "F int8 of bitsandbytes")


def difference(path, values, policy="bf16", title=""):
    """Names of the tensors that are not exactly the values, rounded to float32 and then to the network's dtype.

    What is rotated back or divided by 127 in float32 may differ from float64's value by float32's rounding, which
    can fall to the other side of a tie in bfloat16.
    """
    network = builder.load_transformer(path, "distilled", PRECISIONS[policy])
    loaded = network.state_dict()
    assert loaded.keys() == values.keys()
    return [
        name
        for name, tensor in loaded.items()
        if not torch.equal(tensor, values[name].float().to(tensor.dtype))
        and not (title in INEXACT and is_near(tensor, values[name]))
    ]


def is_near(tensor, values):
    difference = tensor.double() - values
    if tensor.dtype == torch.float32:
        return difference.abs().max() <= 1e-6 * values.abs().max()
    return bool((difference.abs() <= 2**-8 * values.abs() + 1e-6 * values.abs().max()).all())


@pytest.mark.parametrize("policy", ["bf16", "float32"])
def test_every_form_holds_its_values_exactly(written, title, policy):
    path, values = written(title)
    assert difference(path, values, policy, title) == []


def test_float32_stays_float32_and_projections_follow_the_policy(written, title):
    path, _ = written(title)
    dtypes = builder.load_transformer(path, "base", PRECISIONS["bf16"]).state_dict()
    large = [name for name, tensor in dtypes.items() if tensor.dtype == torch.bfloat16]
    assert len(large) == 4 * 8
    assert all(tensor.dtype == torch.float32 for name, tensor in dtypes.items() if name not in large)


def test_layouts_that_carry_bf16_are_bit_equal(written, state, forms, title):
    if forms[title].precision not in ("bf16", "float32"):
        return
    path, _ = written(title)
    loaded = builder.load_transformer(path, "distilled").state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_precisions_keep_what_they_promise(written, state):
    """The same numbers within each format's step, so that a generator of nonsense would be noticed."""
    for title, limit in (("D fp8", 0.07), ("H fp8 rows", 0.07), ("E int8", 0.01), ("H int8 rows", 0.01)):
        path, _ = written(title)
        loaded = builder.load_transformer(path, "distilled", PRECISIONS["float32"]).state_dict()
        reference = state[QKV].float()
        assert (loaded[QKV] - reference).norm() / reference.norm() < limit, title


def test_shapes_read_no_tensor(written, title, monkeypatch):
    path, values = written(title)
    read, tensor = [], Checkpoint.tensor
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name: read.append(name) or tensor(self, name))
    view = builder.open_kind(path, "transformer")
    assert view.shapes == {name: tuple(value.shape) for name, value in values.items()}
    assert read == []
    read.clear()
    view.tensor(QKV)
    assert {name.split(".linear_")[0] for name in read} == {"block.layers.0.attention"}  # this one only


def drop(*names):
    return lambda tensors, _: [tensors.pop(name) for name in names]


def exchange(a, b):
    def change(tensors, _):
        tensors[a], tensors[b] = tensors[b], tensors[a]

    return change


def replace(name, tensor):
    return lambda tensors, _: tensors.__setitem__(name, tensor)


SPLIT = "block.layers.0.attention.linear_"
BROKEN = {
    "a scale is missing": (
        "D fp8",
        drop(f"{SHARED}.__fp8_scale"),
        rf"{SHARED} is quantised .* scale is missing",
    ),
    "a scale is missing in H": (
        "H fp8",
        drop("diffusion_model.block.layers.3.mlp.down_proj.weight_scale"),
        rf"{SHARED} is quantised .* scale is missing",
    ),
    "a scale is missing in E": (
        "E int8",
        drop(f"{SPLIT}k_audio.weight._scale"),
        r"linear_k_audio\.weight is quantised .* scale is missing",
    ),
    "all scales are missing": (
        "D fp8",
        lambda tensors, _: [tensors.pop(name) for name in list(tensors) if name.endswith("_scale")],
        r"fills the range of float8_e4m3fn",
    ),
    "a scale for a norm": (
        "D fp8",
        replace("final_norm_audio.weight.__fp8_scale", torch.ones(())),
        r"final_norm_audio\.weight, which is float32; a quantised weight is expected",
    ),
    "a scale for nothing": (
        "D fp8",
        replace("nothing.weight.__fp8_scale", torch.ones(())),
        r"nothing\.weight, which is not in the file",
    ),
    "two scales": (
        "D fp8",
        replace(SHARED.replace(".weight", ".weight_scale"), torch.ones(())),
        "are both scales of",
    ),
    "a scale of another shape": (
        "H fp8 rows",
        replace("block.layers.3.mlp.down_proj.weight_scale", torch.ones(7, 1)),
        r"weight_scale has the shape \[7, 1\]",
    ),
    "a scale that is no number": (
        "D fp8",
        replace(f"{SHARED}.__fp8_scale", torch.tensor(float("nan"))),
        r"__fp8_scale holds a scale that is negative or not a number",
    ),
    "a part is missing": (
        "E bf16",
        drop(f"{SPLIT}v_text.weight"),
        r"linear_qkv\.weight .* part text v is missing",
    ),
    "a part is there twice": (
        "E bf16",
        replace(QKV, torch.zeros(2, 2)),
        "as a whole, or in parts of two kinds",
    ),
    "q and k are exchanged": (
        "E bf16",
        exchange(f"{SPLIT}q_video.weight", f"{SPLIT}k_video.weight"),
        "does not fit|not q, k, v and one gate",
    ),
    "v and the gates are exchanged": (
        "E bf16",
        lambda tensors, _: [
            exchange(f"{SPLIT}v_{m}.weight", f"{SPLIT}g_{m}.weight")(tensors, _)
            for m in ("video", "audio", "text")
        ],
        "not q, k, v and one gate per head",
    ),
    "a part of another width": (
        "E bf16",
        replace("block.layers.0.mlp.down_proj_audio.weight", torch.zeros(64, 255)),
        r"down_proj_audio\.weight has the shape \[64, 255\]",
    ),
    "a marker of another dtype": (
        "H fp8",
        replace("diffusion_model.block.layers.3.mlp.down_proj.weight", torch.zeros(64, 168)),
        r"down_proj\.weight_scale is the scale of .* which is float32",
    ),
    "a marker that is no JSON": (
        "H fp8",
        replace(
            "diffusion_model.block.layers.3.mlp.down_proj.comfy_quant", torch.zeros(9, dtype=torch.uint8)
        ),
        r"down_proj\.comfy_quant cannot be read",
    ),
    "metadata that is no JSON": (
        "H fp8 rows",
        lambda tensors, metadata: metadata.update(_quantization_metadata="[" * 100_000),
        "_quantization_metadata cannot be read",
    ),
    "a name twice": ("E int8", replace(f"{SPLIT}q_video.weight", torch.zeros(2)), "are both the tensor"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_broken_is_named(written, fault):
    title, change, message = BROKEN[fault]
    path, _ = written(title, change)
    with pytest.raises(CheckpointError, match=message):
        builder.load_transformer(path, "distilled")


def test_a_format_of_tomorrow_is_refused_by_name(written):
    def change(tensors, _):
        marker = torch.tensor(list(b'{"format": "int3_magic"}'), dtype=torch.uint8)
        tensors["diffusion_model.block.layers.3.mlp.down_proj.comfy_quant"] = marker

    path, _ = written("H fp8", change)
    with pytest.raises(CheckpointError, match=rf"{SHARED} is stored as int3_magic, which is not known"):
        builder.load_transformer(path, "distilled")


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_metadata_names_layers_with_and_without_the_prefix(written, prefix):
    layer = SHARED.removesuffix(".weight")
    text = json.dumps({"layers": {prefix + layer: {"format": "int8_tensorwise", "convrot": True}}})
    path, _ = written("H int8 rows", lambda _, metadata: metadata.update(_quantization_metadata=text))
    with pytest.raises(
        CheckpointError, match=rf"{SHARED} is said to be rotated in groups of 256.* 168 columns"
    ):
        builder.load_transformer(path, "distilled")


def test_bytes_of_fp8_in_older_files(written):
    def as_bytes(tensors, _):
        for name, tensor in tensors.items():
            if tensor.dtype == torch.float8_e4m3fn:
                tensors[name] = tensor.view(torch.uint8)

    path, values = written("H fp8", as_bytes)
    assert difference(path, values) == []


# Faults that no header shows must at least be seen by the comparison above.
PLANTED = {
    "a neighbour's scale": (
        "D fp8",
        exchange(f"{SHARED}.__fp8_scale", "block.layers.4.mlp.down_proj.weight.__fp8_scale"),
        {SHARED, "block.layers.4.mlp.down_proj.weight"},
    ),
    "a neighbour's scales per row": (
        "H int8 rows",
        exchange(
            "model.diffusion_model.block.layers.3.mlp.down_proj.weight_scale",
            "model.diffusion_model.block.layers.3.attention.linear_proj.weight_scale",
        ),
        {SHARED, "block.layers.3.attention.linear_proj.weight"},
    ),
    "k for v": ("E bf16", exchange(f"{SPLIT}k_video.weight", f"{SPLIT}v_video.weight"), {QKV}),
    "video for text": (
        "E bf16",
        exchange("block.layers.0.mlp.down_proj_video.weight", "block.layers.0.mlp.down_proj_text.weight"),
        {"block.layers.0.mlp.down_proj.weight"},
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_seen_by_the_comparison(written, fault):
    title, change, names = PLANTED[fault]
    path, values = written(title, change)
    assert set(difference(path, values)) == names


SIGNS = (
    ".comfy_quant",
    "scaled_fp8",
    ".input_scale",
    ".output_scale",
    ".weight_format",
    ".bitsandbytes__nf4",
)


class Headers:
    """A source that knows dtypes and shapes and has no data but the markers'."""

    def __init__(self, tensors):
        self.tensors = tensors

    def stored(self, name):
        return Stored(str(self.tensors[name].dtype).removeprefix("torch."), tuple(self.tensors[name].shape))

    def raw(self, name):
        assert name.endswith((".comfy_quant", ".bitsandbytes__nf4"))
        return bytes(self.tensors[name].tolist())


def test_the_published_key_list_maps_both_ways(title, forms, as_stored):
    file = GOLDEN / "dit_full_keys.json"
    if not file.exists():
        pytest.skip(f"{file} is not there; set HAPPYHORSE_GOLDEN")
    keys = json.loads(file.read_text())["keys"]
    full = {
        name: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
        for name, entry in keys.items()
    }
    form = forms[title]
    tensors, metadata, _ = as_stored(full, form)
    checkpoint = Checkpoint(Path("x.safetensors"), dict.fromkeys(tensors, Headers(tensors)), metadata)
    names = map_names(KINDS["transformer"], checkpoint.names)
    assert sorted(names) == sorted(tensors)  # nothing is left out
    layout = read_layout(checkpoint.renamed(names))
    view = layout.view(checkpoint.renamed(names))
    assert view.shapes == {name: tuple(entry["shape"]) for name, entry in keys.items()}
    assert layout.precision == form.precision
    assert layout.letter == (
        form.letter if form.letter in "CDE" or (form.letter == "H" and form.scale) else None
    )
    # And back: every tensor of the file is a piece, a scale or a sign of exactly one published tensor.
    used = [piece.name for pieces in layout.weights.values() for piece in pieces]
    scales = [
        scale for pieces in layout.weights.values() for piece in pieces for scale in piece.scales.values()
    ]
    signs = [name for name in names.values() if name.endswith(SIGNS)]
    assert sorted(used + scales + signs) == sorted(names.values())
    if form.is_split:
        assert (
            len(layout.weights[QKV]) == 12
            and len(layout.weights["block.layers.20.mlp.up_gate_proj.weight"]) == 1
        )
        assert [piece.name.split("linear_")[1] for piece in layout.weights[QKV]] == [
            f"{part}_{modality}.weight" for modality in ("video", "audio", "text") for part in "qkvg"
        ]


def padded(rows, columns, kind):
    """Tensors of a block format for a weight of this size, as comfy-kitchen pads them."""
    block = {"nvfp4": 16, "mxfp8": 32}[kind]
    rows, columns = (-(-size // block) * block for size in (rows, columns))
    tiles = -(-rows // 128) * 128, -(-(columns // block) // 4) * 4
    if kind == "mxfp8":
        return {"weight": ((rows, columns), FP8), "weight_scale": (tiles, torch.uint8)}
    scale = {"weight_scale": (tiles, FP8), "weight_scale_2": ((), torch.float32)}
    return {"weight": ((rows, columns // 2), torch.uint8), **scale}


FP8 = torch.float8_e4m3fn


@pytest.mark.parametrize("marked", ["by its marker", "by the other tensors"])
@pytest.mark.parametrize("kind", ["nvfp4", "mxfp8"])
def test_sizes_of_padded_blocks_follow_from_the_file(kind, marked):
    """13652 and 7208 are no whole blocks: their true sizes come from the marker or from what is not padded."""
    file = GOLDEN / "dit_full_keys.json"
    if not file.exists():
        pytest.skip(f"{file} is not there; set HAPPYHORSE_GOLDEN")
    keys = json.loads(file.read_text())["keys"]
    tensors = {}
    for name, entry in keys.items():
        if not name.endswith(("qkv.weight", "proj.weight")):
            tensors[name] = torch.empty(entry["shape"], device="meta")
            continue
        layer = name.removesuffix(".weight")
        for part, (shape, dtype) in padded(*entry["shape"], kind).items():
            tensors[f"{layer}.{part}"] = torch.empty(shape, dtype=dtype, device="meta")
        settings = {"format": kind} | ({"orig_shape": entry["shape"]} if marked == "by its marker" else {})
        tensors[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
    checkpoint = Checkpoint(Path("x.safetensors"), dict.fromkeys(tensors, Headers(tensors)), {})
    view = read_layout(checkpoint).view(checkpoint)
    assert view.shapes == {name: tuple(entry["shape"]) for name, entry in keys.items()}
    # A weight of another size is refused by its name.
    odd = "block.layers.7.mlp.down_proj.weight"
    tensors[odd] = torch.empty(
        padded(5152, 13652, kind)["weight"][0], dtype=tensors[odd].dtype, device="meta"
    )
    broken = Checkpoint(Path("x.safetensors"), dict.fromkeys(tensors, Headers(tensors)), {})
    with pytest.raises(CheckpointError, match=r"block\.layers\.7\.mlp\.down_proj"):
        read_layout(broken)


def test_packaging_by_file_names(tmp_path):
    assert packaging(tmp_path / "x.safetensors", "model.diffusion_model.") == "H"
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    assert packaging(tmp_path / "diffusion_pytorch_model.safetensors", "") == "F"


def test_a_text_encoder_of_quanto_int8(tiny_models, tmp_path):
    """The same view serves every kind: its names have a prefix less and quanto's endings."""
    folder = tiny_models / "text_encoders" / "t5gemma_tiny"
    stored, values = {}, {}
    for file in folder.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            name = name.removeprefix("model.")
            values[name] = tensor.double()
            if tensor.ndim == 2 and "embed" not in name:
                scale = (tensor.float().abs().amax(1, keepdim=True) / 127).bfloat16()
                data = (tensor.float() / scale.float()).round().clamp(-127, 127).to(torch.int8)
                stored |= {f"{name}._data": data, f"{name}._scale": scale}
                values[name] = data.double() * scale.double()
            else:
                stored[name] = tensor
    save_file(stored, tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    loaded = builder.load_text_encoder(tmp_path / "x.safetensors", PRECISIONS["bf16"]).state_dict()
    assert loaded.keys() == values.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, values[name].float().to(tensor.dtype)), name


@pytest.mark.parametrize("policy", sorted(PRECISIONS))
def test_every_precision_takes_every_form(written, title, policy):
    """Stored weights that a precision keeps, and those it makes anew, for every pair of the two."""
    path, values = written(title)
    network = builder.load_transformer(path, "distilled", PRECISIONS[policy])
    layer = network.block.layers[3].mlp.down_proj
    found = dequantise(layer.stored) if isinstance(layer, QuantisedLinear) else layer.weight
    limit = 0.2 if "nf4" in policy or "nf4" in title else 0.08
    assert (found.double() - values[SHARED]).norm() <= limit * values[SHARED].norm()
