"""Our text encoder as a ComfyUI CLIP, so that stock CLIPTextEncode and everything behind it works.

Loading reads headers, settings and the tokeniser; the weights wait for words whose features are not on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_management
import comfy.sd
import torch
from torch import nn

from ..conditioning.feature_cache import encoder_identity, tokenizer_fingerprint
from ..conditioning.negative import default_negative
from ..conditioning.text import encode_ids, tokenize
from ..conditioning.tokenizer import EMBEDDED_NAMES, Tokenizer, find_tokenizer
from ..model.text_encoder import T5GemmaConfig, T5GemmaEncoder
from ..model_loading import builder
from ..model_loading.checkpoint import Checkpoint, open_checkpoint
from ..model_loading.precision import PRECISIONS, PrecisionPolicy
from .feature_cache import CachedClip, EncoderWeights, open_cache
from .quantised import load_weights
from .transformer import layers_for

KEY = "t5gemma"  # of our token lists in the host's dict
EMPTY_KEY = "t5gemma_empty"  # the same for an empty text, which stands for the default negative prompt
EMPTY = "happyhorse_empty_prompt"  # in a conditioning made of an empty text


class HostTextEncoder(nn.Module):
    """What a CLIP calls: token lists in, rows of features out."""

    def __init__(self, config: T5GemmaConfig, dtype: torch.dtype, layers):
        super().__init__()
        self.dtypes = {dtype}
        self.dtype = dtype
        with torch.device("meta"):
            self.transformer = T5GemmaEncoder(config, ops=layers, dtype=dtype)
        self.device = None

    def set_clip_options(self, options):
        self.device = options.get("execution_device", self.device)

    def reset_clip_options(self):
        self.device = None

    def encode_token_weights(self, tokens):
        """{"t5gemma": [[(id, weight), …]]} -> [1, Lt, D], None, extras: no weights, no pooled output."""
        ids, extras = read_tokens(tokens)
        device = self.device or comfy.model_management.text_encoder_device()
        rows = encode_ids(
            ids,
            lambda batch: self.transformer(batch.to(device)),
            half_precision_rows=self.dtype == torch.bfloat16,
        )
        rows = rows[None].to(comfy.model_management.intermediate_device())
        return rows, None, extras

    def load_sd(self, weights):
        load_weights(self.transformer, weights)
        self.requires_grad_(False)
        return [], []  # names that were missing or unknown ended in an error before

    def memory_estimation_function(self, tokens, device=None):
        """Bytes of activations: a few float32 copies of the widest layer for each token."""
        count = sum(len(chunk) for chunks in tokens.values() for chunk in chunks)
        return count * self.transformer.config.intermediate_size * 4 * 6


class HostTokenizer:
    """What a CLIP calls to make tokens; brackets and colons in a prompt are text, not weights.

    An empty text becomes the default negative prompt and is marked: as a negative it is used, and the sampler
    says so; as a positive it is refused.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def tokenize_with_weights(self, text, return_word_ids=False, **_):
        is_empty = not text.strip()
        ids = tokenize(default_negative() if is_empty else text, self.tokenizer)
        pairs = [
            (token, 1.0, place) if return_word_ids else (token, 1.0) for place, token in enumerate(ids, 1)
        ]
        return {EMPTY_KEY if is_empty else KEY: [pairs]}

    def untokenize(self, tokens):
        return [(token, "") for token in tokens]

    def state_dict(self):
        return {}


class _Target:
    """What comfy.sd.CLIP asks for: how to make the model and the tokeniser."""

    def __init__(self, config: T5GemmaConfig, dtype: torch.dtype, layers, tokenizer):
        self.params = {}
        self.clip = lambda device=None, dtype=dtype, model_options=None: HostTextEncoder(
            config, self.dtype, layers
        )
        self.tokenizer = lambda embedding_directory=None, tokenizer_data=None: HostTokenizer(tokenizer)
        self.dtype = dtype


@dataclass(frozen=True, slots=True)
class _Encoder:
    """What is known of an encoder before its weights are read."""

    path: str
    checkpoint: Checkpoint
    config: T5GemmaConfig
    policy: PrecisionPolicy

    @classmethod
    def open(cls, path: str, precision: str) -> _Encoder:
        """Raises CheckpointError for what is missing, incomplete or of another model."""
        checkpoint = builder.open_kind(path, "text_encoder")
        # As in the host's own encoders, activations are never quantised: it runs once a prompt.
        policy = replace(PRECISIONS[precision], products="weights")
        encoder = cls(path, checkpoint, builder.text_encoder_config(checkpoint), policy)
        builder.check_weights(encoder.outline(), checkpoint)
        return encoder

    def outline(self) -> T5GemmaEncoder:
        """The network without memory."""
        with torch.device("meta"):
            return T5GemmaEncoder(self.config, dtype=self.policy.dtype)

    def identity(self, tokenizer: str, device: str) -> str:
        """What its features are kept under; ``tokenizer`` is a fingerprint."""
        kind = "cpu" if device == "cpu" else comfy.model_management.text_encoder_device().type
        return encoder_identity(
            self.checkpoint,
            self.config,
            tokenizer,
            precision=self.policy.name,
            dtype=self.policy.dtype,
            device=kind,
        )

    def read(self, tokenizer: Tokenizer | None, device: str, disable_dynamic: bool = False) -> comfy.sd.CLIP:
        """The host's own CLIP, with the weights."""
        network = self.outline()
        weights = builder.read_weights(network, self.checkpoint, self.policy, "text_encoder")
        options = {"dtype": self.policy.dtype, "initial_device": torch.device("cpu")}
        if device == "cpu":
            options["load_device"] = options["offload_device"] = torch.device("cpu")
        target = _Target(self.config, self.policy.dtype, layers_for(weights, self.policy), tokenizer)
        clip = comfy.sd.CLIP(
            target,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            state_dict=[weights],
            model_options=options,
            disable_dynamic=disable_dynamic,
        )
        clip.patcher.cached_patcher_init = (_load_again, (self.path, self.policy.name, device))
        return clip


def load_clip(
    path: str, precision: str, tokenizer_file: str | None, device: str, cache: str = "on"
) -> CachedClip:
    """A CLIP for the T5Gemma encoder at ``path``; ``device`` is "default" or "cpu", ``cache`` "on" or "off"."""
    stored = open_checkpoint(path)
    embedded = {name: stored.read(name) for name in EMBEDDED_NAMES if name in stored.names}
    named = None if tokenizer_file is None else Path(tokenizer_file)
    encoder = _Encoder.open(path, precision)
    tokenizer = find_tokenizer(Path(path), embedded, named, rows=encoder.config.vocab_size)
    tokens = tokenizer_fingerprint(Path(path), embedded, named)

    def read() -> tuple[comfy.sd.CLIP, str]:
        fresh = _Encoder.open(path, precision)
        return fresh.read(tokenizer, device), fresh.identity(tokens, device)

    source = EncoderWeights(encoder.identity(tokens, device), read)
    return CachedClip(source, HostTokenizer(tokenizer), open_cache() if cache == "on" else None, read_tokens)


def read_tokens(tokens: dict) -> tuple[list[int], dict]:
    """The ids of ``HostTokenizer``'s token lists, and what a conditioning says of such a text."""
    is_empty = EMPTY_KEY in tokens
    ids = [token[0] for chunk in tokens[EMPTY_KEY if is_empty else KEY] for token in chunk]
    return ids, {EMPTY: True} if is_empty else {}


def _load_again(path: str, precision: str, device: str, disable_dynamic=False):
    return _Encoder.open(path, precision).read(None, device, disable_dynamic).patcher
