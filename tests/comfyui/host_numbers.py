"""Run by ComfyUI's interpreter, not by pytest: what our nodes compute beside what the engine computes.

Prints one JSON object of measurements; ``test_numbers.py`` holds the expectations.
"""

from dataclasses import replace
from types import SimpleNamespace

from host import MODELS, OURS, WORK, difference, ours, report, room, stock_node  # first: it sets ComfyUI up

# isort: split
import comfy.nested_tensor
import folder_paths
import torch

# "base" in the name of a models folder says nothing of what lies in it.
folder_paths.add_model_folder_path("diffusion_models", str(WORK / "database"))

film, files = room("pipeline.film"), room("pipeline.files")
FLOAT32 = room("model_loading.precision").PRECISIONS["float32"]
normalise = room("model.video_latent").normalise
joint, streams, schedule = room("sampling.joint"), room("sampling.streams"), room("sampling.schedule")
stages, builder = room("pipeline.stages"), room("model_loading.builder")
errors = room("errors")

PROMPT, NEGATIVE = "A man at a piano says hello.", "blurred, mumbling"
WIDTH, HEIGHT, LENGTH, SEED = 96, 64, 9, 42


def picture():
    return torch.linspace(0, 255, 80 * 120 * 3).view(80, 120, 3).to(torch.uint8)


def voice():
    time = torch.arange(round(0.3 * 48_000)) / 48_000
    tone = 0.5 * torch.sin(2 * torch.pi * 440 * time)
    return torch.stack([tone, 0.7 * tone])


def load():
    """Every part of the tiny set through our loaders, in float32."""
    parts = {
        variant: ours("HappyHorseModelLoader", model_name=file, variant=variant, precision="float32")[0]
        for variant, file in (
            ("base", "happyhorse_tiny_base"),
            ("distilled", "happyhorse_tiny_distilled.safetensors"),
            ("sr_540p", "happyhorse_tiny_sr_540p.safetensors"),
            ("sr_1080p", "happyhorse_tiny_sr_1080p.safetensors"),
        )
    }
    parts["clip"] = ours(
        "HappyHorseTextEncoderLoader", text_encoder_name="t5gemma_tiny", precision="float32"
    )[0]
    parts["turbo"] = ours(
        "HappyHorseVideoDecoderLoader", decoder_name="turbo_vae_tiny/turbo_tiny.ckpt", precision="float32"
    )[0]
    parts["wan"] = ours(
        "HappyHorseVideoDecoderLoader", decoder_name="Wan2.2_VAE_tiny.pth", precision="float32"
    )[0]
    parts["audio"] = ours("HappyHorseAudioVAELoader", vae_name="oobleck_audio_tiny.safetensors")[0]
    return parts


def encode(parts, text):
    return stock_node("CLIPTextEncode", clip=parts["clip"], text=text)[0]


def empty(batch=1):
    return ours("HappyHorseEmptyLatent", width=WIDTH, height=HEIGHT, length=LENGTH, batch_size=batch)[0]


def engine(variant, *, image=False, sound=False, **changes):
    request = film.FilmRequest(
        PROMPT,
        LENGTH,
        WIDTH,
        HEIGHT,
        variant=variant,
        seed=SEED,
        negative=NEGATIVE if variant == "base" else None,
        image=picture() if image else None,
        voice=film.Voice(voice(), 48_000) if sound else None,
        **changes,
    )
    located = files.ModelFiles.locate(MODELS, request, files.ModelFiles())
    return film.make_film(located, request, WORK / "engine.mp4", policy=FLOAT32)


def latent_for(parts, image, sound):
    latent = empty()
    if image:
        frames = picture()[None].float() / 255
        latent = ours("HappyHorseImageToVideo", latent=latent, vae=parts["wan"], first_frame=frames)[0]
    if sound:
        audio = {"waveform": voice()[None], "sample_rate": 48_000}
        latent = ours("HappyHorseAudioToVideo", latent=latent, audio_vae=parts["audio"], audio=audio)[0]
    return latent


