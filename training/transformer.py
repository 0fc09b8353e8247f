"""The stages that train the joint transformers: the base with its text encoder, then what continues from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..conditioning.negative import default_negative
from ..conditioning.tokenizer import SentencePieceTokenizer
from ..model.text_encoder import T5GemmaEncoder
from ..model.transformer import JointTransformer
from . import sizes
from .distil import Distillation, Pair
from .joint import (
    Lots,
    choose,
    count_for,
    encode_text,
    flow_loss,
    new_text_encoder,
    new_transformer,
    sampler_levels,
    stacked_parts,
)
from .latents import Shelf
from .loop import Work, named, train
from .optimiser import Optimisers
from .peers import ALONE, Peers

TOKENS = 4_800  # of a batch, in round numbers
# Embeddings and heads have rows of their own meaning; what Muon does to them is not wanted.
PLAIN = ("embed", "final_linear")
STEPS = 8  # of the re-noising preset
GUIDANCE = 2.0  # of the teacher: without it, every fifth film was silent
PICTURE, VOICE = 0.25, 0.2  # shares of the samples in which a first frame or a voice is given


def networks_of(work: Work, tokenizer: SentencePieceTokenizer) -> tuple[JointTransformer, T5GemmaEncoder]:
    """The base transformer and the text encoder as they begin."""
    config = sizes.text_encoder(tokenizer.vocab_size)
    return new_transformer(sizes.BASE, work.seed), new_text_encoder(config, work.seed + 1)


def train_base(
    work: Work,
    shelves: Sequence[Shelf],
    weights: Sequence[float],
    tokenizer: SentencePieceTokenizer,
    steps: int,
    peers: Peers = ALONE,
    tokens: int = TOKENS,
) -> tuple[JointTransformer, T5GemmaEncoder]:
    """Transformer and text encoder, together, on clips of ``shelves``, each taken with its weight."""
    network, encoder = networks_of(work, tokenizer)
    parameters = named(transformer=network, text=encoder)
    optimisers = _optimisers(network, parameters, steps, 0.02, 3e-3, peers)
    _run(work, "base", network, encoder, parameters, optimisers, shelves, weights, tokenizer, Lots(), tokens)
    return network, encoder


def continue_distilled(
    work: Work,
    network: JointTransformer,
    encoder: T5GemmaEncoder,
    shelves: Sequence[Shelf],
    weights: Sequence[float],
    tokenizer: SentencePieceTokenizer,
    steps: int,
    peers: Peers = ALONE,
    tokens: int = TOKENS // 2,
) -> None:
    """Distil ``network`` in place for the noise levels of the re-noising preset.

    The text encoder stays as it is: both checkpoints share one.
    """
    parameters = named(transformer=network)
    optimisers = _optimisers(network, parameters, steps, 0.01, 1.5e-3, peers)
    negative = torch.tensor([tokenizer.encode(default_negative())])
    with torch.no_grad():
        away = encode_text(encoder, negative, torch.tensor([negative.shape[1]]))[0].to(work.device)
    distillation = Distillation(network, sampler_levels(STEPS), away, GUIDANCE)
    sums: dict[str, list[float]] = {"video": [], "audio": []}

    def loss_of(step: int) -> Tensor:
        shelf = shelves[choose(shelves, weights, np.random.default_rng([work.seed, step, 7]))]
        lot = np.random.default_rng([work.seed, step, peers.rank, 7])
        torch.manual_seed(int(lot.integers(2**31)))
        distillation.follow()
        rows = lot.choice(np.flatnonzero(shelf.is_plain.numpy()), count_for(shelf, tokens // peers.count))
        video, audio, ids, counts = shelf.batch(torch.from_numpy(rows), work.device)
        is_picture, is_voice = (
            torch.tensor(lot.random(len(rows)) < share).to(work.device) for share in (PICTURE, VOICE)
        )
        with torch.no_grad(), torch.autocast(work.device.type, torch.bfloat16):
            text = encode_text(encoder, ids, counts)
        loss, parts = distillation.loss(Pair(video, audio), is_picture, is_voice, text, counts, lot)
        for name, value in parts.items():
            sums[name].append(value)
        return loss

    train(
        work,
        "distilled",
        parameters,
        optimisers,
        loss_of,
        decay=0.98,
        check=lambda: {f"{name}_loss": float(np.mean(values[-50:])) for name, values in sums.items()},
        check_every=25,
        save_every=25,
        peers=peers,
    )


def _optimisers(network, parameters, steps: int, lr: float, adam_lr: float, peers: Peers) -> Optimisers:
    parts = {f"transformer.{name}": count for name, count in stacked_parts(network).items()}
    return Optimisers(
        parameters, lr=lr, adam_lr=adam_lr, steps=steps, parts=parts, plain=PLAIN, rise=40, peers=peers
    )


def _run(work, stage, network, encoder, parameters, optimisers, shelves, weights, tokenizer, lots, tokens):
    negative = torch.tensor([tokenizer.encode(default_negative())])
    peers = optimisers.peers
    sums: dict[str, list[float]] = {"video": [], "audio": []}

    def loss_of(step: int) -> Tensor:
        # The size is drawn by all peers alike, or some would wait for others.
        shelf = shelves[choose(shelves, weights, np.random.default_rng([work.seed, step]))]
        lot = np.random.default_rng([work.seed, step, peers.rank])
        torch.manual_seed(int(lot.integers(2**31)))
        is_negative = np.random.default_rng([work.seed, step, 99]).random() < lots.negative
        share = replace(lots, negative=1.0 if is_negative else 0.0)
        count = count_for(shelf, tokens // peers.count)
        loss, parts = flow_loss(network, encoder, shelf, count, lot, share, negative, work.device)
        if not is_negative and len(shelf) == len(shelves[0]):
            for name, value in parts.items():
                sums[name].append(value)
        return loss

    def check() -> dict[str, float]:
        numbers = {f"{name}_loss": float(np.mean(values[-100:] or [0])) for name, values in sums.items()}
        return numbers

    train(work, stage, parameters, optimisers, loss_of, check=check, check_every=25, peers=peers)
