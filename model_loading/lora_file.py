"""LoRA files of every spelling: what their keys mean for one transformer, checked from headers alone.

No tensor is read before all names, shapes and dtypes fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from ..errors import CheckpointError
from ..model.config import TransformerConfig
from .checkpoint import Checkpoint
from .keys import kind_of
from .lora import Change, Difference, Lora, LoraPatch, LowRank, OtherFamily, Replacement
from .lora_names import SUFFIXES, LayerNames, Place, Rows, family_and_size

EXAMPLE = "diffusion_model.block.layers.0.attention.linear_qkv.lora_A.weight"


def read_lora(checkpoint: Checkpoint, config: TransformerConfig) -> Lora:
    """The LoRA in a file, for a transformer of this configuration.

    Raises CheckpointError where nothing in it belongs to this transformer, where a shape or a dtype does not
    fit, where half of a pair is missing, and where rows are patched twice.
    """
    file, names = _File(checkpoint), LayerNames(config)
    layers: dict[str, dict[str, str]] = {}  # {plain layer: {role: key}}
    unmatched = []
    for key in checkpoint.names:
        found = names.find(key)
        if found is None:
            unmatched.append(key)
            continue
        layer, role = found
        keys = layers.setdefault(layer, {})
        if role in keys:
            raise file.error(f"{keys[role]} and {key} are both the {role} of {layer}.")
        keys[role] = key
    plans = []
    for layer, keys in layers.items():
        plans += (made := _plans(file, names.places[layer], keys))
        if not made:
            unmatched += keys.values()
    if not plans:
        raise _foreign(file)
    _check_overlap(file, plans)
    # All is checked by now; here the tensors are read.
    return Lora(tuple(patch for plan in plans for patch in plan.patches()), tuple(sorted(unmatched)))


class _File:
    """A checkpoint's headers, read once, and its tensors as the patches want them."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self.shapes, dtypes = checkpoint, checkpoint.shapes, checkpoint.dtypes
        self.is_float = {key: dtype.startswith(("float", "bfloat")) for key, dtype in dtypes.items()}

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.checkpoint.path}: {text}")

    def shape(self, key: str) -> tuple[int, ...]:
        """As a matrix where the file has the kernel of a convolution of one position."""
        shape = self.shapes[key]
        return shape[:2] if set(shape[2:]) == {1} else shape

    def tensor(self, key: str) -> Tensor:
        return self.checkpoint.tensor(key).reshape(self.shape(key))

    def number(self, key: str | None) -> float | None:
        if key is None:
            return None
        value = float(self.checkpoint.tensor(key))
        if not math.isfinite(value):
            raise self.error(f"{key} is {value}; a finite number is expected. The file is damaged.")
        return value


@dataclass(frozen=True, slots=True)
class _Plan:
    """A change whose headers fit: ``read`` makes it, for these runs of the place's rows."""

    place: Place
    runs: tuple[Rows, ...]
    key: str
    read: Callable[[], Change]

    def patches(self) -> Iterable[LoraPatch]:
        change, taken = self.read(), 0
        for start, length in self.runs:
            rows = None if (start, length) == (0, self.place.shape[0]) else (start, length)
            part = change if len(self.runs) == 1 else _cut(change, slice(taken, taken + length))
            yield LoraPatch(self.place.target, rows, part, self.key)
            taken += length


def _cut(change: LowRank | Difference | Replacement, rows: slice) -> Change:
    if isinstance(change, LowRank):
        scale = change.dora_scale
        return replace(change, up=change.up[rows], dora_scale=None if scale is None else scale[rows])
    return replace(change, values=change.values[rows])


def _plans(file: _File, place: Place, keys: Mapping[str, str]) -> list[_Plan]:
    """What the keys {role: key} of one layer do; nothing where there is an alpha only."""
    for role, key in keys.items():
        if role != "alpha" and not file.is_float[key]:
            raise file.error(f"{key} has a dtype that holds no fractions. Export the LoRA again, in bf16.")
        if role == "alpha" and math.prod(file.shapes[key]) != 1:
            raise file.error(f"{key} has shape {list(file.shapes[key])}; alpha is one number.")
    plans = []
    for role, kind in (("diff", Difference), ("set_weight", Replacement)):
        if role in keys:
            plans.append(_whole(file, place, keys[role], kind))
    others = {role: key for role, key in keys.items() if role not in SUFFIXES}
    if others:
        plans.append(_other_family(file, place, others, keys))
    elif keys.keys() & {"up", "down", "mid", "dora_scale"}:
        plans.append(_low_rank(file, place, keys))
    return plans


def _whole(file: _File, place: Place, key: str, kind: Callable[[Tensor], Change]) -> _Plan:
    shape = file.shape(key)
    runs = place.runs(shape[0]) if shape and shape[1:] == place.shape[1:] else None
    if runs is None:
        raise _misfit(file, place, f"{key} has shape {list(shape)}", "")
    return _Plan(place, runs, key, lambda: kind(file.tensor(key)))