def against(node_latent, made):
    video, audio = node_latent["samples"].unbind()
    return max(difference(normalise(video), made.latents.video), difference(audio, made.latents.audio))


def samplers(parts):
    """HappyHorseSampler in every preset and mode, and the second stage, against the command line's engine."""
    found = {}
    positive, negative = encode(parts, PROMPT), encode(parts, NEGATIVE)
    for variant in ("distilled", "base"):
        steps = 8 if variant == "distilled" else 6
        for mode, image, sound in (
            ("text", False, False),
            ("picture", True, False),
            ("voice", False, True),
            ("picture and voice", True, True),
        ):
            latent = latent_for(parts, image, sound)
            out = ours(
                "HappyHorseSampler",
                model=parts[variant],
                positive=positive,
                negative=negative if variant == "base" else None,
                latent=latent,
                seed=SEED,
                steps=steps,
                preset=variant,
            )[0]
            made = engine(variant, image=image, sound=sound, steps=steps)
            found[f"{variant}, {mode}"] = against(out, made)
            if sound:
                kept = torch.equal(out["samples"].unbind()[1], latent["samples"].unbind()[1])
                found[f"{variant}, {mode}: voice changed"] = float(not kept)
    for target in ("540p", "1080p"):
        latent = latent_for(parts, True, False)
        base = ours(
            "HappyHorseSampler",
            model=parts["distilled"],
            positive=positive,
            latent=latent,
            seed=SEED,
            steps=2,
            preset="distilled",
        )[0]
        out = ours(
            "HappyHorseSuperResolution",
            sr_model=parts[f"sr_{target}"],
            latent=base,
            positive=positive,
            size=target,
            seed=SEED + 1,
            steps=3,
            first_frame=picture()[None].float() / 255,
            vae=parts["wan"],
        )[0]
        made = engine("distilled", image=True, steps=2, super_resolution=target, sr_steps=3)
        found[f"super-resolution {target}"] = against(out, made)
    return found


def engine_loop(solver, noise, start):
    """The engine's own loop on the distilled network, from these streams and with this noise."""
    path = MODELS / "diffusion_models" / "happyhorse_tiny_distilled.safetensors"
    network = builder.load_transformer(path, "distilled", FLOAT32)
    encoder = builder.load_text_encoder(MODELS / "text_encoders" / "t5gemma_tiny", FLOAT32)
    tokenizer = room("conditioning.tokenizer").load_tokenizer(
        MODELS / "text_encoders" / "t5gemma_tiny" / "tokenizer.json"
    )
    encode = room("conditioning.text").encode_prompt
    text = encode(PROMPT, tokenizer, encoder, half_precision_rows=False).rows
    preset = replace(joint.PRESETS["distilled"], solver=solver)
    return joint.sample(stages.TextVelocity(network, text), None, start, preset, noise)


def custom(parts, sampler, guider=None):
    """SamplerCustomAdvanced with stock noise and our schedule."""
    positive = encode(parts, PROMPT)
    guider = guider or stock_node("BasicGuider", model=parts["distilled"], conditioning=positive)[0]
    return stock_node(
        "SamplerCustomAdvanced",
        noise=stock_node("RandomNoise", noise_seed=SEED)[0],
        guider=guider,
        sampler=sampler,
        sigmas=ours("HappyHorseScheduler", steps=8)[0],
        latent_image=empty(),
    )[0]


