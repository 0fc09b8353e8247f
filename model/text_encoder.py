"""The encoder half of T5Gemma: token ids in, one row of text features per token out.

Letters: B prompts, N tokens, D hidden size, H query heads, K key/value heads, C head_dim.
Parameter names are those of the published checkpoint without its leading ``model.``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, ConditioningError

MAX_TOKENS = 8_192  # max_position_embeddings of the published model

# What no tensor shows, under the names of a Hugging Face encoder config, as google/t5gemma-9b-9b-ul2 has it.
PUBLISHED = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4_096,
    "attn_logit_softcapping": 50.0,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
}


@dataclass(frozen=True, slots=True)
class T5GemmaConfig:
    """The sizes and settings of one T5Gemma encoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    sliding_layers: tuple[bool, ...]  # one per layer: does it see its window only
    sliding_window: int | None  # tokens: a query sees the keys with |q-k| below it
    query_pre_attn_scalar: float  # logits are multiplied by its power -1/2
    softcap: float | None
    rope_theta: float
    eps: float

    @classmethod
    def from_shapes(
        cls, shapes: Mapping[str, tuple[int, ...]], settings: Mapping | None = None
    ) -> T5GemmaConfig:
        """The config that a checkpoint's tensors and the ``config.json`` beside it describe.

        ``shapes`` are those of the ``encoder.…`` tensors. ``settings`` is the Hugging Face encoder config,
        bare or under the key "encoder"; what it does not say is the published model's. Raises
        CheckpointError where a tensor is missing or where the numbers do not fit one another.
        """
        given = (settings or {}).get("encoder") or settings or {}
        known = {**PUBLISHED, **given}
        vocab_size, hidden_size = _matrix_shape(shapes, "encoder.embed_tokens.weight")
        intermediate_size, _ = _matrix_shape(shapes, "encoder.layers.0.mlp.gate_proj.weight")
        q_rows, _ = _matrix_shape(shapes, "encoder.layers.0.self_attn.q_proj.weight")
        kv_rows, _ = _matrix_shape(shapes, "encoder.layers.0.self_attn.k_proj.weight")
        num_layers, head_dim = _count_layers(shapes), known["head_dim"]
        alternating = ["sliding_attention", "full_attention"] * num_layers
        layer_types = given.get("layer_types") or alternating[:num_layers]
        sizes = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": q_rows // head_dim,
            "num_key_value_heads": kv_rows // head_dim,
        }
        misfits = [
            *_misfits_of_sizes(sizes, given),
            *_misfits_of_heads(q_rows, kv_rows, head_dim),
            *_misfits_of_kinds(layer_types, num_layers, known["hidden_activation"]),
        ]
        if misfits:
            advice = (
                "The config.json beside it belongs to another model; use the one published with this file."
                if given
                else "These are the published model's settings; any other needs a config.json beside the file."
            )
            raise CheckpointError(f"The text encoder's numbers do not fit: {'; '.join(misfits)}. {advice}")
        return cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_heads=q_rows // head_dim,
            num_kv_heads=kv_rows // head_dim,
            head_dim=head_dim,
            sliding_layers=tuple(kind == "sliding_attention" for kind in layer_types),
            sliding_window=known["sliding_window"],
            query_pre_attn_scalar=known["query_pre_attn_scalar"],
            softcap=known["attn_logit_softcapping"],
            rope_theta=known["rope_theta"],
            eps=known["rms_norm_eps"],
        )


