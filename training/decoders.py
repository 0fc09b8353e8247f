"""Training of the two video decoders behind the finished encoder.

Letters: B clips, T latent frames, h and w latent cells, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..model.turbo_decoder import TurboDecoder
from ..model.video_vae import Wan22VAE
from .loop import Work, named, train
from .optimiser import Optimisers
from .video_autoencoder import (
    decode_later_window,
    decode_turbo,
    decode_wan,
    draw_batch,
    noised,
    picture_loss,
    psnr,
)

FRAMES, COUNT = 25, 3  # of a batch: seven latents, the Turbo decoder's window
SEEDS = {"turbo": 200_000, "wan_decoder": 400_000}


def train_turbo(work: Work, vae: Wan22VAE, decoder: TurboDecoder, steps: int) -> None:
    """Go on with the Turbo decoder, on whole windows."""

    def loss_of(latent: Tensor, pixels: Tensor, step: int) -> Tensor:
        if step % 3 == 2:
            return picture_loss(decode_later_window(decoder, latent), pixels[:, :, 1:])
        return picture_loss(decode_turbo(decoder, latent), pixels)

    _train(work, "turbo", named(turbo=decoder), vae, loss_of, decoder.decode, steps, 0.006)


def train_wan_decoder(work: Work, vae: Wan22VAE, steps: int) -> None:
    """The Wan decoder, from its seed."""
    parameters = named(decoder=vae.decoder, conv2=vae.conv2)
    _train(
        work,
        "wan_decoder",
        parameters,
        vae,
        lambda latent, pixels, step: picture_loss(decode_wan(vae, latent), pixels),
        vae.decode,
        steps,
        0.01,
    )


def _train(
    work: Work,
    stage: str,
    parameters: dict[str, nn.Parameter],
    vae: Wan22VAE,
    loss_of: Callable[[Tensor, Tensor, int], Tensor],
    decode: Callable[[Tensor], Tensor],
    steps: int,
    lr: float,
) -> None:
    optimisers = Optimisers(parameters, lr=lr, adam_lr=lr / 10, steps=steps)
    seen = draw_batch(10**6, 8, FRAMES)

    def step_loss(step: int) -> Tensor:
        # The first steps see short clips: they are many, and colours come first.
        frames, count = (FRAMES, COUNT) if step > steps // 3 else (5, 10)
        pixels = draw_batch(SEEDS[stage] + step, count, frames)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latent = vae.encode(pixels)
            return loss_of(noised(latent), pixels, step)

    def check() -> dict[str, float]:
        with torch.no_grad():
            return {"psnr": psnr(decode(vae.encode(seen)), seen)}

    train(work, stage, parameters, optimisers, step_loss, check=check, check_every=50)
