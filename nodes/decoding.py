"""Nodes from latents to frames and sound."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..shapes import OUTPUT_SAMPLE_RATE
from .autoencoders import decode_sound
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


NODES = [HappyHorseDecode]
