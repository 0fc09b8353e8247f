"""Run by ComfyUI's interpreter, not by pytest: sampling with swapped blocks beside sampling without.

Prints one JSON object of measurements; ``test_block_swap.py`` holds the expectations.
"""

import gc
import logging
import time
import weakref
from contextlib import contextmanager

from host import WORK, ours, report, room, stock_node  # first: it sets ComfyUI up

# isort: split
import comfy.hooks
import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from safetensors.torch import save_file

node, wire = room("nodes.block_swap"), room("nodes.wire")
blocks_file = room("nodes.swapped_blocks")
SOURCE = "happyhorse_tiny_distilled.safetensors"
PRECISIONS = ("bf16", "fp8", "fp8_rows", "fp8_fast", "int8", "nf4")
SETTINGS = ((0, 2), (3, 2), (3, 4), (8, 2), (8, 3))  # blocks swapped, slots
FEWER = ((0, 2), (3, 4), (8, 2))
LAYERS = ("3.mlp.down_proj", "0.attention.linear_qkv", "1.mlp.up_gate_proj_audio", "5.attention.linear_proj")
VALUES = 48 * 2 * 4 * 6 + 64 * 5  # of a latent
OUT_OF_MEMORY = comfy.model_management.OOM_EXCEPTION
passes = []  # samples that went through the blocks together
real_run = blocks_file.BlockSwap.run


def counted(self, inputs, call, need):
    passes.append(len(inputs))
    return real_run(self, inputs, call, need)


blocks_file.BlockSwap.run = counted


