"""Counts what a layer does on a card without one, from shapes alone; loaded as the fixture ``counting``.

For tensors on "meta" (torch built without CUDA cannot take rows of fake CUDA tensors). An operation of torch counts
as one launch that reads its inputs and writes its results; views and empty tensors count nothing. One of ours counts
as its Triton way does (and must not refuse), or its definition is run and counted. Matrix products are kept apart.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = {"mm", "addmm", "bmm"}
NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}


class Traffic(TorchDispatchMode):
    """``launches``, ``moved`` (bytes) and ``products`` (launches); ``names`` of what was launched, in order."""

    def __init__(self, operations, *, fused: bool):
        super().__init__()
        self.operations, self.fused = operations, fused
        self.launches = self.moved = self.products = 0
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.partition("::")[2]
        ours = self.operations.get(name) if function.namespace == "happyhorse" else None
        if ours is not None and not self.fused:
            with self:
                return ours.definition(*args, **kwargs)
        result = function(*args, **kwargs)
        if name in PRODUCTS:
            self.products += 1
        elif ours is not None:
            refused = ours.explain(*args, **kwargs)["triton"]
            assert refused is None, f"{name} would not run as Triton: {refused}"
            self._add(name, ours.ways["triton"].launches, (args, kwargs, result))
        elif name not in NOTHING and (function._schema.is_mutable or not _is_view(result, args)):
            self._add(name, 1, (args, kwargs, result))
        return result

    def _add(self, name: str, launches: int, touched) -> None:
        self.names += [name] * launches
        self.launches += launches
        tensors = {id(leaf): leaf for leaf in tree_leaves(touched) if isinstance(leaf, torch.Tensor)}
        self.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _is_view(result, args) -> bool:
    """Whether the result is memory that was there before, and no operation that writes into it."""
    given = {leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
    made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    return all(leaf.untyped_storage()._cdata in given for leaf in made)
