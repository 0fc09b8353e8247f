"""The text encoder against its definition, written out in loops in float64."""

import math

import pytest
import torch

from comfyui_happyhorse.errors import CheckpointError, ConditioningError
from comfyui_happyhorse.model.text_encoder import (
    RMSNorm,
    T5GemmaConfig,
    T5GemmaEncoder,
    attention_masks,
    capped_attention,
    rotary_tables,
    rotate,
)

# sqrt(12) is a number that float32 and bfloat16 round; 5 tokens overrun the window of 3.
TINY = T5GemmaConfig(
    vocab_size=23,
    hidden_size=12,
    intermediate_size=10,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    sliding_layers=(True, False),
    sliding_window=3,
    query_pre_attn_scalar=5,
    softcap=0.7,
    rope_theta=100.0,
    eps=1e-6,
)
IDS = torch.tensor([[3, 22, 7, 7, 0]])


@pytest.fixture
def encoder():
    """A tiny float32 encoder whose every weight is random, the norms' too."""
    torch.manual_seed(5)
    encoder = T5GemmaEncoder(TINY, dtype=torch.float32).requires_grad_(False)
    for name, weight in encoder.named_parameters():
        # Far enough from zero that logits pass the cap and that (1 + weight) is not weight.
        weight.normal_(0, 0.4 if "norm" in name else 0.9)
    return encoder


# The definition. Vectors are lists of floats, so nothing here can broadcast by accident.


def literal_norm(x, weight, eps):
    mean_square = sum(value * value for value in x) / len(x)
    return [value / math.sqrt(mean_square + eps) * (1 + w) for value, w in zip(x, weight, strict=True)]


def literal_linear(x, rows):
    return [sum(a * b for a, b in zip(x, row, strict=True)) for row in rows]


def literal_rotate(x, position, theta):
    half, out = len(x) // 2, [0.0] * len(x)
    for k in range(half):
        angle = position * theta ** (-2 * k / len(x))
        out[k] = x[k] * math.cos(angle) - x[k + half] * math.sin(angle)
        out[k + half] = x[k] * math.sin(angle) + x[k + half] * math.cos(angle)
    return out


def literal_gelu(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def literal_attention(q, k, v, scale, softcap, window, live):
    """q[n][h], k[n][g], v[n][g] are vectors; gives out[n][h]."""
    heads, kv_heads = len(q[0]), len(k[0])
    out = [[None] * heads for _ in q]
    for n in range(len(q)):
        for h in range(heads):
            g = h * kv_heads // heads
            seen = [m for m in range(len(k)) if live[m] and (window is None or abs(n - m) < window)]
            logits = [scale * sum(a * b for a, b in zip(q[n][h], k[m][g], strict=True)) for m in seen]
            if softcap is not None:
                logits = [softcap * math.tanh(logit / softcap) for logit in logits]
            powers = [math.exp(logit) for logit in logits]
            out[n][h] = [
                sum(power * v[m][g][c] for power, m in zip(powers, seen, strict=True)) / sum(powers)
                for c in range(len(v[0][g]))
            ]
    return out


def literal_encoder(weights, config, ids, live, *, capped):
    weights = {name: tensor.double().tolist() for name, tensor in weights.items()}
    size = config.head_dim

    def norm(rows, name):
        return [literal_norm(x, weights[f"{name}.weight"], config.eps) for x in rows]

    def split(x, name):
        flat = literal_linear(x, weights[f"{name}.weight"])
        return [flat[start : start + size] for start in range(0, len(flat), size)]

    rows = [
        [value * config.hidden_size**0.5 for value in weights["encoder.embed_tokens.weight"][token]]
        for token in ids
    ]
    for index, slides in enumerate(config.sliding_layers):
        layer = f"encoder.layers.{index}"
        x = norm(rows, f"{layer}.pre_self_attn_layernorm")
        q, k = (
            [
                [
                    literal_rotate(head, n, config.rope_theta)
                    for head in split(x[n], f"{layer}.self_attn.{name}")
                ]
                for n in range(len(x))
            ]
            for name in ("q_proj", "k_proj")
        )
        v = [split(row, f"{layer}.self_attn.v_proj") for row in x]
        attended = literal_attention(
            q,
            k,
            v,
            config.query_pre_attn_scalar**-0.5,
            config.softcap if capped else None,
            config.sliding_window if slides else None,
            live,
        )
        o_proj = weights[f"{layer}.self_attn.o_proj.weight"]
        x = norm(
            [literal_linear([c for head in heads for c in head], o_proj) for heads in attended],
            f"{layer}.post_self_attn_layernorm",
        )
        rows = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(rows, x, strict=True)]
        x = norm(rows, f"{layer}.pre_feedforward_layernorm")
        gate, up, down = (weights[f"{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = [
            literal_linear(
                [
                    literal_gelu(a) * b
                    for a, b in zip(literal_linear(row, gate), literal_linear(row, up), strict=True)
                ],
                down,
            )
            for row in x
        ]
        x = norm(x, f"{layer}.post_feedforward_layernorm")
        rows = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(rows, x, strict=True)]
    return torch.tensor(norm(rows, "encoder.norm"), dtype=torch.float64)


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("live", [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 1, 1]])
def test_encoder_is_its_definition(encoder, close, capped, live):
    out = encoder(IDS, torch.tensor([live]), soft_capping=capped)
    literal = literal_encoder(encoder.state_dict(), TINY, IDS[0].tolist(), live, capped=capped)
    close(out[0], literal, 5e-6)  # float32 sums of at most 24 terms, seven layers deep


