"""The transformer's layers: norms, projections per modality, gated attention, feed-forward.

Rows of a sequence are sorted by modality, so what differs per modality is a split into three runs, never
a permutation. Letters: N tokens, D hidden, H query heads, G key heads, E head entries.

Precision, as in the reference: norms, rotary, activation, gate and the residual stream are float32; what
enters and leaves a projection has the projections' dtype (bfloat16, or float32 to switch rounding off).
Each operation between two projections is one of ``kernels``, which a card runs as one kernel: 12 in a layer. Where
a projection's 8-bit kernel takes them, they write 8-bit rows instead: rounded once, from float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..kernels import (
    QuantisedRows,
    RowForm,
    activate,
    add_norm,
    attention,
    feed_forward,
    gate_rows,
    is_fused,
    modality_linear,
    norm_rope,
    norm_rows,
    quantised_add_norm,
    quantised_gate,
    quantised_norm,
    range_attention,
    row_form,
)
from ..kernels.attention import Range
from ..kernels.gated_linear import PLAIN
from ..kernels.pitch import fitting, is_on_card, spread, whole, wide
from ..kernels.quantised import QuantisedWeight
from .config import MODALITIES, BlockSpec, TransformerConfig

# Rows of a long sequence that go through a feed-forward layer at once: at 65,806 tokens this saves 4 GB or more, and
# products of 8,000 rows are as fast as larger ones [performance notes, 1.5]. Weights that are cast anew for each
# share, as a host that offloads does, make it dear; then it is left out.
MLP_ROWS = 16_384

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [N, H, E], k and v [M, G, E] -> [N, H, E]


@dataclass(frozen=True, slots=True)
class Context:
    """What every block of one forward pass shares."""

    sizes: tuple[int, int, int]  # rows of video, audio, text
    rope: Tensor  # [N, 6B]
    ranges: Sequence[tuple[Range, Range]]  # what a local block's rows see
    attend: Attend = attention
    mlp_rows: int | None = None  # that go through a feed-forward layer at once; None: all

    def mlp_takes(self, count: int) -> bool:
        """Whether so many rows go through a feed-forward layer at once."""
        return self.mlp_rows is None or self.mlp_rows >= count


class RMSNorm(nn.Module):
    """RMS norm with weights stored as deviations from one, shared or per modality."""

    def __init__(self, size: int, *, per_modality: bool = False):
        super().__init__()
        count = size * (MODALITIES if per_modality else 1)
        self.weight = nn.Parameter(torch.zeros(count, dtype=torch.float32), requires_grad=False)

    def forward(
        self,
        x: Tensor,
        sizes: Sequence[int] = (),
        dtype: torch.dtype = torch.float32,
        form: RowForm | None = None,
    ) -> Tensor | QuantisedRows:
        """[N, D] float32 -> [N, D], rounded once; ``sizes`` are the rows of each modality where weights differ.

        ``form`` is the 8-bit one that the next layer takes, used where a kernel writes it.
        """
        rows = None if form is None else quantised_norm(form, x, self.weight, sizes, dtype)
        return norm_rows(x, self.weight, sizes, dtype) if rows is None else rows


class PitchedLinear(nn.Linear):
    """A projection of rows that may have zeros behind them; on a card its weight's have, up to whole multiples of 64."""

    takes_spread_weight = True  # a view by ``pitch.spread``

    @property
    def input_width(self) -> int:
        """Entries of the rows that it takes without copying them."""
        return wide(self.weight).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """[.., K] or with zeros behind -> [.., M]"""
        weight = wide(self.weight)
        return nn.functional.linear(fitting(x, weight.shape[1]), weight)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if is_on_card(self.weight):
            self.weight.data = spread(self.weight.data)
        return self


