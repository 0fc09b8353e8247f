"""Run by ComfyUI's interpreter, not by pytest: quantised weights in the host beside the engine's.

Prints one JSON object of measurements; ``test_precision.py`` holds the expectations.
"""

import json

from host import MODELS, WORK, difference, ours, report, room, stock_node  # first: it sets ComfyUI up

# isort: split
import comfy.model_management
import comfy.ops
import comfy.quant_ops
import folder_paths
import torch
from safetensors.torch import load_file, save_file

builder, precision = room("model_loading.builder"), room("model_loading.precision")
convert, layers = room("model_loading.convert").convert, room("model_loading.quantised_layers")
quantised, hosted = room("kernels.quantised"), room("nodes.quantised")
gated, transformer_layers = room("kernels.gated_linear"), room("model.layers")
lora_file, merge = room("model_loading.lora_file"), room("model_loading.lora").merge
checkpoints, loaders = room("model_loading.checkpoint"), room("nodes.loaders")

SOURCE = MODELS / "diffusion_models" / "happyhorse_tiny_distilled.safetensors"
MADE = ("fp8", "fp8_rows", "fp8_fast", "int8", "int8_weights", "nf4")
CONVERTED = ("fp8", "int8", "nf4")
QUANTISED = comfy.quant_ops.QuantizedTensor
folder_paths.add_model_folder_path("diffusion_models", str(WORK))
folder_paths.add_model_folder_path("text_encoders", str(WORK))


def load(name, chosen="auto"):
    return ours("HappyHorseModelLoader", model_name=name, variant="distilled", precision=chosen)[0]


def projections(network):
    return {
        name: module
        for name, module in network.named_modules()
        if name.rpartition(".")[2] in ("linear_qkv", "linear_proj", "up_gate_proj", "down_proj")
    }


def run_layers(host, engine):
    """Every projection of both networks on the same rows: how many are bit-equal, and what ran."""
    found = {"layers": 0, "equal": 0, "stored": 0, "int8": 0, "fp8": 0}
    library = quantised.kitchen()
    originals = {"int8": (library, "int8_linear"), "fp8": (library.scaled_mm_v2, "scaled_mm_v2")}
    mine = projections(engine)
    for name, module in projections(host).items():
        other = mine[name]
        stacked = 3 if type(module).__name__ == "PerModalityLinear" else 1
        width = other.shape[1] if isinstance(other, layers.QuantisedLinear) else other.weight.shape[1]
        x = torch.randn(7, width).bfloat16()
        sizes = ((4, 2, 1),) if stacked == 3 else ()
        for title, (place, function) in originals.items():
            real = getattr(place, function)

            def counted(*args, title=title, real=real, **kwargs):
                found[title] += 1
                return real(*args, **kwargs)

            setattr(place, function, counted)
            originals[title] = (place, function, real)
        result = module(x, *sizes)
        for title, (place, function, real) in originals.items():
            setattr(place, function, real)
            originals[title] = (place, function)
        found["layers"] += 1
        found["stored"] += isinstance(module.weight, QUANTISED)
        found["equal"] += torch.equal(result, other(x, *sizes))
    return found


def values(network):
    """{name: what a stored weight stands for, in float64}"""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, layers.QuantisedLinear):
            found[f"{name}.weight"] = quantised.dequantise(module.stored).double()
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or isinstance(module, layers.QuantisedLinear):
                continue
            if isinstance(tensor, QUANTISED):
                tensor = quantised.dequantise(hosted.stored_weight_of(module, tensor))
            found[f"{name}.{key}"] = tensor.detach().double()
    return found


def same(one, other):
    return sorted(one) == sorted(other) and all(torch.equal(one[name], other[name]) for name in one)


