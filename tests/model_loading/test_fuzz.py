"""A thousand damaged and hostile files: each is refused with the pack's own error, and none costs memory."""

import json
import random
import struct
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.kernels import quantised
from comfyui_happyhorse.model_loading import builder
from comfyui_happyhorse.model_loading.checkpoint import open_checkpoint
from comfyui_happyhorse.model_loading.header import MAX_JSON_BYTES
from comfyui_happyhorse.model_loading.inspect import inspect_file
from comfyui_happyhorse.model_loading.precision import PRECISIONS
from comfyui_happyhorse.model_loading.quantised_layers import QuantisedLinear

SEED, COUNT = 4, 1000
STRANGE = (
    -1, 0, 1, 2**31, 2**62, 2**64, 1e308, 1.5, True, None, "", "x", [], [[]], {}, [2**40] * 3, "F4", "F8_E8M0", "BF16"
)  # fmt: skip


@pytest.fixture
def small(tmp_path):
    """Bytes of a transformer's beginnings in several layouts at once, so that every branch has something to read."""
    layer = "block.layers.0"
    tensors = {
        "adapter.video_embedder.weight": torch.randn(4, 2),
        f"{layer}.attention.pre_norm.weight": torch.zeros(4),
        f"{layer}.attention.linear_qkv.weight": torch.randn(9, 4).to(torch.float8_e4m3fn),
        f"{layer}.attention.linear_qkv.weight.__fp8_scale": torch.ones(()),
        f"{layer}.mlp.up_gate_proj.weight": torch.zeros(4, 4, dtype=torch.int8),
        f"{layer}.mlp.up_gate_proj.weight_scale": torch.ones(4, 1),
        f"{layer}.mlp.up_gate_proj.comfy_quant": torch.tensor(
            list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8
        ),
        **{
            f"{layer}.mlp.down_proj_{m}.weight": torch.randn(4, 4).bfloat16()
            for m in ("video", "audio", "text")
        },
    }
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata={"_quantization_metadata": '{"layers": {}}'})
    return file.read_bytes()


def split(content):
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def some_name(header, chance):
    return chance.choice([name for name in header if name != "__metadata__"])


def flip(content, chance):
    content = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def flip_header(content, chance):
    header, data = split(content)
    return joined(flip(json.dumps(header).encode(), chance), data)


def cut(content, chance):
    return content[: chance.randrange(len(content))]


def lengthen(content, chance):
    return content + bytes(chance.randint(1, 100))


def claim(content, chance):
    return struct.pack("<Q", chance.choice([0, 1, 7, len(content), 2**32, 2**63, 2**64 - 1])) + content[8:]


def change_entry(content, chance):
    header, data = split(content)
    field = chance.choice(["dtype", "shape", "data_offsets"])
    header[some_name(header, chance)][field] = chance.choice(STRANGE)
    return joined(header, data)


def move_offsets(content, chance):
    header, data = split(content)
    offsets = header[some_name(header, chance)]["data_offsets"]
    offsets[chance.randrange(2)] += chance.choice([-64, -4, -1, 1, 4, 64, 2**40])
    return joined(header, data)


def reshape(content, chance):
    header, data = split(content)
    entry = header[some_name(header, chance)]
    entry["shape"] = chance.choice([entry["shape"][::-1], [*entry["shape"], 1], [0], [1] * 9, [2**33, 0]])
    return joined(header, data)


def rename(content, chance):
    header, data = split(content)
    old = some_name(header, chance)
    endings = ("._scale", "._data", ".comfy_quant", ".weight_scale_2", ".lora_A.weight", "")
    new = chance.choice(["", "\ud800", "x" * 5000, "__metadata__", *(old + ending for ending in endings)])
    return joined({(new if name == old else name): value for name, value in header.items()}, data)


def change_metadata(content, chance):
    header, data = split(content)
    texts = ("[" * 99_999, "1", "{}", '{"layers": {"a": 1}}', '{"layers": {"a": {"format": []}}}')
    header["__metadata__"] = chance.choice([*STRANGE, {"_quantization_metadata": chance.choice(texts)}])
    return joined(header, data)


