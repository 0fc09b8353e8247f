"""The whole transformer against a forward pass written out in float64, and its precision step by step.

The definition is in tests/definition.py. Letters: N tokens, D hidden, H query heads, E head entries, B bands.
"""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from comfyui_happyhorse.errors import ConditioningError, SamplingError
from comfyui_happyhorse.kernels import attention
from comfyui_happyhorse.model import layers
from comfyui_happyhorse.model.config import BlockSpec, TransformerConfig
from comfyui_happyhorse.model.layers import PerModalityLinear
from comfyui_happyhorse.model.sequence import SequenceLayout
from comfyui_happyhorse.model.transformer import JointTransformer

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32

EDGE_IN, SHARED, EDGE_OUT = (
    BlockSpec(True, "gelu7", 20),
    BlockSpec(False, "swiglu7", 12),
    BlockSpec(True, "swiglu7", 12),
)
LOCAL, LOCAL_OUT = BlockSpec(False, "swiglu7", 12, True), BlockSpec(True, "swiglu7", 12, True)


@dataclass(frozen=True)
class Case:
    """A tiny network and the sizes of what it is given."""

    name: str
    blocks: tuple
    coordinates: str = "v2"
    window: int = 1
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    bands: int = 1
    hidden: int = 16
    channels: int = 3  # of the video latent
    latent: tuple = (2, 4, 6)  # T, h, w
    audio: tuple = (5, 9)  # channels, latents
    text: tuple = (4, 7)  # tokens, features
    loudness: float = 1.0  # of the embedders: a faint residual stream makes the norms' epsilon count

    def __str__(self):
        return self.name


