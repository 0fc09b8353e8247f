"""Converted files hold exactly what their source means, whatever stopped the run on the way; nothing is lost by one."""

import json
import math
import os
import shutil
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from comfyui_happyhorse.cli.inspect import sentences
from comfyui_happyhorse.conditioning.tokenizer import EMBEDDED_NAMES, find_tokenizer, load_tokenizer
from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.kernels.quantised import QuantisedWeight, dequantise
from comfyui_happyhorse.model_loading import builder, recipes
from comfyui_happyhorse.model_loading.checkpoint import open_checkpoint
from comfyui_happyhorse.model_loading.convert import convert
from comfyui_happyhorse.model_loading.inspect import inspect_file
from comfyui_happyhorse.model_loading.keys import KINDS
from comfyui_happyhorse.model_loading.precision import PRECISIONS
from comfyui_happyhorse.model_loading.recipes import TARGETS, Rows, recipe

QUANTISED = TARGETS[1:]
QKV = "block.layers.0.attention.linear_qkv.weight"  # stacked per modality, 396 rows
SHARED = "block.layers.3.mlp.down_proj.weight"  # 168 columns: padded to 192 in INT8
INEXACT = ("H int8 convrot", "H int8 convrot marked", "F int8 of bitsandbytes")  # as in test_layouts


@pytest.fixture(autouse=True)
def synced(monkeypatch):
    """What would wait for the disk is counted instead: the disk's own time is no matter of these tests."""
    calls = []
    monkeypatch.setattr(os, "fsync", calls.append)
    return calls


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "made" / "out"  # not beside the forms, where there may be a model_index.json
    folder.mkdir(parents=True)
    return folder / "x.safetensors"


@pytest.fixture
def source(tiny_models):
    return tiny_models / "diffusion_models" / "happyhorse_tiny_distilled.safetensors"


@pytest.fixture
def written(state, forms, as_stored, write_form):
    """``written("D fp8")`` writes that form; (path, tensors in the file, values in float64)."""

    def run(title):
        tensors, metadata, values = as_stored(state, forms[title])
        return write_form(tensors, metadata, forms[title]), tensors, values

    return run


def header(path):
    """(what the header says, its metadata, where the tensors begin)"""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    content = json.loads(data[8 : 8 + length])
    return content, content.pop("__metadata__"), 8 + length


def stored(path, name):
    """A weight of a file in its stored form."""
    return builder.open_kind(path, "transformer").quantised(name)


def same(a, b):
    """Two quantised weights, bit for bit."""
    return (
        (a.format, tuple(a.shape)) == (b.format, tuple(b.shape))
        and same_numbers(a, b)
        and a.scales.keys() == b.scales.keys()
        and all(torch.equal(scale.reshape(-1), b.scales[key].reshape(-1)) for key, scale in a.scales.items())
        and a.group == b.group
    )


def same_numbers(a, b):
    return torch.equal(a.data.view(torch.uint8), b.data.view(torch.uint8))


def alike(a, b, share=2e-3):
    """Two quantised weights of one format, but for some numbers of which each fell to the other side of a tie.

    The sums of a rotation are rounded in an order that depends on how many rows are rotated at once.
    """
    for key, scale in a.scales.items():
        torch.testing.assert_close(scale.flatten(), b.scales[key].flatten(), rtol=1e-5, atol=0)
    differ = (a.data.view(torch.uint8) != b.data.view(torch.uint8)).float().mean()
    numbers = dequantise(b)
    step = (dequantise(a) - numbers).abs().max() / numbers.abs().max()
    return bool(
        differ <= share and step < {"float8_e4m3fn": 0.08, "int8_tensorwise": 0.03, "nf4": 0.35}[a.format]
    )


def is_near(tensor, values):
    difference = (tensor.double() - values).abs()
    return bool((difference <= 2**-8 * values.abs() + 1e-6 * values.abs().max()).all())


def is_projection(name):
    return name.endswith(("qkv.weight", "linear_proj.weight", "gate_proj.weight", "down_proj.weight"))


