"""The text encoder's tokeniser: where it is found, and one face over the two libraries that read it.

A prompt is encoded bare: no begin token, no end token, no padding, no cut (the reference's tokeniser is
configured so). Control tokens that a person types, such as ``<eos>``, are ordinary text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..errors import ConditioningError, missing_package

logger = logging.getLogger(__name__)

EMBEDDED_NAMES = ("spiece_model", "tokenizer_json")  # uint8 tensors, named as ComfyUI names them
FILE_NAMES = ("tokenizer.json", "tokenizer.model")


class Tokenizer(Protocol):
    """Text to token ids."""

    @property
    def vocab_size(self) -> int:
        """The highest id, plus one."""

    def encode(self, text: str) -> list[int]:
        """The ids of ``text`` and nothing around them."""

    def tail(self, text: str, keep: int) -> str:
        """The words of ``text`` that are lost when only the first ``keep`` ids are kept."""


class JsonTokenizer:
    """A ``tokenizer.json``, read with the library tokenizers."""

    def __init__(self, data: bytes):
        try:
            import tokenizers
        except ImportError:
            raise missing_package("tokenizers", "Reading a tokenizer.json") from None
        self._library = tokenizers.Tokenizer.from_buffer(data)
        self._library.no_padding()
        self._library.no_truncation()
        self._library.encode_special_tokens = True  # that is, as the text they are
        self.vocab_size = max(self._library.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        return self._library.encode(text, add_special_tokens=False).ids

    def tail(self, text: str, keep: int) -> str:
        return _tail(
            self.encode(text), keep, lambda ids: self._library.decode(ids, skip_special_tokens=False)
        )


class SentencePieceTokenizer:
    """A ``tokenizer.model``, read with the library sentencepiece."""

    # Gemma's model declares its turn markers as words a person may write, and the library has no switch for
    # that. No piece joins "<" to what follows here, so a cut behind it leaves the plain encoding unchanged.
    _inside_marker = re.compile(r"(?<=<)(?=(?:start|end)_of_turn>)")

    def __init__(self, data: bytes):
        try:
            import sentencepiece
        except ImportError:
            raise missing_package("sentencepiece", "Reading a tokenizer.model") from None
        self._library = sentencepiece.SentencePieceProcessor()
        self._library.LoadFromSerializedProto(data)
        self.vocab_size = self._library.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        return [
            token for part in self._inside_marker.split(text) for token in self._library.EncodeAsIds(part)
        ]

    def tail(self, text: str, keep: int) -> str:
        return _tail(self.encode(text), keep, self._library.DecodeIds)


def load_tokenizer(source: bytes | Path, *, name: str = "the tokeniser") -> Tokenizer:
    """Read a tokeniser from its bytes or its file; the content decides which library reads it.

    ``name`` stands for the bytes in messages. Raises ConditioningError for what cannot be read, and
    HappyHorseError where the library is not installed.
    """
    if isinstance(source, Path):
        name = str(source)
        try:
            source = source.read_bytes()
        except OSError as error:
            raise ConditioningError(f"The tokeniser {name} cannot be read: {error.strerror}.") from None
    kind = JsonTokenizer if source.lstrip().startswith(b"{") else SentencePieceTokenizer
    try:
        return kind(source)
    except (ValueError, RuntimeError) as error:  # what the two libraries raise
        form = "tokenizer.json" if kind is JsonTokenizer else "sentencepiece tokenizer.model"
        raise ConditioningError(
            f"{name} ({len(source)} bytes) was read as a {form} and is broken: {error}. "
            "Download the file that was published with the text encoder again."
        ) from None


def find_tokenizer(
    weights: Path,
    embedded: Mapping[str, bytes | Tensor],
    named: Path | None = None,
    *,
    rows: int | None = None,
) -> Tokenizer:
    """The tokeniser of the text encoder in ``weights``, a file or a folder; never a guess.

    The first of: a tensor of ``embedded`` (uint8, by the names ``spiece_model`` and ``tokenizer_json``),
    ``tokenizer.json`` or ``tokenizer.model`` beside the file or in the folder, the file ``named`` by the
    user. ``rows`` is how many tokens the encoder's embedding knows. Raises ConditioningError where there is
    none, where it is broken, and where it has more entries than ``rows``.
    """
    folder = weights if weights.is_dir() else weights.parent
    inside = [(f"the tensor {key} in {weights}", embedded[key]) for key in EMBEDDED_NAMES if key in embedded]
    beside = [folder / name for name in FILE_NAMES]
    files = [path for path in [*beside, *([named] if named else [])] if path.is_file()]
    if inside:
        place, tensor = inside[0]
        tokenizer = load_tokenizer(_as_bytes(tensor), name=place)
    elif files:
        place = str(files[0])
        tokenizer = load_tokenizer(files[0])
    else:
        raise ConditioningError(
            f"No tokeniser was found for the text encoder {weights}. Looked for a tensor "
            f"{' or '.join(EMBEDDED_NAMES)} inside it, for {' and '.join(map(str, beside))}, and for a file named "
            f"by hand ({f'{named} is not there' if named else 'none is named'}). Put the tokenizer.json that was "
            f"published with the text encoder into {folder}, or name its path."
        )
    if named is not None and place != str(named):
        logger.warning("The tokeniser %s is not used, because %s comes before it.", named, place)
    if rows is not None and tokenizer.vocab_size > rows:
        raise ConditioningError(
            f"The tokeniser {place} has {tokenizer.vocab_size} entries and the text encoder knows {rows}: they do "
            "not belong together. Use the tokeniser that was published with this text encoder."
        )
    if rows is not None and tokenizer.vocab_size < rows:
        logger.warning(
            "The tokeniser %s has %d entries and the text encoder knows %d; is it this text encoder's?",
            place,
            tokenizer.vocab_size,
            rows,
        )
    logger.info("Tokeniser: %s (%d entries)", place, tokenizer.vocab_size)
    return tokenizer


def _as_bytes(data: bytes | Tensor) -> bytes:
    return data.cpu().numpy().tobytes() if isinstance(data, Tensor) else bytes(data)


def _tail(ids: list[int], keep: int, decode: Callable[[list[int]], str]) -> str:
    # A cut inside a character that is spelled in bytes (at most 4) would show as U+FFFD: begin at its first.
    for start in range(keep, max(keep - 4, -1), -1):
        text = decode(ids[start:])
        if not text.startswith("\N{REPLACEMENT CHARACTER}"):
            return text
    return decode(ids[keep:])