CASES = [
    Case("published order of layers", (EDGE_IN, SHARED, EDGE_OUT)),
    Case("local layers, v1", (EDGE_IN, LOCAL, SHARED, LOCAL_OUT), "v1", latent=(5, 2, 4), audio=(5, 17)),
    Case("window 0, audio not 4(T-1)+1", (LOCAL, LOCAL_OUT), "v1", 0, latent=(4, 2, 4), audio=(2, 6)),
    Case("wide heads, one key head", (EDGE_IN, SHARED), kv_heads=1, heads=3, head_dim=16, bands=2, hidden=12),
    Case("a key head for each head", (SHARED, LOCAL), heads=2, kv_heads=2, head_dim=14, bands=2, hidden=28),
    Case("blocks of three", (EDGE_OUT, LOCAL), "v2", 2, heads=6, kv_heads=2, hidden=10, latent=(6, 2, 2)),
    Case("one of everything", (EDGE_IN, SHARED), latent=(1, 2, 2), audio=(5, 1), text=(1, 7)),
    Case("faint", (EDGE_IN, SHARED), loudness=1e-3),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


def config_of(case):
    return TransformerConfig(
        hidden_size=case.hidden,
        num_heads=case.heads,
        num_kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        video_features=4 * case.channels,
        audio_features=case.audio[0],
        text_features=case.text[1],
        bands=case.bands,
        blocks=case.blocks,
        coordinates=case.coordinates,
        window=case.window,
    )


def network_of(case, dtype, seed=0, ops=nn):
    """Random weights, up-projections loud enough that every clamp of the activations is met."""
    network = JointTransformer(config_of(case), ops=ops, dtype=dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        values = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            values *= 0.4
        elif name.startswith("adapter"):
            values *= case.loudness / (weight.shape[-1] ** 0.5 if weight.ndim == 2 else 1)
        else:
            values *= (4 if "up_gate" in name else 1) / weight.shape[1] ** 0.5
        weight.copy_(values)
    return network


def inputs_of(case, seed=0):
    generator = torch.Generator().manual_seed(1000 + seed)
    shapes = (case.channels, *case.latent), case.audio, case.text
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("seed", range(3))
@cases
def test_velocities_are_those_of_the_definition(close, definition, case, seed):
    network, (video, audio, text) = network_of(case, FLOAT32, seed), inputs_of(case, seed)
    flow, sound, reach = definition.literal_forward(case, network.state_dict(), video, audio, text)
    assert reach["above"] > 7
    assert reach["below"] < -7
    found = network(video, audio, text)
    assert [tensor.dtype for tensor in found] == [FLOAT32, FLOAT32]
    close(found[0], flow, 1e-5, "video")
    close(found[1], sound, 1e-5, "audio")


@cases
def test_bfloat16_projections_stay_near_the_definition(definition, case):
    network, inputs = network_of(case, BFLOAT16), inputs_of(case)
    flow, sound, _ = definition.literal_forward(case, network.state_dict(), *inputs)
    found = network(*inputs)
    for actual, wanted in zip(found, (flow, sound), strict=True):
        assert actual.dtype == FLOAT32
        assert (actual - wanted).norm() <= 0.1 * wanted.norm()


@pytest.fixture(params=[CASES[0], CASES[1]], ids=str)
def recorded(request, monkeypatch):
    """One bfloat16 pass with what entered and left every module and every attention."""
    case = request.param
    network, entered, left, calls = network_of(case, BFLOAT16), {}, {}, []
    for name, module in network.named_modules():

        def keep(_module, given, result, name=name):
            entered[name], left[name] = given[0], result

        module.register_forward_hook(keep)
    ranged = layers.range_attention

    def spy(q, k, v, *ranges):
        result = ranged(q, k, v, *ranges[:1]) if ranges else attention(q, k, v)
        calls.append((q, k, v, result))
        return result

    monkeypatch.setattr(layers, "range_attention", spy)
    inputs = inputs_of(case)
    velocities = network(*inputs, network.context(SequenceLayout.of(*inputs), "cpu", spy))
    return SimpleNamespace(
        case=case, network=network, entered=entered, left=left, calls=calls, velocities=velocities
    )


def rounded(actual, exact):
    """``actual`` is bfloat16 and is float64 ``exact`` rounded once."""
    assert actual.dtype == BFLOAT16
    half_step = torch.ldexp(torch.ones_like(exact), torch.frexp(exact).exponent - 9)  # 8 significant bits
    limit = half_step * 1.01 + 1e-6 * exact.abs().max()  # and what float32 does on the way
    assert ((actual.double() - exact).abs() <= limit).all()


def literal_norm(x, module, sizes):
    x = x.double()
    parts = module.weight.double().view(-1, x.shape[-1])
    kinds = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    weight = parts[kinds if len(parts) == 3 else torch.zeros_like(kinds)]
    return (
        x
        / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        * (1 + weight.view(len(kinds), *[1] * (x.ndim - 2), -1))
    )


def test_dtypes_of_weights_and_of_what_passes_linears(recorded):
    for name, module in recorded.network.named_modules():
        if isinstance(module, nn.Linear):
            dtype = BFLOAT16 if name.startswith("block.") else FLOAT32
            assert (
                recorded.entered[name].dtype == recorded.left[name].dtype == module.weight.dtype == dtype
            ), name
        elif isinstance(module, layers.RMSNorm):
            # In the blocks a norm is rounded where it is made; those of heads and after a sum are no calls of these.
            assert module.weight.dtype == recorded.entered.get(name, module.weight).dtype == FLOAT32, name
            if name in recorded.left:
                assert recorded.left[name].dtype == (BFLOAT16 if name.startswith("block.") else FLOAT32), name
    assert sum(name.endswith("norm") for name in recorded.left) == len(recorded.case.blocks)
    assert recorded.network.adapter.rope.bands.dtype == FLOAT32
    assert recorded.network.adapter.video_embedder.bias.dtype == FLOAT32
    for q, k, v, out in recorded.calls:
        assert q.dtype == k.dtype == v.dtype == out.dtype == BFLOAT16
    assert len(recorded.calls) == len(recorded.case.blocks)
    assert [velocity.dtype for velocity in recorded.velocities] == [FLOAT32, FLOAT32]


def test_the_residual_stream_is_summed_in_float32(recorded):
    """Bit-equal: a bfloat16 branch is added to it, and neither sum nor stream is ever rounded."""
    stream = recorded.left["adapter"]
    for index in range(len(recorded.case.blocks)):
        name = f"block.layers.{index}"
        assert recorded.entered[name].dtype == FLOAT32
        assert torch.equal(recorded.entered[name], stream)
        assert recorded.left[f"{name}.attention"].dtype == BFLOAT16
        stream = stream + recorded.left[f"{name}.attention"].float()
        assert torch.equal(recorded.entered[f"{name}.mlp"], stream)
        assert recorded.left[f"{name}.mlp"].dtype == BFLOAT16
        stream = stream + recorded.left[f"{name}.mlp"].float()
        assert torch.equal(recorded.left[name], stream)


def test_every_rounding_to_bfloat16_happens_once(recorded):
    """Norm, rotation, gate and activation are exact up to the one rounding before the next matrix."""
    case, network = recorded.case, recorded.network
    layout = SequenceLayout.of(*inputs_of(case))
    rope = network.context(layout, "cpu").rope.double()[:, None]
    half = 3 * case.bands
    sine, cosine = rope[..., :half], rope[..., half:]

    def rotate(x):
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine, rest], -1)

    for index, block in enumerate(network.block.layers):
        name = f"block.layers.{index}"
        attention, mlp = block.attention, block.mlp
        rounded(
            recorded.entered[f"{name}.attention.linear_qkv"],
            literal_norm(recorded.entered[f"{name}.attention"], attention.pre_norm, layout.sizes),
        )
        fused = recorded.left[f"{name}.attention.linear_qkv"]
        widths = [case.heads * case.head_dim, *[case.kv_heads * case.head_dim] * 2, case.heads]
        q, k, v, gate = fused.split(widths, -1)
        q, k, v = (part.reshape(layout.length, -1, case.head_dim) for part in (q, k, v))
        rounded(recorded.calls[index][0], rotate(literal_norm(q, attention.q_norm, layout.sizes)))
        rounded(recorded.calls[index][1], rotate(literal_norm(k, attention.k_norm, layout.sizes)))
        assert torch.equal(recorded.calls[index][2], v)
        gated = recorded.calls[index][3].double() / (1 + torch.exp(-gate.double()))[..., None]
        rounded(recorded.entered[f"{name}.attention.linear_proj"], gated.flatten(1))
        rounded(
            recorded.entered[f"{name}.mlp.up_gate_proj"],
            literal_norm(recorded.entered[f"{name}.mlp"], mlp.pre_norm, layout.sizes),
        )
        up = recorded.left[f"{name}.mlp.up_gate_proj"].double()
        gates, linear = (up, None) if case.blocks[index].activation == "gelu7" else (up[:, 0::2], up[:, 1::2])
        gates = gates.clamp(max=7)
        active = gates / (1 + torch.exp(-1.702 * gates))
        rounded(
            recorded.entered[f"{name}.mlp.down_proj"],
            active if linear is None else active * (linear.clamp(-7, 7) + 1),
        )


