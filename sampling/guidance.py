"""Classifier-free guidance with a strength of its own for video, audio and single frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .streams import Streams

StreamVelocity = Callable[[Streams, float], Streams]
Branches = Callable[[Streams, float], Sequence[Streams]]  # velocities under several prompts, in their order


class GuidanceRule(Protocol):
    """How strongly each stream is guided at a noise level."""

    def video(self, sigma: float, like: Tensor) -> Tensor | float:
        """A scale that multiplies [1, C, T, h, w]."""

    def audio(self, sigma: float) -> float:
        """A scale for the audio stream."""


@dataclass(frozen=True, slots=True)
class BaseGuidance:
    """The base model's rule: video guidance drops once the timestep (1000*sigma) is 500 or less."""

    video_scale: float = 5.0
    late_video_scale: float = 2.0
    audio_scale: float = 5.0
    late_from: int = 500

    def video(self, sigma: float, like: Tensor) -> float:
        return self.video_scale if int(1000 * sigma) > self.late_from else self.late_video_scale

    def audio(self, sigma: float) -> float:
        return self.audio_scale


@dataclass(frozen=True, slots=True)
class FrameGuidance:
    """The super-resolution rule: the leading latent frames are guided less, audio is only listened to."""

    video_scale: float = 3.5
    leading_scale: float = 2.0
    leading_frames: int = 13

    def video(self, sigma: float, like: Tensor) -> Tensor:
        scale = torch.full((1, 1, like.shape[2], 1, 1), self.video_scale, device=like.device)
        scale[:, :, : self.leading_frames] = min(self.leading_scale, self.video_scale)
        return scale

    def audio(self, sigma: float) -> float:
        return 1.0


def in_turn(*velocities: StreamVelocity) -> Branches:
    """One after the other."""
    return lambda x, sigma: [velocity(x, sigma) for velocity in velocities]


def guided(branches: Branches, rule: GuidanceRule) -> StreamVelocity:
    """v_neg + g*(v_cond - v_neg) for each stream; ``branches`` gives v_cond and v_neg."""

    def velocity(x: Streams, sigma: float) -> Streams:
        positive, negative = branches(x, sigma)
        video_scale, audio_scale = rule.video(sigma, x.video), rule.audio(sigma)
        return Streams(
            negative.video + video_scale * (positive.video - negative.video),
            negative.audio + audio_scale * (positive.audio - negative.audio),
        )

    return velocity
