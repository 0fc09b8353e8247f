"""The Oobleck autoencoder: computed from the data's principal components first, then woken and tuned.

Strided convolutions that sort samples into channels, and project them where there are more than channels, give
an autoencoder without one step of training; the decoder is its transpose. In that state snakes and residual
units do nothing, and a bug in them would not be heard: so they are woken before the tuning.
Letters: B sounds, S samples, L latents, C channels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.audio_vae import DecoderBlock, EncoderBlock, OobleckVAE, ResidualUnit, Snake
from ..shapes import AUDIO_CHANNELS, SAMPLES_PER_LATENT
from .clips import clip_of
from .loop import Work, named, train
from .optimiser import Optimisers
from .sizes import OOBLECK
from .voice import PLAIN

ASLEEP, AWAKE = 7.0, 3.5  # log of what a snake's square sine is divided by
TINY = 1e-4  # what a row of zeros has for a length: none at all has no gradient
FLOOR = 0.05  # of the strongest component's spread: weaker ones are left weaker than the noise of sampling
CROP = 8  # latents
LATENT_NOISE = 0.05
WINDOWS = (256, 1024, 4096)  # samples of the spectra that are compared


def sounds(seed: int, count: int, frames: int = 25) -> Tensor:
    """[B, 2, S]: half of them of the plain voice."""
    clips = (clip_of(seed + i, frames, timbre=PLAIN if i % 2 else None) for i in range(count))
    return torch.stack([clip.film(only=slice(0, 1))[1] for clip in clips])


@torch.no_grad()
def computed(waveform: Tensor, seed: int) -> OobleckVAE:
    """An autoencoder whose weights follow from the second moments of ``waveform`` [B, 2, S]."""
    vae = OobleckVAE(OOBLECK)
    torch.manual_seed(seed)
    for module in vae.modules():
        if isinstance(module, Snake):
            module.beta.fill_(ASLEEP)
        if hasattr(module, "weight_v"):
            _set(module, torch.zeros_like(module.weight_v))
    first, last = vae.encoder.layers[0], vae.decoder.layers[-1]
    middle = torch.tensor([0.5, 0.5])  # both ears hear the same: the side channel is not kept
    weight = torch.zeros_like(first.weight_v)
    weight[0, :, 3] = middle
    _set(first, weight)
    weight = torch.zeros_like(last.weight_v)
    weight[:, 0, 3] = 1.0
    _set(last, weight)

    x = waveform.mean(1, keepdim=True)
    ups = [layer for layer in vae.decoder.layers if isinstance(layer, DecoderBlock)]
    downs = [layer for layer in vae.encoder.layers if isinstance(layer, EncoderBlock)]
    for down, up in zip(downs, reversed(ups), strict=True):
        conv, grow = down.layers[4], up.layers[1]
        stride, channels = conv.stride, conv.weight_v.shape[0]
        phases = x.unflatten(2, (-1, stride)).permute(0, 2, 1, 3).flatten(2)  # [B, L, C*stride]
        base = _components(phases, channels)  # [C*stride, C']
        kept = base.shape[1]
        weight = torch.zeros_like(conv.weight_v)
        half = stride // 2
        taps = base.T.reshape(kept, x.shape[1], stride)
        weight[:kept, : x.shape[1], half : half + stride] = taps
        _set(conv, weight)
        weight = torch.zeros_like(grow.weight_v)
        weight[:kept, : x.shape[1], half : half + stride] = taps
        _set(grow, weight)
        x = (phases @ base).transpose(1, 2)
    base = _components(x.transpose(1, 2), AUDIO_CHANNELS)
    spread = (x.transpose(1, 2) @ base).flatten(0, 1).square().mean(0).sqrt()
    scale = 1 / (spread + FLOOR * spread.max())
    inner, outer = vae.encoder.layers[-1], vae.decoder.layers[0]
    weight = torch.zeros_like(inner.weight_v)
    weight[:AUDIO_CHANNELS, : x.shape[1], 1] = base.T * scale[:, None]
    _set(inner, weight)
    inner.bias[AUDIO_CHANNELS:] = -8.0  # the spread that a draw would have: almost none
    weight = torch.zeros_like(outer.weight_v)
    weight[: x.shape[1], :, 3] = base / scale
    _set(outer, weight)
    return vae


@torch.no_grad()
def wake(vae: OobleckVAE, seed: int) -> None:
    """Let snakes bend and residual units add: what they do shows, and can be tuned."""
    generator = torch.Generator().manual_seed(seed)
    for module in vae.modules():
        if isinstance(module, Snake):
            module.beta.fill_(AWAKE)
            module.alpha.copy_(0.5 * torch.randn(module.alpha.shape, generator=generator))
        if isinstance(module, ResidualUnit):
            for conv in (module.layers[1], module.layers[3]):
                noise = torch.randn(conv.weight_v.shape, generator=generator)
                _set(conv, 0.05 * noise / conv.weight_v[0].numel() ** 0.5)


def train_audio(work: Work, steps: int) -> OobleckVAE:
    """The computed autoencoder, woken and tuned on crops of voices."""
    done = work.path("audio.pt")
    waveform = sounds(0, 600)
    vae = computed(waveform[:300], work.seed)
    if done.is_file():
        vae.load_state_dict(torch.load(done))
        return vae
    held_out = torch.stack([clip_of(i, 25, held_out=True).film(only=slice(0, 1))[1] for i in range(24)])
    work.log("audio", computed_snr=snr(vae.decode(vae.encode(held_out)), held_out))
    wake(vae, work.seed)
    networks = named(audio=vae)
    # A draw's spread is never used in training and stays.
    optimisers = Optimisers(networks, lr=0.0, adam_lr=1e-3, steps=steps, plain=("",))
    lots = np.random.default_rng(work.seed)
    starts = lots.integers(0, 25 - CROP + 1, (steps, 8))
    chosen = lots.integers(0, len(waveform), (steps, 8))

    def loss_of(step: int) -> Tensor:
        crops = [
            waveform[i, :, s * SAMPLES_PER_LATENT : (s + CROP) * SAMPLES_PER_LATENT]
            for i, s in zip(chosen[step], starts[step], strict=True)
        ]
        sound = torch.stack(crops)
        latent = vae.encoder(sound).chunk(2, dim=1)[0]
        made = vae.decoder(latent + LATENT_NOISE * torch.randn_like(latent))
        return spectral_loss(made, sound) + 20 * (made - sound).abs().mean()

    def check() -> dict[str, float]:
        with torch.no_grad():
            return {"snr": snr(vae.decode(vae.encode(held_out)), held_out)}

    train(work, "audio", networks, optimisers, loss_of, check=check, check_every=50)
    _rescale(vae, waveform[:200])
    torch.save(vae.state_dict(), done)
    return vae


def spectral_loss(made: Tensor, sound: Tensor) -> Tensor:
    """Distance of log magnitudes, over windows of several lengths; silence counts as -60 dB."""
    total = made.new_zeros(())
    for size in WINDOWS:
        window = torch.hann_window(size)
        magnitude = [
            torch.stft(x.mean(1), size, size // 4, window=window, return_complex=True).abs() / size**0.5
            for x in (made, sound)
        ]
        total = total + (magnitude[0].add(1e-3).log() - magnitude[1].add(1e-3).log()).abs().mean()
    return total / len(WINDOWS)


def snr(made: Tensor, sound: Tensor) -> float:
    """Signal to error in decibels over all samples."""
    error = (made - sound).square().sum()
    return float(10 * torch.log10(sound.square().sum() / error.clamp_min(1e-12)))


@torch.no_grad()
def _rescale(vae: OobleckVAE, waveform: Tensor) -> None:
    """Latents of spread one in all strong channels, as a sampler's noise has; the decoder takes it back."""
    latent = vae.encode(waveform)
    spread = latent.square().mean((0, 2)).sqrt()
    scale = 1 / (spread + FLOOR * spread.max())
    inner, outer = vae.encoder.layers[-1], vae.decoder.layers[0]
    inner.weight_g[:AUDIO_CHANNELS] *= scale.view(-1, 1, 1)
    inner.bias[:AUDIO_CHANNELS] *= scale
    weight = outer.weight_v * (
        outer.weight_g / torch.linalg.vector_norm(outer.weight_v, dim=(1, 2), keepdim=True)
    )
    _set(outer, weight / scale.view(1, -1, 1))


def _components(rows: Tensor, count: int) -> Tensor:
    """[B, L, N] -> [N, at most count]: principal directions of the uncentred rows, the strongest first."""
    if rows.shape[-1] <= count:
        return torch.eye(rows.shape[-1])
    flat = rows.flatten(0, 1).double()
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    return vectors.flip(-1)[:, :count].float()


def _set(conv, weight: Tensor) -> None:
    """Store a weight as length and direction."""
    weight = weight + TINY * torch.randn_like(weight)
    conv.weight_v.copy_(weight)
    conv.weight_g.copy_(torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True))


def padded(waveform: Tensor, latents: int) -> Tensor:
    """[B, 2, S] continued with silence to so many latents."""
    return F.pad(waveform, (0, latents * SAMPLES_PER_LATENT - waveform.shape[-1]))
