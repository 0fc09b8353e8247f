"""Run by ComfyUI's interpreter, not by pytest: sampling with HappyHorse Step Saving beside sampling without.

Prints one JSON object of measurements; ``test_step_saving.py`` holds the expectations.
"""

import logging
from dataclasses import replace

from host import OURS, ours, report, room, stock_node  # first: it sets ComfyUI up

# isort: split
import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper

node, wire = room("nodes.step_saving"), room("nodes.wire")
joint, streams, latents = room("sampling.joint"), room("sampling.streams"), room("model.video_latent")
FILES = {"base": "happyhorse_tiny_base", "distilled": "happyhorse_tiny_distilled.safetensors"}
FILES["sr_540p"] = "happyhorse_tiny_sr_540p.safetensors"
STEPS = 16
BLOCKS = 8
said = []


class Lines(logging.Handler):
    def emit(self, record):
        if record.getMessage().startswith("Step saving"):
            said.append(record.getMessage())


logging.getLogger().addHandler(Lines())
logging.getLogger().setLevel(logging.INFO)


def load(variant="base"):
    given = {"model_name": FILES[variant], "variant": variant, "precision": "float32"}
    return ours("HappyHorseModelLoader", **given)[0]


def save(model, threshold=0.5):
    return ours("HappyHorseStepSaving", model=model, threshold=threshold)[0]


def swap(model):
    given = {"mode": "manual", "blocks_to_swap": BLOCKS, "vram_to_leave_free_gb": 0.0}
    return ours("HappyHorseBlockSwap", model=model, **given)[0]


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, count, CONFIG.text_features, generator=generator)


def latent(batch=1):
    return {"samples": wire.nested(torch.zeros(batch, 48, 2, 4, 6), torch.zeros(batch, 64, 5))}


def ours_sampler(model, seed=7, batch=1, negative_rows=3, steps=STEPS, preset="base"):
    out = ours(
        "HappyHorseSampler",
        model=model,
        positive=[[rows(5, 1), {}]],
        negative=[[rows(negative_rows, 2), {}]],
        latent=latent(batch),
        seed=seed,
        steps=steps,
        preset=preset,
    )[0]
    return flat(out)


def stock_sampler(model, sampler="euler", seed=7):
    out = stock_node(
        "KSampler",
        model=model,
        seed=seed,
        steps=STEPS,
        cfg=4.0,
        sampler_name=sampler,
        scheduler="simple",
        positive=[[rows(5, 1), {}]],
        negative=[[rows(3, 2), {}]],
        latent_image=latent(),
        denoise=1.0,
    )[0]
    return flat(out)


def flat(out):
    return torch.cat([stream.flatten(1) for stream in out["samples"].unbind()], 1)


def entered(model):
    """A list that grows with every sample that goes through the first block of this MODEL."""
    counted = []
    block = model.model.diffusion_model.block.layers[0]
    block.register_forward_pre_hook(lambda *_: counted.append(1))
    return counted


