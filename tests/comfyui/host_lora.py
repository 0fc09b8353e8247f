"""Run by ComfyUI's interpreter, not by pytest: what our LoRA node makes of the weights beside a merge in float64.

Prints one JSON object of measurements; ``test_lora.py`` holds the expectations.
"""

import logging
import time
from pathlib import Path

from host import WORK, difference, ours, report, room, stock_node  # first: it sets ComfyUI up

# isort: split
import comfy.model_management
import comfy.model_patcher
import torch
from safetensors.torch import save_file

lora_node, lora_file = room("nodes.lora"), room("model_loading.lora_file")
merge, checkpoints = room("model_loading.lora").merge, room("model_loading.checkpoint")

STRENGTH, RANK = 0.8, 3
# Layer -> (tensor, start, rows): fused, split, stacked and per modality, in tensors of 132 rows a modality.
SPLIT, EDGE = "block.layers.2.attention.linear", "block.layers.1.attention.linear"
LAYERS = {
    "block.layers.3.attention.linear_qkv": ("block.layers.3.attention.linear_qkv", 0, 132),
    "block.layers.4.attention.linear_qkv": ("block.layers.4.attention.linear_qkv", 0, 128),
    f"{SPLIT}_q": (f"{SPLIT}_qkv", 0, 64),
    f"{SPLIT}_v": (f"{SPLIT}_qkv", 96, 32),
    f"{SPLIT}_g": (f"{SPLIT}_qkv", 128, 4),
    "block.layers.0.attention.linear_qkv": ("block.layers.0.attention.linear_qkv", 0, 396),
    f"{EDGE}_qkv_audio": (f"{EDGE}_qkv", 132, 132),
    f"{EDGE}_q_video": (f"{EDGE}_qkv", 0, 64),
    f"{EDGE}_v_text": (f"{EDGE}_qkv", 360, 32),
    f"{EDGE}_proj_text": (f"{EDGE}_proj", 128, 64),
    "block.layers.6.mlp.up_gate_proj_audio": ("block.layers.6.mlp.up_gate_proj", 336, 336),
    "block.layers.6.mlp.down_proj": ("block.layers.6.mlp.down_proj", 0, 192),
    "block.layers.5.mlp.down_proj": ("block.layers.5.mlp.down_proj", 0, 64),
    "adapter.video_embedder": ("adapter.video_embedder", 0, 64),
    "final_linear_audio": ("final_linear_audio", 0, 64),
}
STOCK = [layer for layer, (target, _, _) in LAYERS.items() if layer == target and ".4." not in layer]
KINDS = ("plain", "alpha", "mid", "DoRA of rows", "DoRA of columns", "PEFT's DoRA", "diff", "set")
FAMILIES = ("LoHa", "LoKr", "GLoRA", "OFT", "BOFT", "LoHa with DoRA")


class Errors(logging.Handler):
    """Counts what the host logs as errors: it goes on without a patch that failed."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def load(precision="bf16"):
    return ours(
        "HappyHorseModelLoader",
        model_name="happyhorse_tiny_distilled.safetensors",
        variant="distilled",
        precision=precision,
    )[0]


def base_values(model):
    """{published name: what the stored weight stands for, in float64}"""
    state = model.model.diffusion_model.state_dict()
    return {
        name: (value if type(value) is torch.Tensor else value.dequantize()).double()
        for name, value in state.items()
    }


def patched_values(model):
    """The weights that the host computes with, once it has loaded the model."""
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    state = {name: value.clone() for name, value in model.model.diffusion_model.state_dict().items()}
    comfy.model_management.unload_all_models()
    return state


def at_cast(model):
    """The weights as they are patched layer by layer where the host keeps the model offloaded, in float32."""
    state = model.model.state_dict()
    found = {}
    for key in model.patches:
        weight = state[key].float().clone()
        patch = comfy.model_patcher.LowVramPatch(key, model.patches)
        if hasattr(patch, "prepare"):
            # The host rebuilds each adapter around copies of its tensors.
            patch.prepare(torch.empty(patch.memory_required(), dtype=torch.uint8), None)
        found[key.removeprefix("diffusion_model.")] = patch(weight)
    return found


def ulps(actual, exact):
    """max |difference| in units of the last place of bfloat16 at the exact value, beyond float32's own error."""
    place = 2.0 ** (exact.abs().clamp(min=1e-30).log2().floor() - 7)
    excess = ((actual.double() - exact).abs() - 1e-6 * exact.abs().max()).clamp(min=0)
    return (excess / place).max().item()


def against(values, expected):
    """The worst over all weights: ulps of bfloat16 where a weight has that dtype, else of the largest entry."""
    worst = {"bf16, ulps": 0.0, "float32": 0.0}
    for name, value in values.items():
        if value.dtype == torch.bfloat16:
            worst["bf16, ulps"] = max(worst["bf16, ulps"], ulps(value, expected[name]))
        else:
            worst["float32"] = max(worst["float32"], difference(value, expected[name]))
    return worst


