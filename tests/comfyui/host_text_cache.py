"""Run by ComfyUI's interpreter, not by pytest: text features from disk, and when the encoder's weights are read.

Prints one JSON object of measurements; ``test_text_cache.py`` holds the expectations. WORK/user is the user's
folder; where a run before this one has filled it, that shows in "restart".
"""

import gc
import shutil
import sys
import weakref

from host import MODELS, WORK, ours, report, room, stock_node  # first: it sets ComfyUI up

# isort: split
import comfy.hooks
import comfy.model_management as management
import comfy.model_patcher
import folder_paths
import torch
from safetensors.torch import load_file, save_file

folder_paths.set_user_directory(str(WORK / "user"))
checkpoint, builder = room("model_loading.checkpoint"), room("model_loading.builder")
text_encoder, cached = room("nodes.text_encoder"), room("nodes.feature_cache")
errors, negative = room("errors"), room("conditioning.negative")

ENCODER = WORK / "t5gemma"
shutil.copytree(MODELS / "text_encoders" / "t5gemma_tiny", ENCODER)
SHARD = ENCODER / "model-00001-of-00002.safetensors"
WORDS = "A horse says hello."
LAYER = "transformer.encoder.layers.0.mlp.down_proj.weight"

READS = {"opened": 0, "tensors": 0, "mapped": 0, "whole": 0}


def audit(event, arguments):
    if event == "open" and str(arguments[0]).startswith(str(ENCODER)) and ".safetensors" in str(arguments[0]):
        READS["opened"] += 1


def watch(place, name, counter):
    real = getattr(place, name)

    def called(*arguments, **keywords):
        READS[counter] += 1
        return real(*arguments, **keywords)

    setattr(place, name, called)


sys.addaudithook(audit)
watch(checkpoint.Checkpoint, "tensor", "tensors")
watch(checkpoint.Checkpoint, "quantised", "tensors")
watch(checkpoint, "safe_open", "mapped")
watch(builder, "read_weights", "whole")


def reads(function, *arguments, **keywords):
    """(the result, what was read of the weight files meanwhile)"""
    before = dict(READS)
    result = function(*arguments, **keywords)
    return result, {name: READS[name] - before[name] for name in READS}


def load(precision="auto", cache="on", device="default"):
    return text_encoder.load_clip(str(ENCODER), precision, None, device, cache)


def encode(clip, text):
    return stock_node("CLIPTextEncode", clip=clip, text=text)[0]


def same(one, other):
    """Conditionings of equal entries, tensors bit for bit."""
    return len(one) == len(other) and all(
        torch.equal(a, b) and a.dtype == b.dtype and a.device == b.device and about == theirs
        for (a, about), (b, theirs) in zip(one, other, strict=True)
    )


def entries():
    return cached.open_cache().size().entries


def forget():
    management.unload_all_models()
    gc.collect()


def restart():
    """In a folder that an earlier process has filled, or has not."""
    clip, loading = reads(load)
    found, reading = reads(encode, clip, WORDS)
    uncached = encode(load(cache="off"), WORDS)
    return {"loading": loading, "reading": reading, "same": same(found, uncached), "entries": entries()}