class T5GemmaEncoder(nn.Module):
    """T5Gemma's encoder: bidirectional attention, four norms a layer, a gated GELU.

    ``ops`` supplies ``Linear`` and ``Embedding``, so that a host can cast, quantise or offload them;
    ``dtype`` is the dtype of the parameters and of everything computed outside the norms and the softmax.
    """

    def __init__(self, config: T5GemmaConfig, *, ops=nn, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        self.config = config
        self.dtype = dtype
        layers = (Layer(config, ops=ops, dtype=dtype) for _ in config.sliding_layers)
        # A ModuleDict, because the checkpoint's names begin with "encoder.".
        self.encoder = nn.ModuleDict(
            {
                "embed_tokens": ops.Embedding(config.vocab_size, config.hidden_size, dtype=dtype),
                "layers": nn.ModuleList(layers),
                "norm": RMSNorm(config.hidden_size, config.eps, dtype),
            }
        )

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, soft_capping: bool = False
    ) -> Tensor:
        """[B, N] ids, [B, N] mask (0 removes a key) -> [B, N, D].

        Without ``soft_capping``, as the reference ran it: its pinned transformers 4.56 takes SDPA, which
        ignores the published cap. Raises ConditioningError above 8192 tokens.
        """
        length = input_ids.shape[1]
        if length > MAX_TOKENS:
            raise ConditioningError(
                f"The text has {length} tokens and the text encoder reads at most {MAX_TOKENS}; shorten it."
            )
        config = self.config
        x = self.encoder["embed_tokens"](input_ids).to(self.dtype)
        # A tensor, because a Python number would not be rounded: sqrt(3584) is 59.75 in bfloat16.
        x = x * torch.tensor(config.hidden_size**0.5, dtype=x.dtype, device=x.device)
        cos, sin = (table.to(x.dtype) for table in rotary_tables(length, config, x.device))
        key_mask, window_mask = attention_masks(length, config.sliding_window, attention_mask, x.device)
        softcap = config.softcap if soft_capping else None
        for layer, slides in zip(self.encoder["layers"], config.sliding_layers, strict=True):
            x = layer(x, cos, sin, window_mask if slides else key_mask, softcap)
        return self.encoder["norm"](x)


class Layer(nn.Module):
    """Attention and a gated MLP, each between two norms."""

    def __init__(self, config: T5GemmaConfig, *, ops, dtype: torch.dtype):
        super().__init__()
        size, eps = config.hidden_size, config.eps
        self.self_attn = Attention(config, ops=ops, dtype=dtype)
        self.mlp = MLP(config, ops=ops, dtype=dtype)
        self.pre_self_attn_layernorm = RMSNorm(size, eps, dtype)
        self.post_self_attn_layernorm = RMSNorm(size, eps, dtype)
        self.pre_feedforward_layernorm = RMSNorm(size, eps, dtype)
        self.post_feedforward_layernorm = RMSNorm(size, eps, dtype)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, softcap: float | None):
        attended = self.self_attn(self.pre_self_attn_layernorm(x), cos, sin, mask, softcap)
        x = x + self.post_self_attn_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Attention(nn.Module):
    """Bidirectional grouped-query attention with rotary positions."""

    def __init__(self, config: T5GemmaConfig, *, ops, dtype: torch.dtype):
        super().__init__()
        self.head_dim = config.head_dim
        self.scale = config.query_pre_attn_scalar**-0.5
        q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = ops.Linear(config.hidden_size, q_rows, bias=False, dtype=dtype)
        self.k_proj = ops.Linear(config.hidden_size, kv_rows, bias=False, dtype=dtype)
        self.v_proj = ops.Linear(config.hidden_size, kv_rows, bias=False, dtype=dtype)
        self.o_proj = ops.Linear(q_rows, config.hidden_size, bias=False, dtype=dtype)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, softcap: float | None):
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H or K, N, C]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if softcap is None:
            out = F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale, enable_gqa=True)
        else:
            out = capped_attention(q, k, v, mask, self.scale, softcap)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """down(gelu(gate(x)) * up(x)) with the tanh form of GELU."""

    def __init__(self, config: T5GemmaConfig, *, ops, dtype: torch.dtype):
        super().__init__()
        self.gate_proj = ops.Linear(config.hidden_size, config.intermediate_size, bias=False, dtype=dtype)
        self.up_proj = ops.Linear(config.hidden_size, config.intermediate_size, bias=False, dtype=dtype)
        self.down_proj = ops.Linear(config.intermediate_size, config.hidden_size, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), in float32, rounded once to x's dtype."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * (1 + self.weight.float())).to(x.dtype)