class Lines(logging.Handler):
    """What is logged."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.said = []

    def emit(self, record):
        self.said.append((record.levelname, record.getMessage()))

    def about(self, words, level="WARNING"):
        return [text for name, text in self.said if name == level and words in text]


def load(precision="bf16"):
    return ours("HappyHorseModelLoader", model_name=SOURCE, variant="distilled", precision=precision)[0]


def swap(model, count=8, slots=2, mode="manual", free=0.0):
    return node.HappyHorseBlockSwap.execute(model, mode, count, free, slots).result[0]


def text(rows, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, rows, CONFIG.text_features, generator=generator), {}]]


def latent(batch=1):
    return {"samples": wire.nested(torch.zeros(batch, 48, 2, 4, 6), torch.zeros(batch, 64, 5))}


def sample(model, positive=None, batch=1):
    """Our sampler, unguided: all values in a row."""
    out = ours(
        "HappyHorseSampler",
        model=model,
        positive=positive or text(5),
        latent=latent(batch),
        seed=7,
        steps=2,
        preset="distilled",
    )[0]
    return flat(out)


def guided(model, rows=3, sampler="ours"):
    """Two guidance branches, whose texts are 5 and ``rows`` long."""
    positive, negative = text(5), text(rows, 2)
    if sampler == "ours":
        given = {"preset": "base", "steps": 2, "video_guidance": 3.0, "audio_guidance": 4.0}
        out = ours(
            "HappyHorseSampler",
            model=model,
            positive=positive,
            negative=negative,
            latent=latent(),
            seed=7,
            **given,
        )[0]
    else:
        out = stock_node(
            "KSampler",
            model=model,
            seed=7,
            steps=2,
            cfg=4.0,
            sampler_name="euler",
            scheduler="simple",
            positive=positive,
            negative=negative,
            latent_image=latent(),
            denoise=1.0,
        )[0]
    return flat(out)


def flat(out):
    return torch.cat([stream.flatten() for stream in out["samples"].unbind()])


def write_lora(name, seed, layers=LAYERS):
    network = load().model.diffusion_model
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        weight = network.get_submodule(f"block.layers.{layer.removesuffix('_audio')}").weight
        rows = weight.shape[0] // (3 if layer.endswith("_audio") else 1)
        for suffix, shape in (("A", (4, weight.shape[1])), ("B", (rows, 4))):
            tensor = torch.randn(shape, generator=generator) * 0.2
            tensors[f"diffusion_model.block.layers.{layer}.lora_{suffix}.weight"] = tensor
    tensors["diffusion_model.final_linear_video.diff"] = (
        torch.randn(network.final_linear_video.weight.shape, generator=generator) * 0.05
    )
    save_file(tensors, WORK / name)


def lora(model, name="one.safetensors"):
    return ours("HappyHorseLoraLoader", model=model, lora_name=name, strength_model=0.7)[0]


def stock_lora(model, name="one.safetensors"):
    return stock_node("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=0.7)[0]


def equal_results(precision):
    """Every plan, and LoRAs before, after and on both sides, beside the same without block swap."""
    model, found = load(precision), {}
    plain, patched = sample(model), sample(lora(model))
    both = sample(lora(lora(model), "two.safetensors"))
    for count, slots in SETTINGS if precision == "bf16" else FEWER:
        found[f"{count} blocks, {slots} slots"] = torch.equal(sample(swap(model, count, slots)), plain)
    found["LoRA before"] = torch.equal(sample(swap(lora(model), 5)), patched)
    found["LoRA after"] = torch.equal(sample(lora(swap(model, 5))), patched)
    found["stock LoRA after"] = torch.equal(sample(stock_lora(swap(model, 5))), sample(stock_lora(model)))
    found["LoRA on both sides"] = torch.equal(sample(lora(swap(lora(model), 3), "two.safetensors")), both)
    found["without LoRA again"] = torch.equal(sample(swap(model, 3)), plain)
    found["the loader's own MODEL again"] = torch.equal(sample(model), plain)
    found["the LoRA counts"] = not torch.equal(plain, patched) and not torch.equal(patched, both)
    comfy.model_management.unload_all_models()
    return found


def guidance():
    model, found = load(), {}
    streamed = swap(model, 6)
    for sampler in ("ours", "KSampler"):
        for rows in (3, 5, 9):
            plain = guided(model, rows, sampler)
            passes.clear()
            found[f"{sampler}, {rows} rows"] = {
                "equal": torch.equal(guided(streamed, rows, sampler), plain),
                "together": list(passes),
            }
    plain = sample(model, batch=2)
    passes.clear()
    found["a batch of two"] = {
        "equal": torch.equal(sample(streamed, batch=2), plain),
        "together": list(passes),
    }
    # A card on which the pass just fits: the room for it has been set aside, so the branches stay together.
    plain, block_swap = guided(model), streamed.model.swap
    need = blocks_file.activation_bytes(CONFIG, VALUES)
    passes.clear()
    with free_memory(lambda: need * (1.1 if block_swap.held_bytes else 1.6)):
        found["a small card"] = {"equal": torch.equal(guided(streamed), plain), "together": list(passes)}
    return found


@contextmanager
def free_memory(count):
    """The host finds so many bytes free."""
    real = comfy.model_management.get_free_memory
    comfy.model_management.get_free_memory = lambda dev=None, both=False: (
        (count(), count()) if both else count()
    )
    try:
        yield
    finally:
        comfy.model_management.get_free_memory = real


def replaced(model, function, number=3):
    patched = model.clone()
    patched.set_model_patch_replace(function, "dit", "double_block", number)
    return patched


def after(calls, error=None, times=1):
    """A block's replacement that raises from its ``calls``-th call on, ``times`` times."""
    seen = {"calls": 0, "raised": 0}

    def block(arguments, extra):
        seen["calls"] += 1
        if error is not None and seen["calls"] >= calls and seen["raised"] < times:
            seen["raised"] += 1
            raise error
        return extra["original_block"](arguments)

    return block, seen


def attempt(function, *arguments):
    try:
        function(*arguments)
        return "accepted"
    except BaseException as error:  # the host's interrupt is none of Exception
        return f"{type(error).__name__}: {error}"


def patched_by_others():
    """What other nodes put on a MODEL does the same to a swapped one."""
    model, found = load(), {}

    def scaled(arguments, extra):
        calls["block"] += 1
        return {"img": extra["original_block"](arguments)["img"] * 1.01}

    def attention(function, *arguments, **keywords):
        calls["attention"] += 1
        return function(*arguments, **keywords) * 0.99

    def wrapper(executor, *arguments, **keywords):
        calls["wrapper"] += 1
        return [stream * 1.02 for stream in executor(*arguments, **keywords)]

    def with_all(given):
        given = replaced(given, scaled)
        given.model_options["transformer_options"]["optimized_attention_override"] = attention
        given.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
        return given

    results, counts = [], []
    for make in (with_all, lambda m: swap(with_all(m), 5), lambda m: with_all(swap(m, 5))):
        calls = {"block": 0, "attention": 0, "wrapper": 0}
        results.append(sample(make(model)))
        counts.append(calls)
    found["equal"] = [torch.equal(result, results[0]) for result in results[1:]]
    found["counts"] = counts
    found["counted"] = not torch.equal(results[0], sample(model))
    shifted = stock_node_shift(model), stock_node_shift(swap(model, 5)), swap(stock_node_shift(model), 5)
    plain, *others = [flat(ksampler(given)) for given in shifted]
    found["ModelSamplingSD3"] = [torch.equal(other, plain) for other in others]
    compiled = swap(model, 5).clone()
    set_torch_compile_wrapper(model=compiled, backend="eager")
    found["compiled"] = (sample(compiled) - sample(model)).abs().max().item()
    return found


