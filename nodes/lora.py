"""LoRA on our MODEL: files of every spelling through the host's own patches, rows by offset."""

from __future__ import annotations

import logging

import comfy.lora
import folder_paths
import torch
from comfy.weight_adapter import WeightAdapterBase
from comfy_api.latest import io
from torch import Tensor

from ..errors import CheckpointError
from ..model.config import VARIANTS
from ..model_loading.checkpoint import open_checkpoint
from ..model_loading.lora import Difference, Lora, LoraPatch, LowRank, Replacement, decomposed
from ..model_loading.lora_file import read_lora
from .loaders import CATEGORY
from .wire import check_model

logger = logging.getLogger(__name__)

NAMES_SHOWN = 5


class Decomposed(WeightAdapterBase):
    """DoRA around an adapter of any family; ``weights`` are (adapter, scale).

    The host's own takes the norms of rows from the weight before the change; DoRA, and PEFT which trains it,
    from the weight after it.
    """

    name = "dora"

    def __init__(self, loaded_keys, weights):  # as the host makes a copy on another device
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        adapter, scale = self.weights
        base = weight.float()  # squares of float16 overflow
        changed = adapter.calculate_weight(
            base.clone(), key, 1.0, 1.0, offset, function, torch.float32, original_weight
        )
        # In place: with an offset the host goes on with the tensor that these rows are a view of.
        return weight.copy_(base + strength * (decomposed(changed, scale) - base))


class HappyHorseLoraLoader(io.ComfyNode):
    """A LoRA in any spelling."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseLoraLoader",
            display_name="HappyHorse LoRA Loader",
            category=CATEGORY,
            description="Applies a LoRA to a HappyHorse transformer, however its trainer names and splits the layers, "
            "and says what it changed.",
            search_aliases=["lora", "dora", "lycoris", "magihuman lora"],
            inputs=[
                io.Model.Input("model", tooltip="From HappyHorse Model Loader or another LoRA."),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A file in models/loras.",
                ),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of the change is applied; 0 leaves the model as it is.",
                ),
            ],
            outputs=[io.Model.Output(), io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(cls, model, lora_name, strength_model) -> io.NodeOutput:
        config = check_model(model, "model", tuple(VARIANTS)).diffusion_model.config
        if strength_model == 0:
            return io.NodeOutput(model, f"{lora_name}: strength 0, nothing is patched.")
        lora = read_lora(open_checkpoint(folder_paths.get_full_path_or_raise("loras", lora_name)), config)
        patched = model.clone()
        patches = host_patches(lora.patches)
        refused = patches.keys() - set(patched.add_patches(patches, strength_model))
        if refused:
            raise CheckpointError(
                f"{lora_name}: ComfyUI found no weight for {len(refused)} patches, such as {min(map(str, refused))}."
            )
        said = report(lora_name, lora, strength_model)
        (logger.warning if lora.unmatched else logger.info)("%s", said)
        return io.NodeOutput(patched, said)


def host_patches(patches: tuple[LoraPatch, ...]) -> dict:
    """Our patches as the host makes them of a file: {its key, with an offset for a run of rows: its patch}."""
    tensors: dict[str, Tensor] = {}
    places, scales = {}, {}
    for number, patch in enumerate(patches):
        key = f"diffusion_model.{patch.target}"
        places[str(number)] = key if patch.rows is None else (key, (0, *patch.rows))
        tensors |= {f"{number}.{suffix}": tensor for suffix, tensor in host_tensors(patch).items()}
        scales[places[str(number)]] = getattr(patch.change, "dora_scale", None)
    made = comfy.lora.load_lora(tensors, places)
    for patch, place in zip(patches, places.values(), strict=True):
        if place not in made:
            raise CheckpointError(
                f"{patch.key}: this ComfyUI knows no adapter of this family. Update ComfyUI."
            )
        if scales[place] is not None:
            made[place] = Decomposed(made[place].loaded_keys, (made[place], scales[place]))
    return made


def host_tensors(patch: LoraPatch) -> dict[str, Tensor]:
    """The tensors of a patch under the suffixes the host looks for; a DoRA scale is not among them."""
    change = patch.change
    if isinstance(change, Difference):
        return {"diff": change.values}
    if isinstance(change, Replacement):
        return {"set_weight": change.values}
    if isinstance(change, LowRank):
        tensors = {"lora_up.weight": change.up, "lora_down.weight": change.down}
        if change.mid is not None:
            tensors["lora_mid.weight"] = change.mid[:, :, None, None]  # the host knows it of convolutions
        alpha = change.alpha
    else:
        tensors = dict(change.tensors)
        # The host compares BOFT's alpha with 0 without asking whether there is one.
        alpha = 0.0 if change.alpha is None and change.family == "BOFT" else change.alpha
    if alpha is not None:
        tensors["alpha"] = torch.tensor(alpha)
    return tensors


def report(name: str, lora: Lora, strength: float) -> str:
    """What was patched and what was not, in a line or two."""
    weights = len({patch.target for patch in lora.patches})
    rank = f" of rank {', '.join(map(str, lora.ranks))}" if lora.ranks else ""
    lines = [f"{name}: {len(lora.patches)} patches{rank} on {weights} weights, strength {strength:g}."]
    if lora.unmatched:
        shown = ", ".join(lora.unmatched[:NAMES_SHOWN])
        more = ", …" if len(lora.unmatched) > NAMES_SHOWN else ""
        lines.append(f"{len(lora.unmatched)} keys belong to nothing in this model: {shown}{more}")
    return "\n".join(lines)


NODES = [HappyHorseLoraLoader]
