"""A prompt as rows of text features: encoded whole, then cut to what the network reads.

Letters: N tokens of the prompt, Lt rows kept, D features a row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConditioningError
from ..shapes import MAX_TEXT_TOKENS
from .tokenizer import Tokenizer

logger = logging.getLogger(__name__)

SHOWN = 400  # characters of lost words in a warning


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """What the network reads of one prompt."""

    rows: Tensor  # [Lt, D] float32
    tokens: int  # of the whole prompt, before the cut


def encode_prompt(
    prompt: str,
    tokenizer: Tokenizer,
    encoder: Callable[[Tensor], Tensor],
    *,
    limit: int = MAX_TEXT_TOKENS,
    half_precision_rows: bool = True,
) -> TextFeatures:
    """``tokenize`` and ``encode_ids`` in one."""
    ids = tokenize(prompt, tokenizer, limit=limit)
    rows = encode_ids(ids, encoder, limit=limit, half_precision_rows=half_precision_rows)
    return TextFeatures(rows, len(ids))


def tokenize(prompt: str, tokenizer: Tokenizer, *, limit: int = MAX_TEXT_TOKENS) -> list[int]:
    """All ids of ``prompt``; a warning names the words behind the first ``limit``, which will not be read.

    Raises ConditioningError for a prompt that is empty or not text.
    """
    check_prompt(prompt)
    ids = tokenizer.encode(prompt)
    if not ids:
        raise ConditioningError(
            f"The tokeniser makes no token of the prompt {prompt!r}; describe the film in words."
        )
    if len(ids) > limit:
        lost = tokenizer.tail(prompt, limit).strip()
        logger.warning(
            "The prompt has %d tokens and the network reads %d; %d are cut off at the end: %s",
            len(ids),
            limit,
            len(ids) - limit,
            lost if len(lost) <= SHOWN else f"{lost[:SHOWN]}… ({len(lost)} characters)",
        )
    return ids


def encode_ids(
    ids: Sequence[int],
    encoder: Callable[[Tensor], Tensor],
    *,
    limit: int = MAX_TEXT_TOKENS,
    half_precision_rows: bool = True,
) -> Tensor:
    """[Lt, D] float32 rows of ``encoder``, a callable [1, N] int64 ids on the CPU -> [1, N, D].

    The cut to ``limit`` rows comes after encoding, so the rows that stay have seen the words that go. With
    ``half_precision_rows`` the rows are rounded through float16, as the reference does. Raises
    ConditioningError for rows that are not finite.
    """
    rows = encoder(torch.tensor([list(ids)]))[0, :limit]
    if half_precision_rows:
        rows = rows.to(torch.float16)
    rows = rows.float()
    broken = int((~torch.isfinite(rows)).any(-1).sum())
    if broken:
        raise ConditioningError(
            f"{broken} of {len(rows)} rows of text features are not finite numbers; the text encoder's file is "
            "damaged, or its precision is too low for this device. Try bfloat16 or float32 for the text encoder."
        )
    return rows


def check_prompt(prompt: str) -> None:
    """Raise ConditioningError for a prompt that is empty or not text."""
    if not prompt.strip():
        raise ConditioningError("The prompt is empty; describe the film in words.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConditioningError(
            f"Character {error.start + 1} of the prompt is half a character (a lone surrogate, as broken copying "
            "leaves it); delete it and type it again."
        ) from None


def pad_or_trim(tensor: Tensor, size: int, dim: int, pad_value: float = 0.0) -> tuple[Tensor, int]:
    """``tensor`` made ``size`` long along ``dim``, at its end, and how many of its own entries were kept."""
    kept = min(tensor.shape[dim], size)
    tensor = tensor.narrow(dim, 0, kept)
    after = tensor.ndim - 1 - dim % tensor.ndim  # F.pad counts its pairs from the last dimension
    return F.pad(tensor, (0, 0) * after + (0, size - kept), value=pad_value), kept