def rotary_tables(length: int, config: T5GemmaConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, C/2] in float32 of position n times frequency theta^(-2k/C)."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, config.rope_theta**-exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[k], x[k + C/2]) of x [..., N, C] by its angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention_masks(
    length: int, window: int | None, attention_mask: Tensor | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """The masks of full and of sliding layers: [B or 1, 1, 1 or N, N], True where a key is seen.

    None where nothing is cut off, so that attention may take a path that needs no mask.
    """
    keys = None
    if attention_mask is not None and not attention_mask.all():
        keys = attention_mask.to(device=device, dtype=torch.bool)[:, None, None, :]
    if window is None or length <= window:
        return keys, keys
    positions = torch.arange(length, device=device)
    near = ((positions[:, None] - positions).abs() < window)[None, None]
    return keys, near if keys is None else near & keys


def capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """softmax(mask(cap * tanh(scale * q.k / cap))) v: q [B, H, N, C]; k, v [B, K, N, C] -> [B, H, N, C].

    Query head h reads key/value head floor(h * K / H).
    """
    q = q.unflatten(1, (k.shape[1], -1))  # [B, K, H/K, N, C]
    logits = q @ k.unsqueeze(2).transpose(-1, -2) * scale
    logits = torch.tanh(logits / softcap) * softcap
    if mask is not None:
        # The lowest number and not -inf: a query that sees no key must stay finite.
        logits = logits.masked_fill(~mask.unsqueeze(1), torch.finfo(logits.dtype).min)
    weights = logits.softmax(-1, dtype=torch.float32).to(v.dtype)
    return (weights @ v.unsqueeze(2)).flatten(1, 2)


def _matrix_shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or len(shape) != 2:
        found = "is missing" if shape is None else f"has the shape {list(shape)} and should be a matrix"
        raise CheckpointError(
            f"This is not a T5Gemma encoder: of its {len(shapes)} tensors {name} {found}. "
            "Choose the file of the text encoder t5gemma-9b-9b-ul2."
        )
    return shape


def _count_layers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    found = {int(match[1]) for name in shapes if (match := re.match(r"encoder\.layers\.(\d+)\.", name))}
    if gaps := set(range(max(found) + 1)) - found:
        raise CheckpointError(
            f"Layer {min(gaps)} of the text encoder is missing: {len(found)} layers are there, the last is "
            f"{max(found)}. Is one of the file's parts not downloaded?"
        )
    return len(found)


def _misfits_of_sizes(sizes: Mapping[str, int], given: Mapping) -> list[str]:
    return [
        f"{name} is {given[name]} in the settings and {number} in the tensors"
        for name, number in sizes.items()
        if given.get(name, number) != number
    ]


def _misfits_of_heads(q_rows: int, kv_rows: int, head_dim: int) -> list[str]:
    if q_rows % head_dim or kv_rows % head_dim or head_dim % 2:
        return [f"{q_rows} query rows and {kv_rows} key rows are not whole heads of head_dim {head_dim}"]
    if q_rows % kv_rows:
        return [f"{q_rows // head_dim} query heads do not share {kv_rows // head_dim} key heads evenly"]
    return []


def _misfits_of_kinds(layer_types: Sequence[str], num_layers: int, activation: str) -> list[str]:
    misfits = []
    if len(layer_types) != num_layers:
        misfits.append(f"layer_types names {len(layer_types)} layers and the tensors have {num_layers}")
    if unknown := set(layer_types) - {"sliding_attention", "full_attention"}:
        misfits.append(f"layer_types has the unknown kind '{min(unknown)}'")
    if activation != PUBLISHED["hidden_activation"]:
        misfits.append(
            f"hidden_activation is '{activation}' and only '{PUBLISHED['hidden_activation']}' is known"
        )
    return misfits
