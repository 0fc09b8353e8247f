"""Training of the video autoencoders: the Wan encoder with the Turbo decoder, then either decoder alone.

Letters: B clips, F frames, T latent frames, H and W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.pixel_patches import patchify, unpatchify
from ..model.turbo_decoder import TurboDecoder
from ..model.video_latent import LATENT_MEAN, LATENT_STD, denormalise, normalise
from ..model.video_vae import Wan22VAE
from ..model.video_vae_layers import Past
from ..shapes import TIME_STRIDE, VIDEO_CHANNELS
from .clips import clip_of
from .loop import Work, named, start_convolutions, train
from .optimiser import Optimisers
from .scene import SIDE
from .sizes import TURBO, WAN

LATENT_NOISE = 0.1  # of a latent's own spread: decoders are to forgive what a sampler leaves
SQUARES = 1e-3  # weight of the latents' mean square
MOUTH_WEIGHT = 5.0
DARK = -0.6  # pixels below are the mouth's
SEEDS = {"video_images": 0, "video_clips": 100_000}
LARGE = 0.15  # share of clips that are drawn at twice the size and cut to one face's square


def draw_batch(seed: int, count: int, frames: int) -> Tensor:
    """[B, 3, F, 64, 64] in [-1, 1]; single frames are of moments at which somebody may speak."""
    lot = np.random.default_rng([seed, count, frames])
    films = []
    for number in range(count):
        length = max(frames, 25)
        clip = clip_of(seed * 1000 + number, length, timbre=None)
        scale = 2 if lot.random() < LARGE else 1
        start = int(lot.integers(0, length - frames + 1))
        pixels, _ = clip.film(scale, slice(start, start + frames))
        if scale == 2:
            top, left = (16 * int(lot.integers(0, SIDE // 16 + 1)) for _ in range(2))
            pixels = pixels[..., top : top + SIDE, left : left + SIDE]
        films.append(pixels)
    return torch.stack(films)


def encode(vae: Wan22VAE, pixels: Tensor) -> Tensor:
    """``Wan22VAE.encode`` in one pass and with a gradient: [B, 3, F, H, W] -> [B, 48, T, h, w]"""
    moments = vae.conv1(vae.encoder(patchify(pixels, vae.config.patch), Past()))
    return normalise(moments[:, :VIDEO_CHANNELS].float())


def decode_wan(vae: Wan22VAE, latent: Tensor) -> Tensor:
    """``Wan22VAE.decode`` in one pass, not clamped."""
    return unpatchify(vae.decoder(vae.conv2(denormalise(latent)), Past()), vae.config.patch)


def decode_turbo(decoder: TurboDecoder, latent: Tensor) -> Tensor:
    """The first window's way to decode: [B, 48, T, h, w] -> [B, 3, 4(T-1)+1, H, W]"""
    return decoder.decoder(denormalise(latent), True)


def decode_later_window(decoder: TurboDecoder, latent: Tensor) -> Tensor:
    """The way later windows are decoded, without the four frames of the first latent: [B, 3, 4(T-1), H, W]"""
    return decoder.decoder(denormalise(latent), False)[:, :, TIME_STRIDE:]


def picture_loss(made: Tensor, pixels: Tensor) -> Tensor:
    """Mean absolute and squared difference; where a mouth is dark in any frame, and around it, it weighs more."""
    dark = (pixels.mean(1, keepdim=True) < DARK).any(dim=2, keepdim=True).float()
    near = F.max_pool2d(dark.flatten(0, 2), 5, 1, 2).reshape(dark.shape)
    difference = (made.float() - pixels).abs()
    weight = 1 + MOUTH_WEIGHT * near
    return ((difference + 2 * difference.square()) * weight).mean()


def noised(latent: Tensor) -> Tensor:
    """The latent with noise in proportion to its spread in the batch."""
    return latent + LATENT_NOISE * latent.detach().std() * torch.randn_like(latent)