def stock_node_shift(model):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model=model, shift=3.0)[0]


def ksampler(model):
    return stock_node(
        "KSampler", model=model, seed=7, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple",
        positive=text(5), negative=text(5), latent_image=latent(), denoise=1.0,
    )[0]  # fmt: skip


def failures():
    """Stopped in the middle, out of memory once and twice, an error of another kind."""
    model = load()
    plain, found = sample(model), {}
    streamed = swap(model, 5, 3)
    block_swap = streamed.model.swap
    stop = comfy.model_management.InterruptProcessingException()
    for title, error, times in (
        ("stopped", stop, 1),
        ("another error", ValueError("of a node"), 1),
        ("out of memory once", OUT_OF_MEMORY("injected"), 1),
        ("out of memory twice", OUT_OF_MEMORY("injected"), 2),
    ):
        block, seen = after(2, error, times)
        lines.said.clear()
        result = []
        answer = attempt(lambda b=block, r=result: r.append(sample(replaced(streamed, b))))
        found[title] = {
            "answer": answer,
            "raised": seen["raised"],
            "equal": bool(result) and torch.equal(result[0], plain),
            "held": block_swap.held_bytes,
            "warned": lines.about("Out of memory with"),
            "plans": lines.about("block swap: ", "INFO"),
            "then equal": torch.equal(sample(streamed), plain),
        }
    # Stop is noticed between blocks, whatever the blocks are.
    seen = []

    def press(arguments, extra):
        seen.append(1)
        comfy.model_management.interrupt_current_processing()
        return extra["original_block"](arguments)

    def later(arguments, extra):
        seen.append(2)
        return extra["original_block"](arguments)

    found["pressed"] = attempt(sample, replaced(replaced(streamed, press, 3), later, 4)).split(":")[0]
    found["pressed, blocks after it"] = seen.count(2)
    found["held after"] = block_swap.held_bytes
    found["a retry of its own for each run"] = []
    for _ in range(2):
        block, seen = after(1, OUT_OF_MEMORY("injected"))
        found["a retry of its own for each run"].append(torch.equal(sample(replaced(streamed, block)), plain))
    # Once a run, not once a pass: the second pass runs out again.
    calls = []

    def twice(arguments, extra):
        calls.append(1)
        if len(calls) in (1, 3):
            raise OUT_OF_MEMORY("injected")
        return extra["original_block"](arguments)

    found["in two passes"] = attempt(sample, replaced(streamed, twice))
    # Without a sampler around it, whose end the host tells.
    comfy.model_management.load_models_gpu([streamed])
    block, _ = after(1, ValueError("of a node"))
    streams = [torch.zeros(1, 48, 2, 4, 6), torch.zeros(1, 64, 5)]
    options = {"patches_replace": {"dit": {("double_block", 3): block}}}
    network = streamed.model.diffusion_model
    found["alone"] = attempt(lambda: network(streams, None, text(5)[0][0], transformer_options=options))
    found["alone, held"] = block_swap.held_bytes
    lines.said.clear()
    found["set twice"] = torch.equal(sample(swap(streamed, 7, 4)), plain)
    found["set twice, said"] = lines.about("block swap: ", "INFO")[-1]
    one = swap(model, 8, 2)
    block, seen = after(1, OUT_OF_MEMORY("injected"))
    lines.said.clear()
    found["the last plan"] = torch.equal(sample(replaced(one, block)), plain)
    found["the last plan, said"] = lines.about("block swap: ", "INFO")[-1]
    return found