def hits():
    cached.open_cache().clear()
    clip, loading = reads(load)
    held = [clip.source.held is None, len(management.current_loaded_models)]
    plain, empty = load(cache="off"), load(cache="off")
    wanted = {text: encode(plain, text) for text in (WORDS, "Rain.", "", negative.default_negative())}
    found = {"loading": loading, "held after loading": held}
    results = {}
    for text in (WORDS, "Rain."):
        results[text], found[f"first {text}"] = reads(encode, clip, text)
    results[""], found["first empty"] = reads(encode, clip, "")
    for text in (WORDS, "Rain.", "", negative.default_negative()):
        again, found[f"again {text[:10]}"] = reads(encode, clip, text)
        found[f"same {text[:10]}"] = [same(results.get(text, again), wanted[text]), same(again, wanted[text])]
    found["empty is marked"] = [
        bool(encode(c, text)[0][1].get(text_encoder.EMPTY))
        for c in (clip, empty)
        for text in ("", " ", WORDS, negative.default_negative())
    ]
    found["keys"] = sorted(encode(clip, WORDS)[0][1])
    found["entries"] = entries()
    fresh, _ = reads(load)
    result, found["another loader"] = reads(encode, fresh, WORDS)
    found["another loader same"] = same(result, wanted[WORDS])
    tokens = clip.tokenize(WORDS)
    forms = [clip.encode_from_tokens(tokens), *clip.encode_from_tokens(tokens, return_pooled=True)]
    others = [plain.encode_from_tokens(tokens), *plain.encode_from_tokens(tokens, return_pooled=True)]
    found["forms"] = [
        torch.equal(forms[0], others[0]),
        torch.equal(forms[1], others[1]),
        forms[2] is others[2] is None,
    ]
    added = [
        c.encode_from_tokens_scheduled(tokens, add_dict={"start_percent": 0.5})[0][1] for c in (clip, plain)
    ]
    found["added"] = added[0] == added[1] and added[0]["start_percent"] == 0.5
    return found


def by_precision():
    found = {}
    for name in ("auto", "bf16", "float32", "fp8", "int8", "nf4"):
        cached.open_cache().clear()
        wanted = encode(load(name, "off"), WORDS)
        first, missed = reads(encode, load(name), WORDS)
        again, hit = reads(encode, load(name), WORDS)
        other, _ = reads(encode, load("float32" if name != "float32" else "auto"), WORDS)
        found[name] = {
            "missed": missed["whole"],
            "hit": hit,
            "same": [same(first, wanted), same(again, wanted)],
            "other": torch.equal(other[0][0], wanted[0][0]),
        }
        forget()
    return found


def memory():
    """What the host counts, and what is left after it has unloaded."""
    cached.open_cache().clear()
    found = {"before": len(management.current_loaded_models)}
    clip = load()
    encode(clip, WORDS)
    [loaded] = management.current_loaded_models
    module = weakref.ref(clip.source.held.cond_stage_model)
    patcher = weakref.ref(clip.source.held.patcher)
    found["counted"] = [loaded.model_memory(), management.module_size(module())]
    found["loaded"] = loaded.model is patcher()
    del loaded
    management.unload_all_models()
    found["records"] = len(management.current_loaded_models)
    found["freed"] = [clip.source.held is None, module() is None, patcher() is None]
    _, found["hit"] = reads(encode, clip, WORDS)
    found["records after a hit"] = len(management.current_loaded_models)
    _, found["miss"] = reads(encode, clip, "Snow.")
    module = weakref.ref(clip.source.held.cond_stage_model)
    sample_one_step(encode(clip, "Snow."))
    is_let_go = clip.source.held is None
    management.unload_all_models()
    management.cleanup_models()
    found["let go"] = [is_let_go, module() is None, len(management.current_loaded_models)]
    encode(clip, "Hail.")
    module = weakref.ref(clip.source.held.cond_stage_model)
    del clip
    found["gone with its CLIP"] = module() is None
    forget()
    return found


def sample_one_step(words):
    """What the transformer's turn does to an encoder that runs on the CPU."""
    model = ours(
        "HappyHorseModelLoader",
        model_name="happyhorse_tiny_distilled.safetensors",
        variant="distilled",
        precision="float32",
    )[0]
    latent = ours("HappyHorseEmptyLatent", width=64, height=64, length=5, batch_size=1)[0]
    settings = {
        "seed": 1,
        "steps": 1,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }
    stock_node("KSampler", model=model, positive=words, negative=words, latent_image=latent, **settings)