def made_up(kind, rows, columns):
    def randn(*shape):
        return (0.3 * torch.randn(shape)).bfloat16()

    if kind in ("diff", "set"):
        return {{"diff": "diff", "set": "set_weight"}[kind]: randn(rows, columns)}
    tensors = {"lora_up.weight": randn(rows, RANK), "lora_down.weight": randn(RANK, columns)}
    if kind != "plain":
        tensors["alpha"] = torch.tensor(1.7)
    if kind == "mid":
        tensors["lora_mid.weight"] = randn(RANK, RANK)
    scale = {"DoRA of rows": (rows, 1), "DoRA of columns": (1, columns), "PEFT's DoRA": (rows,)}.get(kind)
    if scale:
        tensors["dora_scale" if len(scale) == 2 else "lora_magnitude_vector"] = 1 + torch.rand(scale)
    return tensors


def columns(base, layer):
    return base[f"{LAYERS[layer][0]}.weight"].shape[1]


def write(name, base, layers, kind, prefix=""):
    tensors = {
        f"{prefix}{layer}.{suffix}": tensor
        for layer in layers
        for suffix, tensor in made_up(kind, LAYERS[layer][2], columns(base, layer)).items()
    }
    save_file(tensors, WORK / name)
    return tensors


def merged(name, model, base):
    """{name: weight after our own merge in float64}; it has its own tests against the definition."""
    config = model.model.diffusion_model.config
    read = lora_file.read_lora(checkpoints.open_checkpoint(WORK / name), config)
    return {target: merge(weight, read.of(target), STRENGTH) for target, weight in base.items()}, read


def apply(model, name, strength=STRENGTH):
    return lora_node.HappyHorseLoraLoader.execute(model=model, lora_name=name, strength_model=strength).result


def kinds(model, base):
    """Every kind on every form of layer, patched at loading and at casting."""
    found = {}
    for kind in KINDS:
        name = f"{kind}.safetensors"
        write(name, base, LAYERS, kind, "transformer.")
        expected, read = merged(name, model, base)
        patched, said = apply(model, name)
        found[kind] = {
            **against(patched_values(patched), expected),
            "at cast": max(difference(v, expected[n]) for n, v in at_cast(patched).items()),
            "changed": max(difference(expected[n], base[n]) for n in base),
            "patches": len(read.patches),
            "said": said,
        }
    found["restored"] = max(
        difference(value.double(), base[name]) for name, value in patched_values(model).items()
    )
    return found


def stock(model, base):
    """Where the stock loader knows the names, both give the same weights; for DoRA its own formula is shown."""
    found = {}
    for kind in ("plain", "alpha", "diff", "set", "DoRA of columns", "DoRA of rows"):
        for prefix in ("diffusion_model.", "lora_unet_"):
            name = f"stock {kind} {prefix}.safetensors"
            tensors = write(name, base, STOCK, kind, prefix)
            if prefix == "lora_unet_":
                tensors = {
                    key[: key.rindex(suffix)].replace(".", "_") + suffix: tensor
                    for key, tensor in tensors.items()
                    for suffix in (".lora_up.weight", ".lora_down.weight", ".alpha", ".dora_scale", ".diff", ".set_weight")
                    if key.endswith(suffix)
                }  # fmt: skip
                save_file(tensors, WORK / name)
            theirs = stock_node("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=STRENGTH)[
                0
            ]
            expected, _ = merged(name, model, base)
            by_theirs, by_ours = patched_values(theirs), patched_values(apply(model, name)[0])
            found[f"{kind}, {prefix}"] = {
                **against(by_ours, expected),
                "apart": max(difference(by_theirs[n], by_ours[n]) for n in by_ours),
                "stock from merge": max(difference(by_theirs[n], expected[n]) for n in by_theirs),
            }
    return found


def cayley(blocks):
    skew = blocks - blocks.transpose(-1, -2)
    eye = torch.eye(blocks.shape[-1], dtype=torch.float64)
    return (eye + skew) @ torch.linalg.inv(eye - skew)