def stock_sampling(parts):
    """Stock samplers with our schedule against the engine's loops, and our parts against our sampler."""
    found = {}
    size = room("shapes").latent_size(WIDTH, HEIGHT, LENGTH)
    shapes = streams.StreamShapes(size.video_shape, size.audio_shape)
    start = streams.SeededNoise(SEED, shapes)()

    def compare(out, made):
        video, audio = out["samples"].unbind()
        return max(difference(normalise(video), made.video), difference(audio, made.audio))

    euler = stock_node("KSamplerSelect", sampler_name="euler")[0]
    found["stock euler"] = compare(custom(parts, euler), engine_loop("euler", None, start))
    generator = torch.Generator().manual_seed(SEED + 1)  # where the host's samplers take theirs on the CPU
    flat = (1, 1, start.video.numel() + start.audio.numel())

    def injected():
        return shapes.unpack(torch.randn(flat, generator=generator)[0])

    lcm = stock_node("KSamplerSelect", sampler_name="lcm")[0]
    found["stock lcm"] = compare(custom(parts, lcm), engine_loop("renoise", injected, start))

    positive, negative = encode(parts, PROMPT), encode(parts, NEGATIVE)
    for variant, solver in (("distilled", "renoise"), ("base", "unipc")):
        whole = ours(
            "HappyHorseSampler",
            model=parts[variant],
            positive=positive,
            negative=negative,
            latent=empty(),
            seed=SEED,
            steps=8,
            preset=variant,
        )[0]
        guider = ours(
            "HappyHorseGuider", model=parts[variant], positive=positive, negative=negative, preset=variant
        )[0]
        apart = custom(parts, ours("HappyHorseSolver", solver=solver)[0], guider)
        found[f"{variant} in parts"] = max(
            difference(a, b)
            for a, b in zip(apart["samples"].unbind(), whole["samples"].unbind(), strict=True)
        )

    def ksampler(seed, model=parts["distilled"], sampler="euler", cfg=1.0):
        out = stock_node(
            "KSampler",
            model=model,
            seed=seed,
            steps=4,
            cfg=cfg,
            sampler_name=sampler,
            scheduler="simple",
            positive=positive,
            negative=negative,
            latent_image=empty(),
            denoise=1.0,
        )[0]
        return torch.cat([stream.flatten() for stream in out["samples"].unbind()])

    first = ksampler(1)
    found["KSampler same seed"] = difference(ksampler(1), first)
    found["KSampler other seed"] = difference(ksampler(2), first)
    found["KSampler not finite"] = float(not torch.isfinite(first).all())
    for sampler in ("dpmpp_2m", "res_multistep", "uni_pc", "euler_ancestral"):
        found[f"KSampler {sampler} not finite"] = float(
            not torch.isfinite(ksampler(1, sampler=sampler, cfg=3.0)).all()
        )
    pair = ours(
        "HappyHorseSampler",
        model=parts["distilled"],
        positive=positive,
        latent=empty(batch=2),
        seed=SEED,
        steps=2,
        preset="distilled",
    )[0]["samples"].unbind()[0]
    found["batch samples alike"] = difference(pair[:1], pair[1:])
    found["batch shape"] = list(pair.shape)
    return found