def test_soft_capping_and_window_matter_here(encoder):
    """The test above would not see them if they changed nothing."""
    plain = encoder(IDS)
    capped = encoder(IDS, soft_capping=True)
    assert (plain - capped).abs().max() > 0.01 * plain.abs().max()
    assert torch.equal(plain, encoder(IDS, torch.ones_like(IDS)))
    # Token 4 is out of token 0's window of 3 in the first layer, and in it in the second.
    _, sliding = attention_masks(5, 3, None, torch.device("cpu"))
    assert sliding[0, 0].tolist() == [[abs(q - k) < 3 for k in range(5)] for q in range(5)]


def test_masks_only_where_something_is_cut():
    cpu = torch.device("cpu")
    assert attention_masks(5, 5, None, cpu) == (None, None)
    assert attention_masks(5, None, torch.ones(1, 5), cpu) == (None, None)
    full, sliding = attention_masks(5, 4, torch.tensor([[1, 1, 1, 1, 0]]), cpu)
    assert full[0, 0].tolist() == [[True, True, True, True, False]]
    assert sliding[0, 0].tolist() == [[abs(q - k) < 4 and k < 4 for k in range(5)] for q in range(5)]


def test_norm_adds_one_and_rounds_once(close):
    torch.manual_seed(1)
    norm = RMSNorm(7, 1e-3, torch.float32).requires_grad_(False)
    norm.weight.normal_()
    x = torch.randn(3, 7) * 0.05  # small, so that eps counts
    literal = torch.tensor([literal_norm(row, norm.weight.tolist(), 1e-3) for row in x.double().tolist()])
    close(norm(x), literal, 1e-6)
    rough = norm.to(torch.bfloat16)(x.bfloat16())
    exact = [literal_norm(row, norm.weight.tolist(), 1e-3) for row in x.bfloat16().double().tolist()]
    assert torch.equal(rough, torch.tensor(exact).bfloat16())


def test_rotation_turns_halves(close):
    torch.manual_seed(2)
    x = torch.randn(1, 1, 5, 6)
    cos, sin = rotary_tables(5, TINY, x.device)
    literal = torch.tensor([literal_rotate(row, n, 100.0) for n, row in enumerate(x[0, 0].double().tolist())])
    close(rotate(x, cos, sin)[0, 0], literal, 1e-6)


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_attention_groups_caps_then_masks(close, softcap):
    torch.manual_seed(3)
    q, k, v = torch.randn(1, 6, 4, 2) * 3, torch.randn(1, 2, 4, 2), torch.randn(1, 2, 4, 2)
    live = [1, 1, 0, 1]
    _, mask = attention_masks(4, 2, torch.tensor([live]), q.device)
    if softcap is None:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=0.6, enable_gqa=True)
    else:
        out = capped_attention(q, k, v, mask, 0.6, softcap)
    lists = [t[0].transpose(0, 1).double().tolist() for t in (q, k, v)]
    literal = torch.tensor(literal_attention(*lists, 0.6, softcap, 2, live))
    close(out[0].transpose(0, 1), literal, 1e-6)


@pytest.mark.parametrize("soft_capping", [False, True])
def test_a_query_that_sees_no_key_stays_finite(encoder, soft_capping):
    out = encoder(IDS, torch.tensor([[1, 0, 0, 0, 0]]), soft_capping=soft_capping)
    assert torch.isfinite(out).all()
    alone = encoder(IDS[:, :1], soft_capping=soft_capping)
    torch.testing.assert_close(out[:, 0], alone[:, 0])