def replace_header(content, chance):
    headers = (
        b"[" * 50_000,
        b'{"a":' * 50_000,
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{" + b'"a":1,' * 99,
        b"9" * 9_999,
        b'"',
    )
    return joined(chance.choice(headers), split(content)[1])


MUTATIONS = (
    flip, flip_header, cut, lengthen, claim, change_entry, move_offsets, reshape, rename, change_metadata,
    replace_header,
)  # fmt: skip


def accepted(path) -> int:
    """How many of three readers accept the file; anything raised but CheckpointError fails the test."""
    count = 0
    for read in (
        lambda: [source.tensor(name) for source in [open_checkpoint(path)] for name in source.names],
        lambda: inspect_file(path),
        lambda: builder.load_transformer(path, "base"),
    ):
        try:
            read()
            count += 1
        except CheckpointError:
            pass
    return count


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Bytes of a whole two-layer transformer of which every projection is stored in another format."""
    kitchen = quantised.kitchen().tensor
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    tensors = {"adapter.rope.bands": torch.ones(2)}
    for modality, features in (("video", 16), ("audio", 8), ("text", 16)):
        tensors[f"adapter.{modality}_embedder.weight"] = randn(256, features)
        tensors[f"adapter.{modality}_embedder.bias"] = randn(256)
    for modality, features in (("video", 16), ("audio", 8)):
        tensors[f"final_norm_{modality}.weight"] = randn(256)
        tensors[f"final_linear_{modality}.weight"] = randn(features, 256)
    formats = iter(
        ("nf4", "convrot", "fp8", "mxfp8", "nvfp4", "convrot_w4a4", "asym_w4a8_int8", "float8_e5m2")
    )
    layouts = {
        "mxfp8": "TensorCoreMXFP8Layout",
        "nvfp4": "TensorCoreNVFP4Layout",
        "convrot_w4a4": "TensorCoreConvRotW4A4Layout",
        "asym_w4a8_int8": "AsymW4A8Int8Layout",
    }
    for layer in ("block.layers.0", "block.layers.1"):
        for norm, size in (
            ("attention.pre", 256),
            ("attention.q", 64),
            ("attention.k", 64),
            ("mlp.pre", 256),
        ):
            tensors[f"{layer}.{norm}_norm.weight"] = randn(size)
        shapes = ("linear_qkv", 388), ("linear_proj", 256), ("up_gate_proj", 512), ("down_proj", 256)
        for name, rows in shapes:
            at = f"{layer}.{'attention' if 'linear' in name else 'mlp'}.{name}"
            kind, weight = next(formats), randn(rows, 256)
            marker = {"format": kind}
            if kind == "nf4":
                made = quantised.quantise_nf4(weight)
                about = {"quant_type": "nf4", "blocksize": 64, "shape": [rows, 256]}
                tensors |= {f"{at}.weight": made.data}
                tensors |= {f"{at}.weight.{scale}": value for scale, value in made.scales.items()}
                tensors[f"{at}.weight.quant_state.bitsandbytes__nf4"] = text(about)
                continue
            if kind in layouts:
                made = kitchen.QuantizedTensor.from_float(weight.bfloat16(), layouts[kind])
                tensors |= {key: value.contiguous() for key, value in made.state_dict(f"{at}.weight").items()}
            elif kind == "convrot":
                made = quantised.quantise_int8(weight)
                marker = {"format": "int8_tensorwise", **made.settings, "orig_shape": [rows, 256]}
                tensors |= {f"{at}.weight": made.data, f"{at}.weight_scale": made.scales["weight_scale"]}
            else:
                dtype = torch.float8_e5m2 if kind == "float8_e5m2" else torch.float8_e4m3fn
                marker = {"format": str(dtype)[6:]}
                tensors |= {f"{at}.weight": weight.to(dtype), f"{at}.weight_scale": torch.ones(rows, 1)}
            tensors[f"{at}.comfy_quant"] = text(marker)
    file = tmp_path_factory.mktemp("mixed") / "x.safetensors"
    save_file(tensors, file)
    return file.read_bytes()


def text(content):
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def change_marker(content, chance):
    """Another number, word or brace in one of the JSON texts among the tensors."""
    header, data = split(content)
    names = [name for name in header if name.endswith((".comfy_quant", "__nf4"))]
    first, last = header[chance.choice(names)]["data_offsets"]
    data = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        data[chance.randrange(first, last)] = chance.choice(b'0123456789"{}[],:.-aeft')
    return joined(header, bytes(data))


def swap_entries(content, chance):
    """Two tensors under each other's names."""
    header, data = split(content)
    one, other = (some_name(header, chance) for _ in range(2))
    header[one], header[other] = header[other], header[one]
    return joined(header, data)


def used(path) -> int:
    """How many of the weights' readers accept the file; anything raised but CheckpointError fails the test."""
    count = 0
    for chosen in ("auto", "bf16", "int8"):
        try:
            network = builder.load_transformer(path, "base", PRECISIONS[chosen])
            for module in network.modules():
                if isinstance(module, QuantisedLinear):
                    quantised.dequantise(module.stored)
            view = builder.open_kind(path, "transformer")
            for name in view.names:
                view.rows(name, 0, 1)
            count += 1
        except CheckpointError:
            pass
    return count


def test_a_file_in_every_format_is_whole_before_it_is_damaged(mixed, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(mixed)
    assert used(tmp_path / "x.safetensors") == 3
    assert inspect_file(tmp_path / "x.safetensors").problem is None


def test_damaged_weights_in_every_format(mixed, tmp_path):
    chance, file = random.Random(SEED), tmp_path / "fuzz.safetensors"
    mutations = (change_marker, swap_entries, change_entry, reshape, rename, flip_header)
    counts = [0] * 4
    for number in range(300):
        file.write_bytes(mutations[number % len(mutations)](mixed, chance))
        counts[used(file)] += 1
    assert counts[0] > 150
    assert counts[3] > 0  # a space in a marker, say, changes nothing


@pytest.mark.usefixtures("small")
def test_the_file_is_whole_before_it_is_damaged(tmp_path):
    assert accepted(tmp_path / "x.safetensors") == 2  # and loading it finds that it is no whole transformer


def test_a_thousand_damaged_files(small, tmp_path):
    chance, file = random.Random(SEED), tmp_path / "fuzz.safetensors"
    counts = [0, 0, 0, 0]
    for number in range(COUNT):
        file.write_bytes(MUTATIONS[number % len(MUTATIONS)](small, chance))
        counts[accepted(file)] += 1
    assert counts[3] == 0
    assert counts[0] > COUNT / 2  # most damage makes no file at all


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_pickles(tmp_path, zipped):
    chance, file = random.Random(SEED), tmp_path / "fuzz.ckpt"
    tensors = {"adapter.video_embedder.weight": torch.ones(4, 2), "x": torch.zeros(3, dtype=torch.bfloat16)}
    torch.save({"state_dict": tensors}, file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    for number in range(60):
        file.write_bytes((flip, cut)[number % 2](content, chance))
        assert accepted(file) < 3


def test_damaged_indices(small, tmp_path):
    chance, index = random.Random(SEED), tmp_path / "model.safetensors.index.json"
    weights = dict.fromkeys(split(small)[0].keys() - {"__metadata__"}, "x.safetensors")
    whole = json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}).encode()
    for _ in range(100):
        index.write_bytes(flip(whole, chance))
        assert accepted(tmp_path) < 3
    for metadata in (value for value in STRANGE if value != 2**64):
        index.write_text(json.dumps({"metadata": metadata, "weight_map": weights}))
        assert len(open_checkpoint(tmp_path).names) == len(weights)


@pytest.mark.parametrize(
    "shard", ["", ".", "..", "../a.safetensors", "/etc/passwd", "a\0b", "x" * 300, "\ud800", "C:\\a"]
)
def test_shards_lie_beside_their_index(tmp_path, shard):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match="names the shard"):
        open_checkpoint(tmp_path)