def test_nothing_outside_the_blocks_is_rounded(close, recorded):
    """Embedders and heads: float32 in value and not only in dtype, against float64 on what they were given."""
    case, network = recorded.case, recorded.network
    video, audio, text = inputs_of(case)
    n_video = SequenceLayout.of(video, audio, text).video
    assert torch.equal(recorded.entered["adapter.audio_embedder"], audio.T)
    assert torch.equal(recorded.entered["adapter.text_embedder"], text)
    assert torch.equal(
        recorded.entered["adapter.video_embedder"].flatten().sort()[0], video.flatten().sort()[0]
    )
    for name in ("video", "audio", "text"):
        embedder = getattr(network.adapter, f"{name}_embedder")
        given = recorded.entered[f"adapter.{name}_embedder"].double()
        wanted = given @ embedder.weight.double().T + embedder.bias.double()
        close(recorded.left[f"adapter.{name}_embedder"], wanted, 1e-6, name)
    stream = recorded.left[f"block.layers.{len(case.blocks) - 1}"]
    for name, rows in (("video", stream[:n_video]), ("audio", stream[n_video : n_video + case.audio[1]])):
        wanted = literal_norm(rows, getattr(network, f"final_norm_{name}"), (len(rows), 0, 0))
        close(recorded.entered[f"final_linear_{name}"], wanted, 1e-6, name)
        head = getattr(network, f"final_linear_{name}").weight.double()
        close(recorded.left[f"final_linear_{name}"], wanted @ head.T, 1e-6, name)


@pytest.mark.parametrize("sizes", [(3, 2, 4), (0, 3, 1)])
def test_rows_meet_their_own_modality_s_matrix(close, sizes):
    torch.manual_seed(0)
    layer, x = PerModalityLinear(5, 4, dtype=FLOAT32).requires_grad_(False), torch.randn(sum(sizes), 5)
    kinds = [0] * sizes[0] + [1] * sizes[1] + [2] * sizes[2]
    matrices = layer.weight.double()
    wanted = [matrices[4 * kind : 4 * kind + 4] @ row for kind, row in zip(kinds, x.double(), strict=True)]
    close(layer(x, sizes), torch.stack(wanted), 1e-6)
    assert layer.bias is None


@pytest.mark.parametrize("has_stacked", [True, False])
def test_injected_layers_do_the_projecting(has_stacked):
    """Both kinds from the host where it has both, the pack's stacked one where it has only Linear."""
    calls = []

    class Linear(nn.Linear):
        def forward(self, x):
            calls.append(self)
            return super().forward(x)

    class Stacked(PerModalityLinear):
        def forward(self, x, sizes):
            calls.append(self)
            return super().forward(x, sizes)

    case = CASES[0]
    ops = SimpleNamespace(Linear=Linear, **({"PerModalityLinear": Stacked} if has_stacked else {}))
    network = network_of(case, BFLOAT16, ops=ops)
    found, wanted = network(*inputs_of(case)), network_of(case, BFLOAT16)(*inputs_of(case))
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    kinds = [type(layer) for layer in calls]
    stacked = 8 if has_stacked else 0  # two of three blocks, four matrices each
    assert kinds.count(Stacked) == stacked
    assert kinds.count(Linear) == 3 + 4 + 2  # embedders, the shared block, heads
    assert len(set(calls)) == len(calls)
    projections = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert len(projections) == 17
    assert set(projections) - set(calls) == {
        layer for layer in projections if type(layer) is PerModalityLinear
    }


