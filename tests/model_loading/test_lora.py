"""Every spelling of a LoRA changes exactly the rows it means, by the amount its definition says in float64."""

import json
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from comfyui_happyhorse.errors import CheckpointError
from comfyui_happyhorse.model.config import VARIANTS, TransformerConfig
from comfyui_happyhorse.model_loading.checkpoint import Checkpoint, open_checkpoint
from comfyui_happyhorse.model_loading.lora import merge, merge_rows
from comfyui_happyhorse.model_loading.lora_file import read_lora
from comfyui_happyhorse.model_loading.lora_names import LayerNames

GOLDEN = Path(
    os.environ.get("HAPPYHORSE_GOLDEN") or Path(__file__).resolve().parents[3] / "shared" / "golden"
)
QKV3, QKV0 = "block.layers.3.attention.linear_qkv", "block.layers.0.attention.linear_qkv"
# The tiny model has 64 rows of q, 32 of k and of v and 4 of g: 132 a modality. Layers 0, 1, 6 and 7 are stacked.
LAYERS = {  # title: (layer in the file, tensor, runs of its rows)
    "fused": (QKV3, QKV3, [(0, 132)]),
    "fused without gates": (QKV3, QKV3, [(0, 128)]),
    "q": ("block.layers.3.attention.linear_q", QKV3, [(0, 64)]),
    "k": ("block.layers.3.attention.linear_k", QKV3, [(64, 32)]),
    "v": ("block.layers.3.attention.linear_v", QKV3, [(96, 32)]),
    "g": ("block.layers.3.attention.linear_g", QKV3, [(128, 4)]),
    "stacked": (QKV0, QKV0, [(0, 396)]),
    "stacked without gates": (QKV0, QKV0, [(0, 128), (132, 128), (264, 128)]),
    "stacked k": ("block.layers.0.attention.linear_k", QKV0, [(64, 32), (196, 32), (328, 32)]),
    "one modality": (f"{QKV0}_audio", QKV0, [(132, 132)]),
    "one modality without gates": (f"{QKV0}_text", QKV0, [(264, 128)]),
    "q of video": ("block.layers.0.attention.linear_q_video", QKV0, [(0, 64)]),
    "v of text": ("block.layers.0.attention.linear_v_text", QKV0, [(360, 32)]),
    "g of audio": ("block.layers.0.attention.linear_g_audio", QKV0, [(260, 4)]),
    "proj": ("block.layers.4.attention.linear_proj",) * 2 + ([(0, 64)],),
    "proj of text": (
        "block.layers.1.attention.linear_proj_text",
        "block.layers.1.attention.linear_proj",
        [(128, 64)],
    ),
    "up": ("block.layers.2.mlp.up_gate_proj",) * 2 + ([(0, 336)],),
    "up of audio": ("block.layers.6.mlp.up_gate_proj_audio", "block.layers.6.mlp.up_gate_proj", [(336, 336)]),
    "down": ("block.layers.5.mlp.down_proj",) * 2 + ([(0, 64)],),
    "down of video": ("block.layers.7.mlp.down_proj_video", "block.layers.7.mlp.down_proj", [(0, 64)]),
    "embedder": ("adapter.video_embedder",) * 2 + ([(0, 64)],),
    "head": ("final_linear_audio",) * 2 + ([(0, 64)],),
}
KINDS = ("plain", "alpha", "mid", "DoRA of rows", "DoRA of columns", "PEFT's DoRA", "diff", "set")
PREFIXES = (
    "",
    "transformer.",
    "diffusion_model.",
    "model.diffusion_model.",
    "base_model.model.",
    "base_model.model.transformer.",
    "base_model.model.diffusion_model.",
    "base_model.model.model.diffusion_model.",
)
PAIRS = (  # down, up
    ("lora_A.weight", "lora_B.weight"),
    ("lora_A.default.weight", "lora_B.default.weight"),
    ("lora_A.my-adapter_2.weight", "lora_B.my-adapter_2.weight"),
    ("lora_A", "lora_B"),
    ("lora_down.weight", "lora_up.weight"),
    ("lora_down", "lora_up"),
    ("lora.down.weight", "lora.up.weight"),
)


