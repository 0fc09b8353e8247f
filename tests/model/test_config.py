"""Sizes read off tensor shapes, for tiny checkpoints of several kinds and for the published one."""

import re
import sys
import time

import pytest
import torch

from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.model.config import VARIANTS, BlockSpec, TransformerConfig
from comfyui_happyhorse.model.transformer import JointTransformer

BASE = VARIANTS["base"]
GELU, SWIGLU = "gelu7", "swiglu7"


def shapes_of(hidden, heads, kv_heads, head_dim, bands, features, layers):
    """Every tensor of a checkpoint; ``layers`` are (has weights per modality, activation, inner size)."""
    video, audio, text = features
    shapes = {
        "adapter.video_embedder.weight": (hidden, video),
        "adapter.video_embedder.bias": (hidden,),
        "adapter.audio_embedder.weight": (hidden, audio),
        "adapter.audio_embedder.bias": (hidden,),
        "adapter.text_embedder.weight": (hidden, text),
        "adapter.text_embedder.bias": (hidden,),
        "adapter.rope.bands": (bands,),
        "final_norm_video.weight": (hidden,),
        "final_norm_audio.weight": (hidden,),
        "final_linear_video.weight": (video, hidden),
        "final_linear_audio.weight": (audio, hidden),
    }
    for index, (per_modality, activation, inner) in enumerate(layers):
        parts, prefix = 3 if per_modality else 1, f"block.layers.{index}"
        shapes |= {
            f"{prefix}.attention.pre_norm.weight": (parts * hidden,),
            f"{prefix}.attention.linear_qkv.weight": (
                parts * (heads * head_dim + 2 * kv_heads * head_dim + heads),
                hidden,
            ),
            f"{prefix}.attention.q_norm.weight": (parts * head_dim,),
            f"{prefix}.attention.k_norm.weight": (parts * head_dim,),
            f"{prefix}.attention.linear_proj.weight": (parts * hidden, heads * head_dim),
            f"{prefix}.mlp.pre_norm.weight": (parts * hidden,),
            f"{prefix}.mlp.up_gate_proj.weight": (parts * inner * (1 if activation == GELU else 2), hidden),
            f"{prefix}.mlp.down_proj.weight": (parts * hidden, inner),
        }
    return shapes


EDGE_IN, SHARED, EDGE_OUT = (True, GELU, 40), (False, SWIGLU, 28), (True, SWIGLU, 28)
SIZES = {  # hidden, heads, kv heads, head size, bands, features of video, audio and text, layers
    "like the published one": (16, 4, 2, 8, 1, (8, 5, 7), (EDGE_IN, SHARED, SHARED, EDGE_OUT)),
    "one key head": (24, 3, 1, 8, 1, (12, 3, 9), (EDGE_IN, SHARED)),
    "a key head for each head": (16, 2, 2, 16, 2, (4, 2, 3), (SHARED, EDGE_OUT, SHARED)),
    "heads wider than the hidden size": (10, 4, 2, 16, 2, (8, 5, 7), (SHARED,)),
    "all layers per modality, twelve of them": (8, 2, 1, 24, 3, (8, 6, 5), (EDGE_IN, EDGE_OUT) * 6),
    "shared gelu": (8, 1, 1, 8, 1, (4, 4, 4), ((False, GELU, 32), (False, SWIGLU, 16))),
}
PUBLISHED = (
    5120,
    40,
    8,
    128,
    16,
    (192, 64, 3584),
    ((True, GELU, 20480),) * 4 + ((False, SWIGLU, 13652),) * 32 + ((True, SWIGLU, 13652),) * 4,
)


@pytest.fixture
def tiny():
    return shapes_of(*SIZES["like the published one"])