@cases
def test_a_context_used_again_gives_the_same_bits(case):
    network = network_of(case, BFLOAT16)
    first, second = inputs_of(case, 0), inputs_of(case, 1)
    context = network.context(SequenceLayout.of(*first), "cpu")
    for inputs in (first, second, first):
        again, fresh = network(*inputs, context), network(*inputs)
        assert all(torch.equal(*pair) for pair in zip(again, fresh, strict=True))


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@cases
def test_a_feed_forward_layer_in_shares_gives_the_same(close, case, dtype):
    """Its sum and norm are two operations then, not one; matrix products may differ by the rows they take at once."""
    network, inputs = network_of(case, dtype), inputs_of(case)
    context = network.context(SequenceLayout.of(*inputs), "cpu")
    limit = 1e-5 if dtype == FLOAT32 else 5e-2
    for rows in (1, 5, 1000):
        found = network(*inputs, replace(context, mlp_rows=rows))
        for actual, wanted in zip(found, network(*inputs, context), strict=True):
            close(actual, wanted, limit)


@cases
def test_the_audio_head_can_be_left_out(case):
    network, inputs = network_of(case, BFLOAT16), inputs_of(case)
    video, audio = network(*inputs)
    alone, silent = network(*inputs, wants_audio=False)
    assert torch.equal(alone, video)
    assert silent.shape == audio.shape and silent.dtype == audio.dtype
    assert audio.any() and not silent.any()


def test_the_network_compiles_into_one_graph():
    """Without a break, and to the same bits: every operation between projections is one that torch knows."""
    case = CASES[1]  # local and global layers, shared and per modality, both activations
    network, inputs = network_of(case, BFLOAT16), inputs_of(case)
    context = network.context(SequenceLayout.of(*inputs), "cpu")
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    found, wanted = compiled(*inputs, context), network(*inputs, context)
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_text_has_an_order_in_v1_and_none_in_v2(close):
    """v2 gives every text token the same angle: the words' order is what the text encoder made of it."""
    for case in CASES[:2]:
        network, (video, audio, text) = network_of(case, FLOAT32), inputs_of(case)
        forward, backward = network(video, audio, text), network(video, audio, text.flip(0))
        if case.coordinates == "v2":
            close(backward[0], forward[0], 1e-5)
        else:
            assert (backward[0] - forward[0]).abs().max() > 1e-2 * forward[0].abs().max()


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (2, 2, 4, 6), "video .* 8 features a token, this checkpoint reads 12"),
        (1, (6, 9), "audio .* 6 features a token, this checkpoint reads 5"),
        (2, (4, 8), "text .* 8 features a token, this checkpoint reads 7"),
        (0, (3, 0, 4, 6), "needs video, audio and text"),
        (1, (5, 0), r"audio \(5, 0\)"),
        (2, (0, 7), "0 text tokens"),
        (0, (3, 2, 3, 6), "3x6 cells"),
    ],
)
def test_inputs_of_another_model_are_refused(index, shape, message):
    network, inputs = network_of(CASES[0], FLOAT32), inputs_of(CASES[0])
    inputs[index] = torch.zeros(shape)
    with pytest.raises(SamplingError, match=message):
        network(*inputs)


def test_v1_refuses_a_single_text_token():
    network, (video, audio, text) = network_of(CASES[1], FLOAT32), inputs_of(CASES[1])
    with pytest.raises(ConditioningError, match="at least 2 text tokens"):
        network(video, audio, text[:1])


def test_bands_without_a_checkpoint_are_those_of_the_definition():
    bands = JointTransformer(config_of(CASES[3]), dtype=FLOAT32).adapter.rope.bands
    assert torch.allclose(bands.double(), torch.tensor([1.0, 10000**-0.5], dtype=torch.float64), rtol=1e-6)


@cases
def test_samples_side_by_side_are_each_as_alone(case):
    """``embed``, the blocks one after another for two samples of other lengths, ``velocities``."""
    network = network_of(case, FLOAT32)
    video, audio, text = inputs_of(case)
    samples = [(video, audio, text), (video + 1, audio, torch.cat([text, text]))]
    layouts = [SequenceLayout.of(*sample) for sample in samples]
    contexts = [network.context(layout, "cpu") for layout in layouts]
    hidden = [network.embed(*sample) for sample in samples]
    for block in network.block.layers:
        hidden = [block(x, context) for x, context in zip(hidden, contexts, strict=True)]
    for sample, x, layout in zip(samples, hidden, layouts, strict=True):
        for made, alone in zip(network.velocities(x, layout), network(*sample), strict=True):
            assert torch.equal(made, alone)