@pytest.fixture
def config(state):
    return TransformerConfig.from_shapes(
        {name: tuple(tensor.shape) for name, tensor in state.items()}, VARIANTS["distilled"]
    )


@pytest.fixture
def lora(tmp_path, config):
    """``lora(tensors)`` writes them to a file and reads it."""

    def read(tensors):
        file = tmp_path / "x.safetensors"
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
        return read_lora(open_checkpoint(file), config)

    return read


def made_up(kind, rows, columns, rank=3):
    """{suffix: tensor}, in bf16 as trainers write them but for the scales."""
    generator = torch.Generator().manual_seed(7)

    def randn(*shape):
        return (0.3 * torch.randn(shape, generator=generator)).bfloat16()

    if kind in ("diff", "set"):
        return {{"diff": "diff", "set": "set_weight"}[kind]: randn(rows, columns)}
    tensors = {"lora_up.weight": randn(rows, rank), "lora_down.weight": randn(rank, columns)}
    if kind != "plain":
        tensors["alpha"] = torch.tensor(1.7)
    if kind == "mid":
        tensors["lora_mid.weight"] = randn(rank, rank)
    scale = {"DoRA of rows": (rows, 1), "DoRA of columns": (1, columns), "PEFT's DoRA": (rows,)}.get(kind)
    if scale:
        suffix = "lora_magnitude_vector.default.weight" if len(scale) == 1 else "dora_scale"
        tensors[suffix] = 1 + randn(*scale).abs().float()
    return tensors


def by_hand(weight, runs, tensors, strength):
    """The definition, in float64 and row by row."""
    out = weight.double().clone()
    rows = [row for start, length in runs for row in range(start, start + length)]
    values = {suffix: tensor.double() for suffix, tensor in tensors.items()}
    if "set_weight" in values:
        out[rows] = values["set_weight"]
        return out
    if "diff" in values:
        out[rows] += strength * values["diff"]
        return out
    up, down = values["lora_up.weight"], values["lora_down.weight"]
    rank = down.shape[0]
    if "lora_mid.weight" in values:
        down = (values["lora_mid.weight"][:, :, None] * down[None]).sum(1)
    change = (up[:, :, None] * down[None]).sum(1) * (values["alpha"] / rank if "alpha" in values else 1)
    base = out[rows]
    merged = base + change
    scale = next((v for suffix, v in values.items() if "dora" in suffix or "magnitude" in suffix), None)
    if scale is not None:
        axis = 0 if scale.ndim == 2 and scale.shape[0] == 1 else 1
        merged = merged / merged.square().sum(axis, keepdim=True).sqrt()
        merged *= scale.reshape(1, -1) if axis == 0 else scale.reshape(-1, 1)
    out[rows] = base + strength * (merged - base)
    return out


def check(lora, weight, target, expected, strength, close):
    patches = lora.of(f"{target}.weight")
    assert len(patches) == len(lora.patches) and not lora.unmatched
    close(merge(weight.double(), patches, strength), expected, 1e-13)
    single = merge(weight, patches, strength)
    assert single.dtype == torch.float32
    close(single, expected, 1e-6)


@pytest.mark.parametrize(
    ("layer", "kind"),
    # Columns over rows that lie apart are refused: see BAD.
    [(a, b) for a in LAYERS for b in KINDS if b != "DoRA of columns" or len(LAYERS[a][2]) == 1],
)
def test_a_patch_changes_its_rows_as_defined(state, lora, close, layer, kind):
    spelled, target, runs = LAYERS[layer]
    weight = state[f"{target}.weight"]
    tensors = made_up(kind, sum(length for _, length in runs), weight.shape[1])
    before = weight.clone()
    read = lora({f"{spelled}.{suffix}": tensor for suffix, tensor in tensors.items()})
    check(read, weight, target, by_hand(weight, runs, tensors, 0.8), 0.8, close)
    assert torch.equal(weight, before)
    assert torch.equal(merge(weight, read.patches, 0.0), weight.float())
    assert [patch.needs_whole_weight for patch in read.patches] == [kind == "DoRA of columns"] * len(runs)


