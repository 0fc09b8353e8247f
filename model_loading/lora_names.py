"""What trainers call the layers of the transformer and the tensors of a LoRA, and which rows they mean.

A LoRA's key is [prefixes] layer [.weight] suffix. The layer may be the published one, whose rows are stacked
[video | audio | text] and [q | k | v | g], or a part of it; with underscores, every dot of the layer is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..model.config import TransformerConfig
from ..model.transformer import JointTransformer
from .keys import MODALITY_ORDER, PARTS

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
UNDERSCORED_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

SUFFIXES = {
    "up": r"\.lora_B(?:\.[\w-]+\.weight|\.weight)?|\.lora_up(?:\.weight)?"
    r"|(?:\.lora|_lora|\.lora_linear_layer)\.up\.weight",
    "down": r"\.lora_A(?:\.[\w-]+\.weight|\.weight)?|\.lora_down(?:\.weight)?"
    r"|(?:\.lora|_lora|\.lora_linear_layer)\.down\.weight",
    "mid": r"\.lora_mid(?:\.weight)?",
    "alpha": r"\.alpha",
    "dora_scale": r"\.dora_scale|\.lora_magnitude_vector(?:\.[\w-]+)?(?:\.weight)?",
    "diff": r"\.diff|\.w_norm",
    "diff_b": r"\.diff_b|\.b_norm",
    "set_weight": r"\.set_weight",
    # Other families, whose tensors keep their names: LoHa, LoKr, GLoRA, OFT and BOFT.
    "other": r"\.(?:hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|[ab][12]\.weight|oft_blocks|rescale)",
}
KEY = re.compile(rf"(?P<layer>.+?)(?:{'|'.join(f'(?P<{role}>{text})' for role, text in SUFFIXES.items())})")

Rows = tuple[int, int]  # start and length


@dataclass(frozen=True, slots=True)
class Place:
    """What a layer's name stands for: rows of a published tensor of this shape.

    There are several ``choices`` where the name may stand for more or fewer rows, which the row count of the
    LoRA decides; a choice is several runs of rows where what belongs together does not lie together.
    """

    target: str
    shape: tuple[int, ...]
    choices: tuple[tuple[Rows, ...], ...]

    def runs(self, rows: int) -> tuple[Rows, ...] | None:
        """The choice with this many rows, or None."""
        return next((runs for runs in self.choices if sum(length for _, length in runs) == rows), None)


def split_key(key: str) -> tuple[str, str] | None:
    """(layer as the file spells it, role) of a LoRA's key, or None where the suffix is no LoRA's.

    A role is a key of ``SUFFIXES``, or for other families the suffix itself without its dot.
    """
    found = KEY.fullmatch(key)
    if found is None:
        return None
    role = found.lastgroup
    return found["layer"], found["other"][1:] if role == "other" else role


class LayerNames:
    """The layers of one transformer under every name; ``places`` by the plain one."""

    def __init__(self, config: TransformerConfig):
        self.places = places(config)
        self._underscored = {name.replace(".", "_"): name for name in self.places}

    def find(self, key: str) -> tuple[str, str] | None:
        """(plain name of the layer or of its bias, role) of a LoRA's key, or None if it belongs to nothing."""
        split = split_key(key)
        layer = split and self._plain(split[0])
        if not layer:
            return None
        role = split[1]
        if role == "diff_b":
            layer, role = f"{layer}.bias", "diff"
        if layer not in self.places:
            return None
        # Vectors, which are norms and biases, have no low-rank form.
        fits = len(self.places[layer].shape) == 2 or role in ("diff", "set_weight")
        return (layer, role) if fits else None

    def _plain(self, layer: str) -> str | None:
        layer = layer.removesuffix(".weight")
        while layer not in self.places:
            prefix = next((prefix for prefix in PREFIXES if layer.startswith(prefix)), None)
            if prefix is None:
                break
            layer = layer.removeprefix(prefix)
        for prefix in UNDERSCORED_PREFIXES:
            layer = self._underscored.get(layer.removeprefix(prefix), layer)
        return layer if layer in self.places else None