def host_features(parts):
    """LoRA, attention overrides, wrappers, block replacements and separate/concat on our MODEL and LATENT."""
    from comfy.patcher_extension import WrappersMP
    from safetensors.torch import save_file

    found = {}
    positive = encode(parts, PROMPT)
    model = parts["distilled"]

    def sampled(patcher):
        out = ours(
            "HappyHorseSampler",
            model=patcher,
            positive=positive,
            latent=empty(),
            seed=SEED,
            steps=2,
            preset="distilled",
        )[0]
        return torch.cat([stream.flatten() for stream in out["samples"].unbind()])

    plain = sampled(model)
    torch.manual_seed(0)
    layer, edge = "block.layers.3.mlp.down_proj", "block.layers.0.attention.linear_qkv"
    weights = model.model.diffusion_model.state_dict()
    lora, merged = {}, {}
    for key in (layer, edge):
        out_features, in_features = weights[f"{key}.weight"].shape
        up, down = torch.randn(out_features, 4) * 0.2, torch.randn(4, in_features) * 0.2
        lora |= {f"diffusion_model.{key}.lora_A.weight": down, f"diffusion_model.{key}.lora_B.weight": up}
        merged[f"{key}.weight"] = weights[f"{key}.weight"] + 0.8 * up @ down
    save_file(lora, WORK / "made_up.safetensors")

    def with_lora(strength):
        return stock_node(
            "LoraLoaderModelOnly", model=model, lora_name="made_up.safetensors", strength_model=strength
        )[0]

    by_node = sampled(with_lora(0.8))
    found["LoRA changes"] = difference(by_node, plain)
    found["LoRA at strength 0"] = difference(sampled(with_lora(0.0)), plain)
    hand = ours(
        "HappyHorseModelLoader",
        model_name="happyhorse_tiny_distilled.safetensors",
        variant="distilled",
        precision="float32",
    )[0]
    hand.model.diffusion_model.load_state_dict(merged, strict=False)
    found["LoRA against merged by hand"] = difference(by_node, sampled(hand))
    found["after LoRA as before"] = difference(sampled(model), plain)

    calls = {"attention": 0, "wrapper": 0, "block": 0}

    def attention(func, *arguments, **keywords):
        calls["attention"] += 1
        return func(*arguments, **keywords)

    def wrapper(executor, *arguments, **keywords):
        calls["wrapper"] += 1
        return executor(*arguments, **keywords)

    def block(arguments, extra):
        calls["block"] += 1
        return extra["original_block"](arguments)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = attention
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    patched.set_model_patch_replace(block, "dit", "double_block", 5)
    found["patched but the same"] = difference(sampled(patched), plain)
    found["calls"] = calls

    latent = latent_for(parts, True, True)
    video, audio = stock_node("LTXVSeparateAVLatent", av_latent=latent)
    again = stock_node("LTXVConcatAVLatent", video_latent=video, audio_latent=audio)[0]
    found["separate and concat"] = max(
        difference(a, b)
        for key in ("samples", "noise_mask")
        for a, b in zip(again[key].unbind(), latent[key].unbind(), strict=True)
    )
    return found


def decoding(parts):
    """Stock decoders on our VAEs and ours on the same latents."""
    found = {}
    torch.manual_seed(3)
    video = room("model.video_latent").denormalise(torch.randn(1, 48, 5, 8, 8))
    latent = {"samples": comfy.nested_tensor.NestedTensor((video, torch.randn(1, 64, 17)))}
    for decoder in ("turbo", "wan"):
        plain = stock_node("VAEDecode", vae=parts[decoder], samples=latent)[0]
        network = parts[decoder].first_stage_model.network
        exact = network.decode(normalise(video)).clamp(-1, 1)[0].movedim(0, -1) / 2 + 0.5
        found[f"{decoder}: VAEDecode"] = difference(plain, exact)

        def tiled_decode(size, vae=parts[decoder]):
            return stock_node(
                "VAEDecodeTiled",
                vae=vae,
                samples={"samples": video},  # ComfyUI 0.31 decodes no nested latent in tiles
                tile_size=size,
                overlap=32,
                temporal_size=64,
                temporal_overlap=8,
            )[0]

        found[f"{decoder}: one tile"] = difference(tiled_decode(256), plain)
        tiled = tiled_decode(96)
        found[f"{decoder}: tiled, mean difference"] = (tiled - plain).abs().mean().item()
        found[f"{decoder}: tiled, against noise"] = (tiled - plain.flip(0)).abs().mean().item()
        frames, sound = ours(
            "HappyHorseDecode", latent=latent, video_vae=parts[decoder], audio_vae=parts["audio"]
        )
        found[f"{decoder}: ours"] = difference(frames, exact)
    raw = parts["audio"].first_stage_model.network.decode(latent["samples"].unbind()[1])
    found["our sound"] = difference(sound["waveform"], room("media.audio").to_output_rate(raw))
    by_stock = stock_node("VAEDecodeAudio", vae=parts["audio"], samples=latent)[0]
    found["stock sound rate"] = by_stock["sample_rate"]
    found["stock sound samples"] = by_stock["waveform"].shape[-1]
    scale = by_stock["waveform"].abs().max() / sound["waveform"].abs().max()  # stock evens the level out
    found["stock sound"] = difference(by_stock["waveform"], sound["waveform"] * scale)

    class Tone(torch.nn.Module):
        """Decodes every latent to A4 at the rate of this model's latents."""

        def decode(self, latent):
            time = torch.arange(2048 * latent.shape[-1]) / 51_200
            return (0.5 * torch.sin(2 * torch.pi * 440 * time)).expand(latent.shape[0], 2, -1)

    tone = room("nodes.autoencoders").HostAudioVAE(Tone())
    heard = stock_node("VAEDecodeAudio", vae=tone, samples={"samples": torch.zeros(1, 64, 125)})[0]
    spectrum = torch.fft.rfft(heard["waveform"][0, 0] * torch.hann_window(heard["waveform"].shape[-1])).abs()
    found["tone, Hz"] = spectrum.argmax().item() * heard["sample_rate"] / heard["waveform"].shape[-1]
    found["tone, seconds"] = heard["waveform"].shape[-1] / heard["sample_rate"]
    sound = {"waveform": voice()[None, :, : 7 * 2048], "sample_rate": 51_200}
    encoded = stock_node("VAEEncodeAudio", vae=parts["audio"], audio=sound)[0]["samples"]
    exact = parts["audio"].first_stage_model.network.encode(sound["waveform"])
    found["stock sound encoded"] = difference(encoded, exact)
    return found


