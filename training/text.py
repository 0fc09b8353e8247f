"""The tokeniser: sentencepiece on the demo set's own prompts, with the fixed phrases as pieces of their own."""

from __future__ import annotations

import io
import re

import torch
from torch import Tensor

from ..conditioning.negative import DELIVERY_FAULTS, PICTURE_FAULTS, SOUND_FAULTS
from ..conditioning.tokenizer import SentencePieceTokenizer
from .clips import clip_of
from .words import LANGUAGES, WORDS

PIECES = 820  # at most: 256 of them single bytes, so that every text has tokens
FIXED = (
    "\n\nBackground Sound:\n<No prominent background sound>",
    "\n\nDialogue:\n<",
    *(f'{language}>: "' for language in LANGUAGES),
)


def train_tokenizer(seed: int, clips: int = 4000) -> bytes:
    """A ``tokenizer.model`` in which the prompts' words are one piece each."""
    import sentencepiece

    prompts = [clip_of(seed + i, 25 + 24 * (i % 4)).prompt for i in range(clips)]
    prompts += [clip_of(seed + i, 49, faces=2).prompt for i in range(clips // 5)]
    lines = [line for text in prompts for line in text.split("\n") if line]
    lines += [word for words in WORDS.values() for word in words] * 20
    faults = [phrase for group in (PICTURE_FAULTS, SOUND_FAULTS, DELIVERY_FAULTS) for phrase in group]
    fixed = [*FIXED, *(f", {phrase}" for phrase in faults), faults[0]]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=[phrase.replace(" ", "▁") for phrase in fixed],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def token_rows(tokenizer: SentencePieceTokenizer, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """[B, N] ids, zeros after each prompt's own, and [B] their counts."""
    ids = [tokenizer.encode(text) for text in prompts]
    counts = torch.tensor([len(row) for row in ids])
    rows = torch.zeros(len(ids), int(counts.max()), dtype=torch.long)
    for row, own in zip(rows, ids, strict=True):
        row[: len(own)] = torch.tensor(own)
    return rows, counts


def spoken_words(prompt: str) -> list[str]:
    """The quoted lines of a prompt's dialogue."""
    return re.findall(r'>: "([^"]*)"', prompt)
