"""Nodes that load the parts of the model."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..model.config import VARIANTS
from ..model_loading.checkpoint import GGUF_SUFFIX, INDEX_SUFFIX
from ..model_loading.precision import PRECISIONS
from . import autoencoders, text_encoder, transformer

CATEGORY = "HappyHorse/loaders"
GGUF_KINDS = ("text_encoders",)  # of a transformer no such file is known


def files_and_folders(kind: str) -> list[str]:
    """The host's files of this kind, and what it does not list itself: folders of shards, and GGUF files."""
    folders, blocks = set(), set()
    for root in folder_paths.get_folder_paths(kind):
        for folder, _, files in os.walk(
            root, followlinks=True
        ):  # as the host does: people link model folders
            here = Path(folder).relative_to(root)
            blocks |= {(here / file).as_posix() for file in files if file.endswith(GGUF_SUFFIX)}
            if any(file.endswith(INDEX_SUFFIX) for file in files):
                folders.add(here.as_posix())
    folders -= {"."}
    names = {*folder_paths.get_filename_list(kind), *(blocks if kind in GGUF_KINDS else ())}
    return sorted(name for name in names if Path(name).parent.as_posix() not in folders) + sorted(folders)


def full_path(kind: str, name: str) -> str:
    """Where a name of ``files_and_folders`` is."""
    for root in folder_paths.get_folder_paths(kind):
        if (Path(root) / name).is_dir():
            return str(Path(root) / name)
    return folder_paths.get_full_path_or_raise(kind, name)


def precision_input(options=tuple(PRECISIONS)) -> io.Combo.Input:
    """Of a transformer or text encoder; a decoder has no quantised form."""
    return io.Combo.Input(
        "precision",
        options=list(options),
        default=options[0],
        optional=True,
        advanced=True,
        tooltip="auto keeps the large weights as the file has them. bf16 is how the model was published; fp8 halves "
        "and nf4 quarters what it takes; int8 halves it and is fast on every card since RTX 20; fp8_fast also "
        "rounds what is multiplied, for speed on RTX 40 and later; float32 is for comparison."
        if "auto" in options
        else "bf16 is how the decoder was published; float32 needs twice the memory and is for comparison.",
    )


class HappyHorseModelLoader(io.ComfyNode):
    """A transformer: base, distilled or super-resolution."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseModelLoader",
            display_name="HappyHorse Model Loader",
            category=CATEGORY,
            description="Loads a daVinci-MagiHuman transformer from one file or a folder of shards.",
            search_aliases=["magihuman", "davinci", "happy horse"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=files_and_folders("diffusion_models"),
                    tooltip="A file or a sharded folder in models/diffusion_models.",
                ),
                io.Combo.Input(
                    "variant",
                    options=["auto", *VARIANTS],
                    default="auto",
                    tooltip="What the weights are. Their tensors do not show it: auto reads the file's name, "
                    "and refuses where the name does not say.",
                ),
                precision_input(),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model_name, variant, precision="auto") -> io.NodeOutput:
        variant = transformer.variant_of(model_name, variant)
        path = full_path("diffusion_models", model_name)
        return io.NodeOutput(transformer.load_model(path, variant, precision))


class HappyHorseTextEncoderLoader(io.ComfyNode):
    """The T5Gemma text encoder and its tokeniser."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseTextEncoderLoader",
            display_name="HappyHorse Text Encoder Loader",
            category=CATEGORY,
            description="Loads the T5Gemma-9B encoder with its tokeniser. The stock CLIP loader takes it for another model.",
            inputs=[
                io.Combo.Input(
                    "text_encoder_name",
                    options=files_and_folders("text_encoders"),
                    tooltip="A file or a sharded folder in models/text_encoders; the tokeniser is looked for in it, "
                    "then beside it.",
                ),
                precision_input(),
                io.Combo.Input(
                    "device",
                    options=["default", "cpu"],
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip="cpu leaves the card to the transformer; slower, same result within rounding.",
                ),
                io.String.Input(
                    "tokenizer_file",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Path of a tokenizer.json or tokenizer.model, where none lies in or beside the weights.",
                ),
                io.Combo.Input(
                    "cache",
                    options=["on", "off"],
                    default="on",
                    optional=True,
                    advanced=True,
                    tooltip="on keeps the text features of each prompt on disk: words met before need no text encoder, "
                    "after a restart too. Up to 1 GB, in the user folder; HappyHorse Clear Text Cache removes them.",
                ),
            ],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(
        cls, text_encoder_name, precision="auto", device="default", tokenizer_file="", cache="on"
    ) -> io.NodeOutput:
        path = full_path("text_encoders", text_encoder_name)
        return io.NodeOutput(text_encoder.load_clip(path, precision, tokenizer_file or None, device, cache))


class HappyHorseVideoDecoderLoader(io.ComfyNode):
    """The Turbo video decoder, or a Wan 2.2 autoencoder of any size."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseVideoDecoderLoader",
            display_name="HappyHorse Video Decoder Loader",
            category=CATEGORY,
            description="Loads the Turbo decoder (fast, decodes only) or a Wan 2.2 VAE file.",
            inputs=[
                io.Combo.Input(
                    "decoder_name",
                    options=folder_paths.get_filename_list("vae"),
                    tooltip="A file in models/vae.",
                ),
                precision_input(("bf16", "float32")),
            ],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, decoder_name, precision="bf16") -> io.NodeOutput:
        return io.NodeOutput(autoencoders.load_video_vae(full_path("vae", decoder_name), precision))


class HappyHorseAudioVAELoader(io.ComfyNode):
    """The Oobleck audio autoencoder."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseAudioVAELoader",
            display_name="HappyHorse Audio VAE Loader",
            category=CATEGORY,
            description="Loads the audio VAE of Stable Audio Open 1.0 at the rates this model uses: 51.2 kHz in, 44.1 kHz out.",
            inputs=[
                io.Combo.Input(
                    "vae_name", options=folder_paths.get_filename_list("vae"), tooltip="A file in models/vae."
                )
            ],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae_name) -> io.NodeOutput:
        return io.NodeOutput(autoencoders.load_audio_vae(full_path("vae", vae_name)))


NODES = [
    HappyHorseModelLoader,
    HappyHorseTextEncoderLoader,
    HappyHorseVideoDecoderLoader,
    HappyHorseAudioVAELoader,
]