def places(config: TransformerConfig) -> dict[str, Place]:
    """{plain name: the rows it stands for}, for every layer, every part of one, and the biases."""
    with torch.device("meta"):
        state = JointTransformer(config).state_dict()
    found: dict[str, Place] = {}
    for target, tensor in state.items():
        shape = tuple(tensor.shape)
        number = re.match(r"block\.layers\.(\d+)\.", target)
        if number and len(shape) == 2:
            stacked = config.blocks[int(number[1])].per_modality
            found |= _projection(target, shape, stacked, config.qkvg_split)
        elif target.endswith((".weight", ".bias")):
            found[target.removesuffix(".weight")] = Place(target, shape, (((0, shape[0]),),))
    return found


def _projection(
    target: str, shape: tuple[int, ...], stacked: bool, split: tuple[int, ...]
) -> dict[str, Place]:
    layer = target.removesuffix(".weight")
    modalities = MODALITY_ORDER if stacked else ("",)
    size = shape[0] // len(modalities)
    starts = {modality: index * size for index, modality in enumerate(modalities)}
    found: dict[str, list[tuple[Rows, ...]]] = {}

    def add(name: str, start: int, length: int) -> None:
        """Rows of one modality's matrix, under the names with and without the modality."""
        for modality, first in starts.items():
            if modality:
                found.setdefault(f"{name}_{modality}", []).append(((first + start, length),))
        found.setdefault(name, []).append(tuple((first + start, length) for first in starts.values()))

    add(layer, 0, size)
    found[layer] = [((0, shape[0]),)]  # as one run
    if layer.endswith(".linear_qkv"):
        add(layer, 0, size - split[-1])  # trainers that know q, k and v only
        for index, part in enumerate(PARTS):
            add(layer.removesuffix("qkv") + part, sum(split[:index]), split[index])
    return {name: Place(target, shape, tuple(choices)) for name, choices in found.items()}


def family_and_size(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, tuple[int, int | None] | None]:
    """(name of the family, (R, C) of the change its tensors {suffix: shape} make, or None where they make none).

    C is None where the family turns rows and any number of columns fits.
    """
    get = shapes.get
    if "oft_blocks" in shapes or "rescale" in shapes:  # [blocks, b, b]; BOFT has factors before it
        blocks = get("oft_blocks", ())
        fits = len(blocks) in (3, 4) and blocks[-2] == blocks[-1]
        return "BOFT" if len(blocks) == 4 else "OFT", (blocks[-3] * blocks[-1], None) if fits else None
    if any(suffix.startswith("hada_") for suffix in shapes):  # (w1_a @ w1_b) * (w2_a @ w2_b)
        first, second = (_product(get(f"hada_w{i}_a"), get(f"hada_w{i}_b")) for i in (1, 2))
        is_matrix = not shapes.keys() & {"hada_t1", "hada_t2"}  # those are of convolutions
        return "LoHa", first if first == second and is_matrix else None
    if any(suffix.startswith("lokr_") for suffix in shapes):  # w1 ⊗ w2, each whole or as a product
        first, second = (
            get(f"lokr_w{i}") or _product(get(f"lokr_w{i}_a"), get(f"lokr_w{i}_b")) for i in (1, 2)
        )
        fits = first and second and len(first) == len(second) == 2 and "lokr_t2" not in shapes
        return "LoKr", (first[0] * second[0], first[1] * second[1]) if fits else None
    a1, a2, b1, b2 = (get(f"{name}.weight") for name in ("a1", "a2", "b1", "b2"))
    # W @ a1 @ a2 + b1 @ b2, or in older files W @ a2 @ a1 + b2 @ b1; the wrong way round makes [r, r].
    ways = (_product(a1, a2), _product(b1, b2)), (_product(a2, a1), _product(b2, b1))
    return "GLoRA", max((b for a, b in ways if a and b and a == (b[1], b[1])), default=None)


def _product(a: tuple[int, ...] | None, b: tuple[int, ...] | None) -> tuple[int, int] | None:
    """The shape of a @ b, or None where there is none."""
    return (a[0], b[1]) if a and b and len(a) == len(b) == 2 and a[1] == b[0] else None
