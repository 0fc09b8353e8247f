"""GGUF text encoders: names, shapes, blocks and norms against what was written; damaged and foreign files."""

import builtins
import itertools
import json
import math
import os
import random
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.kernels import gguf_blocks
from comfyui_happyhorse.model_loading.gguf_file import NORM_NOTE, GgufSource, norm_weights, open_gguf
from comfyui_happyhorse.model_loading.gguf_header import MAX_FIELDS, MAX_TENSORS, MAX_TEXTS
from comfyui_happyhorse.model_loading.gguf_names import published_name

gguf = pytest.importorskip("gguf")

GOLDEN = Path(
    os.environ.get("HAPPYHORSE_GOLDEN") or Path(__file__).resolve().parents[3] / "shared" / "golden"
)
# Published names of one layer and of the rest, with llama.cpp's spellings by hand.
LLAMA_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_o",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "pre_self_attn_layernorm": "attn_norm",
    "post_self_attn_layernorm": "attn_post_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "ffn_post_norm",
}
GEMMA2_LAYER = LLAMA_LAYER | {
    "self_attn.o_proj": "attn_output",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
STYLES = {
    "hf": lambda name: name,
    "hf model.": lambda name: "model." + name,
    "enc.": lambda name: llama_name(name, LLAMA_LAYER, "enc."),
    "bare": lambda name: llama_name(name, GEMMA2_LAYER, ""),
}
NORMS = ("pre_self_attn", "post_self_attn", "pre_feedforward", "post_feedforward")
STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def llama_name(name, layer, prefix):
    """A published name in llama.cpp's style."""
    whole = {
        "encoder.embed_tokens.weight": "token_embd.weight",
        "encoder.norm.weight": f"{prefix}output_norm.weight",
    }
    if name in whole:
        return whole[name]
    _, _, number, rest = name.split(".", 3)
    return f"{prefix}blk.{number}.{layer[rest.removesuffix('.weight')]}.weight"


def is_norm(name):
    return name.endswith("norm.weight")


def tiny(seed=0, layers=2, hidden=64, vocab=96, norms=None):
    """A small encoder's weights, bfloat16 numbers in float32; ``norms(shape)`` draws those of the norms."""
    chance = torch.Generator().manual_seed(seed)
    shapes = {"encoder.embed_tokens.weight": (vocab, hidden), "encoder.norm.weight": (hidden,)}
    for i in range(layers):
        name = f"encoder.layers.{i}"
        shapes |= {f"{name}.self_attn.{p}_proj.weight": (hidden, hidden) for p in "qo"}
        shapes |= {f"{name}.self_attn.{p}_proj.weight": (hidden // 2, hidden) for p in "kv"}
        shapes |= {f"{name}.mlp.{p}_proj.weight": (2 * hidden, hidden) for p in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj.weight": (hidden, 2 * hidden)}
        shapes |= {f"{name}.{p}_layernorm.weight": (hidden,) for p in NORMS}
    draw = norms or (lambda shape: torch.randn(shape, generator=chance) * 0.2)
    return {
        name: (draw(shape) if is_norm(name) else torch.randn(shape, generator=chance)).bfloat16().float()
        for name, shape in shapes.items()
    }


def packed(tensor, kind):
    """What a writer is given of a tensor: its numbers, or the bytes of its rows."""
    if kind == "BF16":
        return tensor.bfloat16().view(torch.uint8).numpy()
    if kind in ("F32", "F16", "F64"):
        return tensor.numpy().astype({"F32": "f4", "F16": "f2", "F64": "f8"}[kind])
    return gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType[kind])


@pytest.fixture
def write(tmp_path):
    """``write(tensors, …)`` -> path of a GGUF file with these tensors, fields and types."""
    numbers = itertools.count()

    def written(
        tensors, style="hf", plus_one=False, matrices="F32", norms="F32", arch="t5gemma", alignment=None,
        fields=None, extra=None, name="x.gguf",
    ):  # fmt: skip
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        writer = gguf.GGUFWriter(folder / name, arch)
        if alignment:
            writer.add_custom_alignment(alignment)
        for key, value in (fields or {}).items():
            (writer.add_array if isinstance(value, list) else writer.add_string)(key, value)
        for key, tensor in tensors.items():
            kind = norms if is_norm(key) else matrices
            # As llama.cpp does it: in float32, or in float16 where the model is stored so.
            values = (tensor.to(STORED[kind]) + 1).float() if plus_one and is_norm(key) else tensor
            writer.add_tensor(
                STYLES[style](key), packed(values, kind), raw_dtype=gguf.GGMLQuantizationType[kind]
            )
        for key, (data, kind) in (extra or {}).items():
            writer.add_tensor(key, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return folder / name

    return written


def golden_weights():
    path = GOLDEN / "t5gemma_encoder.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is not there ($HAPPYHORSE_GOLDEN)")
    return {name[2:]: tensor.float() for name, tensor in load_file(path).items() if name.startswith("w.")}


def trained_norms(seed=5):
    """Norms of trained sizes: 1 + w from 0.2 to 4 from norm to norm, spread within, some far out."""
    chance = torch.Generator().manual_seed(seed)
    middles = itertools.cycle([0.2, 0.5, 1.3, 2.0, 4.0])

    def draw(shape):
        scale = next(middles) * (torch.randn(shape, generator=chance) * 0.4).exp()
        scale[::31] = 60 * torch.rand(scale[::31].shape, generator=chance)
        return scale - 1

    return draw


def positive_norms(seed=6):
    """Norms without a negative w: means from 0.3 to 3."""
    chance = torch.Generator().manual_seed(seed)
    means = itertools.cycle([0.3, 1.0, 3.0])
    return lambda shape: next(means) * (torch.randn(shape, generator=chance) * 0.5).exp()


WEIGHTS = {
    "golden": golden_weights,
    "around 0": tiny,
    "trained sizes": lambda: tiny(norms=trained_norms()),
    "all positive": lambda: tiny(norms=positive_norms()),
}


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("norms", STORED)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_names_and_norms_of_every_style(write, weights, norms, style, plus_one):
    tensors = WEIGHTS[weights]()
    path = write(tensors, style, plus_one, norms=norms)
    source, checkpoint = GgufSource(path), open_gguf(path)
    if weights == "all positive" and plus_one and norms == "BF16":
        # Nothing but the names can tell it from norms around 2: no sum is below 1/2, where w had finer bits.
        assert "the values do not show it" in source.norms.reason
        assert source.norms.is_shifted == (style in ("enc.", "bare"))
        return
    assert source.norms.is_shifted == plus_one, source.norms
    assert (
        checkpoint.metadata[NORM_NOTE]
        == f"norm weights hold {'w + 1' if plus_one else 'w'}: {source.norms.reason}"
    )
    assert checkpoint.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert set(checkpoint.dtypes.values()) == {"float32"}
    # Half a unit in the last place of 1 + w, which reaches 64.
    step = {"F32": 2**-24, "F16": 2**-11, "BF16": 2**-8}[norms] if plus_one else 0
    for name, tensor in tensors.items():
        given = checkpoint.tensor(name)
        assert given.dtype == torch.float32
        if is_norm(name):
            limit = step * (1 + tensor).abs().clamp(min=0.5)
            assert ((given - tensor).abs() <= limit).all(), name
            assert torch.equal(given.bfloat16().float(), given), (
                name
            )  # so a bfloat16 network loses nothing more
        else:
            assert torch.equal(given, tensor), name
    if plus_one and norms == "F32" and weights != "golden":
        assert (
            sum(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in tensors.items())
            >= len(tensors) - 1
        )


@pytest.mark.parametrize("dtype", STORED.values())
def test_one_rounding_of_a_sum_with_1_leaves_a_bfloat16_number(dtype):
    """For every exponent and all mantissas, of both signs: what the first test of the norms rests upon."""
    bits = torch.arange(0, 2**15, dtype=torch.int32).to(torch.int16)
    w = bits.view(torch.bfloat16)
    w = torch.cat([w, -w])
    w = w[w.float().abs() < 126]
    stored = (w.float() + 1).to(dtype).float()
    less = stored - 1
    assert torch.equal(less.bfloat16().float(), less)
    decided = norm_weights(stored, is_llama_style=False)
    if dtype != torch.bfloat16:
        assert decided.is_shifted and decided.reason == "all less 1 are bfloat16 numbers"
    kept = norm_weights(w.float(), is_llama_style=True)
    assert not kept.is_shifted and kept.reason == "all are bfloat16 numbers"


def shown(values, is_llama_style):
    return norm_weights(values.float(), is_llama_style).is_shifted


@pytest.mark.parametrize("is_llama_style", [False, True])
def test_weights_that_never_were_bfloat16_show_it_by_where_they_lie(is_llama_style):
    w = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 0.15
    assert not shown(w, is_llama_style)
    assert shown(w + 1, is_llama_style)
    assert not shown(w.half(), is_llama_style)
    assert shown((w + 1).half(), is_llama_style)
    assert not shown(w.abs() * 0.5, is_llama_style)  # near 0, none negative
    assert not shown(torch.zeros(8), is_llama_style) and shown(torch.ones(8), is_llama_style)


def test_what_no_value_shows_is_decided_by_the_names():
    values = 2.5 + torch.rand(4000, generator=torch.Generator().manual_seed(0))
    assert shown(values, True) and not shown(values, False)
    assert "llama.cpp, which adds 1" in norm_weights(values, True).reason


def test_bfloat16_sums_among_which_are_small_ones():
    """None on a finer grid than 1/256: not w, whatever the names and wherever half of them lie."""
    sums = (tiny(norms=trained_norms())["encoder.norm.weight"].repeat(20) + 2.5).bfloat16().float()
    small = torch.arange(1, 100) / 256
    large = torch.tensor([258.0, 300.0, 1024.0])  # of which the sum has taken the 1
    assert shown(torch.cat([sums, small]), False)
    assert shown(torch.cat([sums, small, large]), False)
    assert not shown(torch.cat([sums, (small + 1 / 1024).bfloat16()]), True)


def test_the_names_of_the_published_encoder():
    path = GOLDEN / "t5gemma_encoder_full_keys.json"
    if not path.exists():
        pytest.skip(f"{path} is not there ($HAPPYHORSE_GOLDEN)")
    names = list(json.loads(path.read_text(encoding="utf-8"))["keys"])
    assert len(names) == 464
    for style in STYLES.values():
        assert [published_name(style(name)) for name in names] == names
    assert published_name("dec.blk.0.cross_attn_q.weight") == "decoder.blk.0.cross_attn_q.weight"
    assert published_name("model.decoder.norm.weight") == "decoder.norm.weight"
    assert published_name("output.weight") == "lm_head.weight"


def blocks(kind, rows, columns, seed=0):
    """Any bits, with scales that are finite: float16 of a small exponent at every even byte."""
    entries, size = gguf_blocks.block_size(kind)
    data = np.random.default_rng(seed).integers(0, 256, (rows, columns // entries * size), np.uint8)
    return data & np.uint8(0x3F)


@pytest.fixture
def mixed(write):
    """(path, what it holds by published name): each kind of matrix once, as a file of one published layer would."""
    tensors = tiny(hidden=256, layers=1, vocab=40)
    name = "encoder.layers.0"
    kinds = {
        "encoder.embed_tokens.weight": "Q6_K",
        f"{name}.self_attn.q_proj.weight": "Q4_K",
        f"{name}.self_attn.k_proj.weight": "IQ2_S",
        f"{name}.self_attn.v_proj.weight": "Q8_0",
        f"{name}.self_attn.o_proj.weight": "IQ4_XS",
        f"{name}.mlp.gate_proj.weight": "BF16",
        f"{name}.mlp.up_proj.weight": "F16",
        f"{name}.mlp.down_proj.weight": "F64",
        "decoder.norm.weight": "I32",
        "decoder.embed_tokens.weight": "I8",
    }
    held = {}
    for number, (key, kind) in enumerate(kinds.items()):
        if kind in ("BF16", "F16", "F64"):
            held[key] = packed(tensors.pop(key), kind)
        elif kind == "I32":
            held[key] = np.arange(-3, 9, dtype=np.int32)
        elif kind == "I8":
            held[key] = np.arange(12, dtype=np.int8).reshape(3, 4)
        else:
            held[key] = blocks(kind, *tensors.pop(key).shape, seed=number)
    path = write(tensors, extra={key: (held[key], kind) for key, kind in kinds.items()})
    return path, held, kinds


def test_matrices_in_every_kind(mixed):
    path, held, kinds = mixed
    checkpoint, source = open_gguf(path), GgufSource(path)
    torch_names = {"BF16": "bfloat16", "F16": "float16", "F64": "float64", "I32": "int32", "I8": "int8"}
    for name, kind in kinds.items():
        tensor, stored = checkpoint.tensor(name), source.stored(name)
        bytes_of = held[name].tobytes()
        assert stored.dtype == checkpoint.dtypes[name] == torch_names.get(kind, f"gguf_{kind}")
        assert stored.last - stored.first == len(bytes_of)
        assert tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() == bytes_of
        assert source.raw(name) == checkpoint.raw(name) == bytes_of
        if kind in torch_names:
            assert str(tensor.dtype) == f"torch.{stored.dtype}"
            assert tuple(tensor.shape) == stored.shape
        else:
            assert tensor.dtype == torch.uint8
            assert tuple(tensor.shape) == held[name].shape
            values = gguf_blocks.dequantise(tensor, kind)
            assert tuple(values.shape) == stored.shape == checkpoint.shapes[name]
            expected = gguf.quants.dequantize(held[name], gguf.GGMLQuantizationType[kind])
            assert np.array_equal(values.numpy(), expected) and expected.any()
    assert (
        checkpoint.tensor("encoder.layers.0.mlp.down_proj.weight")[0, 0].item()
        == held["encoder.layers.0.mlp.down_proj.weight"][0, 0]
    )


def test_the_header_says_what_the_librarys_reader_says(mixed):
    path, _, _ = mixed
    source, theirs = GgufSource(path), gguf.GGUFReader(path)
    assert source._start == theirs.data_offset
    assert sorted(source.names()) == sorted(tensor.name for tensor in theirs.tensors)
    for tensor in theirs.tensors:
        entry = source._entry(tensor.name)
        assert entry.kind == tensor.tensor_type.name
        assert entry.shape == tuple(tensor.shape.tolist())[::-1]
        assert source._start + entry.first == tensor.data_offset
        assert entry.last - entry.first == tensor.n_bytes


@pytest.mark.parametrize(
    "name", ["encoder.embed_tokens.weight", "encoder.norm.weight", "decoder.norm.weight"]
)
def test_rows_are_read_without_mapping(mixed, monkeypatch, name):
    source = GgufSource(mixed[0])
    whole = source.tensor(name)
    monkeypatch.setattr(np, "memmap", None)
    for start, stop in [(0, 1), (3, 7), (5, 5), (9, 4), (0, 10**9), (-2, None), (10**9, None), (2, -1)]:
        rows = source.rows(name, start, stop)
        assert rows.dtype == whole.dtype
        assert torch.equal(rows, whole[start:stop]), (start, stop)


def test_norms_in_blocks_are_given_as_numbers(write):
    tensors = tiny(norms=lambda shape: torch.linspace(-0.4, 0.6, shape[0]))
    source = GgufSource(write(tensors, norms="Q8_0", plus_one=False))
    name = "encoder.norm.weight"
    assert source.stored(name).dtype == "float32"
    assert source.tensor(name).shape == (64,)
    assert (source.tensor(name) - tensors[name]).abs().max() < 0.6 / 127


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc/self/maps")
def test_a_file_is_let_go_with_its_last_tensor(mixed):
    path, _, _ = mixed
    is_mapped = lambda: str(path) in Path("/proc/self/maps").read_text()  # noqa: E731
    checkpoint = open_gguf(path)
    assert not is_mapped()
    tensor = checkpoint.tensor("encoder.embed_tokens.weight")
    part = tensor[3:5]
    assert is_mapped()
    del tensor
    assert is_mapped()
    before = path.read_bytes()
    part.zero_()
    assert path.read_bytes() == before  # ours to write to, and not the file
    del part
    assert not is_mapped()


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_other_alignments(write, alignment):
    tensors = tiny()
    checkpoint = open_gguf(write(tensors, alignment=alignment, matrices="F16"))
    assert checkpoint.metadata["general.alignment"] == str(alignment)
    assert all(torch.equal(checkpoint.tensor(name).float(), tensors[name].half().float()) for name in tensors)


def test_a_vocabulary_costs_nothing(write):
    words = [f"word {i}" for i in range(256_000)]
    path = write(
        tiny(), fields={"tokenizer.ggml.tokens": words, "general.name": "T5Gemma", "chat": "x" * 5000}
    )
    tracemalloc.start()
    try:
        checkpoint = open_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6
    assert checkpoint.metadata["general.name"] == "T5Gemma"
    assert not {"tokenizer.ggml.tokens", "chat"} & checkpoint.metadata.keys()
    assert len(checkpoint.names) == len(tiny())


# What is refused.


def refused(path, *parts):
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            open_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message or path.name in message
    for part in parts:
        assert part in message, message
    assert peak < 20e6


@pytest.fixture
def damaged(write):
    """``damaged(change)``: a whole file whose bytes went through ``change``, on disk."""
    path = write(tiny())

    def made(change):
        path.write_bytes(change(path.read_bytes()))
        return path

    return made


def at(offset, form, value):
    return lambda data: data[:offset] + struct.pack(form, value) + data[offset + struct.calcsize(form) :]


HEADS = {
    "empty": (lambda data: b"", "ends before its header"),
    "another format": (lambda data: b"PK\3\4" + data[4:], "begins with b'PK\\x03\\x04'"),
    "version 1": (at(4, "<I", 1), "version 1, and versions 2 and 3"),
    "version 4": (at(4, "<I", 4), "version 4"),
    "big-endian": (at(4, ">I", 3), "big-endian; take the usual little-endian"),
    "tensors without end": (at(8, "<Q", 2**60), f"{2**60:,} tensors"),
    "one tensor too many": (at(8, "<Q", MAX_TENSORS + 1), f"{MAX_TENSORS + 1:,} tensors"),
    "fields without end": (at(16, "<Q", 2**60), f"{2**60:,} fields"),
    "one field too many": (at(16, "<Q", MAX_FIELDS + 1), f"{MAX_FIELDS + 1:,} fields"),
    "a long name": (at(24, "<Q", 2**63), f"a name of {2**63:,} bytes"),
    "cut in the header": (lambda data: data[:200], "not a whole GGUF file"),
    "cut in the data": (lambda data: data[:-1000], "its tensors take"),
    "data after the end": (lambda data: data + bytes(64), "its tensors take"),
}


@pytest.mark.parametrize("fault", HEADS)
def test_heads_that_cannot_be(damaged, fault):
    change, message = HEADS[fault]
    refused(damaged(change), message, "Download it again")


def text(word):
    return struct.pack("<Q", len(word)) + word


def head(fields=(), tensors=(), size=64):
    """A file by hand: fields are (name, type, bytes), tensors (name, dimensions, type, offset)."""
    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    for name, kind, value in fields:
        data += text(name) + struct.pack("<I", kind) + value
    for name, dims, kind, offset in tensors:
        data += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return data + bytes(-len(data) % 32) + bytes(size)


def field(kind, value=b"", name=b"a"):
    return head([(name, kind, value)])


ARRAY = 9
BODIES = {
    "texts without end": (field(ARRAY, struct.pack("<IQ", 8, 2**60)), f"an array of {2**60:,} texts"),
    "a text without end": (field(ARRAY, struct.pack("<IQ", 8, 3) + text(b"b") + struct.pack("<Q", 2**64 - 1) + bytes(8)),
                           "ends within an array of 3 texts"),
    "numbers without end": (field(ARRAY, struct.pack("<IQ", 6, 2**62)), "its header claims"),
    "an array of arrays": (field(ARRAY, struct.pack("<IQ", 9, 1)), "an array of the type 9"),
    "a long text": (field(8, struct.pack("<Q", 2**61)), "its header claims"),
    "an unknown type": (field(13), "the unknown type 13"),
    "a field twice": (head([(b"a", 0, b"1"), (b"a", 0, b"1")]), "'a' more than once"),
    "a name that is no text": (head([(b"\xff\xfe", 0, b"1")]), "can't decode"),
    "an alignment of 48": (field(4, struct.pack("<I", 48), b"general.alignment"), "alignment is 48"),
    "an alignment of 0": (field(4, struct.pack("<I", 0), b"general.alignment"), "alignment is 0"),
    "an alignment in words": (field(8, text(b"32"), b"general.alignment"), "alignment is '32'"),
    "no dimensions": (head((), [(b"t", (), 0, 0)]), "t has 0 dimensions"),
    "five dimensions": (head((), [(b"t", (1,) * 5, 0, 0)]), "t has 5 dimensions"),
    "a dimension of 0": (head((), [(b"t", (4, 0), 0, 0)]), "t of shape [0, 4]"),
    "a huge shape": (head((), [(b"t", (2**63, 2**63), 0, 0)]), "its tensors take"),
    "half a block": (head((), [(b"t", (48, 2), 8, 0)]), "t of shape [2, 48] is not whole Q8_0 blocks of 32"),
    "an offset outside": (head((), [(b"t", (4,), 0, 2**40)]), "the data of t begins at 1,099,511,627,776"),
    "overlapping": (head((), [(b"t", (16,), 0, 0), (b"u", (8,), 0, 32)]), "the data of u begins at 32, where 64"),
    "a gap": (head((), [(b"t", (8,), 0, 32)]), "the data of t begins at 32, where 0"),
    "a tensor twice": (head((), [(b"t", (8,), 0, 0), (b"t", (8,), 0, 32)]), "the tensor 't' more than once"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BODIES)
def test_headers_that_cannot_be(tmp_path, fault):
    data, message = BODIES[fault]
    (tmp_path / "x.gguf").write_bytes(data)
    refused(tmp_path / "x.gguf", message, "not a whole GGUF file", "Download it again")


def test_more_texts_than_any_vocabulary(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(field(ARRAY, struct.pack("<IQ", 8, MAX_TEXTS + 1)))
    with path.open("r+b") as file:
        file.truncate(10 * MAX_TEXTS)  # room for all of them, each empty
    refused(path, f"an array of {MAX_TEXTS + 1:,} texts")


def test_a_sparse_terabyte_of_nothing(tmp_path):
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:
        file.write(head((), [(b"encoder.embed_tokens.weight", (2**38, 1), 0, 0)], size=0))
        file.truncate(file.tell() + 2**40)
    refused(path, "not a whole T5Gemma encoder")


def test_types_that_cannot_be_read(write, tmp_path):
    bad = np.zeros((2, 292), np.uint8)
    path = write(tiny(), extra={"decoder.x.weight": (bad, "Q8_K")})
    refused(path, "decoder.x.weight", "type Q8_K cannot be de-quantised")
    (tmp_path / "y.gguf").write_bytes(head((), [(b"t", (8,), 77, 0)]))
    refused(tmp_path / "y.gguf", "t is stored in the GGUF type number 77", "Q6_K")


def test_without_the_library(mixed, write, tmp_path, monkeypatch):
    tensors = tiny()
    whole = write(tensors, matrices="Q8_0")
    (tmp_path / "y.gguf").write_bytes(head((), [(b"t", (256,), 34, 0)]))
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    gguf_blocks.block_size.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    assert len(open_gguf(whole).names) == len(tensors)  # what is common needs no library
    # IQ2_S is none of the types whose number is known here.
    refused(mixed[0], "self_attn.k_proj.weight is stored", "pip install gguf")
    refused(tmp_path / "y.gguf", "t is stored", "pip install gguf")


def test_not_a_file(tmp_path):
    refused(tmp_path / "none.gguf", "is not there")
    refused(tmp_path, "is a folder")


def llama():
    shapes = {"token_embd.weight": (40, 32), "output_norm.weight": (32,), "output.weight": (40, 32)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        shapes[f"blk.0.{name}.weight"] = (32, 32)
    shapes |= {f"blk.0.{name}.weight": (32,) for name in ("attn_norm", "ffn_norm")}
    return {name: (np.ones(shape, np.float32), "F32") for name, shape in shapes.items()}


def test_other_models(write):
    refused(write({}, arch="llama", extra=llama()), "architecture is 'llama'", "2 of the encoder's tensors are missing",
            "post_feedforward_layernorm", "token_embd.weight, output_norm.weight", "google/t5gemma")  # fmt: skip
    more = {"blk.0.attn_q_norm.weight": (np.ones(64, np.float32), "F32")}
    refused(
        write(tiny(layers=1), "bare", arch="gemma3", extra=more), "1 are not known (first: blk.0.attn_q_norm"
    )
    rel = {"enc.blk.0.attn_rel_b.weight": (np.ones((4, 2), np.float32), "F32")}
    refused(write(tiny(layers=1), "enc.", arch="t5encoder", extra=rel), "enc.blk.0.attn_rel_b.weight")
    refused(write({}, arch="clip", extra={"v.x": (np.ones(4, np.float32), "F32")}), "'clip'", "it holds v.x")


def test_gemma_2_is_not_its_encoder(write):
    """The same names and shapes: only what the file calls itself tells them apart."""
    tensors = tiny()
    refused(
        write(tensors, "bare", arch="gemma2", fields={"general.name": "Gemma 2 9b"}),
        "Gemma 2",
        "put 't5gemma'",
    )
    for told in ({"arch": "t5gemma"}, {"arch": "gemma2", "fields": {"general.name": "T5 Gemma 9b"}},
                 {"arch": "gemma2", "name": "t5gemma-9b-9b-ul2-Q6_K.gguf"}):  # fmt: skip
        assert len(open_gguf(write(tensors, "bare", **told)).names) == len(tensors)
    assert len(open_gguf(write(tensors, "enc.", arch="gemma2")).names) == len(tensors)


def test_one_of_several_parts(tmp_path):
    path = tmp_path / "x.gguf"
    split = (b"split.count", 2, struct.pack("<H", 3))
    path.write_bytes(head([split], [(b"token_embd.weight", (8, 2), 0, 0)]))
    refused(path, "one of 3 parts", "llama-gguf-split --merge")


@pytest.mark.parametrize("layer", [1, 10**12])
def test_a_layer_that_is_missing(write, layer):
    tensors = {name.replace("layers.1.", f"layers.{layer}."): value for name, value in tiny().items()}
    tensors.pop(f"encoder.layers.{layer}.mlp.up_proj.weight")
    refused(write(tensors), "encoder.layers.1.mlp.")


def test_one_tensor_under_two_names(write):
    extra = {"enc.output_norm.weight": (np.ones(64, np.float32), "F32")}
    refused(write(tiny(), extra=extra), "encoder.norm.weight twice", "enc.output_norm.weight")


def test_norms_that_cannot_be(write):
    name = "encoder.layers.1.post_feedforward_layernorm.weight"
    refused(write(tiny() | {name: torch.ones(32)}), f"{name} has the shape (32,)", "(64,)")
    refused(write(tiny() | {name: torch.full((64,), math.nan)}), name, "not finite")
    whole = tiny()
    whole.pop(name)
    refused(write(whole, extra={name: (np.ones(64, np.int32), "I32")}), name, "whole numbers (I32)")


def test_a_file_that_shrinks_after_it_was_opened(write):
    path = write(tiny())
    source = GgufSource(path)
    path.write_bytes(path.read_bytes()[:2000])
    for read in (source.rows, source.raw, source.tensor):
        with pytest.raises(
            CheckpointError, match=r"x\.gguf does not give the tensor encoder\.layers\.1\.mlp\.down"
        ):
            read("encoder.layers.1.mlp.down_proj.weight")
    with pytest.raises(CheckpointError, match="no such tensor"):
        source.stored("encoder.x")


COUNT = 300


def flip(data, end, chance):
    data = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        data[chance.randrange(end)] = chance.randrange(256)
    return bytes(data)


def cut(data, end, chance):
    return data[: chance.randrange(chance.choice([end, len(data)]))]


def lengthen(data, end, chance):
    """Some eight bytes of the header, most of which are or touch a count, become a number."""
    offset, number = (
        chance.randrange(end - 8),
        chance.choice([1, 2, 255, 2**20, 2**32, 2**60, 2**63, 2**64 - 1]),
    )
    return at(offset, "<Q", number)(data)


def lengthen_count(data, _end, chance):
    offset = chance.choice([8, 16, 24])
    count = struct.unpack_from("<Q", data, offset)[0]
    return at(offset, "<Q", (count + chance.choice([-2, -1, 1, 2, 2**16, 2**33])) % 2**64)(data)


def test_damaged_files_are_refused_or_whole(write):
    tensors = tiny(hidden=32, layers=1, vocab=48)
    extra = {"decoder.x.weight": (np.ones((4, 8), np.float16), "F16")}
    fields = {"tokenizer.ggml.tokens": ["a", "b", "c"] * 5, "scores": [0.5] * 9, "general.name": "T5Gemma"}
    path = write(tensors, "enc.", True, matrices="Q8_0", extra=extra, fields=fields)
    whole, source, chance = path.read_bytes(), GgufSource(path), random.Random(4)
    held = {
        name: (source.stored(name)[:2], source.raw(name))
        for name in source.names()
        if name.startswith("encoder.")
    }
    counts = {True: 0, False: 0}
    tracemalloc.start()
    try:
        for number in range(COUNT):
            path.write_bytes((flip, cut, lengthen, lengthen_count)[number % 4](whole, source._start, chance))
            try:
                loaded = GgufSource(path)
                read = {name: (loaded.stored(name)[:2], loaded.raw(name)) for name in loaded.names()}
                mapped = {name: loaded.tensor(name).flatten().view(torch.uint8) for name in loaded.names()}
            except CheckpointError:
                counts[False] += 1
                continue
            counts[True] += 1
            assert held == {name: value for name, value in read.items() if name.startswith("encoder.")}, (
                number
            )
            assert {name: data.numpy().tobytes() for name, data in mapped.items()} == {
                name: data for name, (_, data) in read.items()
            }
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts[False] > COUNT * 0.6 and counts[True] > 3, counts
    assert peak < 50e6