def left_over(target):
    return sorted(path.name for path in target.parent.iterdir())


# What a file holds.


def test_every_form_in_bf16(written, target, title):
    path, _, values = written(title)
    convert(path, target, "bf16")
    loaded = load_file(target)
    assert loaded.keys() == values.keys()
    for name, tensor in loaded.items():
        assert tensor.dtype == (torch.bfloat16 if is_projection(name) else torch.float32), name
        expected = values[name].float().to(tensor.dtype)
        assert torch.equal(tensor, expected) or (title in INEXACT and is_near(tensor, values[name])), name
    network = builder.load_transformer(target, "distilled").state_dict()
    assert all(torch.equal(network[name], tensor) for name, tensor in loaded.items())


def test_forms_that_carry_bf16_come_back_bit_equal(written, state, target, forms, title):
    if forms[title].precision not in ("bf16", "float32"):
        return
    convert(written(title)[0], target, "bf16")
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_file(target).items())


def test_float32_is_rounded_once(state, target, tmp_path):
    weights = {name: tensor.float() + 0.001 * torch.randn(tensor.shape) for name, tensor in state.items()}
    save_file(weights, tmp_path / "x.safetensors")
    convert(tmp_path / "x.safetensors", target, "bf16")
    for name, tensor in load_file(target).items():
        assert torch.equal(tensor, weights[name].bfloat16() if is_projection(name) else weights[name]), name


@pytest.mark.parametrize("precision", QUANTISED)
def test_every_form_in_every_precision(written, target, title, precision):
    path, _, _ = written(title)
    done = convert(path, target, precision)
    policy = PRECISIONS[precision]
    before, after = builder.open_kind(path, "transformer"), builder.open_kind(target, "transformer")
    network = builder.load_transformer(target, "distilled")
    for name in before.names:
        given = after.quantised(name)
        if not is_projection(name):
            assert given is None and torch.equal(network.state_dict()[name], before.tensor(name).float()), (
                name
            )
            continue
        was = before.quantised(name)
        if was is not None and policy.keeps(was) and precision != "nf4":
            expected = QuantisedWeight(was.format, was.data, was.shape, {"weight_scale": was.scales.get("weight_scale", torch.ones(()))},
                                       was.settings)  # fmt: skip
        else:
            expected = policy.quantise(before.tensor(name))
        if (
            title == "C plain cast" and precision == "fp8"
        ):  # without scales the whole range is not used: made anew
            expected = policy.quantise(before.tensor(name))
        assert same(given, expected), name
        module = network.get_submodule(name.removesuffix(".weight"))
        assert same(module.stored, expected), name
    found = inspect_file(target)
    assert (found.kind, found.precision, found.missing, found.unknown, found.problem) == (
        "dit", precision, (), (), None
    )  # fmt: skip
    assert found.layout == ("B" if precision == "nf4" else "H")
    assert "complete" in sentences(target, found)[0]
    assert (done.bytes, done.tensors) == (target.stat().st_size, len(header(target)[0]))