@pytest.mark.parametrize("pair", PAIRS, ids=[down for down, _ in PAIRS])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("end", ["", ".weight"])
@pytest.mark.parametrize("layer", ["fused", "v of text"])
def test_every_spelling_is_the_same(state, lora, close, prefix, pair, end, layer):
    spelled, target, runs = LAYERS[layer]
    weight = state[f"{target}.weight"]
    tensors = made_up("alpha", runs[0][1], weight.shape[1])
    names = {"lora_down.weight": pair[0], "lora_up.weight": pair[1], "alpha": "alpha"}
    read = lora({f"{prefix}{spelled}{end}.{names[suffix]}": tensor for suffix, tensor in tensors.items()})
    check(read, weight, target, by_hand(weight, runs, tensors, -1.3), -1.3, close)


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_transformer_", "lycoris_"])
@pytest.mark.parametrize("layer", LAYERS)
def test_underscored_names(state, lora, close, prefix, layer):
    spelled, target, runs = LAYERS[layer]
    weight = state[f"{target}.weight"]
    tensors = made_up("DoRA of rows", sum(length for _, length in runs), weight.shape[1])
    read = lora(
        {f"{prefix}{spelled.replace('.', '_')}.{suffix}": tensor for suffix, tensor in tensors.items()}
    )
    check(read, weight, target, by_hand(weight, runs, tensors, 1.0), 1.0, close)


def test_kernels_of_one_position_are_matrices(state, lora, close):
    spelled, target, runs = LAYERS["down"]
    weight = state[f"{target}.weight"]
    tensors = made_up("mid", 64, weight.shape[1])
    shaped = {
        f"{spelled}.{suffix}": tensor[:, :, None, None] if tensor.ndim else tensor.reshape(1)
        for suffix, tensor in tensors.items()
    }
    check(lora(shaped), weight, target, by_hand(weight, runs, tensors, 0.5), 0.5, close)


def test_norms_and_biases_take_differences(state, lora):
    norm, bias = torch.randn(192), torch.randn(64)
    read = lora(
        {
            "diffusion_model.block.layers.0.mlp.pre_norm.diff": norm,
            "lora_unet_adapter_text_embedder.diff_b": bias,
            "diffusion_model.adapter.audio_embedder.bias.set_weight": bias,
            "final_norm_video.w_norm": bias,
        }
    )
    assert not read.unmatched
    for target, strength, change in (
        ("block.layers.0.mlp.pre_norm.weight", 0.5, norm),
        ("adapter.text_embedder.bias", 0.5, bias),
        ("final_norm_video.weight", 0.5, bias),
    ):
        torch.testing.assert_close(
            merge(state[target].double(), read.of(target), strength),
            state[target].double() + strength * change.double(),
        )
    target = "adapter.audio_embedder.bias"
    assert torch.equal(merge(state[target], read.of(target), 0.5), bias)