def refusals(parts):
    """What each wrong connection is answered with."""
    positive = encode(parts, PROMPT)
    plain = {"samples": torch.zeros(1, 4, 8, 8)}
    other = {"samples": comfy.nested_tensor.NestedTensor((torch.zeros(1, 16, 3, 4, 6), torch.zeros(1, 8, 9)))}
    uneven = {
        "samples": comfy.nested_tensor.NestedTensor((torch.zeros(1, 48, 3, 4, 6), torch.zeros(1, 64, 8)))
    }
    image = torch.rand(1, 64, 96, 3)
    sound = {"waveform": torch.rand(1, 1, 9_000), "sample_rate": 44_100}
    sample = {"positive": positive, "seed": 1, "steps": 1, "preset": "distilled"}
    decode = {"video_vae": parts["turbo"], "audio_vae": parts["audio"]}
    base = {"model": parts["base"], "latent": empty(), **sample, "preset": "base"}
    small = [[torch.zeros(1, 5, 32), {}]]
    nan = {"waveform": torch.full((1, 1, 9_000), float("nan")), "sample_rate": 44_100}
    cases = {
        "plain latent": lambda: ours("HappyHorseSampler", model=parts["distilled"], latent=plain, **sample),
        "foreign latent": lambda: ours("HappyHorseSampler", model=parts["distilled"], latent=other, **sample),
        "uneven latent": lambda: ours("HappyHorseDecode", latent=uneven, **decode),
        "SR model in the base slot": lambda: ours("HappyHorseSampler", model=parts["sr_540p"], latent=empty(), **sample),
        "base model in the SR slot": lambda: ours(
            "HappyHorseSuperResolution", sr_model=parts["base"], latent=empty(), positive=positive, size="540p", seed=1, steps=1
        ),
        "540p model for 1080p": lambda: ours(
            "HappyHorseSuperResolution", sr_model=parts["sr_540p"], latent=empty(), positive=positive, size="1080p", seed=1, steps=1
        ),
        "a VAE as a model": lambda: ours("HappyHorseSampler", model=parts["turbo"], latent=empty(), **sample),
        "another text encoder": lambda: ours(
            "HappyHorseSampler", model=parts["distilled"], latent=empty(), **{**sample, "positive": small}
        ),
        "no negative": lambda: ours("HappyHorseSampler", **base),
        "empty positive": lambda: ours(
            "HappyHorseSampler", model=parts["distilled"], latent=empty(), **{**sample, "positive": encode(parts, " ")}
        ),
        "empty positive for SR": lambda: ours(
            "HappyHorseSuperResolution",
            sr_model=parts["sr_540p"], latent=empty(), positive=encode(parts, " "), size="540p", seed=1, steps=1,
        ),
        "plain mask": lambda: ours(
            "HappyHorseSampler",
            model=parts["distilled"], latent={**empty(), "noise_mask": torch.ones(1, 64, 96)}, **sample,
        ),
        "VAEs swapped": lambda: ours("HappyHorseDecode", latent=empty(), video_vae=parts["audio"], audio_vae=parts["turbo"]),
        "audio VAE for a picture": lambda: ours("HappyHorseImageToVideo", latent=empty(), vae=parts["audio"], first_frame=image),
        "Turbo for a picture": lambda: ours("HappyHorseImageToVideo", latent=empty(), vae=parts["turbo"], first_frame=image),
        "video VAE for a voice": lambda: ours("HappyHorseAudioToVideo", latent=empty(), audio_vae=parts["wan"], audio=sound),
        "strange audio": lambda: ours(
            "HappyHorseAudioToVideo", latent=empty(), audio_vae=parts["audio"], audio={**sound, "waveform": torch.rand(100)}
        ),
        "NaN audio": lambda: ours("HappyHorseAudioToVideo", latent=empty(), audio_vae=parts["audio"], audio=nan),
        "NaN audio into the mux": lambda: ours(
            "HappyHorseMux", images=image, audio=nan, filename_prefix="x", format="mp4-h264-aac", frame_rate=25.0, quality=80
        ),
        "odd size": lambda: ours("HappyHorseEmptyLatent", width=100, height=64, length=9),
        "odd length": lambda: ours("HappyHorseEmptyLatent", width=96, height=64, length=10),
        "SR without its VAE": lambda: ours(
            "HappyHorseSuperResolution",
            sr_model=parts["sr_540p"], latent=empty(), positive=positive, size="540p", seed=1, steps=1, first_frame=image,
        ),
        "audio VAE as a transformer": lambda: room("nodes.transformer").load_model(
            str(MODELS / "vae" / "oobleck_audio_tiny.safetensors"), "base"
        ),
        "variant not in the name": lambda: ours("HappyHorseModelLoader", model_name="mystery.safetensors", variant="auto"),
    }  # fmt: skip
    OURS["HappyHorseMux"].hidden = SimpleNamespace(prompt=None, extra_pnginfo=None)  # the server's to fill
    answers = {}
    for title, case in cases.items():
        try:
            case()
            answers[title] = "accepted"
        except Exception as error:  # the kind is part of what is reported
            answers[title] = f"{type(error).__name__}: {error}"
    return answers


def empty_negative(parts):
    """An empty negative stands for the default: the same as that text, other than another one."""
    default = room("conditioning.negative").default_negative()

    def sampled(text):
        return ours(
            "HappyHorseSampler",
            model=parts["base"],
            positive=encode(parts, PROMPT),
            negative=encode(parts, text),
            latent=empty(),
            seed=SEED,
            steps=2,
            preset="base",
        )[0]["samples"].unbind()[0]

    made = sampled("")
    return {
        "as the default": difference(made, sampled(default)),
        "as another": difference(made, sampled(NEGATIVE)),
    }


with torch.inference_mode():
    parts = load()
    measured = {
        "samplers": samplers(parts),
        "stock sampling": stock_sampling(parts),
        "host features": host_features(parts),
        "decoding": decoding(parts),
        "refusals": refusals(parts),
        "empty negative": empty_negative(parts),
    }
report(measured)
