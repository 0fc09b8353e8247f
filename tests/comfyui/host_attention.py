"""Run by ComfyUI's interpreter, not by pytest: whose attention our MODEL computes with, and what its node says.

Prints one JSON object of measurements; ``test_attention.py`` holds the expectations.
"""

from host import difference, ours, report, room  # first: it sets ComfyUI up

# isort: split
import comfy.cli_args
import comfy.ldm.modules.attention as host
import torch

node, bridge = room("nodes.attention"), room("nodes.host_attention")
kernels, ways = room("kernels.attention"), room("kernels.attention_ways")
NODE = node.HappyHorseAttention
OVERRIDE = "optimized_attention_override"
FILES = {"global": "happyhorse_tiny_distilled.safetensors", "local": "happyhorse_tiny_sr_1080p.safetensors"}
VARIANTS = {"global": "distilled", "local": "sr_1080p"}
COUNTED = {}


def load(kind):
    return ours("HappyHorseModelLoader", model_name=FILES[kind], variant=VARIANTS[kind], precision="float32")[
        0
    ]


def velocities(patcher):
    """One pass of the network, and what was called meanwhile."""
    COUNTED.update(ours=0, theirs=0)
    network = patcher.model.diffusion_model
    torch.manual_seed(1)
    config = network.config
    video, audio = (
        torch.randn(1, config.video_features // 4, 3, 4, 6),
        torch.randn(1, config.audio_features, 9),
    )
    text = torch.randn(1, 7, config.text_features)
    with torch.inference_mode():
        out = network(
            [video, audio],
            torch.ones(1),
            text,
            transformer_options=patcher.model_options["transformer_options"],
        )
    return torch.cat([part.flatten() for part in out]), dict(COUNTED)


def count():
    """Counts calls of our operation's definition (nothing else runs on a CPU) and of the host's attention."""
    definition, theirs = kernels.attention.definition, host.optimized_attention.__wrapped__

    def mine(*args):
        COUNTED["ours"] += 1
        return definition(*args)

    @host.wrap_attn  # which asks an override first
    def hosts(*args, **kwargs):
        COUNTED["theirs"] += 1
        return theirs(*args, **kwargs)

    kernels.attention.definition = mine
    host.optimized_attention = hosts
    transformer = room("nodes.transformer")
    if hasattr(transformer, "optimized_attention"):
        transformer.optimized_attention = hosts


def numbers(kind):
    model = load(kind)
    plain, found = velocities(model), {}
    found["plain calls"] = plain[1]
    for choice in ("auto", "host"):
        patched, said = NODE.execute(model=model, attention=choice).result
        out, calls = velocities(patched)
        found[choice] = {"difference": difference(out, plain[0]), "calls": calls, "said": said}
    again, _ = NODE.execute(
        model=NODE.execute(model=model, attention="auto").result[0], attention="host"
    ).result
    found["host after auto"] = velocities(again)[1]
    found["the model itself is left alone"] = OVERRIDE not in model.model_options["transformer_options"]
    return found


def others(model):
    """Another pack's override, before and after our node."""

    def double(func, *args, **kwargs):
        return 2 * func(*args, **kwargs)

    theirs = model.clone()
    theirs.model_options["transformer_options"] = {OVERRIDE: double}
    wanted = velocities(theirs)[0]
    kept, said = NODE.execute(model=theirs, attention="host").result
    replaced, _ = NODE.execute(model=theirs, attention="auto").result
    later = replaced.clone()
    later.model_options["transformer_options"] = {
        **later.model_options["transformer_options"],
        OVERRIDE: double,
    }
    plain = velocities(model)[0]
    return {
        "changes": difference(wanted, plain),
        "kept by host": difference(velocities(kept)[0], wanted),
        "said": said,
        "replaced by auto": difference(velocities(replaced)[0], plain),
        "a later one counts": difference(velocities(later)[0], wanted),
    }


def override_calls():
    """Called as the host calls an override, in each layout, against a softmax in float64."""
    torch.manual_seed(2)
    q, k, v = torch.randn(1, 6, 9, 16), torch.randn(1, 2, 11, 16), torch.randn(1, 2, 11, 16)
    weights = (q.double() @ k.double().repeat_interleave(3, 1).mT / 4).softmax(-1)
    wanted = weights @ v.double().repeat_interleave(3, 1)
    chosen = bridge.ChosenAttention(kernels.AttentionBy(None))
    options = {"transformer_options": {OVERRIDE: chosen}, "enable_gqa": True, "skip_reshape": True}
    flat = host.attention_pytorch(q, k, v, 6, **options)
    heads = host.attention_pytorch(q, k, v, 6, skip_output_reshape=True, **options)
    mask = torch.rand(1, 9, 11) > 0.5
    mask[:, :, 0] = True
    masked = host.attention_pytorch(q, k, v, 6, mask=mask, **options)
    without = host.attention_pytorch(q, k, v, 6, mask=mask, enable_gqa=True, skip_reshape=True)
    batch = host.attention_pytorch(*(part.expand(2, -1, -1, -1) for part in (q, k, v)), 6, **options)
    return {
        "flat": difference(flat, wanted.transpose(1, 2).flatten(2)),
        "heads": difference(heads, wanted),
        "masked is the host's": difference(masked, without),
        "two samples": difference(batch[1:], wanted.transpose(1, 2).flatten(2)),
    }


def refusals(model):
    found = {}
    for choice in ("cudnn", "flash", "flash3", "flash4", "sage", "int8"):
        try:
            NODE.execute(model=model, attention=choice)
            found[choice] = "ran"
        except Exception as error:
            found[choice] = f"{type(error).__name__}: {error}"
    try:
        NODE.execute(model=torch.nn.Linear(2, 2), attention="auto")
    except Exception as error:
        found["another model"] = f"{type(error).__name__}: {error}"
    return found


def whose():
    """Whose attention a card would get, by options and overrides; no card is needed to decide."""
    found, args = {}, comfy.cli_args.args
    name = lambda attend: "ours" if attend is kernels.attention else "the host's"  # noqa: E731
    found["card"] = name(bridge.attend_for({}, torch.device("cuda")))
    found["cpu"] = name(bridge.attend_for({}, torch.device("cpu")))
    found["another pack"] = name(bridge.attend_for({OVERRIDE: print}, torch.device("cuda")))
    found["node on host"] = name(bridge.attend_for({OVERRIDE: bridge.leave_to_host}, torch.device("cuda")))
    by = kernels.AttentionBy("flash")
    found["node"] = bridge.attend_for({OVERRIDE: bridge.ChosenAttention(by)}, torch.device("cuda")) is by
    for option in bridge.HOST_OPTIONS:
        if hasattr(args, option):
            setattr(args, option, True)
            found[bridge.host_option()] = name(bridge.attend_for({}, torch.device("cuda")))
            setattr(args, option, False)
    return found


count()
model = load("global")
report(
    {
        "global": numbers("global"),
        "local": numbers("local"),
        "others": others(model),
        "override": override_calls(),
        "refusals": refusals(model),
        "whose": whose(),
        "schema": {
            "choices": list(NODE.define_schema().inputs[1].options),
            "known": [*ways.LIBRARIES],
        },
    }
)