def clones():
    """Two LoRAs in turn on one base: one set of slabs, right for whoever runs."""
    model, found = load(), {}
    first, second = lora(swap(model, 5)), lora(swap(model, 5), "two.safetensors")
    found["one model"] = first.model is second.model
    expected = [sample(lora(model)), sample(lora(model, "two.safetensors")), sample(model)]
    found["in turn"], addresses = [], set()
    for given, wanted in [(first, 0), (second, 1), (swap(model, 2), 2), (first, 0), (second.clone(), 1)]:
        found["in turn"].append(torch.equal(sample(given), expected[wanted]))
        addresses.add(tuple(slab.data.data_ptr() for slab in given.model.swap._host.slabs))
    found["slabs"] = len(addresses)
    # Only the blocks whose patches are others are written again.
    sample(first)
    block_swap, written = first.model.swap, set()
    was = [slab.data.clone() for slab in block_swap._host.slabs]
    for slab in block_swap._host.slabs:
        slab.data.fill_(1)
    block_swap.prepare(second)
    for number, slab in enumerate(block_swap._host.slabs):
        if not (slab.data == 1).all():
            written.add(number)
        slab.data.copy_(was[number])
    block_swap.drop()
    found["written"] = sorted(written)
    names = {*first.patches, *second.patches}
    found["patched"] = sorted({int(key.split(".")[3]) for key in names if ".layers." in key})
    return found


def accounting():
    """What the host counts, moves and patches."""
    model, found = load(), {}
    streamed = lora(swap(model, 5, 2))
    inner, block_swap = streamed.model, streamed.model.swap
    blocks = {name: value for name, value in inner.state_dict().items() if name.startswith(node.BLOCKS)}
    before = {name: (value.data_ptr(), value.clone()) for name, value in blocks.items()}
    resident = node.resident_beside(block_swap.config, 5)
    slot = room("model_loading.block_swap").default_slot_bytes(block_swap.sizes)
    found["size"] = streamed.model_size()
    found["expected size"] = inner.rest_bytes + sum(block_swap.sizes[n] for n in resident) + 2 * slot
    found["auto"] = swap(model, mode="auto").model_size() - inner.rest_bytes - sum(block_swap.sizes)
    found["plain"] = model.model_size()
    found["rest"] = inner.rest_bytes
    found["names"] = sorted(model.model.state_dict()) == sorted(inner.state_dict())
    during = {}

    def look(arguments, extra):
        if not during:
            during["held"], during["loaded"] = block_swap.held_bytes, streamed.loaded_size()
            during["freed inside a pass"] = streamed.partially_unload(torch.device("cpu"), 1)
            during["held still"] = block_swap.held_bytes
        return extra["original_block"](arguments)

    comfy.model_management.load_models_gpu([streamed])
    found["loaded"] = streamed.loaded_size()
    sample(replaced(streamed, look))
    found["during"] = during
    found["after"] = streamed.loaded_size()
    listed = [entry[-3] for entry in streamed._load_list()]
    found["listed blocks"] = [name for name in listed if name.startswith(node.BLOCKS)]
    found["listed rest"] = len(listed)
    found["backed up blocks"] = [name for name in streamed.backup if name.startswith(node.BLOCKS)]
    found["backed up rest"] = sorted(streamed.backup)
    inner.to(torch.float64)
    found["moved blocks"] = sorted(
        {str(p.dtype) for p in inner.diffusion_model.block.parameters()}
        - {str(value.dtype) for _, value in before.values()}
    )
    found["untouched"] = all(
        value.data_ptr() == before[name][0] and torch.equal(value, before[name][1])
        for name, value in inner.state_dict().items()
        if name.startswith(node.BLOCKS)
    )
    inner.to(torch.float32)  # the rest is float32 in this precision
    found["slabs"] = block_swap.slab_bytes
    comfy.model_management.unload_all_models()
    found["slabs after unloading"] = block_swap.slab_bytes
    comfy.model_management.load_models_gpu([streamed])
    with free_memory(lambda: block_swap.slab_bytes - 1):
        comfy.model_management.unload_all_models()
    found["slabs after unloading, memory short"] = block_swap.slab_bytes
    found["said without weights"] = attempt(block_swap.run, [], None, 0)
    # Another model comes between two runs, and the host takes everything from ours.
    plain = sample(lora(model))
    found["again"] = torch.equal(sample(streamed), plain)
    # What a save node writes are the patched weights, as without block swap.
    saved = [
        given.model_state_dict_for_saving(given.model.diffusion_model, "diffusion_model.")
        for given in (streamed, lora(model))
    ]
    found["saved"] = [
        torch.equal(saved[0][f"block.layers.{layer}.weight"].to("cpu"), other.to("cpu"))
        for layer in ("3.mlp.down_proj", "2.mlp.down_proj")
        for other in [saved[1][f"block.layers.{layer}.weight"]]
    ]
    # A run is on and another node asks for memory between two passes.
    block_swap.prepare(streamed)

    def unload_after(executor, *arguments, **keywords):
        out = executor(*arguments, **keywords)
        during["freed between"] = streamed.partially_unload(torch.device("cpu"), 1)
        during["held between"] = block_swap.held_bytes
        return out

    asked = streamed.clone()
    asked.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", unload_after)
    found["asked between passes"] = torch.equal(sample(asked), plain)
    return found