class PerModalityLinear(PitchedLinear):
    """A projection whose weight stacks one matrix per modality: rows [video | audio | text].

    A host with its own ``Linear`` supplies its own class of this name, with the same ``forward``.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, dtype: torch.dtype | None = None
    ):
        super().__init__(in_features, out_features * MODALITIES, bias=bias, dtype=dtype)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """[N, in] -> [N, out]; ``sizes`` are the rows of each modality, in order."""
        weight = wide(self.weight)
        return modality_linear(fitting(x, weight.shape[1]), weight, sizes)


def projection(
    per_modality: bool, in_features: int, out_features: int, *, ops, dtype: torch.dtype
) -> nn.Module:
    """A bias-free projection from the injected layers, with stacked matrices where weights differ."""
    if per_modality:
        layer = getattr(ops, "PerModalityLinear", PerModalityLinear)
    else:
        layer = PitchedLinear if ops is nn and whole(in_features) != in_features else ops.Linear
    return layer(in_features, out_features, bias=False, dtype=dtype)


def stored_in(layer: nn.Module, x: Tensor | QuantisedRows) -> QuantisedWeight | None:
    """The quantised weight that a layer multiplies with as it is, where it lies beside x; None for any other."""
    weight = getattr(layer, "stored", None)
    return weight if weight is not None and weight.data.device == x.device else None


def form_for(layer: nn.Module, kind: str, x: Tensor) -> RowForm | None:
    """The 8-bit rows that a layer's kernel takes, with the activation ``kind`` behind it or "none"; None: numbers."""
    weight = stored_in(layer, x)
    return row_form(weight) if weight is not None and is_fused(weight, kind, layer.products) else None


class Attention(nn.Module):
    """Grouped-query self-attention with rotary q and k and one sigmoid gate per head."""

    def __init__(self, config: TransformerConfig, spec: BlockSpec, *, ops=nn, dtype: torch.dtype):
        super().__init__()
        self.split, self.head_dim, self.dtype = config.qkvg_split, config.head_dim, dtype
        self.per_modality, self.is_local = spec.per_modality, spec.is_local
        self.pre_norm = RMSNorm(config.hidden_size, per_modality=spec.per_modality)
        self.linear_qkv = projection(
            spec.per_modality, config.hidden_size, sum(self.split), ops=ops, dtype=dtype
        )
        self.q_norm = RMSNorm(config.head_dim, per_modality=spec.per_modality)
        self.k_norm = RMSNorm(config.head_dim, per_modality=spec.per_modality)
        self.linear_proj = projection(
            spec.per_modality, self.split[0], config.hidden_size, ops=ops, dtype=dtype
        )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[N, D] float32 -> [N, D] in the projections' dtype."""
        sizes = (context.sizes,) if self.per_modality else ()
        form = form_for(self.linear_qkv, PLAIN, x)
        fused = self.linear_qkv(self.pre_norm(x, context.sizes, self.dtype, form), *sizes)
        q, k, v, gate = fused.split(self.split, dim=-1)
        q, k, v = (rows.unflatten(-1, (-1, self.head_dim)) for rows in (q, k, v))
        weights = self.q_norm.weight, self.k_norm.weight
        q, k = norm_rope(q, k, *weights, context.sizes, context.rope, self.dtype)
        if self.is_local:
            out = range_attention(q, k, v, context.ranges, context.attend)
        else:
            out = context.attend(q, k, v)
        form = form_for(self.linear_proj, PLAIN, out)
        rows = None if form is None else quantised_gate(form, out, gate, self.dtype)
        return self.linear_proj(gate_rows(out, gate, self.dtype) if rows is None else rows, *sizes)


