"""Training of the joint transformer and its text encoder: velocities of noised latents under a prompt.

Letters: B samples, C channels, T latent frames, h and w latent cells, L audio latents, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..model.config import TransformerConfig
from ..model.layers import PerModalityLinear, RMSNorm
from ..model.text_encoder import T5GemmaConfig, T5GemmaEncoder
from ..model.transformer import JointTransformer
from ..sampling.schedule import SHIFT, SIGMA_MAX, flow_sigmas
from .batched import velocities
from .latents import Shelf

AUDIO_WEIGHT = 2.0
# Of the part of the error that changes over time, on top: colours and places do not move, and are most of the rest.
MOTION_WEIGHT = 2.0


@dataclass(frozen=True, slots=True)
class Lots:
    """How often each way to make a film is trained, and at which noise."""

    picture: float = 0.3  # first frame given
    voice: float = 0.3  # audio given
    apart: float = 0.25  # sound at a noise level of its own: what one stream knows, the other has to hear
    negative: float = 0.1  # batches under the negative prompt
    uniform: float = 0.15  # noise levels drawn evenly, the others as the sampler's shift spaces them
    levels: tuple[float, ...] | None = None  # the only noise levels, if given


def new_transformer(config: TransformerConfig, seed: int) -> JointTransformer:
    """Seeded weights; what a block adds starts small, gates start half open."""
    network = JointTransformer(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("norm.weight") or "final_norm" in name or weight.ndim < 2:
                weight.zero_()
                continue
            std = weight.shape[1] ** -0.5
            if "linear_proj" in name or "down_proj" in name:
                std *= 0.3
            if "final_linear" in name:
                std *= 0.1
            weight.copy_(std * torch.randn(weight.shape, generator=generator))
    return network


def new_text_encoder(config: T5GemmaConfig, seed: int) -> T5GemmaEncoder:
    network = T5GemmaEncoder(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim < 2:
                weight.zero_()
            else:
                weight.copy_(weight.shape[1] ** -0.5 * torch.randn(weight.shape, generator=generator))
    return network


def stacked_parts(network: JointTransformer) -> dict[str, int]:
    """{name: 3} for the weights that stack one matrix per modality, which Muon treats each for itself."""
    return {
        f"{name}.weight": 3
        for name, module in network.named_modules()
        if isinstance(module, PerModalityLinear)
    }


def encode_text(encoder: T5GemmaEncoder, ids: Tensor, counts: Tensor) -> Tensor:
    """[B, N] ids -> [B, N, D] rows; those past a prompt's end mean nothing."""
    mask = torch.arange(ids.shape[1], device=ids.device)[None] < counts[:, None]
    return encoder(ids, mask)


def noise_levels(lot: np.random.Generator, count: int, lots: Lots) -> Tensor:
    """[B] noise levels."""
    if lots.levels is not None:
        return torch.tensor(lot.choice(lots.levels, count), dtype=torch.float32)
    # Spread evenly over the batch: less luck in the loss.
    u = (np.arange(count) + lot.random(count)) / count
    lot.shuffle(u)
    shifted = SHIFT * u / (1 + (SHIFT - 1) * u)
    sigma = np.where(lot.random(count) < lots.uniform, u, shifted)
    return torch.tensor(np.clip(sigma, 0.002, SIGMA_MAX), dtype=torch.float32)


def flow_loss(
    network: JointTransformer,
    encoder: T5GemmaEncoder,
    shelf: Shelf,
    count: int,
    lot: np.random.Generator,
    lots: Lots,
    negative: Tensor,
    device: torch.device,
) -> tuple[Tensor, dict[str, float]]:
    """Mean squared error of both velocities over what is not given, on ``count`` clips of a shelf."""
    is_voice = torch.tensor(lot.random(count) < lots.voice)
    plain, others = (np.flatnonzero(part.numpy()) for part in (shelf.is_plain, ~shelf.is_plain))
    rows = lot.choice(plain, count)
    if len(others):  # strange voices are only ever given, never asked for
        swap = is_voice.numpy() & (lot.random(count) < 0.6)
        rows = np.where(swap, lot.choice(others, count), rows)
    video, audio, ids, counts = shelf.batch(torch.from_numpy(rows), device)
    if lot.random() < lots.negative:
        ids = negative.to(device).expand(count, -1)
        counts = torch.full((count,), negative.shape[-1], device=device)
    is_picture = torch.tensor(lot.random(count) < lots.picture).to(device)
    is_voice = is_voice.to(device)
    sigma = noise_levels(lot, count, lots).to(device)
    noises = torch.randn_like(video), torch.randn_like(audio)
    level = sigma.view(-1, 1, 1, 1, 1)
    seen = video + level * (noises[0] - video)
    seen[:, :, :1] = torch.where(is_picture.view(-1, 1, 1, 1, 1), video[:, :, :1], seen[:, :, :1])
    is_apart = torch.tensor(lot.random(count) < lots.apart).to(device)
    own = torch.where(is_apart, noise_levels(lot, count, lots).to(device), sigma)
    heard = audio + own.view(-1, 1, 1) * (noises[1] - audio)
    heard = torch.where(is_voice.view(-1, 1, 1), audio, heard)
    with torch.autocast(device.type, torch.bfloat16):
        text = encode_text(encoder, ids, counts)
        made = velocities(network, seen, heard, text, counts)
    difference = made[0].float() - (noises[0] - video)
    motion = (difference - difference.mean(2, keepdim=True)).square().mean((1, 3, 4))
    video_error = difference.square().mean((1, 3, 4))  # [B, T]
    known = torch.zeros_like(video_error, dtype=torch.bool)
    known[:, 0] = is_picture
    video_error = video_error.masked_fill(known, 0)
    motion = motion.masked_fill(known, 0)
    audio_error = (made[1].float() - (noises[1] - audio)).square().mean((1, 2)) * ~is_voice
    video_loss, audio_loss = video_error.mean(), audio_error.mean()
    parts = {"video": float(video_loss.detach()), "audio": float(audio_loss.detach())}
    return video_loss + MOTION_WEIGHT * motion.mean() + AUDIO_WEIGHT * audio_loss, parts


def sampler_levels(steps: int) -> tuple[float, ...]:
    """The noise levels at which a sampler of so many steps asks the network."""
    return tuple(flow_sigmas(steps)[:-1].tolist())


def choose(shelves: Sequence[Shelf], weights: Sequence[float], lot: np.random.Generator) -> int:
    """Which shelf a batch is taken from."""
    total = sum(weights[: len(shelves)])
    return int(lot.choice(len(shelves), p=[weight / total for weight in weights[: len(shelves)]]))


def count_for(shelf: Shelf, tokens: int) -> int:
    """How many clips of a shelf make about so many tokens of video and audio."""
    _, _, frames, height, width = shelf.video.shape
    each = frames * height * width // 4 + shelf.audio.shape[2] + shelf.ids.shape[1]
    return max(4, math.floor(tokens / each))


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, RMSNorm)