def auto_plans():
    """As many blocks as fit, by the host's free memory."""
    model, found = load(), {}
    plain = sample(model)
    streamed = swap(model, mode="auto")
    block_swap = streamed.model.swap
    sizes, need = block_swap.sizes, blocks_file.activation_bytes(CONFIG, VALUES)
    need += comfy.model_management.extra_reserved_memory()
    for title, room_for in (("nothing", -1e9), ("some", sum(sizes) * 0.7), ("all", sum(sizes) + 1)):
        held = []

        def look(arguments, extra, held=held):
            held.append(block_swap.held_bytes)
            return extra["original_block"](arguments)

        # Of 8 GB, so much is to be left free that this is the room.
        given = swap(model, mode="auto", free=(8e9 - need - room_for) / 1e9)
        with free_memory(lambda: 8e9):
            equal = torch.equal(sample(replaced(given, look)), plain)
        found[title] = {"equal": equal, "held": held[0], "room": room_for}
    found["sizes"] = sum(sizes)
    found["slots"] = 2 * room("model_loading.block_swap").default_slot_bytes(sizes)
    return found


def ends():
    """Nothing is left when the last MODEL is gone."""
    model = load("int8")
    streamed = lora(swap(model, 5))
    sample(streamed)
    watched = [weakref.ref(streamed.model), weakref.ref(streamed.model.swap._host)]
    watched += [weakref.ref(slab) for slab in streamed.model.swap._host.blocks]
    shared = weakref.ref(model.model)
    del streamed
    gc.collect()
    left = sum(ref() is not None for ref in watched)
    sample(model)
    del model
    gc.collect()
    return {"left": left, "base left": shared() is not None}


def refusals():
    model, found = load(), {}
    streamed = swap(model, 5)
    compiled = model.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager")
    found["compiled before"] = attempt(swap, compiled)
    found["too many"] = attempt(swap, model, 9)
    found["negative"] = attempt(swap, model, -1)
    found["negative memory"] = attempt(swap, model, 1, 2, "auto", -1.0)
    found["another model"] = attempt(swap, type("M", (), {"model": torch.nn.Linear(1, 1)})())
    wrapped = streamed.clone()
    wrapped.add_weight_wrapper(f"{node.LAYERS}0.mlp.down_proj.weight", lambda weight: weight)
    found["weight wrapper"] = attempt(sample, wrapped)
    exchanged = streamed.clone()
    exchanged.add_object_patch(f"{node.LAYERS}0.mlp", torch.nn.Identity())
    found["object patch"] = attempt(sample, exchanged)
    layer = "diffusion_model.block.layers.3.mlp.down_proj"
    shape = model.model.state_dict()[f"{layer}.weight"].shape
    tensors = {
        f"{layer}.lora_A.weight": torch.ones(2, shape[1]),
        f"{layer}.lora_B.weight": torch.ones(shape[0], 2),
    }
    hooks = comfy.hooks.create_hook_lora(tensors, 1.0, 0.0)
    found["LoRA hook"] = attempt(sample, streamed, [[text(5)[0][0], {"hooks": hooks}]])
    found["after all"] = torch.equal(sample(streamed), sample(model))
    return found


lines = Lines()
logging.getLogger().addHandler(lines)
logging.getLogger().setLevel(logging.INFO)
began = time.monotonic()
with torch.inference_mode():
    CONFIG = load().model.diffusion_model.config
    write_lora("one.safetensors", 1)
    write_lora("two.safetensors", 2, LAYERS[1:])
    measured = {"blocks": len(CONFIG.blocks)}
    measured["equal"] = {name: equal_results(name) for name in PRECISIONS}
    for function in (guidance, patched_by_others, failures, clones, accounting, auto_plans, ends, refusals):
        measured[function.__name__] = function()
        comfy.model_management.unload_all_models()
measured["seconds"] = time.monotonic() - began
report(measured)