def by_the_host():
    """The host's questions to a CLIP that has read nothing, then to one that has."""
    clip, found = load(), {}
    asked, found["reads"] = reads(
        lambda: [
            comfy.model_patcher.is_model_patcher_output(clip),
            clip.is_dynamic(),
            hasattr(clip, "is_dynamic"),
        ]
    )
    found["unread"] = asked
    encode(clip, "Fog.")
    found["read"] = [comfy.model_patcher.is_model_patcher_output(clip), clip.is_dynamic()]
    found["apart"] = clip._patcher is None
    patcher = clip.patcher
    found["patcher"] = [
        isinstance(patcher, comfy.model_patcher.ModelPatcher),
        patcher.is_clone(clip.source.held.patcher),
        patcher is clip.patcher,
        patcher.model_size() == management.module_size(patcher.model),
        clip.cond_stage_model is patcher.model,
        clip.load_model() is patcher,
        LAYER in patcher.model_state_dict(),
        len(clip.get_key_patches()) > 10,
        len(clip.get_sd()) > 10,
    ]
    _, found["touched, known words"] = reads(encode, clip, "Fog.")
    kept = weakref.ref(clip.cond_stage_model)
    del patcher
    forget()
    found["kept while asked for"] = kept() is not None and clip.source.get().patcher.model is kept()
    _, found["touched, new words"] = reads(encode, clip, "Mist.")
    again = clip.patcher.cached_patcher_init
    other = again[0](*again[1], disable_dynamic=True)
    found["loaded again"] = other.model is not clip.patcher.model and all(
        torch.equal(a, b)
        for a, b in zip(other.model.state_dict().values(), kept().state_dict().values(), strict=True)
    )
    forget()
    return found