def test_embedding_factor_is_rounded_to_the_compute_dtype():
    """sqrt(3584) = 59.867 is 59.75 in bfloat16; no golden file pins this."""
    config = T5GemmaConfig.from_shapes(
        {
            "encoder.embed_tokens.weight": (5, 3584),
            "encoder.layers.0.mlp.gate_proj.weight": (8, 3584),
            "encoder.layers.0.self_attn.q_proj.weight": (256, 3584),
            "encoder.layers.0.self_attn.k_proj.weight": (256, 3584),
        }
    )
    encoder = T5GemmaEncoder(config).requires_grad_(False)
    seen = []
    encoder.encoder["layers"][0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(torch.tensor([[0, 4]]))
    rows = encoder.encoder["embed_tokens"].weight[[0, 4]].float()
    assert torch.equal(seen[0][0], (rows * 59.75).bfloat16())
    assert not torch.equal(seen[0][0], (rows * 3584**0.5).bfloat16())


def test_layers_come_from_the_host():
    made = []

    class Host:
        class Linear(torch.nn.Linear):
            def __init__(self, *args, **kwargs):
                made.append((args, kwargs))
                super().__init__(*args, **kwargs)

        class Embedding(torch.nn.Embedding):
            def __init__(self, *args, **kwargs):
                made.append((args, kwargs))
                super().__init__(*args, **kwargs)

    T5GemmaEncoder(TINY, ops=Host, dtype=torch.float16)
    assert ((23, 12), {"dtype": torch.float16}) in made
    assert ((12, 24), {"bias": False, "dtype": torch.float16}) in made
    assert len(made) == 1 + 7 * 2


def test_too_many_tokens_is_an_error():
    with torch.device("meta"):
        encoder = T5GemmaEncoder(TINY)
        assert encoder(torch.zeros(1, 8192, dtype=torch.long)).shape == (1, 8192, 12)
        with pytest.raises(ConditioningError, match=r"8193 tokens .* at most 8192"):
            encoder(torch.zeros(1, 8193, dtype=torch.long))


SHAPES = {name: tuple(w.shape) for name, w in T5GemmaEncoder(TINY).state_dict().items()}
SETTINGS = {
    "head_dim": 6,
    "query_pre_attn_scalar": 5,
    "sliding_window": 3,
    "attn_logit_softcapping": 0.7,
    "rope_theta": 100.0,
    "rms_norm_eps": 1e-6,
    "layer_types": ["sliding_attention", "full_attention"],
}


def test_config_is_read_off_shapes_and_settings():
    assert T5GemmaConfig.from_shapes(SHAPES, SETTINGS) == TINY
    assert T5GemmaConfig.from_shapes(SHAPES, {"encoder": SETTINGS, "model_type": "t5gemma"}) == TINY
    swapped = SETTINGS | {"layer_types": ["full_attention", "sliding_attention"], "rms_norm_eps": 1e-5}
    config = T5GemmaConfig.from_shapes(SHAPES, swapped)
    assert config.sliding_layers == (False, True)
    assert config.eps == 1e-5
    uncapped = T5GemmaConfig.from_shapes(SHAPES, SETTINGS | {"attn_logit_softcapping": None})
    assert uncapped.softcap is None


def test_published_settings_where_there_are_none():
    shapes = {
        "encoder.embed_tokens.weight": (99, 48),
        "encoder.layers.0.mlp.gate_proj.weight": (80, 48),
        "encoder.layers.0.self_attn.q_proj.weight": (1024, 48),
        "encoder.layers.0.self_attn.k_proj.weight": (512, 48),
        "encoder.layers.1.self_attn.q_proj.weight": (1024, 48),
        "encoder.layers.2.self_attn.q_proj.weight": (1024, 48),
    }
    assert T5GemmaConfig.from_shapes(shapes) == T5GemmaConfig(
        vocab_size=99,
        hidden_size=48,
        intermediate_size=80,
        num_heads=4,
        num_kv_heads=2,
        head_dim=256,
        sliding_layers=(True, False, True),
        sliding_window=4096,
        query_pre_attn_scalar=256,
        softcap=50.0,
        rope_theta=10000.0,
        eps=1e-6,
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, r"24 query rows and 12 key rows are not whole heads of head_dim 256.*needs a config\.json"),
        (SETTINGS | {"head_dim": 8}, r"24 query rows and 12 key rows .* head_dim 8.*another model"),
        (SETTINGS | {"hidden_size": 3584}, "hidden_size is 3584 in the settings and 12 in the tensors"),
        (SETTINGS | {"num_attention_heads": 8}, "num_attention_heads is 8 .* and 4 in the tensors"),
        (SETTINGS | {"layer_types": ["full_attention"]}, "layer_types names 1 layers and the tensors have 2"),
        (SETTINGS | {"layer_types": ["full_attention", "striped"]}, "unknown kind 'striped'"),
        (SETTINGS | {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, words):
    with pytest.raises(CheckpointError, match=words):
        T5GemmaConfig.from_shapes(SHAPES, settings)


def test_heads_that_cannot_share_are_named():
    shapes = SHAPES | {"encoder.layers.0.self_attn.k_proj.weight": (18, 12)}
    with pytest.raises(CheckpointError, match="4 query heads do not share 3 key heads"):
        T5GemmaConfig.from_shapes(shapes, SETTINGS)


def test_missing_tensors_are_named():
    with pytest.raises(CheckpointError, match=r"its 1 tensors encoder\.embed_tokens\.weight is missing"):
        T5GemmaConfig.from_shapes({"blocks.0.weight": (1, 1)})
    with pytest.raises(CheckpointError, match=r"q_proj\.weight has the shape \[288\] and should be a matrix"):
        T5GemmaConfig.from_shapes(SHAPES | {"encoder.layers.0.self_attn.q_proj.weight": (288,)}, SETTINGS)
    shapes = {name.replace("layers.1.", "layers.2."): shape for name, shape in SHAPES.items()}
    with pytest.raises(
        CheckpointError, match=r"Layer 1 of the text encoder is missing: 2 layers .* last is 2"
    ):
        T5GemmaConfig.from_shapes(shapes, SETTINGS)
