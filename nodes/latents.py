"""Nodes that make the latent a film starts from: empty, with a first picture, with a voice."""

from __future__ import annotations

import logging

import torch
from comfy_api.latest import io

from ..conditioning.image import first_frame as prepare_first_frame
from ..conditioning.voice import encode_in_windows, pad_voice, prepare_voice
from ..errors import ConditioningError
from ..shapes import (
    FPS,
    GRID,
    MIN_FRAMES,
    MIN_SIDE,
    SPACE_STRIDE,
    TIME_STRIDE,
    frames_for_samples,
    latent_frames,
    latent_size,
    size_advice,
)
from .autoencoders import encode_sound
from .wire import check_vae, empty_latent, masks_of, streams_of, with_known

logger = logging.getLogger(__name__)
CATEGORY = "HappyHorse/latent"
MAX_SIDE = 16_384


class HappyHorseEmptyLatent(io.ComfyNode):
    """An empty film of a size and a length."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseEmptyLatent",
            display_name="HappyHorse Empty Latent",
            category=CATEGORY,
            description="Video and audio latents of one length. The base stage is good at 448x256; enlarge it afterwards.",
            inputs=[
                io.Int.Input("width", default=448, min=MIN_SIDE, max=MAX_SIDE, step=GRID),
                io.Int.Input("height", default=256, min=MIN_SIDE, max=MAX_SIDE, step=GRID),
                io.Int.Input(
                    "length",
                    default=125,
                    min=MIN_FRAMES,
                    max=4_097,
                    step=TIME_STRIDE,
                    tooltip=f"Frames, 4k+1, at {FPS} a second: 125 is 5 s.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, optional=True, advanced=True),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, width, height, length, batch_size=1) -> io.NodeOutput:
        size = latent_size(width, height, length)
        if advice := size_advice(width, height):
            logger.warning(advice)
        return io.NodeOutput(empty_latent(size, batch_size))


class HappyHorseImageToVideo(io.ComfyNode):
    """A picture as the film's first frame."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseImageToVideo",
            display_name="HappyHorse Image to Video",
            category=CATEGORY,
            description="Puts a picture, cropped to the film's format, at its beginning.",
            inputs=[
                io.Latent.Input("latent"),
                io.Vae.Input("vae", tooltip="The Wan 2.2 VAE. The Turbo decoder cannot encode."),
                io.Image.Input("first_frame"),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, latent, vae, first_frame) -> io.NodeOutput:
        streams, masks = streams_of(latent), masks_of(latent)
        width, height = (side * SPACE_STRIDE for side in (streams.video.shape[4], streams.video.shape[3]))
        video = streams.video.clone()
        video[:, :, :1] = encode_first_frame(vae, first_frame, width, height).to(video)
        masks.video[:, :, :1] = 0
        return io.NodeOutput(with_known(latent, streams._replace(video=video), masks))


class HappyHorseAudioToVideo(io.ComfyNode):
    """A voice that the film follows, kept as it is."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseAudioToVideo",
            display_name="HappyHorse Audio to Video",
            category=CATEGORY,
            description="Locks a voice into the film, in every variant, and gives the length that holds it whole.",
            inputs=[
                io.Latent.Input("latent", tooltip="Lengthened where the voice is longer."),
                io.Vae.Input("audio_vae"),
                io.Audio.Input("audio"),
            ],
            outputs=[
                io.Latent.Output(),
                io.Int.Output(display_name="length", tooltip="Frames, 4k+1, that hold the voice whole."),
            ],
        )

    @classmethod
    def execute(cls, latent, audio_vae, audio) -> io.NodeOutput:
        check_vae(audio_vae, "audio_vae", "audio")
        waveform, rate = sound_of(audio)
        length = frames_for_samples(waveform.shape[-1], rate)
        streams, masks = streams_of(latent), masks_of(latent)
        if length > streams.audio.shape[2]:
            logger.info(
                "The voice lasts %.2f s; the film grows from %d to %d frames.",
                waveform.shape[-1] / rate,
                streams.audio.shape[2],
                length,
            )
            streams, masks = _lengthened(streams, masks, length)
        voice = pad_voice(prepare_voice(waveform, rate), streams.audio.shape[2])
        encoded = encode_in_windows(lambda window: encode_sound(audio_vae, window), voice)
        sound = encoded.to(streams.audio).expand(streams.audio.shape[0], -1, -1).clone()
        masks.audio[:] = 0
        latent = with_known(latent, streams._replace(audio=sound), masks)
        return io.NodeOutput(latent, length)


def encode_first_frame(vae, image, width: int, height: int) -> torch.Tensor:
    """IMAGE -> latent [1, 48, 1, h, w], not normalised, of the picture cropped to ``width`` x ``height``."""
    if vae is None:
        raise ConditioningError(
            "vae: a first frame needs the Wan 2.2 VAE and nothing is connected. Connect Load VAE."
        )
    check_vae(vae, "vae", "video")
    pixels = prepare_first_frame(image, width, height)[0, :, 0].movedim(0, -1)  # [H, W, 3] in [-1, 1]
    return vae.encode((pixels[None] + 1) / 2)


def sound_of(audio, socket: str = "audio") -> tuple[torch.Tensor, int]:
    """(waveform [B, C, S], rate) of an AUDIO, or ConditioningError naming the socket."""
    if not isinstance(audio, dict) or "waveform" not in audio or "sample_rate" not in audio:
        raise ConditioningError(
            f"{socket}: a {type(audio).__name__} came; expected sound with a waveform and its rate."
        )
    waveform = audio["waveform"]
    if waveform.ndim != 3 or not waveform.numel():
        raise ConditioningError(
            f"{socket}: a waveform of shape {tuple(waveform.shape)} came; expected [batch, channels, samples] with "
            "at least one sample."
        )
    return waveform, int(audio["sample_rate"])


def _lengthened(streams, masks, length: int):
    """The streams with more of nothing at their end."""
    more_video = latent_frames(length) - streams.video.shape[2]
    more_audio = length - streams.audio.shape[2]
    pad = torch.nn.functional.pad
    grow = lambda video, audio, value: type(streams)(  # noqa: E731
        pad(video, (0, 0, 0, 0, 0, more_video), value=value), pad(audio, (0, more_audio), value=value)
    )
    return grow(*streams, 0.0), grow(*masks, 1.0)


NODES = [HappyHorseEmptyLatent, HappyHorseImageToVideo, HappyHorseAudioToVideo]