def patched():
    cached.open_cache().clear()
    clip = load()
    base = encode(clip, WORDS)
    clones = [clip.clone(), stock_node("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=-2)[0]]
    found = {
        "clones": [(same(encode(c, WORDS), base), reads(encode, c, WORDS)[1]["tensors"]) for c in clones]
    }
    weight = clip.source.get().cond_stage_model.state_dict()[LAYER]
    change = (torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) / 8).to(weight.dtype)
    lora = clip.clone()
    found["patches taken"] = lora.add_patches({LAYER: (change,)}, 1.0) == [LAYER]
    first, second = encode(lora, WORDS), encode(lora, "Dew.")
    file = SHARD.read_bytes(), SHARD.with_name(SHARD.name.replace("00001", "00002")).read_bytes()
    forget()
    for path in sorted(ENCODER.glob("*.safetensors")):
        state = load_file(path)
        name = "model." + LAYER.removeprefix("transformer.")
        if name in state:
            state[name] = state[name] + change
            save_file(state, path, metadata={"format": "pt"})
    merged = encode(load(cache="off"), WORDS)
    for path, data in zip(sorted(ENCODER.glob("*.safetensors")), file, strict=True):
        path.write_bytes(data)
    found["changes"] = not torch.equal(first[0][0], base[0][0])
    found["as merged"] = ((first[0][0] - merged[0][0]).norm() / merged[0][0].norm()).item()
    found["not kept"] = [entries(), not torch.equal(second[0][0], encode(clip, "Dew.")[0][0])]
    found["base as before"] = [same(encode(clip, WORDS), base), entries()]
    found["clone of patched"] = same(encode(lora.clone(), WORDS), first)
    own = load()
    own.add_patches({LAYER: (change,)}, 1.0)  # without a clone, as careless nodes do
    found["patched in place"] = [
        same(encode(own, WORDS), first),
        same(encode(load(), WORDS), base),
        entries(),
    ]
    device = clip.clone()
    device.patcher = device.patcher.clone()
    device.patcher.load_device = torch.device("meta")
    found["retargeted is changed"] = device._is_changed()
    module = clip.clone()
    module.cond_stage_model = clip.cond_stage_model
    found["replaced module is changed"] = module._is_changed()
    forget()
    return found


def hooked():
    """Stock hooks: applied to the conditioning, and scheduled LoRA weights on the CLIP."""
    cached.open_cache().clear()
    clip = load()
    base = encode(clip, WORDS)
    change = (torch.randn(load_shape(clip), generator=torch.Generator().manual_seed(2)) / 8).bfloat16()
    group = comfy.hooks.HookGroup()
    hook = comfy.hooks.WeightHook(strength_model=1.0, strength_clip=1.0)
    hook.weights, hook.weights_clip, hook.need_weight_init = {}, {LAYER: (change,)}, False
    group.add(hook)
    found = {}
    only = clip.clone()
    only.apply_hooks_to_conds = group
    with_hooks, taken = reads(encode, only, WORDS)
    found["only on conditioning"] = [
        torch.equal(with_hooks[0][0], base[0][0]),
        with_hooks[0][1].get("hooks") is group,
        "hooks" in base[0][1],
        taken["tensors"],
    ]
    node = stock_hooks()
    scheduled = node().apply_hooks(clip, True, True, group)[0]
    result = encode(scheduled, WORDS)
    found["scheduled"] = [
        sorted({"clip_start_percent", "clip_end_percent", "hooks"} & set(result[0][1])),
        not torch.equal(result[0][0], base[0][0]),
        entries(),
        same(encode(clip, WORDS), base),
    ]
    forget()
    return found


def load_shape(clip):
    return clip.source.get().cond_stage_model.state_dict()[LAYER].shape


def stock_hooks():
    import comfy_extras.nodes_hooks

    return comfy_extras.nodes_hooks.SetClipHooks


def replaced():
    """Another file under the name that a loaded CLIP was made from."""
    cached.open_cache().clear()
    clip = load()
    encode(clip, WORDS)
    forget()
    data, state = SHARD.read_bytes(), load_file(SHARD)
    save_file({name: tensor * 1.25 for name, tensor in state.items()}, SHARD, metadata={"format": "pt"})
    late = encode(clip, "Dust.")
    other = load()
    found = {"under its own key": same(encode(other, "Dust."), late), "hit": other.source.held is None}
    found["old words are other words"] = not same(encode(other, WORDS), encode(load_old(data), WORDS))
    forget()
    SHARD.write_bytes(data)
    found["not under the old"] = not torch.equal(encode(load(), "Dust.")[0][0], late[0][0])
    forget()
    SHARD.write_bytes(data[:-100])
    try:
        load()
    except errors.CheckpointError as error:
        found["refused when loading"] = "not a whole safetensors file" in str(error)
    SHARD.write_bytes(data)
    return found


def load_old(data):
    now = SHARD.read_bytes()
    SHARD.write_bytes(data)
    clip = load()
    SHARD.write_bytes(now)
    return clip


def clearing():
    encode(load(), WORDS)
    before = cached.open_cache().size()
    (text,) = cached.HappyHorseClearTextCache.execute().result
    schema = cached.HappyHorseClearTextCache.define_schema()
    return {
        "before": before.entries,
        "after": entries(),
        "text": text,
        "wanted": f"Prompts removed from {cached.cache_folder()}: {before.entries} ({before.bytes / 1e6:.1f} MB).",
        "folder": str(cached.cache_folder().relative_to(WORK)),
        "runs again": cached.HappyHorseClearTextCache.fingerprint_inputs()
        != cached.HappyHorseClearTextCache.fingerprint_inputs(),
        "is output": schema.is_output_node,
        "off keeps nothing": (encode(load(cache="off"), WORDS), entries())[1],
        "loader keeps": (encode(node_clip(), WORDS), entries())[1],
    }


def node_clip():
    folder_paths.add_model_folder_path("text_encoders", str(WORK))
    return ours("HappyHorseTextEncoderLoader", text_encoder_name="t5gemma")[0]


is_restart = (WORK / "user").exists()
with torch.inference_mode():
    measured = {"restart": restart()}
    forget()
    if not is_restart:
        measured |= {
            "hits": hits(),
            "precisions": (forget(), by_precision())[1],
            "memory": memory(),
            "host": by_the_host(),
            "patched": patched(),
            "hooked": hooked(),
            "replaced": replaced(),
            "clearing": clearing(),
        }
        cached.open_cache().clear()
        encode(load(), WORDS)  # for the next process
report(measured)