def test_patches_of_one_tensor_add_up_and_files_are_merged_in_turn(state, lora, close):
    weight = state[f"{QKV0}.weight"].double()
    q, k = made_up("alpha", 64, 64), made_up("DoRA of rows", 32, 64, rank=2)
    both = lora(
        {
            **{f"block.layers.0.attention.linear_q_video.{suffix}": tensor for suffix, tensor in q.items()},
            **{f"transformer.block.layers.0.attention.linear_k_text.{s}": tensor for s, tensor in k.items()},
        }
    )
    assert both.ranks == (2, 3)
    expected = by_hand(by_hand(weight, [(0, 64)], q, 0.7), [(328, 32)], k, 0.7)
    merged = merge(weight, both.of(f"{QKV0}.weight"), 0.7)
    close(merged, expected, 1e-13)
    whole = made_up("DoRA of columns", 396, 64)
    second = lora({f"{QKV0}.{suffix}": tensor for suffix, tensor in whole.items()})
    close(merge(merged, second.patches, -0.4), by_hand(expected, [(0, 396)], whole, -0.4), 1e-13)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_are_merged_apart_as_together(tmp_path_factory, tiny_models, data):
    from safetensors.torch import load_file

    state = load_file(tiny_models / "diffusion_models" / "happyhorse_tiny_distilled.safetensors")
    config = TransformerConfig.from_shapes(
        {name: tuple(tensor.shape) for name, tensor in state.items()}, VARIANTS["distilled"]
    )
    file = tmp_path_factory.getbasetemp() / "rows.safetensors"
    if not file.exists():
        parts = (("linear_q_video", "alpha", 64), ("linear_k_text", "DoRA of rows", 32))
        parts += (("linear_g_audio", "diff", 4), ("linear_v_audio", "set", 32))
        save_file(
            {
                f"block.layers.0.attention.{part}.{suffix}": tensor
                for part, kind, rows in parts
                for suffix, tensor in made_up(kind, rows, 64).items()
            },
            file,
        )
    patches = read_lora(open_checkpoint(file), config).patches
    weight = state[f"{QKV0}.weight"].double()
    cuts = sorted({0, 396, *data.draw(st.lists(st.integers(0, 396), max_size=8))})
    strength = data.draw(st.sampled_from([1.0, 0.35, -2.0]))
    pieces = [merge_rows(weight[a:b], a, patches, strength) for a, b in pairwise(cuts)]
    torch.testing.assert_close(torch.cat(pieces), merge(weight, patches, strength), rtol=0, atol=1e-13)


def test_columns_are_normalised_over_all_rows_of_the_patch_only(state, lora, close):
    spelled, target, runs = LAYERS["one modality"]
    weight = state[f"{target}.weight"].double()
    tensors = made_up("DoRA of columns", 132, 64)
    read = lora({f"{spelled}.{suffix}": tensor for suffix, tensor in tensors.items()})
    expected = by_hand(weight, runs, tensors, 1.0)
    close(merge_rows(weight[100:300], 100, read.patches, 1.0), expected[100:300], 1e-13)
    assert torch.equal(merge_rows(weight[:132], 0, read.patches, 1.0), weight[:132])
    with pytest.raises(AssertionError, match="merged whole"):
        merge_rows(weight[200:300], 200, read.patches, 1.0)


def test_what_belongs_to_nothing_is_named(lora):
    known = made_up("plain", 132, 64)
    strange = (
        "block.layers.3.attention.linear_qkv_video.lora_A.weight",  # a shared layer has no modalities
        "block.layers.99.mlp.down_proj.lora_A.weight",
        "block.layers.3.mlp.down_proj.alpha",  # of nothing
        "block.layers.3.mlp.down_proj.lora_B.bias",
        "block.layers.3.mlp.pre_norm.lora_A.weight",
        "block.layers.3.mlp.down_proj.diff_b",  # it has no bias
        "lora_te_text_model.lora_up.weight",
        "adapter.rope.bands.diff",
    )
    read = lora(
        {f"{QKV3}.{suffix}": tensor for suffix, tensor in known.items()}
        | dict.fromkeys(strange, torch.ones(1))
    )
    assert read.unmatched == tuple(sorted(strange))
    assert len(read.patches) == 1


