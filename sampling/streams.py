"""The two streams of a sample, video and audio, and the one flat row that solvers work on.

All steps of a run have one noise level for both streams and every solver is elementwise, so the streams
can be laid end to end: a solver sees a tensor and never learns what is in it. ComfyUI packs the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


class Streams(NamedTuple):
    """Video [1, C, T, h, w] and audio [1, C, L] of one sample: latents, noise or velocities."""

    video: Tensor
    audio: Tensor


@dataclass(frozen=True, slots=True)
class StreamShapes:
    """The shapes that a flat row is cut into."""

    video: tuple[int, ...]
    audio: tuple[int, ...]

    @classmethod
    def of(cls, streams: Streams) -> StreamShapes:
        return cls(tuple(streams.video.shape), tuple(streams.audio.shape))

    def pack(self, streams: Streams) -> Tensor:
        """-> [1, video elements + audio elements]"""
        return torch.cat([streams.video.reshape(1, -1), streams.audio.reshape(1, -1)], dim=-1)

    def unpack(self, flat: Tensor) -> Streams:
        """[1, N] -> views with the streams' shapes"""
        video, audio = flat.split([prod(self.video), prod(self.audio)], dim=-1)
        return Streams(video.view(self.video), audio.view(self.audio))


class SeededNoise:
    """Normal noise from one CPU generator per seed: each draw is video first, then audio, in float32.

    The order and the audio's shape [1, 64, L] are ComfyUI's, so that a seed means the same in both.
    """

    def __init__(self, seed: int, shapes: StreamShapes, device: torch.device | str = "cpu"):
        self.shapes, self.device = shapes, device
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def __call__(self) -> Streams:
        video = torch.randn(self.shapes.video, generator=self.generator)
        audio = torch.randn(self.shapes.audio, generator=self.generator)
        return Streams(video.to(self.device), audio.to(self.device))
