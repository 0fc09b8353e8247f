"""One layer in float64, of some rows: what its fast ways are compared with, written from the formulas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...model.config import BlockSpec, TransformerConfig

SHARE = 8192  # rows that are in float64 at once


def layer_rows(
    block: nn.Module,
    config: TransformerConfig,
    spec: BlockSpec,
    x: Tensor,
    rope: Tensor,
    sizes: Sequence[int],
    ranges: Sequence[tuple[tuple[int, int], tuple[int, int]]],
    rows: Tensor,
) -> Tensor:
    """The layer's result for ``rows`` of x [N, D], which attend to all keys they see -> [R, D] float64.

    ``block`` holds plain weights, bfloat16 or float32.
    """
    layer = _Layer(block, config, spec, rope.double(), sizes)
    queries = x[rows].double()
    heads, groups, depth = config.num_heads, config.num_kv_heads, config.head_dim
    split = config.qkvg_split
    q, _, _, gate = layer.project(queries, rows).split(split, dim=1)
    q = layer.turned(q.unflatten(1, (heads, depth)), rows, layer.attention.q_norm)
    parts = []
    for share in torch.arange(len(x), device=x.device).split(SHARE):
        _, k, v, _ = layer.project(x[share].double(), share).split(split, dim=1)
        k = layer.turned(k.unflatten(1, (groups, depth)), share, layer.attention.k_norm)
        parts.append((k, v.unflatten(1, (groups, depth))))
    k, v = (torch.cat(part) for part in zip(*parts, strict=True))
    sees = _seen(ranges, rows, len(x)) if spec.is_local else None
    seen = torch.empty_like(q)
    for head in range(heads):  # one at a time: 256 rows x 65,806 keys are 135 MB
        group = head * groups // heads
        logits = q[:, head] @ k[:, group].T * depth**-0.5
        if sees is not None:
            logits = logits.masked_fill(~sees, float("-inf"))
        seen[:, head] = logits.softmax(-1) @ v[:, group]
    seen = (seen * gate.sigmoid().unsqueeze(-1)).flatten(1)
    out = queries + layer.by_modality(seen, rows, layer.attention.linear_proj.weight)
    hidden = layer.by_modality(layer.norm(out, rows, layer.mlp.pre_norm), rows, layer.mlp.up_gate_proj.weight)
    hidden = _activated(hidden, spec.activation)
    return out + layer.by_modality(hidden, rows, layer.mlp.down_proj.weight)


class _Layer:
    def __init__(self, block, config, spec, rope, sizes):
        self.attention, self.mlp, self.spec, self.rope = block.attention, block.mlp, spec, rope
        self.bands = 3 * config.bands
        kinds = torch.arange(len(sizes), device=rope.device)
        self.kinds = kinds.repeat_interleave(torch.tensor(sizes, device=rope.device))

    def project(self, x: Tensor, rows: Tensor) -> Tensor:
        return self.by_modality(
            self.norm(x, rows, self.attention.pre_norm), rows, self.attention.linear_qkv.weight
        )

    def by_modality(self, x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        """Each row with the matrix of its modality; ``weight`` stacks them where the layer has several."""
        if not self.spec.per_modality:
            return x @ weight.double().T
        matrices, out = weight.chunk(3), None
        for kind, matrix in enumerate(matrices):
            mine = self.kinds[rows] == kind
            if out is None:
                out = x.new_empty(len(x), matrix.shape[0])
            out[mine] = x[mine] @ matrix.double().T
        return out

    def norm(self, x: Tensor, rows: Tensor, module: nn.Module) -> Tensor:
        weight = 1 + module.weight.double()
        if self.spec.per_modality:
            weight = weight.view(3, -1)[self.kinds[rows]]
            weight = weight if x.ndim == 2 else weight.unsqueeze(1)
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def turned(self, x: Tensor, rows: Tensor, module: nn.Module) -> Tensor:
        """Normed, then the first 2 * 3B entries of each head rotated in split-half pairs."""
        x = self.norm(x, rows, module)
        sine, cosine = self.rope[rows].unsqueeze(1).chunk(2, dim=-1)
        a, b = x[..., : self.bands], x[..., self.bands : 2 * self.bands]
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine, x[..., 2 * self.bands :]], dim=-1)


def _seen(ranges, rows: Tensor, count: int) -> Tensor:
    sees = torch.zeros(len(rows), count, dtype=torch.bool, device=rows.device)
    for (start, stop), (first, last) in ranges:
        sees[(rows >= start) & (rows < stop), first:last] = True
    return sees


def _activated(x: Tensor, kind: str) -> Tensor:
    if kind == "gelu7":
        x = x.clamp(max=7)
        return x / (1 + torch.exp(-1.702 * x))
    gate, linear = x[:, ::2].clamp(max=7), x[:, 1::2].clamp(-7, 7)
    return gate / (1 + torch.exp(-1.702 * gate)) * (linear + 1)