@pytest.mark.parametrize("precision", TARGETS)
def test_names_metadata_and_alignment(source, state, target, precision):
    convert(source, target, precision)
    content, metadata, start = header(target)
    assert metadata["format"] == "pt" and metadata["precision"] == precision
    plain = {name for name in state if precision == "bf16" or not is_projection(name)}
    large = state.keys() - plain
    endings = {
        "bf16": (),
        "fp8": ("", "_scale"),
        "int8": ("", "_scale"),
        "nf4": ("", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4"),
    }
    assert content.keys() == plain | {name + ending for name in large for ending in endings[precision]}
    assert all(
        content[name]["dtype"] == ("BF16" if is_projection(name) else "F32")
        and content[name]["shape"] == list(state[name].shape)
        for name in plain
    )
    sizes = {"F32": 4, "BF16": 2, "U8": 1, "I8": 1, "F8_E4M3": 1}
    end = 0
    for name, entry in sorted(content.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        assert first == end and (start + first) % sizes[entry["dtype"]] == 0, name
        assert last - first == sizes[entry["dtype"]] * math.prod(entry["shape"]), name
        end = last
    assert start + end == target.stat().st_size
    with safe_open(target, framework="pt") as file:
        assert set(file.keys()) == content.keys() and file.metadata() == metadata
    if precision in ("bf16", "nf4"):
        assert "_quantization_metadata" not in metadata
        return
    marks = json.loads(metadata["_quantization_metadata"])
    assert marks.keys() == {"format_version", "layers"}
    assert marks["layers"].keys() == {name.removesuffix(".weight") for name in large}
    mark = marks["layers"][SHARED.removesuffix(".weight")]
    if precision == "fp8":
        assert mark == {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
        assert content[f"{SHARED}_scale"] | {"data_offsets": 0} == {
            "dtype": "F32",
            "shape": [],
            "data_offsets": 0,
        }
        return
    assert mark == {
        "format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64, "orig_shape": [64, 168]
    }  # fmt: skip
    assert content[SHARED]["shape"] == [64, 192] and content[f"{SHARED}_scale"]["shape"] == [64, 1]
    assert "orig_shape" not in marks["layers"][QKV.removesuffix(".weight")]


@pytest.mark.parametrize(
    ("form", "precision", "scales"),
    [
        ("D fp8", "fp8", 1),
        ("H fp8", "fp8", 1),
        ("H old fp8", "fp8", 1),
        ("H fp8 rows", "fp8", 64),
        ("H int8 convrot", "int8", 64),
        ("H int8 convrot marked", "int8", 64),
    ],
)
def test_what_is_stored_so_already_is_copied(written, forms, target, form, precision, scales, monkeypatch):
    """The source's own bytes, in pieces; quantising what was de-quantised could change some."""
    monkeypatch.setattr(recipes, "CHUNK_ENTRIES", 500)
    monkeypatch.setattr(recipes, "quantise_int8", None)
    monkeypatch.setattr(recipes, "fp8_with_scale", None)
    path, tensors, _ = written(form)
    convert(path, target, precision)
    prefix, loaded = forms[form].prefix, load_file(target)
    scale = forms[form].scale.format(weight=prefix + SHARED, layer=(prefix + SHARED).removesuffix(".weight"))
    assert loaded[f"{SHARED}_scale"].numel() == scales
    assert torch.equal(loaded[f"{SHARED}_scale"].flatten(), tensors[scale].flatten())
    assert torch.equal(loaded[SHARED].view(torch.uint8), tensors[prefix + SHARED].view(torch.uint8))


def test_rotation_of_other_groups_is_made_anew(source, target, tmp_path, state):
    """A file of groups of 16, and one that is padded further than need be: neither is what we write."""
    from comfyui_happyhorse.kernels.quantised import kitchen_ops

    convert(source, tmp_path / "a.safetensors", "int8")
    _, metadata, _ = header(tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    marks = json.loads(metadata["_quantization_metadata"])
    layer = "block.layers.4.mlp.down_proj"
    for name, padding, group in ((SHARED.removesuffix(".weight"), 8, 16), (layer, 88, 64)):
        wide = torch.nn.functional.pad(state[f"{name}.weight"].float(), (0, padding))
        data, scale = kitchen_ops().quantize_int8_convrot_weight(wide, group)
        tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"] = data, scale
        marks["layers"][name] |= {"convrot_groupsize": group, "orig_shape": [64, 168]}
    save_file(tensors, tmp_path / "b.safetensors", {"_quantization_metadata": json.dumps(marks)})
    before = builder.open_kind(tmp_path / "b.safetensors", "transformer")
    assert before.quantised(SHARED).group == 16
    convert(tmp_path / "b.safetensors", target, "int8")
    for name in (SHARED, f"{layer}.weight"):
        assert same(stored(target, name), PRECISIONS["int8"].quantise(before.tensor(name))), name


def made(weight, precision, chunk, monkeypatch):
    """One weight written in pieces of ``chunk`` numbers, put together."""
    monkeypatch.setattr(recipes, "CHUNK_ENTRIES", chunk)
    name = "block.layers.3.mlp.down_proj.weight"

    class Plain:
        def source_of(self, name):
            return self, name

        def piece(self, name):
            return None

    plan = recipe(name, weight, Plain(), KINDS["transformer"], precision, is_patched=False)
    rows = Rows(name, tuple(weight.shape), lambda start, stop: weight[start:stop])
    parts = {entry.name: [] for entry in plan.entries}
    for part, piece in plan.pieces(rows):
        parts[part].append(piece.reshape(-1))
    whole = {
        entry.name.removeprefix(name): torch.cat(parts[entry.name]).view(entry.shape)
        for entry in plan.entries
    }
    assert all(
        str(whole[entry.name.removeprefix(name)].dtype) == f"torch.{entry.dtype}" for entry in plan.entries
    )
    return whole, plan.marker


@settings(max_examples=80, deadline=None)
@drawn(
    precision=st.sampled_from(QUANTISED),
    rows=st.integers(1, 150),
    columns=st.integers(1, 700),
    chunk=st.integers(1, 20_000),
    seed=st.integers(0, 99),
)
def test_chunks_change_nothing(precision, rows, columns, chunk, seed):
    """Rows of any width, in chunks of any size: the numbers, scales and padding of the whole weight."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).bfloat16()
    with pytest.MonkeyPatch.context() as monkeypatch:
        parts, marker = made(weight, precision, chunk, monkeypatch)
    expected = PRECISIONS[precision].quantise(weight)
    names = {"weight_scale": "_scale", "absmax": ".absmax", "quant_map": ".quant_map"}
    scales = {scale: parts[names[scale]].view(values.shape) for scale, values in expected.scales.items()}
    given = replace(expected, data=parts[""].view(expected.data.shape), scales=scales)
    # Few numbers make a large share of a small weight.
    assert (
        alike(given, expected, max(2e-3, 1 / weight.numel()))
        if precision == "int8"
        else same(given, expected)
    )
    if precision == "int8":
        group = max(size for size in (4, 16, 64, 256) if size <= max(columns, 4))
        assert parts[""].shape[1] % group == 0 and 0 <= parts[""].shape[1] - columns < group
        assert marker.get("orig_shape") == (None if parts[""].shape[1] == columns else [rows, columns])


@pytest.mark.parametrize("precision", TARGETS)
def test_a_whole_file_is_the_same_in_any_chunks(source, target, precision, monkeypatch):
    convert(source, target, precision)
    whole = target.read_bytes()
    monkeypatch.setattr(recipes, "CHUNK_ENTRIES", 999)
    convert(source, target, precision)
    if precision != "int8":
        assert target.read_bytes() == whole
        return
    again, before = builder.open_kind(target, "transformer"), header(target)
    target.write_bytes(whole)
    whole = builder.open_kind(target, "transformer")
    assert header(target) == before
    assert all(
        alike(again.quantised(name), whole.quantised(name))
        if is_projection(name)
        else torch.equal(again.tensor(name), whole.tensor(name))
        for name in whole.names
    )


def test_rows_of_stacked_parts_cross_their_borders(written, target, monkeypatch):
    """Layout E: a chunk may end within q of one modality."""
    path, _, values = written("E int8")
    monkeypatch.setattr(recipes, "CHUNK_ENTRIES", 700)
    convert(path, target, "bf16")
    assert torch.equal(load_file(target)[QKV], values[QKV].float().bfloat16())


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_numbers_that_are_none_are_refused_by_name(state, target, tmp_path, precision, number):
    state[SHARED][41, 7] = number
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"{SHARED} holds numbers that are not finite, in its rows 0 to 63"
    ):
        convert(tmp_path / "x.safetensors", target, precision)
    assert not target.exists()


# Text encoders and autoencoders.


@pytest.fixture
def encoder(tiny_models, target):
    """The folder of the tiny text encoder; its settings lie beside the target too."""
    folder = tiny_models / "text_encoders" / "t5gemma_tiny"
    shutil.copy(folder / "config.json", target.parent)
    return folder


def encoder_weights(folder):
    return {
        name.removeprefix("model."): tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("precision", TARGETS)
def test_text_encoder_in_shards(encoder, target, precision):
    convert(encoder, target, precision)
    weights = encoder_weights(encoder)
    network = builder.load_text_encoder(target)
    for name, weight in weights.items():
        is_large = name.endswith("_proj.weight")
        if is_large and precision != "bf16":
            expected = PRECISIONS[precision].quantise(weight)
            assert same(network.get_submodule(name.removesuffix(".weight")).stored, expected), name
        else:
            assert torch.equal(network.state_dict()[name], weight), name
    found = inspect_file(target)
    assert (found.kind, found.precision, found.missing, found.unknown) == ("text_encoder", precision, (), ())


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_text_encoder_in_gguf(encoder, target, tmp_path, precision, monkeypatch):
    gguf = pytest.importorskip("gguf")
    monkeypatch.setattr(recipes, "CHUNK_ENTRIES", 900)
    weights, kind = encoder_weights(encoder), gguf.GGMLQuantizationType.Q8_0
    shutil.copy(encoder / "config.json", tmp_path)
    writer, values = gguf.GGUFWriter(tmp_path / "t5gemma.gguf", "t5gemma"), {}
    for name, weight in weights.items():
        numbers = weight.float().numpy()
        if weight.ndim == 2:
            blocks = gguf.quants.quantize(numbers, kind)
            writer.add_tensor(name, blocks, raw_dtype=kind)
            values[name] = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
        else:
            writer.add_tensor(name, numbers)
            values[name] = weight.float()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(tmp_path / "t5gemma.gguf", target, precision)
    network = builder.load_text_encoder(target)
    for name, numbers in values.items():
        if name.endswith("_proj.weight") and precision == "fp8":
            assert same(
                network.get_submodule(name.removesuffix(".weight")).stored,
                PRECISIONS["fp8"].quantise(numbers),
            )
        else:
            assert torch.equal(network.state_dict()[name], numbers.bfloat16()), name


def sentencepiece_model():
    """A model of few pieces, as bytes."""
    pytest.importorskip("google.protobuf")
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    kinds = proto.ModelProto.SentencePiece
    for number, piece in enumerate(("<unk>", "▁", "a", "b", "▁a")):
        model.pieces.add(piece=piece, score=-number, type=kinds.NORMAL if number else kinds.UNKNOWN)
    model.trainer_spec.unk_id = 0
    model.trainer_spec.bos_id = model.trainer_spec.eos_id = model.trainer_spec.pad_id = -1
    return model.SerializeToString()


def embedded(path):
    """As pipeline/film.py takes them."""
    opened = open_checkpoint(path)
    return {name: opened.tensor(name) for name in EMBEDDED_NAMES if name in opened.names}


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model"])
def test_a_tokeniser_is_put_in_and_found(encoder, target, tmp_path, file):
    named = tmp_path / file
    named.write_bytes((encoder / file).read_bytes() if file.endswith("json") else sentencepiece_model())
    convert(encoder, target, "fp8", tokenizer=named)
    (tensor,) = embedded(target).values()
    assert bytes(tensor.tolist()) == named.read_bytes()
    plain = load_tokenizer(named)
    named.unlink()
    found = find_tokenizer(target, embedded(target))
    assert found.encode("ab a") == plain.encode("ab a") != []
    builder.load_text_encoder(target)
    assert inspect_file(target).unknown == ()
    # And from this file into the next, unless another is named.
    convert(target, target.with_name("y.safetensors"), "bf16")
    assert embedded(target.with_name("y.safetensors")).keys() == embedded(target).keys()
    assert all(torch.equal(a, tensor) for a in embedded(target.with_name("y.safetensors")).values())
    convert(target, target.with_name("z.safetensors"), "bf16", tokenizer=encoder / "tokenizer.json")
    assert embedded(target.with_name("z.safetensors")).keys() == {"tokenizer_json"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.txt", b"{}", "neither a tokenizer.json nor a sentencepiece .model"),
        ("tokenizer.json", b"", r"\(0 bytes\) is no tokeniser"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n", "is no tokeniser by its content"),
        (
            "tokenizer.model",
            b"version https://git-lfs.github.com/spec/v1\n",
            "is no tokeniser by its content",
        ),
        ("tokenizer.model", None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_tokeniser(encoder, target, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        convert(encoder, target, "bf16", tokenizer=tmp_path / name)
    assert left_over(target) == ["config.json"]


def test_a_tokeniser_of_gigabytes(encoder, target, tmp_path):
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.write(b"\n")
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="1,099,511,627,776 bytes"):
        convert(encoder, target, "bf16", tokenizer=tmp_path / "tokenizer.model")


def test_a_tokeniser_for_another_network(source, encoder, target):
    with pytest.raises(CheckpointError, match="goes into a text encoder's file, and this is the audio-video"):
        convert(source, target, "bf16", tokenizer=encoder / "tokenizer.json")


AUTOENCODERS = {
    "Wan2.2_VAE_tiny.pth": (builder.load_video_vae, torch.bfloat16),
    "turbo_vae_tiny/turbo_tiny.ckpt": (builder.load_turbo_decoder, torch.bfloat16),
    "oobleck_audio_tiny.safetensors": (builder.load_audio_vae, torch.float32),
}


@pytest.mark.parametrize("file", AUTOENCODERS)
def test_autoencoders(tiny_models, target, file):
    load, dtype = AUTOENCODERS[file]
    path = tiny_models / "vae" / file
    convert(path, target, "bf16")
    for settings_file in path.parent.glob("turbo*.json"):
        shutil.copy(settings_file, target.parent)
    expected, loaded = load(path).state_dict(), load(target).state_dict()
    assert {tensor.dtype for tensor in load_file(target).values()} == {dtype}
    assert loaded.keys() == expected.keys() == load_file(target).keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    for precision in QUANTISED:
        with pytest.raises(CheckpointError, match="has no quantised form; convert it with --precision bf16"):
            convert(path, target.with_name("y.safetensors"), precision)
    assert "y.safetensors" not in left_over(target)


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickles_of_parameters(state, target, tmp_path, is_zip):
    """Trainers save parameters, which ask for gradients."""
    weights = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
    torch.save({"state_dict": weights}, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
    convert(tmp_path / "x.pt", target, "bf16")
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_file(target).items())
    for precision in QUANTISED:
        convert(tmp_path / "x.pt", target, precision)
        assert same(stored(target, SHARED), PRECISIONS[precision].quantise(state[SHARED])), precision


# LoRA.

LORA_TARGETS = {
    "block.layers.0.attention.linear_q_video": (QKV, slice(0, 64)),
    "block.layers.0.attention.linear_k_text": (QKV, slice(328, 360)),
    "block.layers.3.mlp.down_proj": (SHARED, slice(None)),
    "adapter.video_embedder": ("adapter.video_embedder.weight", slice(None)),
}


@pytest.fixture
def lora(tmp_path, state):
    """``lora(name, seed, kind)`` -> (path, {published name: [(rows, float64 function of them)]})."""

    def write(name="lora.safetensors", seed=0, columns=False, more=None):
        generator = torch.Generator().manual_seed(seed)
        tensors, changes = dict(more or {}), {}
        for layer, (weight, rows) in LORA_TARGETS.items():
            base = state[weight][rows]
            up = 0.2 * torch.randn(base.shape[0], 4, generator=generator)
            down = 0.2 * torch.randn(4, base.shape[1], generator=generator)
            tensors |= {f"{layer}.lora_B.weight": up, f"{layer}.lora_A.weight": down}
            tensors[f"{layer}.alpha"] = torch.tensor(2.0)
            scale = None
            if columns:
                scale = 1 + torch.rand(1, base.shape[1], generator=generator)
                tensors[f"{layer}.dora_scale"] = scale
            changes.setdefault(weight, []).append((rows, up.double(), down.double(), scale))
        save_file(tensors, tmp_path / name)
        return tmp_path / name, changes

    return write


def merged_by_hand(weight, changes, strength):
    """float64, as the definition says."""
    out = weight.double().clone()
    for rows, up, down, scale in changes:
        base = out[rows].clone()
        new = base + 2.0 / 4 * up @ down
        if scale is not None:
            new = new / new.square().sum(0, keepdim=True).sqrt() * scale.double()
        out[rows] = base + strength * (new - base)
    return out


MERGED = [  # every precision, of sources that are plain, copied where no LoRA is, split, rotated
    *((form, precision, False) for form in ("B bf16", "D fp8", "H int8 convrot") for precision in TARGETS),
    ("E int8", "bf16", False),
    *(("B bf16", precision, True) for precision in TARGETS),
]


@pytest.mark.parametrize(("form", "precision", "columns"), MERGED)
def test_loras_are_merged_before_anything_is_rounded(
    written, lora, target, monkeypatch, precision, form, columns
):
    monkeypatch.setattr(recipes, "CHUNK_ENTRIES", 4000)
    path, _, values = written(form)
    (first, a), (second, b) = lora(seed=1, columns=columns), lora("second.safetensors", seed=2)
    convert(path, target, precision, loras=[(first, 0.7), (second, -1.2)])
    after, network = builder.open_kind(target, "transformer"), builder.load_transformer(target, "distilled")
    before = builder.open_kind(path, "transformer")
    for name in before.names:
        expected = merged_by_hand(values[name], a.get(name, ()), 0.7)
        expected = merged_by_hand(expected, b.get(name, ()), -1.2)
        if precision == "bf16" or not is_projection(name):
            tensor = network.state_dict()[name]
            limit = 2**-8 if is_projection(name) else 1e-6
            assert ((tensor.double() - expected).abs() <= limit * expected.abs() + 1e-6).all(), name
            continue
        given = after.quantised(name)
        if name not in a:  # nothing of a LoRA
            kept = before.quantised(name)
            is_kept = kept is not None and PRECISIONS[precision].keeps(kept) and precision != "nf4"
            wanted = kept if is_kept else PRECISIONS[precision].quantise(before.tensor(name))
            assert (
                alike(given, wanted) if "convrot" in form and not is_kept else same_numbers(given, wanted)
            ), name
            continue
        # float32 against float64.
        assert alike(given, PRECISIONS[precision].quantise(expected.float())), name


def test_a_lora_of_strength_0_and_its_unmatched_keys(source, state, lora, target):
    more = {
        "block.layers.99.mlp.down_proj.lora_A.weight": torch.ones(1),
        "text_model.x.lora_A.weight": torch.ones(1),
    }
    path, _ = lora(more=more)
    done = convert(source, target, "bf16", loras=[(path, 0.0)])
    assert done.unmatched == tuple(sorted(more))
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_file(target).items())


def test_loras_that_cannot_be_merged(source, encoder, lora, target, tmp_path):
    path, _ = lora()
    with pytest.raises(CheckpointError, match="a LoRA changes the transformer, and this is the T5Gemma"):
        convert(encoder, target, "bf16", loras=[(path, 1.0)])
    save_file({f"{SHARED.removesuffix('.weight')}.{key}": torch.zeros(shape) for key, shape in
               (("hada_w1_a", (64, 2)), ("hada_w1_b", (2, 168)), ("hada_w2_a", (64, 2)), ("hada_w2_b", (2, 168)))},
              tmp_path / "loha.safetensors")  # fmt: skip
    with pytest.raises(CheckpointError, match=r"loha\.safetensors: .*LoHa adapter, which is not merged here"):
        convert(source, target, "fp8", loras=[(path, 1.0), (tmp_path / "loha.safetensors", 1.0)])
    save_file({"x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors"):
        convert(source, target, "fp8", loras=[(tmp_path / "other.safetensors", 1.0)])
    assert left_over(target) == ["config.json"]