@torch.no_grad()
def whiten(vae: Wan22VAE, decoder: TurboDecoder, latents: Tensor) -> None:
    """Fold each channel's mean and spread over ``latents`` [B, 48, T, h, w] into the last convolution.

    The real model's latents have the constants of ``model.video_latent``; so have these from now on. The
    decoder's first convolution takes the change back, exactly but at the borders.
    """
    mean, spread = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4)).clamp_min(1e-3)
    constant, std = torch.tensor(LATENT_MEAN), torch.tensor(LATENT_STD)
    rows = slice(0, VIDEO_CHANNELS)
    weight, bias = vae.conv1.weight, vae.conv1.bias
    # raw = std * n + constant, and n is to become (n - mean) / spread.
    weight[rows] /= spread.view(-1, 1, 1, 1, 1)
    bias[rows] = (bias[rows] - constant - std * mean) / spread + constant
    first = decoder.decoder.conv_in.conv
    # old raw = spread * (new raw - constant) + std * mean + constant
    moved = std * mean + constant - spread * constant
    first.bias += (first.weight.sum((2, 3, 4)) * moved).sum(1)
    first.weight *= spread.view(1, -1, 1, 1, 1)


def psnr(made: Tensor, pixels: Tensor) -> float:
    """Decibels over pixels in [-1, 1]."""
    error = (made.float().clamp(-1, 1) - pixels).square().mean()
    return float(10 * torch.log10(4 / error))


def train_encoder(work: Work, images: int, clips: int) -> tuple[Wan22VAE, TurboDecoder]:
    """The Wan encoder and the Turbo decoder, together: ``images`` steps on single frames, ``clips`` on 13 and 1."""
    vae, decoder = Wan22VAE(WAN), TurboDecoder(TURBO)
    start_convolutions(vae, work.seed)
    start_convolutions(decoder, work.seed + 1)
    for stage, batches, steps, lr in (
        ("video_images", ((1, 16),), images, 0.02),
        ("video_clips", ((13, 4), (13, 4), (1, 16)), clips, 0.01),
    ):
        done = work.path(f"{stage}.pt")
        if not done.is_file():
            _train_stage(work, stage, vae, decoder, batches, steps, lr)
            torch.save({"vae": vae.state_dict(), "turbo": decoder.state_dict()}, done)
        vae.load_state_dict(torch.load(done)["vae"])
        decoder.load_state_dict(torch.load(done)["turbo"])
    return vae, decoder


def _train_stage(work, stage, vae, decoder, batches, steps: int, lr: float) -> None:
    """``batches`` of (frames, clips) in turn."""
    parameters = named(encoder=vae.encoder, conv1=vae.conv1, turbo=decoder)
    optimisers = Optimisers(parameters, lr=lr, adam_lr=lr / 10, steps=steps)
    seen = draw_batch(10**6, 6, batches[0][0])

    def loss_of(step: int) -> Tensor:
        frames, count = batches[step % len(batches)]
        pixels = draw_batch(step + SEEDS[stage], count, frames)
        with torch.autocast("cpu", torch.bfloat16):
            latent = encode(vae, pixels)
            if frames > 1 and step % 6 == 1:
                loss = picture_loss(decode_later_window(decoder, noised(latent)), pixels[:, :, 1:])
            else:
                loss = picture_loss(decode_turbo(decoder, noised(latent)), pixels)
        return loss + SQUARES * latent.square().mean()

    def check() -> dict[str, float]:
        with torch.no_grad():
            return {"psnr": psnr(decode_turbo(decoder, encode(vae, seen)), seen)}

    train(work, stage, parameters, optimisers, loss_of, check=check, check_every=100)


def finish_encoder(work: Work, vae: Wan22VAE, decoder: TurboDecoder) -> None:
    """Whiten the encoder's latents, once; from here on the encoder does not change."""
    done = work.path("encoder.pt")
    if not done.is_file():
        films = [clip_of(5_000_000 + i, 25).film()[0] for i in range(160)]
        with torch.no_grad():
            latents = torch.cat([vae.encode(torch.stack(films[i : i + 8])) for i in range(0, 160, 8)])
        whiten(vae, decoder, latents)
        torch.save({"vae": vae.state_dict(), "turbo": decoder.state_dict()}, done)
    state = torch.load(done)
    vae.load_state_dict(state["vae"])
    decoder.load_state_dict(state["turbo"])