def families(base):
    """The host's other adapters on rows of a tensor, in float32, against their definitions."""
    model, found = load("float32"), {}
    layer = f"{EDGE}_qkv_audio"
    target, start, rows = LAYERS[layer]
    width = columns(base, layer)
    weight = base[f"{target}.weight"][start : start + rows]

    def randn(*shape):
        return 0.3 * torch.randn(shape)

    for family in FAMILIES:
        alpha, rotates = 1.4, "OFT" in family
        if family.startswith("LoHa"):
            t = {"hada_w1_a": randn(rows, 2), "hada_w1_b": randn(2, width)}
            t |= {"hada_w2_a": randn(rows, 2), "hada_w2_b": randn(2, width)}
            one, two, three, four = (x.double() for x in t.values())
            change = alpha / 2 * (one @ two) * (three @ four)
        elif family == "LoKr":
            t = {"lokr_w1": randn(4, 4), "lokr_w2_a": randn(33, 2), "lokr_w2_b": randn(2, 16)}
            one, two, three = (x.double() for x in t.values())
            change = alpha / 2 * torch.kron(one, two @ three)
        elif family == "GLoRA":
            t = {"a1.weight": randn(width, 2), "a2.weight": randn(2, width)}
            t |= {"b1.weight": randn(rows, 2), "b2.weight": randn(2, width)}
            one, two, three, four = (x.double() for x in t.values())
            change = alpha / 2 * (weight @ one @ two + three @ four)
        elif family == "OFT":
            t = {"oft_blocks": randn(11, 12, 12)}
            r = cayley(t["oft_blocks"].double())
            change = (
                torch.einsum("knm,knc->kmc", r, weight.reshape(11, 12, width)).reshape(rows, width) - weight
            )
        else:  # one factor, whose blocks are of neighbouring pairs of halves
            t = {"oft_blocks": randn(1, 11, 12, 12)}
            r, paired = cayley(t["oft_blocks"].double()[0]), weight.unflatten(0, (-1, 2, 6)).transpose(1, 2)
            turned = torch.einsum("bij,bjc->bic", r, paired.flatten(0, 2).unflatten(0, (-1, 12)))
            turned = turned.flatten(0, 1).unflatten(0, (-1, 6, 2)).transpose(1, 2).flatten(0, 2)
            change = turned - weight
        if not rotates:
            t["alpha"] = torch.tensor(alpha)
        after = weight + change
        if family.endswith("DoRA"):
            t["dora_scale"] = 1 + torch.rand(rows, 1)
            after = t["dora_scale"].double() * after / after.square().sum(1, keepdim=True).sqrt()
        save_file(
            {f"base_model.model.{layer}.{suffix}": tensor for suffix, tensor in t.items()},
            WORK / "other.safetensors",
        )
        expected = dict(base)
        whole = expected[f"{target}.weight"].clone()
        # The host applies the strength of a rotation twice; only 1 is what the definition says.
        strength = 1.0 if rotates else STRENGTH
        whole[start : start + rows] = weight + (after - weight) * strength
        expected[f"{target}.weight"] = whole
        values = patched_values(apply(model, "other.safetensors", strength)[0])
        found[family] = max(difference(value, expected[name]) for name, value in values.items())
    return found


def vectors_and_chains(model, base):
    """Norms, biases, two files one after another, names that belong to nothing."""
    norm, bias = torch.randn(192), torch.randn(64)
    tensors = {
        "diffusion_model.block.layers.0.mlp.pre_norm.diff": norm,
        "lora_unet_adapter_text_embedder.diff_b": bias,
        **{f"lora_te_text_model_{index}.lora_up.weight": torch.ones(1) * index for index in range(7)},
    }
    save_file(tensors, WORK / "vectors.safetensors")
    patched, said = apply(model, "vectors.safetensors")
    expected, _ = merged("vectors.safetensors", model, base)
    found = {"vectors": against(patched_values(patched), expected), "said": said}
    chained = apply(apply(model, "alpha.safetensors")[0], "DoRA of rows.safetensors")[0]
    once, _ = merged("alpha.safetensors", model, base)
    twice, _ = merged("DoRA of rows.safetensors", model, once)
    found["chained"] = against(patched_values(chained), twice)
    same, said = apply(model, "alpha.safetensors", 0.0)
    found |= {"strength 0 is the model itself": same is model, "said at strength 0": said}
    return found


def refusals(model):
    other = {
        "single_blocks.0.linear1.lora_A.weight": torch.ones(4, 8),
        "single_blocks.0.linear1.lora_B.weight": torch.ones(8, 4),
    }
    save_file(other, WORK / "other model.safetensors")
    layer = "diffusion_model.block.layers.3.mlp.down_proj"
    save_file(
        {f"{layer}.lora_A.weight": torch.ones(4, 999), f"{layer}.lora_B.weight": torch.ones(64, 4)},
        WORK / "size.safetensors",
    )
    torch.save({"x": Path("x")}, WORK / "code.pt")
    (WORK / "cut.safetensors").write_bytes((WORK / "size.safetensors").read_bytes()[:-5])

    class Foreign:
        model = torch.nn.Linear(1, 1)

    cases = {
        "another model's LoRA": (model, "other model.safetensors"),
        "another size's LoRA": (model, "size.safetensors"),
        "a pickle with code": (model, "code.pt"),
        "a file cut short": (model, "cut.safetensors"),
        "another MODEL": (Foreign(), "size.safetensors"),
    }
    answers = {}
    for title, (given, name) in cases.items():
        try:
            apply(given, name)
            answers[title] = "accepted"
        except Exception as error:  # the kind is part of what is reported
            answers[title] = f"{type(error).__name__}: {error}"
    return answers


torch.manual_seed(3)
errors = Errors()
logging.getLogger().addHandler(errors)
began = time.monotonic()
with torch.inference_mode():
    model = load()
    base = base_values(model)
    measured = {
        "kinds": kinds(model, base),
        "stock": stock(model, base),
        "families": families(base),
        "others": vectors_and_chains(model, base),
        "refusals": refusals(model),
    }
measured["logged"] = [line for line in errors.lines if "belong to nothing" not in line]
measured["seconds"] = time.monotonic() - began
report(measured)