def bomb(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def entry(first: int, last: int, shape: str = "[2]") -> bytes:
    return f'{{"dtype":"F32","shape":{shape},"data_offsets":[{first},{last}]}}'.encode()


IMPOSSIBLE = {
    "overlapping": (b'{"a":' + entry(0, 8) + b',"b":' + entry(4, 12) + b"}", "the data of b begins at 4"),
    "a gap": (b'{"a":' + entry(0, 8) + b',"b":' + entry(12, 20) + b"}", "the data of b begins at 12"),
    "backwards": (b'{"a":' + entry(8, 0) + b"}", "a of shape .* does not fit"),
    "out of range": (b'{"a":' + entry(0, 80, "[20]") + b"}", "its tensors take 80 bytes, and 16 are there"),
    "another size": (b'{"a":' + entry(0, 16) + b"}", "a of shape .* does not fit"),
    "a name twice": (b'{"a":' + entry(0, 8) + b',"a":' + entry(8, 16) + b"}", "'a' more than once"),
    "half a letter": (b'{"\\ud800":' + entry(0, 16, "[4]") + b"}", "surrogates not allowed"),
}


@pytest.mark.parametrize("fault", IMPOSSIBLE)
def test_headers_that_cannot_be_are_refused_when_opened(tmp_path, fault):
    """By our own reading: the library, which would map the file, is not asked."""
    header, message = IMPOSSIBLE[fault]
    (tmp_path / "x.safetensors").write_bytes(joined(header, bytes(16)))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "x.safetensors")


BOMBS = {
    "many lists": lambda: bomb(b'{"a":[' + b"[]," * 4_000_000 + b"[]]}"),
    "many names": lambda: bomb(b"{" + b",".join(b'"%d":1' % i for i in range(1_000_000)) + b"}"),
    "nested": lambda: bomb(b"[" * 400_000),
    "too large": lambda: bomb(b" " * (MAX_JSON_BYTES + 1)),
    "larger than the file": lambda: struct.pack("<Q", 2**40) + b"{}",
    "a tensor larger than the file": lambda: bomb(
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    ),
    "a number of many digits": lambda: bomb(
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 1_000_000 + b'],"data_offsets":[0,0]}}'
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_cost_memory(tmp_path, name):
    (tmp_path / "x.safetensors").write_bytes(BOMBS[name]())
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            open_checkpoint(tmp_path / "x.safetensors")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64e6
