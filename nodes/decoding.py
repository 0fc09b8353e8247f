"""Nodes and functions from latents to frames and sound."""

from __future__ import annotations

from collections.abc import Iterator

import comfy.ldm.wan.vae2_2 as stock_wan
import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

from ..pipeline.decode import FRAMES
from ..shapes import OUTPUT_SAMPLE_RATE
from .autoencoders import HostVideoAutoencoder, decode_sound
from .wire import check_vae, streams_of

CATEGORY = "HappyHorse/video"


class HappyHorseDecode(io.ComfyNode):
    """A film's latents to frames and sound."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseDecode",
            display_name="HappyHorse Decode",
            category=CATEGORY,
            description="Frames and sound of one length: 1764 samples at 44.1 kHz to a frame.",
            inputs=[
                io.Latent.Input("latent"),
                io.Vae.Input("video_vae", tooltip="The Turbo decoder (fast) or the Wan 2.2 VAE."),
                io.Vae.Input("audio_vae"),
            ],
            outputs=[io.Image.Output(), io.Audio.Output()],
        )

    @classmethod
    def execute(cls, latent, video_vae, audio_vae) -> io.NodeOutput:
        check_vae(video_vae, "video_vae", "video")
        check_vae(audio_vae, "audio_vae", "audio")
        streams = streams_of(latent)
        frames = torch.cat([video_vae.decode(video[None]) for video in streams.video]).flatten(0, 1)
        sound = torch.cat([decode_sound(audio_vae, audio[None]) for audio in streams.audio])
        return io.NodeOutput(frames, {"waveform": sound, "sample_rate": OUTPUT_SAMPLE_RATE})


def decoded_windows(vae, videos: Tensor) -> Iterator[Tensor]:
    """[B, 48, T, h, w] as on the wire -> pixels [1, 3, F, H, W] about [-1, 1], one film after the other.

    Each window is decoded when it is asked for, on the VAE's device and under the host's memory management; who
    asks looks whether stop was pressed.
    """
    for video in videos:
        latent = video[None].to(vae.device, vae.vae_dtype)
        with comfy.model_management.cuda_device_context(vae.device):
            comfy.model_management.load_models_gpu(
                [vae.patcher],
                memory_required=_memory_required(vae, latent),
                force_full_load=vae.disable_offload,
            )
            yield from _windows(vae, latent)


def _windows(vae, latent: Tensor) -> Iterator[Tensor]:
    network = vae.first_stage_model
    if isinstance(network, HostVideoAutoencoder):
        return network.decode_chunks(latent)
    if isinstance(network, stock_wan.WanVAE):
        return _stock_wan_chunks(network, latent)
    frames = vae.decode(latent)  # a network of others: whole, as it always was
    return ((part.movedim(-1, 1) * 2 - 1).to(vae.device) for part in frames.split(FRAMES, dim=1))


def _stock_wan_chunks(network: stock_wan.WanVAE, latent: Tensor) -> Iterator[Tensor]:
    """The stock VAE's own ``decode`` without joining: a latent frame at a time, by its cache of past frames."""
    past = [None] * stock_wan.count_conv3d(network.decoder)
    raw = network.conv2(latent)
    for number in range(raw.shape[2]):
        first = {"first_chunk": True} if number == 0 else {}
        patches = network.decoder(raw[:, :, number : number + 1], feat_cache=past, feat_idx=[0], **first)
        yield stock_wan.unpatchify(patches, patch_size=2)


def _memory_required(vae, latent: Tensor) -> float:
    """Bytes beside the weights."""
    network = getattr(vae.first_stage_model, "network", None)
    if hasattr(network, "working_bytes"):
        return network.working_bytes(latent.shape)
    return vae.memory_used_decode(latent.shape, vae.vae_dtype)


NODES = [HappyHorseDecode]