def relative(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


def last_line(run):
    said.clear()
    out = run()
    assert len(said) <= 1, said
    return out, said[0] if said else None


def against_the_engine(model):
    """The same network, prompts, noise and threshold through the engine's loop."""
    network = model.model.diffusion_model
    shapes = streams.StreamShapes((1, 48, 2, 4, 6), (1, 64, 5))
    preset = replace(joint.PRESETS["base"], steps=STEPS)
    saver = joint.step_saver(preset, 0.5)
    plain = room("model.transformer").JointTransformer.forward

    def velocity(text):
        def call(x, _sigma):
            video, audio = plain(network, x.video[0], x.audio[0], text)
            return streams.Streams(video[None], audio[None])

        return call

    noise = streams.SeededNoise(7, shapes)
    with torch.inference_mode():
        out = joint.sample(
            velocity(rows(5, 1)[0]), velocity(rows(3, 2)[0]), noise(), preset, noise, saver=saver
        )
    video = latents.denormalise(out.video)
    return torch.cat([video.flatten(1), out.audio.flatten(1)], 1), saver.saved


def thresholds(model):
    exact, found = ours_sampler(model), []
    for threshold in (0.0, 1e-6, 0.2, 0.5, 1.0):
        passes = entered(model)
        out, line = last_line(lambda threshold=threshold: ours_sampler(save(model, threshold)))
        found.append([threshold, len(passes) / 2, relative(out, exact), torch.equal(out, exact), line])
    out, _ = last_line(lambda: ours_sampler(save(model)))
    engine, saved = against_the_engine(model)
    return {
        "rows": found,
        "engine": relative(out, engine),
        "engine saved": str(saved),
        "node said": last_line(lambda: ours_sampler(save(model)))[1],
        "exact again": torch.equal(ours_sampler(model), exact),
        "the second node counts": torch.equal(ours_sampler(save(save(model, 0.5), 0.0)), exact),
    }


def branches(model):
    """Texts of different lengths come in calls of their own, of equal lengths in one."""
    found = {}
    for count in (3, 5):
        calls = []

        def note(executor, x, *args, calls=calls, **kwargs):
            calls.append(len(x[0]))
            return executor(x, *args, **kwargs)

        saved = save(model)
        saved.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", note)
        out, line = last_line(lambda saved=saved, count=count: ours_sampler(saved, negative_rows=count))
        exact = ours_sampler(model, negative_rows=count)
        found[count] = {"samples in a call": sorted(set(calls)), "error": relative(out, exact), "line": line}
    return found


def seeds(model):
    """Runs one after another, in one batch, and after one that was stopped."""
    saved = save(model)
    one, other = ours_sampler(saved, 7), ours_sampler(saved, 8)
    found = {"again": torch.equal(ours_sampler(saved, 7), one) and not torch.equal(one, other)}
    passes = []

    def stops(executor, *args, **kwargs):
        passes.append(1)
        if len(passes) > 9:
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()
        return executor(*args, **kwargs)

    stopped = saved.clone()
    stopped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", stops)
    try:
        ours_sampler(stopped, 8)
        found["stopped"] = False
    except comfy.model_management.InterruptProcessingException:
        found["stopped"] = True
    found["after a stop"] = torch.equal(ours_sampler(saved, 7), one)
    found["nothing is left"] = not [
        options
        for options in (saved.model_options, stopped.model_options, model.model_options)
        if node.KEY in options.get("transformer_options", {})
    ]
    exact = ours_sampler(model, batch=2)
    both, line = last_line(lambda: ours_sampler(saved, batch=2))
    found["batch"] = {"errors": [relative(both[n], exact[n]) for n in range(2)], "line": line}
    return found


def beside_other_nodes(model):
    found, exact = {}, ours_sampler(save(model))
    for name, made in (("swap after", swap(save(model))), ("swap before", save(swap(model)))):
        streamed = []
        real = room("nodes.swapped_blocks").BlockSwap.run

        def counted(self, inputs, call, need, real=real, streamed=streamed):
            streamed.append(len(inputs))
            return real(self, inputs, call, need)

        room("nodes.swapped_blocks").BlockSwap.run = counted
        out, line = last_line(lambda made=made: ours_sampler(made))
        room("nodes.swapped_blocks").BlockSwap.run = real
        found[name] = {"equal": torch.equal(out, exact), "passes": sum(streamed), "line": line}
    compiled = save(model)
    set_torch_compile_wrapper(model=compiled, backend="eager")
    found["compiled"] = relative(ours_sampler(compiled), exact)
    for sampler in ("euler", "heun", "dpmpp_2m"):
        passes = entered(model)
        out, line = last_line(lambda sampler=sampler: stock_sampler(save(model), sampler))
        taken = len(passes)
        found[sampler] = {
            "passes": taken / 2,
            "error": relative(out, stock_sampler(model, sampler)),
            "line": line,
        }
    return found


def attempt(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
        return "ran"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def refusals(model):
    return {
        "distilled": attempt(save, load("distilled")),
        "sr_540p": attempt(save, load("sr_540p")),
        "distilled, off": attempt(save, load("distilled"), 0.0),
        "too large": attempt(save, model, 1.5),
        "few steps": attempt(ours_sampler, save(model), steps=8),
        "another model": attempt(save, torch.nn.Linear(2, 2)),
    }


model = load()
CONFIG = model.model.diffusion_model.config
threshold = OURS["HappyHorseStepSaving"].define_schema().inputs[1]
report(
    {
        "thresholds": thresholds(model),
        "branches": branches(model),
        "seeds": seeds(model),
        "others": beside_other_nodes(model),
        "refusals": refusals(model),
        "schema": [threshold.id, threshold.min, threshold.max],
    }
)
