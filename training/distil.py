"""Distillation: a network that answers a noise level with the end of the teacher's whole walk from there.

Re-noising in eight steps asks for such answers. A network that answers with the mean over all films that could
still follow lets the sound fade away: nothing says yet when a syllable comes, the mean of all is hardly heard,
and each fresh noise hides it again. So the answer at one level is trained to be that at the next level of the
teacher's own path, down to the last (consistency distillation, Song et al. 2023).
Letters: B samples, C channels, T latent frames, h and w latent cells, L audio latents.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..model.transformer import JointTransformer
from .batched import velocities
from .joint import AUDIO_WEIGHT

SUBSTEPS = 2  # of the teacher between two levels
TARGET_DECAY = 0.95


class Pair(NamedTuple):
    """Both streams of a batch: video [B, C, T, h, w] and audio [B, C, L]."""

    video: Tensor
    audio: Tensor

    def moved(self, change: Pair, by: Tensor) -> Pair:
        """self + by * change, ``by`` [B]"""
        return Pair(
            self.video + by.view(-1, 1, 1, 1, 1) * change.video, self.audio + by.view(-1, 1, 1) * change.audio
        )


@dataclass(slots=True)
class Distillation:
    """Teacher, student, and the slow copy of the student that says what the next level answers."""

    student: JointTransformer
    levels: Sequence[float]
    negative: Tensor | None = None  # [N, D] text the teacher is led away from
    guidance: float = 1.0
    teacher: JointTransformer = field(init=False)
    target: JointTransformer = field(init=False)

    def __post_init__(self) -> None:
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.target = copy.deepcopy(self.student).requires_grad_(False)

    @torch.no_grad()
    def follow(self) -> None:
        """Let the slow copy come a little nearer to the student."""
        for kept, new in zip(self.target.parameters(), self.student.parameters(), strict=True):
            kept.lerp_(new, 1 - TARGET_DECAY)

    def loss(
        self,
        clean: Pair,
        is_picture: Tensor,
        is_voice: Tensor,
        text: Tensor,
        counts: Tensor,
        lot: np.random.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """On clean latents; ``is_picture`` and ``is_voice`` [B] say in which samples what is given."""
        noise = Pair(torch.randn_like(clean.video), torch.randn_like(clean.audio))
        number = torch.from_numpy(lot.integers(0, len(self.levels), len(counts)))
        all_levels = torch.tensor([*self.levels, 0.0], dtype=torch.float32)
        start, stop = (all_levels[n].to(clean.video.device) for n in (number, number + 1))

        def pinned(x: Pair) -> Pair:
            video, audio = x.video.clone(), torch.where(is_voice.view(-1, 1, 1), clean.audio, x.audio)
            first = torch.where(is_picture.view(-1, 1, 1, 1, 1), clean.video[:, :, :1], video[:, :, :1])
            video[:, :, :1] = first
            return Pair(video, audio)

        def answer(network: JointTransformer, x: Pair, rows=text, lengths=counts) -> Pair:
            with torch.autocast(clean.video.device.type, torch.bfloat16):
                made = velocities(network, x.video, x.audio, rows, lengths)
            return Pair(*(part.float() for part in made))

        def taught(x: Pair) -> Pair:
            led = answer(self.teacher, x)
            if self.negative is None:
                return led
            rows = self.negative.expand(len(counts), -1, -1)
            away = answer(self.teacher, x, rows, torch.full_like(counts, rows.shape[1]))
            return Pair(*(a + self.guidance * (b - a) for a, b in zip(away, led, strict=True)))

        seen = pinned(Pair(*(c + _by(start, c) * (n - c) for c, n in zip(clean, noise, strict=True))))
        with torch.no_grad():
            x = seen
            for _ in range(SUBSTEPS):
                x = pinned(x.moved(taught(x), (stop - start) / SUBSTEPS))
            later = answer(self.target, x)
            end = x.moved(later, -stop)  # at the last level ``stop`` is 0, and x is the end itself
        made = answer(self.student, seen)
        wanted = Pair(*((s - e) / _by(start, s) for s, e in zip(seen, end, strict=True)))
        video = (made.video - wanted.video).square().mean((1, 3, 4))  # [B, T]
        known = torch.zeros_like(video, dtype=torch.bool)
        known[:, 0] = is_picture
        video = video.masked_fill(known, 0).mean()
        audio = ((made.audio - wanted.audio).square().mean((1, 2)) * ~is_voice).mean()
        return video + AUDIO_WEIGHT * audio, {"video": float(video.detach()), "audio": float(audio.detach())}


def _by(level: Tensor, like: Tensor) -> Tensor:
    return level.view(-1, *[1] * (like.ndim - 1))