@pytest.mark.parametrize("sizes", [*SIZES.values(), PUBLISHED], ids=[*SIZES, "published"])
def test_every_size_is_read(sizes):
    hidden, heads, kv_heads, head_dim, bands, (video, audio, text), layers = sizes
    assert TransformerConfig.from_shapes(shapes_of(*sizes), BASE) == TransformerConfig(
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        video_features=video,
        audio_features=audio,
        text_features=text,
        bands=bands,
        blocks=tuple(BlockSpec(*layer) for layer in layers),
        coordinates="v2",
        window=11,
    )


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_the_network_has_the_tensors_its_config_was_read_from(sizes):
    shapes = shapes_of(*sizes)
    network = JointTransformer(TransformerConfig.from_shapes(shapes, BASE))
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == shapes


def test_the_order_of_the_tensors_does_not_matter():
    shapes = shapes_of(*SIZES["all layers per modality, twelve of them"])
    reverse = dict(reversed(shapes.items()))
    assert TransformerConfig.from_shapes(reverse, BASE) == TransformerConfig.from_shapes(shapes, BASE)


def test_qkvg_split_of_the_published_sizes():
    config = TransformerConfig.from_shapes(shapes_of(*PUBLISHED), BASE)
    assert config.qkvg_split == (5120, 1024, 1024, 40)
    assert sum(config.qkvg_split) == 7208


READ = [  # what the sizes come from; the rest is compared when the tensors are adopted
    "adapter.video_embedder.weight",
    "adapter.audio_embedder.weight",
    "adapter.text_embedder.weight",
    "adapter.rope.bands",
    "block.layers.0.attention.q_norm.weight",
    "block.layers.0.attention.linear_proj.weight",
    "block.layers.0.attention.linear_qkv.weight",
    *(f"block.layers.{layer}.attention.pre_norm.weight" for layer in range(4)),
    *(f"block.layers.{layer}.mlp.up_gate_proj.weight" for layer in range(4)),
    *(f"block.layers.{layer}.mlp.down_proj.weight" for layer in range(4)),
]


@pytest.mark.parametrize("name", READ)
def test_a_missing_tensor_is_named(tiny, name):
    del tiny[name]
    with pytest.raises(CheckpointError, match=re.escape(name)):
        TransformerConfig.from_shapes(tiny, BASE)


@pytest.mark.parametrize("name", READ)
def test_a_tensor_with_another_number_of_axes_is_named(tiny, name):
    tiny[name] = (*tiny[name], 1)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        TransformerConfig.from_shapes(tiny, BASE)


def built(shapes):
    """(the tensors of the network these shapes describe, the refusal): one of the two is None."""
    try:
        with torch.device("meta"):
            network = JointTransformer(TransformerConfig.from_shapes(shapes, BASE))
    except CheckpointError as error:
        return None, str(error)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}, None


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_no_missing_tensor_passes_both_reading_and_adopting(sizes):
    """What the config does not need to know is still asked for by the network it builds."""
    shapes = shapes_of(*sizes)
    for name in shapes:
        rest = {other: shape for other, shape in shapes.items() if other != name}
        tensors, refusal = built(rest)
        if refusal is None:
            assert tensors.keys() - rest.keys() == {name}
        else:
            assert name in refusal


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_no_shape_off_by_one_passes_both_reading_and_adopting(sizes):
    """Each axis of each tensor, one up and one down: refused by name, or unlike the network's own."""
    shapes = shapes_of(*sizes)
    # The frequencies' count and the features of text stand nowhere else, so any number is right.
    free = [("adapter.rope.bands", 0), ("adapter.text_embedder.weight", 1)]
    for name, shape in shapes.items():
        for axis in (axis for axis in range(len(shape)) if (name, axis) not in free):
            for change in (-1, 1):
                wrong = (*shape[:axis], shape[axis] + change, *shape[axis + 1 :])
                tensors, refusal = built({**shapes, name: wrong})
                if refusal is None:
                    assert tensors != {**shapes, name: wrong}, f"{name} {wrong} passes"
                else:
                    assert re.search(r"(adapter|block\.layers)\.\S+\.weight", refusal), refusal


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("change", [-1, 1])
def test_a_norm_of_another_size_is_named_with_its_number(tiny, layer, change):
    name = f"block.layers.{layer}.attention.pre_norm.weight"
    tiny[name] = (tiny[name][0] + change,)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}' of shape \[{tiny[name][0]}\]"):
        TransformerConfig.from_shapes(tiny, BASE)


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("change", [-1, 1])
def test_a_feed_forward_that_does_not_fit_is_named(tiny, layer, change):
    rows, inner = tiny[f"block.layers.{layer}.mlp.down_proj.weight"]
    tiny[f"block.layers.{layer}.mlp.down_proj.weight"] = (rows, inner + change)
    name = f"block.layers.{layer}.mlp.up_gate_proj.weight"
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}' .* reads {inner + change}"):
        TransformerConfig.from_shapes(tiny, BASE)


