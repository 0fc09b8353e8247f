"""Counts what a computation holds in memory, on tensors without values: the peak of a network that fits nowhere.

Run it on meta tensors inside ``LiveBytes``. A storage counts from the operation that makes it to the last tensor
that refers to it, so views are free and what a caller's variable keeps is not; what is there before (weights,
inputs) does not count. Attention is counted as the kernels of a card do it: the result and one number per row and
head, not the matrix of scores.
"""

from __future__ import annotations

import weakref

import comfy_kitchen
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comfyui_happyhorse.kernels.registry import OPERATIONS
from comfyui_happyhorse.model import layers

ROUNDING = 512  # bytes; what torch's allocator for CUDA hands out
FUSED_HEAD_LIMIT = 256  # entries of a head; a larger head's result is also summed in float32


class LiveBytes(TorchDispatchMode):
    """``now`` and ``peak`` in bytes, from the moment the mode is entered.

    The pack's operations count their results, as kernels do. Without ``fused`` they run as their definitions.
    """

    def __init__(self, fused: bool = True):
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        self._fused = fused
        self.now = self.peak = 0
        self._seen: dict[int, weakref.finalize] = {}
        self._attention = _CardAttention()

    def __enter__(self):
        self._attention.__enter__()
        self._patch.setattr(comfy_kitchen, "int8_linear", _card_int8_linear)
        # The plan is for ComfyUI too, whose layers do product and activation one after the other: more, not less.
        self._patch.setattr(layers, "is_fused", lambda *_: False)
        for name in () if self._fused else OPERATIONS:
            if hasattr(layers, name):
                self._patch.setattr(layers, name, OPERATIONS[name].definition)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._patch.undo()
        self._attention.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if (
                isinstance(leaf, Tensor)
                and leaf.is_meta
                and _key(leaf) not in given
                and _key(leaf) not in self._seen
            ):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return made

    def _count(self, storage) -> None:
        nbytes = -(-storage.nbytes() // ROUNDING) * ROUNDING
        self.now += nbytes
        self._seen[storage._cdata] = weakref.finalize(storage, self._forget, storage._cdata, nbytes)

    def _forget(self, key: int, nbytes: int) -> None:
        del self._seen[key]
        self.now -= nbytes


class _CardAttention(TorchFunctionMode):
    """Stands in for scaled_dot_product_attention, which on meta tensors would make the scores."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is Tensor.__bool__ and args[0].is_meta:
            return True  # what a guard asks of numbers that are not there: "are all of them finite?"
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        q, _, v = args[:3]
        *outer, heads, rows, _ = q.shape
        size = v.shape[-1]
        sums = q.new_empty((*outer, heads, rows), dtype=torch.float32)
        wide = (
            q.new_empty((*outer, rows, heads, size), dtype=torch.float32) if size > FUSED_HEAD_LIMIT else None
        )
        out = q.new_empty((*outer, rows, heads, size)).transpose(-2, -3)
        del sums, wide
        return out


def _card_int8_linear(x, weight, _scale, _bias, out_dtype, convrot, _group):
    """comfy-kitchen's kernels for CUDA: rows rotated, rows in 8 bits, the result."""
    rotated = torch.empty_like(x) if convrot else x
    rows = torch.empty_like(x, dtype=torch.int8)
    del rotated
    out = x.new_empty((x.shape[0], weight.shape[0]), dtype=out_dtype)
    del rows
    return out


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
