"""The stages of a film as functions on tensors: each takes networks that are already loaded.

Letters: C channels, T latent frames, h and w latent cells, L audio latents, F frames. Latents are
normalised and float32 everywhere between these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..conditioning.image import first_frame
from ..conditioning.voice import encode_in_windows, pad_voice, prepare_voice
from ..errors import ConditioningError
from ..model.audio_vae import OobleckVAE
from ..model.layers import MLP_ROWS, Context
from ..model.sequence import SequenceLayout
from ..model.transformer import JointTransformer
from ..model.video_vae import Wan22VAE
from ..sampling.guidance import Branches
from ..sampling.joint import PRESETS, SamplingPreset, sample
from ..sampling.step_saving import StepSaver
from ..sampling.streams import SeededNoise, Streams, StreamShapes
from ..sampling.super_resolution import SuperResolution, super_resolve
from ..shapes import FPS, SPACE_STRIDE, LatentSize, frames_for_samples

OnStep = Callable[[int], None]


class Placed(NamedTuple):
    """How a network runs where its memory is short."""

    run_blocks: Callable[[Tensor, object], Tensor] | None = None  # in place of the loop over the blocks
    mlp_rows: int | None = MLP_ROWS  # rows of a feed-forward layer at once
    # All blocks for several (x, context), where a block's weights come once for all of them.
    run_together: Callable[[Sequence[tuple[Tensor, Context]]], list[Tensor]] | None = None


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


class TextVelocity:
    """The network under one prompt, as solvers call it; what only sizes decide is computed once.

    Unless ``wants_audio`` the audio's velocity is zero, for a film whose audio is given.
    """

    def __init__(
        self, network: JointTransformer, text: Tensor, placed: Placed = WHOLE, *, wants_audio: bool = True
    ):
        self.network, self.text, self.placed, self.wants_audio = network, text, placed, wants_audio
        self._shared: tuple[SequenceLayout, Context] | None = None

    def __call__(self, x: Streams, _sigma: float) -> Streams:
        _, context = self._layout_and_context(x)
        run_blocks, wants_audio = self.placed.run_blocks, self.wants_audio
        out = self.network(x.video[0], x.audio[0], self.text, context, run_blocks, wants_audio=wants_audio)
        return Streams(*(part[None] for part in out))

    def enter(self, x: Streams) -> tuple[Tensor, Context]:
        """What the blocks begin with, [N, D], and what they share."""
        _, context = self._layout_and_context(x)
        return self.network.embed(x.video[0], x.audio[0], self.text), context

    def leave(self, hidden: Tensor, x: Streams) -> Streams:
        """The velocity of ``x`` by what the blocks end with."""
        layout, _ = self._layout_and_context(x)
        out = self.network.velocities(hidden, layout, wants_audio=self.wants_audio)
        return Streams(*(part[None] for part in out))

    def _layout_and_context(self, x: Streams) -> tuple[SequenceLayout, Context]:
        if self._shared is None:
            layout = SequenceLayout.of(x.video[0], x.audio[0], self.text)
            mlp_rows = self.placed.mlp_rows
            self._shared = layout, self.network.context(layout, x.video.device, mlp_rows=mlp_rows)
        return self._shared


def side_by_side(one: TextVelocity, other: TextVelocity | None) -> Branches | None:
    """Both in one pass over the blocks; None where there is one, or where it would save nothing."""
    run_together = one.placed.run_together
    if other is None or run_together is None:
        return None

    def branches(x: Streams, _sigma: float) -> list[Streams]:
        hidden = run_together([one.enter(x), other.enter(x)])
        return [one.leave(hidden[0], x), other.leave(hidden[1], x)]

    return branches


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
    saver: StepSaver | None = None,
) -> Streams:
    """Text features [N, D] (and a picture's, a voice's latent) -> video [1, C, T, h, w], audio [1, C, L]."""
    conditional, unconditional = _velocities(
        network,
        positive,
        negative,
        placed,
        wants_audio=voice is None,  # a voice is put in its place at every step
    )
    noise = SeededNoise(seed, StreamShapes(size.video_shape, size.audio_shape), positive.device)
    return sample(
        conditional,
        unconditional,
        noise(),
        preset,
        noise,
        first_frame=first_frame,
        voice=voice,
        on_step=on_step and (lambda step, x, denoised: on_step(step)),
        together=side_by_side(conditional, unconditional),
        saver=saver,
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
    conditional, unconditional = _velocities(network, positive, negative, placed, wants_audio=False)
    return super_resolve(
        conditional,
        unconditional,
        base,
        rows,
        columns,
        SeededNoise(seed, shapes, positive.device),
        settings,
        first_frame=first_frame,
        on_step=on_step and (lambda step, x, denoised: on_step(step)),
        together=side_by_side(conditional, unconditional),
    )


def _velocities(
    network: JointTransformer, positive: Tensor, negative: Tensor | None, placed: Placed, *, wants_audio: bool
) -> tuple[TextVelocity, TextVelocity | None]:
    conditional = TextVelocity(network, positive, placed, wants_audio=wants_audio)
    if negative is None:
        return conditional, None
    return conditional, TextVelocity(network, negative, placed, wants_audio=wants_audio)