def _low_rank(file: _File, place: Place, keys: Mapping[str, str]) -> _Plan:
    for role, other in (("up", "down"), ("down", "up")):
        if role not in keys:
            have = next(keys[r] for r in (other, "mid", "dora_scale") if r in keys)
            raise file.error(
                f"{have} has no {role} matrix beside it. The file is incomplete: export it again."
            )
    up, down = file.shape(keys["up"]), file.shape(keys["down"])
    fits = len(up) == len(down) == 2 and up[1] == down[0] > 0 and down[1] == place.shape[1]
    runs = place.runs(up[0]) if fits else None
    if runs is None:
        raise _misfit(
            file,
            place,
            f"{keys['up']} has shape {list(up)} and {keys['down']} {list(down)}",
            f"[rows, r] and [r, {place.shape[1]}] for the same r and ",
        )
    mid = keys.get("mid")
    if mid and file.shape(mid) != (down[0], down[0]):
        raise _misfit(file, place, f"{mid} has shape {list(file.shape(mid))}", f"[{down[0]}, {down[0]}] and ")
    scale = _scale(file, place, keys, runs)
    return _Plan(
        place,
        runs,
        keys["up"],
        lambda: LowRank(
            file.tensor(keys["up"]),
            file.tensor(keys["down"]),
            file.tensor(mid) if mid else None,
            file.number(keys.get("alpha")),
            scale(),
        ),
    )


def _scale(
    file: _File, place: Place, keys: Mapping[str, str], runs: tuple[Rows, ...]
) -> Callable[[], Tensor | None]:
    """What reads the DoRA scale, as [R, 1] or [1, C]."""
    key = keys.get("dora_scale")
    if key is None:
        return lambda: None
    shape, rows, columns = file.shape(key), sum(length for _, length in runs), place.shape[1]
    if shape in ((rows, 1), (rows,)):
        return lambda: file.tensor(key).reshape(rows, 1)
    if shape not in ((1, columns), (columns,)):
        raise _misfit(file, place, f"{key} has shape {list(shape)}", f"[{rows}, 1] or [1, {columns}] here; ")
    if len(runs) > 1:
        raise file.error(
            f"{key} normalises columns over rows that are not neighbours in {place.target}, which cannot be "
            "applied. Train or export the LoRA for the fused layer."
        )
    return lambda: file.tensor(key).reshape(1, columns)


def _other_family(file: _File, place: Place, others: Mapping[str, str], keys: Mapping[str, str]) -> _Plan:
    shapes = {suffix: file.shape(key) for suffix, key in others.items()}
    first = min(others.values())
    family, size = family_and_size(shapes)
    rows, columns = size or (0, 0)
    runs = place.runs(rows)
    if runs is None or columns not in (None, place.shape[1]):
        listed = ", ".join(f"{suffix} {list(shape)}" for suffix, shape in sorted(shapes.items()))
        raise _misfit(
            file, place, f"{first} is of a {family} adapter with {listed}", f"{place.shape[1]} columns and "
        )
    if len(runs) > 1:
        raise file.error(
            f"{first} is of a {family} adapter over rows that are not neighbours in {place.target}, which "
            "cannot be applied."
        )
    scale = _scale(file, place, keys, runs)
    return _Plan(
        place,
        runs,
        first,
        lambda: OtherFamily(
            family,
            {suffix: file.tensor(key) for suffix, key in others.items()},
            file.number(keys.get("alpha")),
            scale(),
        ),
    )


def _check_overlap(file: _File, plans: Iterable[_Plan]) -> None:
    spans = sorted((plan.place.target, *run, plan.key) for plan in plans for run in plan.runs)
    for (target, start, length, key), (other, later, _, other_key) in pairwise(spans):
        if target == other and later < start + length:
            raise file.error(
                f"{key} and {other_key} both patch row {later} of {target}. Keep one of them: the file may hold "
                "two LoRAs, or one in two spellings."
            )


def _misfit(file: _File, place: Place, found: str, wanted: str) -> CheckpointError:
    counts = " or ".join(str(sum(length for _, length in runs)) for runs in place.choices)
    return file.error(
        f"{found}; {place.target} of this model has shape {list(place.shape)}, where this layer's name asks for "
        f"{wanted}{counts} rows. The LoRA was made for another model."
    )


def _foreign(file: _File) -> CheckpointError:
    names = file.checkpoint.names
    kind = kind_of(names)
    what = f" It is the {kind.title}, not a LoRA." if kind else ""
    return file.error(
        f"none of its {len(names)} keys is a LoRA's for this transformer; they are such as "
        f"{', '.join(sorted(names)[:3]) or 'none'}.{what} Keys such as {EXAMPLE} were expected: the file was made "
        "for another model."
    )