@pytest.mark.parametrize("rows", [67, 69, 76, 84, 36, 20])
def test_a_fused_projection_that_is_not_qkvg_is_named(rows):
    """4 heads of 8 and 2 key heads make 32 + 16 + 16 + 4 = 68 rows; 84 would be 3 key heads, 36 none."""
    shapes = shapes_of(16, 4, 2, 8, 1, (8, 5, 7), (SHARED,))
    name = "block.layers.0.attention.linear_qkv.weight"
    assert shapes[name] == (68, 16)
    shapes[name] = (rows, 16)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        TransformerConfig.from_shapes(shapes, BASE)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("adapter.rope.bands", (2,)), ("block.layers.0.attention.q_norm.weight", (2,))],
    ids=["12 rotary entries in a head of 8", "a head of no entries"],
)
def test_a_head_that_cannot_be_rotated_is_named(tiny, name, shape):
    with pytest.raises(CheckpointError, match=re.escape(name)):
        TransformerConfig.from_shapes({**tiny, name: shape}, BASE)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_gap_in_the_layers_is_told(tiny, lost):
    rest = {name: shape for name, shape in tiny.items() if f"layers.{lost}." not in name}
    kept = ", ".join(str(layer) for layer in range(4) if layer != lost)
    with pytest.raises(CheckpointError, match=f"numbered {kept}; 0 to 2 are expected"):
        TransformerConfig.from_shapes(rest, BASE)


def test_a_file_without_layers_is_told(tiny):
    rest = {name: shape for name, shape in tiny.items() if "layers" not in name}
    with pytest.raises(CheckpointError, match="numbered not at all"):
        TransformerConfig.from_shapes(rest, BASE)


@pytest.mark.parametrize(
    ("variant", "coordinates", "local"),
    [
        ("base", "v2", []),
        ("distilled", "v2", []),
        ("sr_540p", "v1", []),
        (
            "sr_1080p",
            "v1",
            [layer for layer in range(40) if layer not in (3, 7, 11, 15, 19, 23, 27, 31)],
        ),
    ],
)
def test_what_variants_add_to_the_published_sizes(variant, coordinates, local):
    config = TransformerConfig.from_shapes(shapes_of(*PUBLISHED), VARIANTS[variant])
    assert config.coordinates == coordinates
    assert config.window == 11
    assert [layer for layer, block in enumerate(config.blocks) if block.is_local] == local
    assert sorted(VARIANTS) == ["base", "distilled", "sr_1080p", "sr_540p"]


def test_the_published_network_is_built_without_memory():
    """331 names and 15,299,419,136 parameters, in seconds and on meta: 30 GB of them would be felt."""
    resource = pytest.importorskip("resource")
    shapes = shapes_of(*PUBLISHED)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with torch.device("meta"):
        network = JointTransformer(TransformerConfig.from_shapes(shapes, BASE))
    seconds = time.perf_counter() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # kB on Linux, bytes on macOS
    state = network.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    assert len(state) == 331
    assert sum(parameter.numel() for parameter in network.parameters()) == 15_299_419_136
    float32 = sum(p.numel() for p in network.parameters() if p.dtype == torch.float32)
    assert float32 == 21_584_896
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.bfloat16}
    assert seconds < 30
    assert grown < 256 * 1024 * (1024 if sys.platform == "darwin" else 1)
