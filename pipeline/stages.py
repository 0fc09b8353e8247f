"""The stages of a film as functions on tensors: each takes networks that are already loaded.

Letters: C channels, T latent frames, h and w latent cells, L audio latents, F frames. Latents are
normalised and float32 everywhere between these functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..conditioning.image import first_frame
from ..conditioning.voice import encode_in_windows, pad_voice, prepare_voice
from ..errors import ConditioningError
from ..model.audio_vae import OobleckVAE
from ..model.layers import MLP_ROWS
from ..model.sequence import SequenceLayout
from ..model.transformer import JointTransformer
from ..model.video_vae import Wan22VAE
from ..sampling.guidance import StreamVelocity
from ..sampling.joint import PRESETS, SamplingPreset, sample
from ..sampling.streams import SeededNoise, Streams, StreamShapes
from ..sampling.super_resolution import SuperResolution, super_resolve
from ..shapes import FPS, SPACE_STRIDE, LatentSize, frames_for_samples

OnStep = Callable[[int], None]


class Placed(NamedTuple):
    """How a network runs where its memory is short."""

    run_blocks: Callable[[Tensor, object], Tensor] | None = None  # in place of the loop over the blocks
    mlp_rows: int | None = MLP_ROWS  # rows of a feed-forward layer at once


WHOLE = Placed()


def encode_picture(image: Tensor, width: int, height: int, vae: Wan22VAE, device: torch.device) -> Tensor:
    """[H, W, 3] -> the first frame's latent [1, C, 1, h, w]"""
    return vae.encode(first_frame(image, width, height).to(device))


def encode_voice(
    waveform: Tensor, sample_rate: int, num_frames: int, vae: OobleckVAE, device: torch.device
) -> Tensor:
    """[.., C, S] at any rate -> [1, C, L], L = ``num_frames``: silence follows a shorter voice.

    Raises ConditioningError for a voice that is longer than the film, because it would be cut.
    """
    check_voice(waveform, sample_rate, num_frames)
    padded = pad_voice(prepare_voice(waveform, sample_rate), num_frames)
    return encode_in_windows(lambda window: vae.encode(window.to(device)), padded)


def check_voice(waveform: Tensor, sample_rate: int, num_frames: int) -> None:
    """Raise ConditioningError for a voice that a film of ``num_frames`` frames would cut."""
    needed = frames_for_samples(waveform.shape[-1], sample_rate)
    if needed > num_frames:
        raise ConditioningError(
            f"The voice lasts {waveform.shape[-1] / sample_rate:.2f} s and needs {needed} frames; the film has "
            f"{num_frames} ({num_frames / FPS:.2f} s) and would cut it. Ask for {needed} frames, or leave the "
            "length out to have it chosen."
        )


def text_velocity(network: JointTransformer, text: Tensor, placed: Placed = WHOLE) -> StreamVelocity:
    """The network under one prompt, as solvers call it; what only sizes decide is computed once."""
    context = None

    def velocity(x: Streams, _sigma: float) -> Streams:
        nonlocal context
        if context is None:
            layout = SequenceLayout.of(x.video[0], x.audio[0], text)
            context = network.context(layout, x.video.device, mlp_rows=placed.mlp_rows)
        video, audio = network(x.video[0], x.audio[0], text, context, placed.run_blocks)
        return Streams(video[None], audio[None])

    return velocity


def sample_film(
    network: JointTransformer,
    positive: Tensor,
    negative: Tensor | None,
    size: LatentSize,
    seed: int,
    preset: SamplingPreset = PRESETS["distilled"],
    *,
    first_frame: Tensor | None = None,
    voice: Tensor | None = None,
    on_step: OnStep | None = None,
    placed: Placed = WHOLE,
) -> Streams:
    """Text features [N, D] (and a picture's, a voice's latent) -> video [1, C, T, h, w], audio [1, C, L]."""
    noise = SeededNoise(seed, StreamShapes(size.video_shape, size.audio_shape), positive.device)
    return sample(
        text_velocity(network, positive, placed),
        None if negative is None else text_velocity(network, negative, placed),
        noise(),
        preset,
        noise,
        first_frame=first_frame,
        voice=voice,
        on_step=on_step and (lambda step, x, denoised: on_step(step)),
    )


def enlarge_film(
    network: JointTransformer,
    positive: Tensor,
    negative: Tensor | None,
    base: Streams,
    width: int,
    height: int,
    seed: int,
    settings: SuperResolution = SuperResolution(),  # noqa: B008 - frozen
    *,
    first_frame: Tensor | None = None,
    on_step: OnStep | None = None,
    placed: Placed = WHOLE,
) -> Streams:
    """Base latents -> video latents for ``width`` x ``height`` pixels; the audio is returned as it came."""
    rows, columns = height // SPACE_STRIDE, width // SPACE_STRIDE
    shapes = StreamShapes((*base.video.shape[:3], rows, columns), tuple(base.audio.shape))
    return super_resolve(
        text_velocity(network, positive, placed),
        None if negative is None else text_velocity(network, negative, placed),
        base,
        rows,
        columns,
        SeededNoise(seed, shapes, positive.device),
        settings,
        first_frame=first_frame,
        on_step=on_step and (lambda step, x, denoised: on_step(step)),
    )