R, C = 132, 64
UP, DOWN = f"{QKV3}.lora_B.weight", f"{QKV3}.lora_A.weight"
PAIR = {UP: torch.zeros(R, 4), DOWN: torch.zeros(4, C)}
BAD = {
    "other rows": ({**PAIR, UP: torch.zeros(100, 4)}, [UP, "[100, 4]", "[132, 64]", "132 or 128 rows"]),
    "other columns": ({**PAIR, DOWN: torch.zeros(4, 65)}, [DOWN, "[4, 65]", "another model"]),
    "two ranks": ({**PAIR, DOWN: torch.zeros(5, C)}, ["[132, 4]", "[5, 64]", "same r"]),
    "no rank": ({UP: torch.zeros(R, 0), DOWN: torch.zeros(0, C)}, ["[132, 0]"]),
    "a vector": ({**PAIR, UP: torch.zeros(R)}, ["[132]"]),
    "no up": ({DOWN: PAIR[DOWN]}, [DOWN, "no up matrix"]),
    "no down": ({UP: PAIR[UP]}, [UP, "no down matrix"]),
    "a scale alone": ({f"{QKV3}.dora_scale": torch.ones(R, 1)}, ["dora_scale has no up matrix"]),
    "alphas": ({**PAIR, f"{QKV3}.alpha": torch.ones(4)}, ["alpha has shape [4]", "one number"]),
    "whole numbers": ({**PAIR, UP: torch.zeros(R, 4, dtype=torch.int8)}, [UP, "no fractions"]),
    "a scale of another": ({**PAIR, f"{QKV3}.dora_scale": torch.ones(131, 1)}, ["dora_scale", "[131, 1]"]),
    "a mid of another": ({**PAIR, f"{QKV3}.lora_mid.weight": torch.ones(4, 5)}, ["lora_mid", "[4, 5]"]),
    "a diff of another": ({f"{QKV3}.diff": torch.ones(R, 63)}, ["diff has shape [132, 63]"]),
    "a norm of another": ({"final_norm_audio.diff": torch.ones(63)}, ["[63]", "shape [64]", "64 rows"]),
    "scalar diff": ({f"{QKV3}.diff": torch.ones(())}, ["diff has shape []"]),
    "two spellings of a layer": (
        {**PAIR, f"transformer.{QKV3}.lora_up.weight": torch.zeros(R, 4)},
        [UP, f"transformer.{QKV3}.lora_up.weight", "both the up"],
    ),
    "the same rows twice": (
        {**PAIR, "block.layers.3.attention.linear_k.diff": torch.zeros(32, C)},
        [UP, "linear_k.diff", "both patch row 64"],
    ),
    "low rank and diff": ({**PAIR, f"{QKV3}.diff": torch.zeros(R, C)}, [UP, f"{QKV3}.diff", "both patch row 0"]),
    "columns of rows apart": (
        {
            f"{QKV0}.lora_up.weight": torch.zeros(384, 4),
            f"{QKV0}.lora_down.weight": torch.zeros(4, C),
            f"{QKV0}.dora_scale": torch.ones(1, C),
        },
        ["dora_scale", "not neighbours"],
    ),
    "nothing of ours": (
        {f"single_blocks.{i}.linear1.lora_A.weight": torch.zeros(1) for i in range(4)},
        ["none of its 4 keys", "single_blocks.0", "single_blocks.2", "another model"],
    ),
    "a checkpoint": ({"adapter.video_embedder.weight": torch.zeros(1)}, ["audio-video transformer, not a LoRA"]),
    "alpha only": ({f"{QKV3}.alpha": torch.ones(())}, ["none of its 1 keys"]),
    "LoHa of another": (
        {f"{QKV3}.hada_w{i}_{s}": torch.zeros(shape) for i in (1, 2) for s, shape in (("a", (R, 2)), ("b", (2, 9)))},
        ["LoHa", "64 columns"],
    ),
    "LoKr of another": ({f"{QKV3}.lokr_w1": torch.zeros(2, 2), f"{QKV3}.lokr_w2": torch.zeros(65, 32)}, ["LoKr"]),
    "half a LoHa": ({f"{QKV3}.hada_w1_a": torch.zeros(R, 2)}, ["LoHa adapter with hada_w1_a [132, 2]"]),
    "OFT of another": ({f"{QKV3}.oft_blocks": torch.zeros(3, 5, 5)}, ["OFT"]),
    "GLoRA of another": (
        {f"{QKV3}.{n}.weight": torch.zeros(4, 4) for n in ("a1", "a2", "b1", "b2")},
        ["GLoRA"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_by_name_and_unread(lora, monkeypatch, case):
    tensors, words = BAD[case]
    monkeypatch.setattr(Checkpoint, "tensor", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(CheckpointError) as caught:
        lora(tensors)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_alpha_that_is_no_number(lora, value):
    with pytest.raises(CheckpointError, match=r"alpha is (nan|inf)"):
        lora({**PAIR, f"{QKV3}.alpha": torch.tensor(value)})


def test_hostile_names_and_shapes_raise_nothing_else(lora):
    """Seeded: any suffix with any shape is read, left unmatched, or refused as a CheckpointError."""
    draw = random.Random(4)
    suffixes = [suffix for family in OTHERS.values() for suffix in family]
    suffixes += ["lora_A.weight", "lora_B.weight", "lora_mid.weight", "alpha", "dora_scale", "diff", "diff_b"]
    suffixes += ["set_weight", "w_norm", "hada_t1", "lokr_t2", "lora_B.x.y.weight", "", ".", "lora_A."]
    layers = [
        QKV3,
        QKV0,
        "final_norm_video",
        "adapter.text_embedder.bias",
        f"{QKV0}_text",
        "block.layers.-1",
        "",
    ]
    sizes = [0, 1, 2, 4, 64, 132, 396]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(400):
        keys = {
            f"{draw.choice(PREFIXES)}{draw.choice(layers)}.{draw.choice(suffixes)}"
            for _ in range(draw.randint(1, 4))
        }
        tensors = {
            key: torch.ones([draw.choice(sizes[:5]) for _ in range(draw.randint(0, 4))]) for key in keys
        }
        tensors = {key: tensor for key, tensor in tensors.items() if tensor.numel() < 1e6}
        if draw.random() < 0.4:
            tensors |= PAIR
        try:
            lora(tensors)
            outcomes["read"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes


OTHERS = {
    "LoHa": {"hada_w1_a": (R, 2), "hada_w1_b": (2, C), "hada_w2_a": (R, 3), "hada_w2_b": (3, C)},
    "LoKr": {"lokr_w1": (4, 4), "lokr_w2_a": (33, 2), "lokr_w2_b": (2, 16)},
    "GLoRA": {"a1.weight": (C, 2), "a2.weight": (2, C), "b1.weight": (R, 2), "b2.weight": (2, C)},
    "OFT": {"oft_blocks": (11, 12, 12), "rescale": (R, 1)},
    "BOFT": {"oft_blocks": (2, 11, 12, 12)},
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_passed_on_and_not_merged(lora, family):
    tensors = {suffix: torch.randn(shape) for suffix, shape in OTHERS[family].items()}
    read = lora({f"transformer.{QKV3}.{suffix}": tensor for suffix, tensor in tensors.items()})
    (patch,) = read.patches
    assert (patch.target, patch.rows, patch.change.family) == (f"{QKV3}.weight", None, family)
    assert patch.change.tensors.keys() == tensors.keys()
    assert all(torch.equal(patch.change.tensors[suffix], tensor) for suffix, tensor in tensors.items())
    assert family in read.refusal
    with pytest.raises(CheckpointError, match=rf"transformer\..*{family} adapter.*HappyHorse LoRA Loader"):
        merge(torch.zeros(R, C), read.patches, 1.0)


@pytest.mark.skipif(not (GOLDEN / "dit_full_keys.json").exists(), reason="the published key list is not here")
def test_every_name_of_the_published_model():
    keys = json.loads((GOLDEN / "dit_full_keys.json").read_text())["keys"]
    shapes = {name: tuple(entry["shape"]) for name, entry in keys.items()}
    config = TransformerConfig.from_shapes(shapes, VARIANTS["base"])
    names = LayerNames(config)
    rows = {}
    for layer, place in names.places.items():
        assert names.find(f"lora_unet_{layer.replace('.', '_')}.diff") == (layer, "diff")
        assert place.shape == shapes[place.target]
        rows.setdefault(place.target, []).extend(run for runs in place.choices for run in runs)
    assert rows.keys() == shapes.keys() - {"adapter.rope.bands"}
    # 40 layers of 5120: q has 40 heads of 128, k and v 8, and every head one gate.
    assert names.places["block.layers.2.attention.linear_k_audio"].choices == (((7208 + 5120, 1024),),)
    assert names.places["block.layers.39.attention.linear_g_text"].choices == (((3 * 7208 - 40, 40),),)
    assert names.places["block.layers.20.attention.linear_v"].choices == (((6144, 1024),),)
    assert "block.layers.20.attention.linear_v_video" not in names.places