class FeedForward(nn.Module):
    """Norm, up-projection, clamped activation, down-projection."""

    def __init__(self, config: TransformerConfig, spec: BlockSpec, *, ops=nn, dtype: torch.dtype):
        super().__init__()
        self.per_modality, self.dtype = spec.per_modality, dtype
        self.activation, self.inner_size = spec.activation, spec.inner_size
        width = spec.inner_size * (2 if spec.activation == "swiglu7" else 1)
        self.pre_norm = RMSNorm(config.hidden_size, per_modality=spec.per_modality)
        self.up_gate_proj = projection(spec.per_modality, config.hidden_size, width, ops=ops, dtype=dtype)
        self.down_proj = projection(
            spec.per_modality, spec.inner_size, config.hidden_size, ops=ops, dtype=dtype
        )

    def forward(self, x: Tensor, context: Context, rows: Tensor | QuantisedRows | None = None) -> Tensor:
        """[N, D] float32 -> [N, D] in the projections' dtype; ``rows`` is the norm of x, where that is there already.

        About ``context.mlp_rows`` rows at once: what is between the projections takes 20 times the memory of x.
        Rows do not see each other here, so the result is the same; where a precision quantises activations with
        one scale for all rows (FP8 "fast" without its kernels), each share has its own.
        """
        if rows is not None:
            return self._project(rows, context.sizes)
        count = x.shape[0]
        if context.mlp_takes(count):
            return self._of_rows(x, context.sizes)
        out = x.new_empty(x.shape, dtype=self.dtype)
        runs = context.sizes if self.per_modality else (count,)
        for share in equal_shares(runs, -(-count // context.mlp_rows)):
            self._write_share(out, x, share)
        return out

    def _of_rows(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        return self._project(self.pre_norm(x, sizes, self.dtype, self.form(x)), sizes)

    def form(self, x: Tensor) -> RowForm | None:
        """The 8-bit rows that it takes where both products are 8-bit and the first is fused."""
        if stored_in(self.down_proj, x) is None:
            return None
        return form_for(self.up_gate_proj, self.activation, x)

    def _project(self, rows: Tensor | QuantisedRows, sizes: Sequence[int]) -> Tensor:
        """Normed rows [N, D] -> [N, D]; where 8-bit kernels run, the activation is done in the first product."""
        up, down = (stored_in(layer, rows) for layer in (self.up_gate_proj, self.down_proj))
        if up is not None and down is not None:
            products = self.up_gate_proj.products
            if is_fused(up, self.activation, products):
                runs = sizes if self.per_modality else None
                return feed_forward(rows, up, down, self.activation, runs, products)
        runs = (sizes,) if self.per_modality else ()
        rows = self.up_gate_proj(rows, *runs)  # one name for all three: each goes when the next is there
        width = getattr(self.down_proj, "input_width", self.inner_size)
        rows = activate(rows, self.activation, self.dtype, width)
        return self.down_proj(rows, *runs)

    def _write_share(self, out: Tensor, x: Tensor, share: Sequence[Range]) -> None:
        parts = [x[start:stop] for start, stop in share]
        sizes = [len(part) for part in parts]
        done = self._of_rows(parts[0] if len(parts) == 1 else torch.cat(parts), sizes)
        for (start, stop), rows in zip(share, done.split(sizes), strict=True):
            out[start:stop] = rows


class Block(nn.Module):
    """One pre-norm residual layer."""

    def __init__(self, config: TransformerConfig, spec: BlockSpec, *, ops=nn, dtype: torch.dtype):
        super().__init__()
        self.attention = Attention(config, spec, ops=ops, dtype=dtype)
        self.mlp = FeedForward(config, spec, ops=ops, dtype=dtype)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[N, D] float32 -> [N, D] float32: what a branch adds may be rounded, the sum is not."""
        attended, mlp, rows = self.attention(x, context), self.mlp, None
        if context.mlp_takes(x.shape[0]):
            norm = (x, attended, mlp.pre_norm.weight, context.sizes, mlp.dtype)
            form = mlp.form(x)
            made = None if form is None else quantised_add_norm(form, *norm)
            x, rows = add_norm(*norm) if made is None else made
            del norm, made
        else:  # in shares, to save memory: their norms too
            x = x + attended
        del attended
        return x + mlp(x, context, rows)


def equal_shares(sizes: Sequence[int], count: int) -> list[list[Range]]:
    """Rows in runs of ``sizes`` -> ``count`` shares, each a range of every run.

    None of the ranges is empty, because not every quantised product takes no rows: a run of fewer rows than
    ``count`` has some of them in several shares.
    """
    starts = [sum(sizes[:run]) for run in range(len(sizes))]
    shares = []
    for number in range(count):
        share = []
        for start, size in zip(starts, sizes, strict=True):
            first = number * size // count
            share.append((start + first, start + max((number + 1) * size // count, first + 1)))
        shares.append(share)
    return shares
