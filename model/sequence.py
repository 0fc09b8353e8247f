"""Packing text, video and audio into one row of tokens, their coordinates, and back.

The sequence is [video | audio | text], without separators or padding. Letters: C channels, T latent
frames, h and w latent cells, L audio latents, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ConditioningError, SamplingError
from ..kernels.attention import Range
from ..shapes import PATCH, latent_frames_for_audio


@dataclass(frozen=True, slots=True)
class SequenceLayout:
    """Which rows of the sequence are what, and where each stands in time and space."""

    frames: int
    height: int  # of the token grid: latent cells / 2
    width: int
    audio: int
    text: int

    @classmethod
    def of(cls, video_latent: Tensor, audio_latent: Tensor, text: Tensor) -> SequenceLayout:
        """The layout of video [C, T, h, w], audio [C, L] and text [N, D]."""
        _, frames, height, width = video_latent.shape
        if height % PATCH or width % PATCH:
            raise SamplingError(
                f"A video latent of {height}x{width} cells is not made of {PATCH}x{PATCH} patches."
            )
        return cls(frames, height // PATCH, width // PATCH, audio_latent.shape[-1], text.shape[0])

    @property
    def video(self) -> int:
        return self.frames * self.height * self.width

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows of video, audio and text."""
        return self.video, self.audio, self.text

    @property
    def length(self) -> int:
        return self.video + self.audio + self.text

    def coordinates(self, style: str) -> Tensor:
        """[N, 9]: position (t, h, w), extent (T, H, W) and reference extent of every token, float32.

        Style "v1" (super-resolution) puts text at 0 … 1 on the time axis and audio over the video's T
        frames; style "v2" (base, distilled) puts text before the clip and audio at four latents a frame.
        """
        t, h, w = torch.meshgrid(
            torch.arange(self.frames), torch.arange(self.height), torch.arange(self.width), indexing="ij"
        )
        grid = (self.frames, self.height, self.width)
        video = _rows(torch.stack([t, h, w], -1).reshape(-1, 3), grid, grid)
        if style == "v2":
            audio_reference, text_reference, text_start = latent_frames_for_audio(self.audio), 1, -self.text
        else:
            audio_reference, text_reference, text_start = self.frames, 2, 0
        audio = _rows(_line(self.audio, 0), (self.audio, 1, 1), (audio_reference, 1, 1))
        text = _rows(_line(self.text, text_start), (self.text, 1, 1), (text_reference, 1, 1))
        return torch.cat([video, audio, text])

    def local_ranges(self, window: int) -> list[tuple[Range, Range]]:
        """(query range, key range) pairs of a local layer.

        A video token sees the frames at most ``window`` away and all audio and text; audio and text see
        everything.
        """
        frame, video, total = self.height * self.width, self.video, self.length
        ranges: list[tuple[Range, Range]] = []
        for index in range(self.frames):
            first, last = max(0, index - window), min(self.frames, index + window + 1)
            ranges.append(((index * frame, (index + 1) * frame), (first * frame, last * frame)))
        ranges.append(((0, video), (video, total)))
        ranges.append(((video, total), (0, total)))
        return ranges


def pack_video(latent: Tensor) -> Tensor:
    """[C, T, h, w] -> [T*h/2*w/2, C*4], feature c*4 + 2*ph + pw: channel slowest."""
    return rearrange(latent, "c t (h p) (w q) -> (t h w) (c p q)", p=PATCH, q=PATCH)


def unpack_video(tokens: Tensor, layout: SequenceLayout) -> Tensor:
    """[T*h/2*w/2, 4*C] -> [C, T, h, w], feature (2*ph + pw)*C + c: channel fastest.

    Not the inverse of ``pack_video``: the network's output has another feature order than its input.
    """
    return rearrange(
        tokens,
        "(t h w) (p q c) -> c t (h p) (w q)",
        t=layout.frames,
        h=layout.height,
        w=layout.width,
        p=PATCH,
        q=PATCH,
    )


def pack_audio(latent: Tensor) -> Tensor:
    """[C, L] -> [L, C]"""
    return latent.transpose(0, 1)


def unpack_audio(tokens: Tensor) -> Tensor:
    """[L, C] -> [C, L]"""
    return tokens.transpose(0, 1)


def rotary_angles(coordinates: Tensor, bands: Tensor) -> Tensor:
    """[N, 9], [B] -> [N, 6B]: sines of the t, h and w angles, then their cosines, in float32.

    The angle of axis a and band k is u_a * f_k with u_a = (position - centre) * (reference - 1)/(extent - 1);
    the scale is 1 where both are 1, and the centre is 0 for t and (extent - 1)/2 for h and w.
    """
    position, extent, reference = coordinates.float().split(3, dim=-1)
    if (alone := (extent == 1) & (reference != 1)).any():
        raise ConditioningError(
            f"A run of one token cannot be spread over {int(reference[alone].max())} places: the coordinates of "
            "the super-resolution models (v1) need at least 2 text tokens, and at least 2 audio latents where "
            "there is more than one video frame. Use a longer prompt or film."
        )
    scale = torch.where(extent == 1, 1.0, (reference - 1) / (extent - 1).clamp_min(1))
    centre = (extent - 1) / 2
    centre[:, 0] = 0
    angles = (((position - centre) * scale).unsqueeze(-1) * bands.float()).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _line(length: int, start: int) -> Tensor:
    position = torch.zeros(length, 3)
    position[:, 0] = torch.arange(start, start + length)
    return position


def _rows(position: Tensor, extent: tuple[int, ...], reference: tuple[int, ...]) -> Tensor:
    constant = torch.tensor([*extent, *reference], dtype=torch.float32)
    return torch.cat([position.float(), constant.expand(position.shape[0], 6)], dim=-1)
