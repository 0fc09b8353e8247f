"""Training of the super-resolution transformer: from an enlarged, noised latent to the latent of the larger picture.

The sampler of that stage starts from the enlarged base latent, noised again, and calls its noise level one. So
the flow that is learnt runs from there, x = (1 - sigma) large + sigma start with the velocity start - large, and
not from pure noise. Letters: B clips, T latent frames, h and w latent cells of the larger picture, L audio latents.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..conditioning.tokenizer import SentencePieceTokenizer
from ..model.audio_vae import OobleckVAE
from ..model.text_encoder import T5GemmaEncoder
from ..model.transformer import JointTransformer
from ..model.video_vae import Wan22VAE
from ..sampling.streams import Streams
from ..sampling.super_resolution import SuperResolution, prepare
from . import sizes
from .batched import velocities
from .clips import clip_of
from .joint import Lots, encode_text, new_transformer, noise_levels, sampler_levels, stacked_parts
from .latents import Shelf, shelve
from .loop import Work, named, train
from .optimiser import Optimisers

CLIPS, FRAMES, SCALE = 320, 25, 2
FIRST_SEED = 60_000_000
STEPS = 5  # of the sampler
BASE_NOISE = 0.15  # what a sampled base latent may be wrong by
COUNT = 12  # of a batch


def new_super_resolution(work: Work) -> JointTransformer:
    return new_transformer(sizes.SUPER_RESOLUTION, work.seed + 2)


def train_super_resolution(
    work: Work,
    vae: Wan22VAE,
    sound: OobleckVAE,
    encoder: T5GemmaEncoder,
    tokenizer: SentencePieceTokenizer,
    steps: int,
) -> JointTransformer:
    """The network that doubles the size; the text encoder stays as it is."""
    small, large = _shelves(work, vae, sound, tokenizer)
    network = new_super_resolution(work)
    parameters = named(transformer=network)
    parts = {f"transformer.{name}": count for name, count in stacked_parts(network).items()}
    optimisers = Optimisers(
        parameters, lr=0.02, adam_lr=3e-3, steps=steps, parts=parts, plain=("embed", "final_linear"), rise=40
    )
    lots = Lots(levels=(*sampler_levels(STEPS), *np.linspace(0.1, 0.95, 6).tolist()))

    def loss_of(step: int) -> Tensor:
        lot = np.random.default_rng([work.seed, step])
        rows = torch.from_numpy(lot.choice(len(small), COUNT))
        base, audio, ids, counts = small.batch(rows, work.device)
        target = large.video[rows].to(work.device).float()
        start = enlarged(base + BASE_NOISE * torch.randn_like(base), audio, target)
        sigma = noise_levels(lot, COUNT, lots).to(work.device).view(-1, 1, 1, 1, 1)
        seen = target + sigma * (start.video - target)
        is_picture = torch.tensor(lot.random(COUNT) < 0.2).to(work.device).view(-1, 1, 1, 1, 1)
        seen[:, :, :1] = torch.where(is_picture, target[:, :, :1], seen[:, :, :1])
        with torch.autocast(work.device.type, torch.bfloat16):
            with torch.no_grad():
                text = encode_text(encoder, ids, counts)
            made, _ = velocities(network, seen, start.audio, text, counts)
        # The error of the picture that follows from the velocity: late steps need not be exact.
        error = (made.float() - (start.video - target)).square() * (0.2 + sigma)
        return error.mean()

    train(work, "super_resolution", parameters, optimisers, loss_of)
    return network


def enlarged(base: Tensor, audio: Tensor, target: Tensor) -> Streams:
    """What the sampler starts from, for a batch: base [B, 48, T, ..] and audio [B, 64, L] to ``target``'s size."""
    noise = Streams(torch.randn_like(target), torch.randn_like(audio))
    return prepare(Streams(base, audio), *target.shape[-2:], noise, SuperResolution())


def _shelves(work: Work, vae: Wan22VAE, sound: OobleckVAE, tokenizer) -> tuple[Shelf, Shelf]:
    """The same clips at both sizes."""
    done = work.path("shelf_super_resolution.pt")
    if not done.is_file():
        clips = [clip_of(FIRST_SEED + i, FRAMES) for i in range(CLIPS)]
        shelves = [shelve(clips, vae, sound, tokenizer, scale, group=4) for scale in (1, SCALE)]
        torch.save(shelves, done)
    small, large = torch.load(done, weights_only=False)
    return small, large
