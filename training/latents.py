"""Clips as the transformer sees them: both latents and the prompt's tokens, encoded once and kept.

Letters: N clips, F frames, T latent frames, h and w latent cells, L = F audio latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.audio_vae import OobleckVAE
from ..model.video_vae import Wan22VAE
from .clips import Clip, clip_of
from .text import token_rows
from .voice import PLAIN


@dataclass(frozen=True, slots=True)
class Shelf:
    """Encoded clips of one size. Latents are float16: they are noised before anybody sees them."""

    video: Tensor  # [N, 48, T, h, w]
    audio: Tensor  # [N, 64, L]
    ids: Tensor  # [N, tokens]
    counts: Tensor  # [N]
    is_plain: Tensor  # [N] whether the voice is the one that text asks for

    def __len__(self) -> int:
        return len(self.counts)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """video, audio, ids cut to the longest of these clips, counts."""
        counts = self.counts[rows]
        ids = self.ids[rows, : int(counts.max())]
        return (
            self.video[rows].to(device).float(),
            self.audio[rows].to(device).float(),
            ids.to(device),
            counts.to(device),
        )


@torch.no_grad()
def shelve(
    clips: Sequence[Clip], vae: Wan22VAE, audio_vae: OobleckVAE, tokenizer, scale: int = 1, group: int = 8
) -> Shelf:
    """Draw, sing and encode clips of one size; ``scale`` enlarges the picture."""
    video, audio = [], []
    for start in range(0, len(clips), group):
        films = [clip.film(scale) for clip in clips[start : start + group]]
        pixels, sound = (torch.stack(part) for part in zip(*films, strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            video.append(vae.encode(pixels).half())
        audio.append(audio_vae.encode(sound).half())
    ids, counts = token_rows(tokenizer, [clip.prompt for clip in clips])
    plain = torch.tensor([clip.timbre.formant_scale == 1.0 for clip in clips])
    return Shelf(torch.cat(video), torch.cat(audio), ids, counts, plain)


@dataclass(frozen=True, slots=True)
class ShelfSize:
    """How many clips of one size are encoded, and how often a batch is taken from them."""

    name: str
    frames: int
    faces: int
    plain: int
    others: int  # with another timbre than the one that text asks for
    weight: float

    def clips(self, seed: int, part: slice = slice(None)) -> list[Clip]:
        lots = [(seed + i, PLAIN if i < self.plain else None) for i in range(self.plain + self.others)]
        return [
            clip_of(number, self.frames, faces=self.faces, timbre=timbre) for number, timbre in lots[part]
        ]


SHELVES = (
    ShelfSize("one_second", 25, 1, 2600, 500, 0.58),
    ShelfSize("two_seconds", 49, 1, 800, 150, 0.22),
    ShelfSize("four_seconds", 101, 1, 300, 60, 0.1),
    ShelfSize("pairs", 49, 2, 400, 0, 0.1),
)


def join(parts: Sequence[Shelf]) -> Shelf:
    """Shelves of one size as one."""
    longest = max(part.ids.shape[1] for part in parts)
    ids = [F.pad(part.ids, (0, longest - part.ids.shape[1])) for part in parts]
    rest = (torch.cat([getattr(part, name) for part in parts]) for name in ("counts", "is_plain"))
    return Shelf(
        torch.cat([part.video for part in parts]),
        torch.cat([part.audio for part in parts]),
        torch.cat(ids),
        *rest,
    )
