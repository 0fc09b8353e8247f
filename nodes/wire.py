"""LATENT on the wire: video and audio nested, the video as stock VAEs give it, and what is refused.

Video is [B, 48, T, h, w], not normalised; audio is [B, 64, L]. Messages name the socket, what came and what
was expected.
"""

from __future__ import annotations

import comfy.model_management
import comfy.nested_tensor
import torch
from torch import Tensor

from ..errors import ConditioningError, GeometryError
from ..sampling.streams import Streams
from ..shapes import AUDIO_CHANNELS, VIDEO_CHANNELS, LatentSize, decoded_frames
from .transformer import HostModel


def nested(video: Tensor, audio: Tensor) -> comfy.nested_tensor.NestedTensor:
    """Both streams as one value of the host's."""
    return comfy.nested_tensor.NestedTensor((video, audio))


def empty_latent(size: LatentSize, batch: int = 1) -> dict:
    """A LATENT of zeros: nothing known, all to be made."""
    device = comfy.model_management.intermediate_device()
    video = torch.zeros(batch, *size.video_shape[1:], device=device)
    audio = torch.zeros(batch, *size.audio_shape[1:], device=device)
    return {"samples": nested(video, audio)}


def streams_of(latent: dict, socket: str = "latent") -> Streams:
    """The two streams of a LATENT, or ConditioningError saying what came instead."""
    samples = latent["samples"]
    if not getattr(samples, "is_nested", False):
        raise ConditioningError(
            f"{socket}: a plain latent {tuple(samples.shape)} came; HappyHorse latents hold video and audio. "
            "Use HappyHorse Empty Latent, or join both with a Concat AV Latent node."
        )
    shapes = [tuple(stream.shape) for stream in samples.unbind()]
    if len(shapes) == 2 and (len(shapes[0]), len(shapes[1])) == (5, 3):
        video, audio = shapes
        if video[1] == VIDEO_CHANNELS and audio[1] == AUDIO_CHANNELS:
            frames = decoded_frames(video[2])
            if audio[2] != frames:
                raise GeometryError(
                    f"{socket}: {video[2]} video latent frames are {frames} frames, but the audio has {audio[2]} "
                    f"latents; both streams must have the same length of 4k+1. Use HappyHorse Empty Latent."
                )
            return Streams(*samples.unbind())
    raise ConditioningError(
        f"{socket}: latents of shapes {', '.join(map(str, shapes))} came from another model; expected video "
        f"[B, {VIDEO_CHANNELS}, T, h, w] and audio [B, {AUDIO_CHANNELS}, L]."
    )


def masks_of(latent: dict) -> Streams:
    """The masks of a LATENT's streams (1 is made, 0 is kept), ones where it has none."""
    video, audio = streams_of(latent)
    masks = Streams(torch.ones_like(video[:, :1]), torch.ones_like(audio[:, :1]))
    mask = latent.get("noise_mask")
    if mask is None:
        return masks
    if not getattr(mask, "is_nested", False):
        raise ConditioningError(
            f"latent: a plain mask {tuple(mask.shape)} came with it; HappyHorse latents carry one mask per stream."
        )
    return Streams(*(given.expand_as(own).clone() for given, own in zip(mask.unbind(), masks, strict=True)))


def with_known(latent: dict, streams: Streams, masks: Streams) -> dict:
    """A copy of ``latent`` with these streams and masks."""
    return {**latent, "samples": nested(*streams), "noise_mask": nested(*masks)}


def check_model(model, socket: str, variants: tuple[str, ...]) -> HostModel:
    """The HappyHorse model of a MODEL, of one of these variants."""
    inner = getattr(model, "model", None)
    if not isinstance(inner, HostModel):
        raise ConditioningError(
            f"{socket}: a {type(inner).__name__} came; expected a model from HappyHorse Model Loader."
        )
    if inner.variant not in variants:
        raise ConditioningError(
            f"{socket}: a model declared as {inner.variant} came; this place takes {' or '.join(variants)}. "
            "Connect another loader, or correct its variant."
        )
    return inner


def check_vae(vae, socket: str, kind: str) -> None:
    """Refuse a VAE of another kind; ``kind`` is "video" or "audio"."""
    wanted = {"video": (VIDEO_CHANNELS, 3), "audio": (AUDIO_CHANNELS, 1)}[kind]
    found = (getattr(vae, "latent_channels", None), getattr(vae, "latent_dim", None))
    if found != wanted:
        hint = {
            "video": "the Wan 2.2 VAE (Load VAE) or HappyHorse Video Decoder Loader",
            "audio": "HappyHorse Audio VAE Loader, or the Stable Audio Open VAE",
        }[kind]
        raise ConditioningError(
            f"{socket}: a VAE with {found[0]} latent channels in {found[1]} dimensions came; expected {wanted[0]} in "
            f"{wanted[1]}. Connect {hint}."
        )
