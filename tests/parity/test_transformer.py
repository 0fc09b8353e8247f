"""The transformer against the golden files: whole passes, layers, and the insides of layer 0."""

from dataclasses import replace

import pytest
import torch

from comfyui_happyhorse.model.config import VARIANTS, TransformerConfig
from comfyui_happyhorse.model.sequence import SequenceLayout
from comfyui_happyhorse.model.transformer import JointTransformer

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
groups = pytest.mark.golden("dit_", without=["_full_keys"])


@pytest.fixture
def network_of():
    """Builds a golden file's network in a dtype, with the file's local layers and window."""

    def build(weights, dtype, local_layers, window, style):
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        everywhere = frozenset(range(len(shapes))) - frozenset(local_layers)
        variant = replace(VARIANTS["base"], coordinates=style, global_layers=everywhere, window=window)
        config = TransformerConfig.from_shapes(shapes, variant)
        with torch.device("meta"):
            network = JointTransformer(config, dtype=dtype)
        wanted = network.state_dict()
        state = {name: tensor.to(wanted[name].dtype) for name, tensor in weights.items()}
        network.load_state_dict(state, assign=True)
        return network

    return build


def run(golden, network_of, dtype):
    """Yield (case, inputs, network, hidden, inside, video, audio) for every case of a file."""
    model, proxy = golden["model_config"], golden["data_proxy_config"]
    network = network_of(
        golden.weights(),
        dtype,
        model["local_attn_layers"],
        proxy["frame_receptive_field"],
        proxy["coords_style"],
    )
    for case, size in golden["cases"].items():
        video = golden.tensors[f"in.{case}.video_latent"][0]
        audio = golden.tensors[f"in.{case}.audio_latent"][0].T
        text = golden.tensors[f"in.{case}.txt_feat"][0, : size["Lt"]]
        hidden, inside, handles = {}, {}, []

        def keep(into, name, module, handles=handles):
            handles.append(module.register_forward_hook(lambda m, i, out: into.__setitem__(name, out)))

        for index, block in enumerate(network.block.layers):
            keep(hidden, index, block)
        keep(inside, "attn_module_out", network.block.layers[0].attention)
        keep(inside, "mlp_module_out", network.block.layers[0].mlp)
        keep(inside, "adapter_out", network.adapter)
        with torch.no_grad():
            velocity = network(video, audio, text)
        for handle in handles:
            handle.remove()
        layout = SequenceLayout.of(video, audio, text)
        yield case, layout, network, hidden, inside, velocity[0][None], velocity[1].T[None]


@groups
def test_sizes_are_read_off_the_tensors(golden):
    model = golden["model_config"]
    shapes = {name: tuple(tensor.shape) for name, tensor in golden.weights().items()}
    config = TransformerConfig.from_shapes(shapes, VARIANTS["base"])
    assert config.hidden_size == model["hidden_size"]
    assert config.head_dim == model["head_dim"]
    assert config.num_heads == model.get("num_heads_q", model["hidden_size"] // model["head_dim"])
    assert config.num_kv_heads == model["num_query_groups"]
    assert config.video_features == model["video_in_channels"]
    assert config.audio_features == model["audio_in_channels"]
    assert config.text_features == model["text_in_channels"]
    assert len(config.blocks) == model["num_layers"]
    assert [i for i, block in enumerate(config.blocks) if block.per_modality] == model["mm_layers"]
    assert [i for i, block in enumerate(config.blocks) if block.activation == "gelu7"] == model[
        "gelu7_layers"
    ]


@groups
def test_float32(golden, network_of, close):
    for case, layout, network, hidden, inside, video, audio in run(golden, network_of, FLOAT32):
        out = {name: golden.tensors[name] for name in golden.tensors if name.startswith(f"out.{case}.")}
        coordinates = layout.coordinates(network.config.coordinates)
        assert torch.equal(coordinates, out[f"out.{case}.coords_mapping"].cpu())
        rope = network.context(layout, video.device).rope
        assert (rope - out[f"out.{case}.rope"]).abs().max() <= 2e-6, case
        close(inside["adapter_out"], out[f"out.{case}.adapter_out"], 1e-6, case)
        for index, x in hidden.items():
            if (name := f"out.{case}.fp32.hidden.layer{index}") in out:
                close(x, out[name], 5e-6, name)
        for part in ("attn_module_out", "mlp_module_out"):
            if (name := f"out.{case}.fp32.layer0.{part}") in out:
                close(inside[part], out[name], 5e-6, name)
        close(video, out[f"out.{case}.fp32.video"], 5e-6, f"{case} video")
        close(audio, out[f"out.{case}.fp32.audio"], 5e-6, f"{case} audio")
        if (name := f"out.{case}.dense_mask") in out:
            mask = torch.zeros(layout.length, layout.length, dtype=torch.bool)
            for (q0, q1), (k0, k1) in layout.local_ranges(network.config.window):
                mask[q0:q1, k0:k1] = True
            assert torch.equal(mask, out[name].bool().cpu())
        if (name := f"out.{case}.q_ranges") in out:
            ranges = layout.local_ranges(network.config.window)
            assert [list(q) for q, _ in ranges] == out[name].tolist()
            assert [list(k) for _, k in ranges] == out[f"out.{case}.k_ranges"].tolist()


@groups
def test_bfloat16(golden, network_of, within_bf16):
    for case, _, network, hidden, _, video, audio in run(golden, network_of, BFLOAT16):
        distance = golden["bf16_vs_fp32"][case]
        assert all(x.dtype == FLOAT32 for x in hidden.values())  # the residual stream is never rounded
        within_bf16(video, golden.tensors[f"out.{case}.bf16.video"], distance["video"], f"{case} video")
        within_bf16(audio, golden.tensors[f"out.{case}.bf16.audio"], distance["audio"], f"{case} audio")
        for index, x in hidden.items():
            if (name := f"out.{case}.bf16.hidden.layer{index}") in golden.tensors:
                within_bf16(x, golden.tensors[name], distance[f"hidden.layer{index}"], name)
        assert network.block.layers[0].attention.linear_qkv.weight.dtype == BFLOAT16


@pytest.mark.golden("dit_full_keys")
def test_full_size_names_and_shapes(golden):
    wanted = {name: tuple(row["shape"]) for name, row in golden["keys"].items()}
    with torch.device("meta"):
        network = JointTransformer(TransformerConfig.from_shapes(wanted, VARIANTS["base"]))
    state = network.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == wanted
    assert len(state) == golden["n_keys"]
    for name, row in golden["keys"].items():
        assert str(state[name].dtype) == f"torch.{row['dtype']}", name
    assert sum(p.numel() for p in network.parameters()) == golden["total_parameters"]