def forward(model):
    network = model.model.diffusion_model
    config = network.config
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(1, config.video_features // 4, 3, 4, 6, generator=generator)
    audio = torch.randn(1, config.audio_features, 9, generator=generator)
    text = torch.randn(1, 5, config.text_features, generator=generator)
    return torch.cat([part.flatten() for part in network([video, audio], None, text)])


def engine_forward(network):
    config = network.config
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(1, config.video_features // 4, 3, 4, 6, generator=generator)
    audio = torch.randn(1, config.audio_features, 9, generator=generator)
    text = torch.randn(1, 5, config.text_features, generator=generator)
    return torch.cat([part.flatten() for part in network(video[0], audio[0], text[0])])


def l2(actual, reference):
    return ((actual.double() - reference.double()).norm() / reference.double().norm()).item()


def one(name, chosen):
    model = load(name, chosen)
    path = folder_paths.get_full_path("diffusion_models", name)
    engine = builder.load_transformer(path, "distilled", precision.PRECISIONS[chosen])
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    whole = forward(model)
    found = run_layers(model.model.diffusion_model, engine)
    found["values"] = same(values(model.model.diffusion_model), values(engine))
    found["float32"] = model.model.diffusion_model.adapter.video_embedder.weight.dtype == torch.float32
    comfy.model_management.unload_all_models()
    # A few bytes of room: nearly every layer stays offloaded and is cast when it runs.
    model.load(torch.device("cpu"), lowvram_model_memory=64)
    found["offloaded"] = torch.equal(forward(model), whole)
    model.unpatch_model(torch.device("cpu"))
    found["engine"] = l2(whole, engine_forward(engine))
    found["size"] = model.model_size()
    return found


def loras(name, chosen):
    """A LoRA merged into stored weights, and applied while they are cast."""
    model = load(name, chosen)
    network = model.model.diffusion_model
    base = values(network)
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for layer in (
        "block.layers.3.mlp.down_proj",
        "block.layers.0.attention.linear_qkv",
        "block.layers.1.mlp.up_gate_proj_audio",
    ):
        whole = base[f"{layer.removesuffix('_audio')}.weight"]
        rows = whole.shape[0] // (3 if layer.endswith("_audio") else 1)
        # As loud as a twentieth of the weight, as trained ones are.
        scale = (whole.square().mean().sqrt() / 20).item()
        tensors[f"transformer.{layer}.lora_A.weight"] = (
            torch.randn(4, whole.shape[1], generator=generator) / 2
        )
        tensors[f"transformer.{layer}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * scale
    save_file(tensors, WORK / "lora.safetensors")
    read = lora_file.read_lora(checkpoints.open_checkpoint(WORK / "lora.safetensors"), network.config)
    expected = {target: merge(weight, read.of(target), 1.0) for target, weight in base.items()}
    patched = ours("HappyHorseLoraLoader", model=model, lora_name="lora.safetensors", strength_model=1.0)[0]
    touched = sorted({patch.target for patch in read.patches})
    comfy.model_management.load_models_gpu([patched], force_full_load=True)
    merged = values(patched.model.diffusion_model)
    found = {
        "merged": max(l2(merged[name], expected[name]) for name in touched),
        "untouched": all(torch.equal(merged[name], base[name]) for name in base if name not in touched),
        "still stored": all(
            isinstance(
                patched.model.diffusion_model.get_submodule(t.removesuffix(".weight")).weight, QUANTISED
            )
            for t in touched
        ),
    }
    comfy.model_management.unload_all_models()
    found["restored"] = same(values(model.model.diffusion_model), base)
    patched.load(torch.device("cpu"), lowvram_model_memory=64)
    worst = 0.0
    for target in touched:
        module = patched.model.diffusion_model.get_submodule(target.removesuffix(".weight"))
        assert module.weight_function, target  # the host patches it while it casts
        x = torch.eye(expected[target].shape[1]).bfloat16()
        stacked = type(module).__name__ == "PerModalityLinear"
        parts = expected[target].chunk(3) if stacked else [expected[target]]
        for number, part in enumerate(parts):
            sizes = ([len(x) if i == number else 0 for i in range(3)],) if stacked else ()
            worst = max(worst, l2(module(x, *sizes).double().T, part))
    found["at cast"] = worst
    patched.unpatch_model(torch.device("cpu"))
    return found


def feed_forwards(name, chosen):
    """Feed-forward layers with the 8-bit kernels' way allowed, their definitions in the kernels' place.

    {case: (how often the fused way was taken, bit-equal to the engine's fused, or to the host's own without it)}
    """
    model = load(name, chosen)
    path = folder_paths.get_full_path("diffusion_models", name)
    engine = builder.load_transformer(path, "distilled", precision.PRECISIONS[chosen])
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    mine, theirs = model.model.diffusion_model.block.layers, engine.block.layers
    config = engine.config
    sizes = (7, 3, 2)
    x = torch.randn(sum(sizes), config.hidden_size)
    shared = transformer_layers.Context(sizes, torch.zeros(len(x), 6 * config.bands), ())
    taken, original, refusal = [], transformer_layers.feed_forward, gated.refusal

    def counted(*args):
        taken.append(1)
        return original(*args)

    def run(blocks, number, allowed):
        taken.clear()
        gated.refusal = refusal
        if allowed:
            # As on a card with Triton: what is left to refuse is the precision and the format.
            gated.refusal = lambda weight, kind, products: (
                "not 8-bit" if refusal(weight, kind, products) in WEIGHTS_ONLY else None
            )
        transformer_layers.feed_forward = counted
        try:
            return blocks[number].mlp(x, shared), len(taken)
        finally:
            transformer_layers.feed_forward, gated.refusal = original, refusal

    WEIGHTS_ONLY = {
        refusal(quantised.quantise_fp8(torch.ones(4, 4)), "gelu7", "weights"),
        refusal(quantised.quantise_nf4(torch.ones(64, 64)), "gelu7", "stored"),
    }
    found = {"layers": len(mine), "fused": 0, "equal": 0, "close": 0.0}
    for number in range(len(mine)):
        out, times = run(mine, number, True)
        wanted, _ = run(theirs, number, True)
        before, never = run(mine, number, False)
        assert never == 0
        found["fused"] += times
        found["equal"] += torch.equal(out, wanted)
        found["close"] = max(found["close"], l2(out, before))
    up = mine[3].mlp.up_gate_proj
    before = run(mine, 3, False)[0]

    def patched(case):
        out, times = run(mine, 3, True)
        found[case] = [times, l2(out, before)]

    up.weight_function.append(lambda weight: weight * 1)
    patched("a LoRA at cast")
    up.weight_function.clear()
    handle = mine[3].mlp.down_proj.register_forward_hook(lambda *_: None)
    patched("a hook")
    handle.remove()
    forward = up.forward
    up.forward = lambda *args: forward(*args)
    patched("another forward")
    up.forward = forward  # as the host's bypass leaves it
    out, times = run(mine, 3, True)
    found["put back"] = [times, torch.equal(out, run(theirs, 3, True)[0])]
    found["elsewhere"] = transformer_layers.stored_in(up, x.to("meta")) is None
    comfy.model_management.unload_all_models()
    return found


def own_formats():
    """Files of ComfyUI's own formats, made by its own layouts, beside what those layouts read."""
    state, found = load_file(SOURCE), {}
    for kind, layout, settings in (
        ("nvfp4", "TensorCoreNVFP4Layout", {}),
        ("mxfp8", "TensorCoreMXFP8Layout", {}),
        ("convrot_w4a4", "TensorCoreConvRotW4A4Layout", {"convrot_groupsize": 64}),
        ("float8_e5m2", "TensorCoreFP8E5M2Layout", {}),
        ("int8_tensorwise", "TensorWiseINT8Layout", {}),
    ):
        tensors, wanted = dict(state), {}
        for layer in ("block.layers.3.attention.linear_proj", "block.layers.0.attention.linear_proj"):
            weight = state[f"{layer}.weight"]
            extra = {"scale": "recalculate"} if kind.startswith("float8") or kind == "nvfp4" else settings
            made = QUANTISED.from_float(weight, layout, **extra)
            wanted[layer] = made.dequantize().double()
            del tensors[f"{layer}.weight"]
            for name, tensor in made.state_dict(f"{layer}.weight").items():
                tensors[name] = tensor.contiguous()
            text = json.dumps({"format": kind, **settings}).encode()
            tensors[f"{layer}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
        name = f"own_{kind}.safetensors"
        save_file(tensors, WORK / name)
        model = load(name)
        held = values(model.model.diffusion_model)
        engine = builder.load_transformer(WORK / name, "distilled")
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        found[kind] = {
            "host": max(difference(held[f"{layer}.weight"], value) for layer, value in wanted.items()),
            "engine": max(difference(values(engine)[f"{layer}.weight"], v) for layer, v in wanted.items()),
            "forward": l2(forward(model), engine_forward(engine)),
        }
        comfy.model_management.unload_all_models()
    return found


def text_encoders():
    """The encoder in every precision beside the engine's, through the host's CLIPTextEncode."""
    found = {}
    source = MODELS / "text_encoders" / "t5gemma_tiny"
    tokenizer = next(source.glob("tokenizer.*"))
    for name in CONVERTED:
        convert(source, WORK / f"t5_{name}.safetensors", name, tokenizer=tokenizer)
        (WORK / "config.json").write_text((source / "config.json").read_text())
    ids = [5, 9, 2, 11, 3, 8]
    for file, chosen in [
        *((f"t5_{name}.safetensors", "auto") for name in CONVERTED),
        *(("t5gemma_tiny", name) for name in ("bf16", *MADE)),
        *((file.name, "auto") for file in sorted(WORK.glob("*.gguf"))),
        *((file.name, "int8") for file in sorted(WORK.glob("*.gguf"))),
    ]:
        beside = {"tokenizer_file": str(tokenizer)} if file.endswith(".gguf") else {}
        clip = ours("HappyHorseTextEncoderLoader", text_encoder_name=file, precision=chosen, **beside)[0]
        path = source if file == source.name else WORK / file
        engine = builder.load_text_encoder(path, precision.PRECISIONS[chosen])
        comfy.model_management.load_models_gpu([clip.patcher], force_full_load=True)
        with_host = clip.cond_stage_model.transformer(torch.tensor([ids]))
        found[f"{file} {chosen}"] = {
            "apart": l2(with_host, engine(torch.tensor([ids]))),
            "listed": file in loaders.files_and_folders("text_encoders"),
            "stored": sum(
                isinstance(getattr(module, "weight", None), QUANTISED)
                for module in clip.cond_stage_model.transformer.modules()
            ),
        }
        encoded = stock_node("CLIPTextEncode", clip=clip, text="A horse says hello.")[0]
        found[f"{file} {chosen}"]["finite"] = bool(encoded[0][0].isfinite().all())
        comfy.model_management.unload_all_models()
    return found


torch.manual_seed(3)
with torch.inference_mode():
    for name in CONVERTED:
        convert(SOURCE, WORK / f"distilled_{name}.safetensors", name)
    cases = [
        *((f"distilled_{name}.safetensors", "auto") for name in CONVERTED),
        *((SOURCE.name, name) for name in ("bf16", *MADE)),
        ("distilled_fp8.safetensors", "bf16"),
    ]
    measured = {
        "models": {f"{name} {chosen}": one(name, chosen) for name, chosen in cases},
        "loras": {
            f"{name} {chosen}": loras(name, chosen) for name, chosen in cases if chosen not in ("bf16",)
        },
        "feed forward": {chosen: feed_forwards(SOURCE.name, chosen) for chosen in MADE},
        "own": own_formats(),
        "text": text_encoders(),
    }
report(measured)
