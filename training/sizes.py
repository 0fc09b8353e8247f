"""The sizes of the demo set's networks: the published structures at widths of a few dozen."""

from __future__ import annotations

from ..model.audio_vae import OobleckConfig, StackConfig
from ..model.config import BlockSpec, TransformerConfig
from ..model.text_encoder import T5GemmaConfig
from ..model.turbo_decoder import TurboConfig, TurboStage
from ..model.video_vae import StageConfig, WanConfig
from ..shapes import AUDIO_CHANNELS, VIDEO_CHANNELS

WAN = WanConfig(
    encoder=(
        StageConfig(16, 16, 1, space=2, time=1),
        StageConfig(16, 32, 1, space=2, time=2),
        StageConfig(32, 64, 1, space=2, time=2),
        StageConfig(64, 64, 1, space=1, time=1),
    ),
    decoder=(
        StageConfig(64, 64, 1, space=2, time=2),
        StageConfig(64, 64, 1, space=2, time=2),
        StageConfig(64, 32, 1, space=2, time=1),
        StageConfig(32, 16, 1, space=1, time=1),
    ),
    latent_channels=VIDEO_CHANNELS,
    patch=2,
)
TURBO = TurboConfig(
    latent_channels=VIDEO_CHANNELS,
    middle_blocks=1,
    stages=(
        TurboStage(64, 64, 1, doubles_space=True, doubles_time=True),
        TurboStage(64, 64, 1, doubles_space=True, doubles_time=True),
        TurboStage(64, 32, 1, doubles_space=True, doubles_time=False),
        TurboStage(32, 16, 1, doubles_space=False, doubles_time=False),
    ),
    patch=2,
)
OOBLECK = OobleckConfig(
    audio_channels=2,
    latent_channels=AUDIO_CHANNELS,
    encoder=StackConfig((8, 8, 16, 32, 64, 128), (2, 4, 4, 8, 8)),
    decoder=StackConfig((128, 64, 32, 16, 8, 8), (8, 8, 4, 4, 2)),
)
TEXT_SIZE = 128


def text_encoder(pieces: int) -> T5GemmaConfig:
    """The text encoder for a tokeniser of so many pieces."""
    return T5GemmaConfig(
        vocab_size=pieces,
        hidden_size=TEXT_SIZE,
        intermediate_size=256,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        sliding_layers=(True, False),
        sliding_window=4096,
        query_pre_attn_scalar=32,
        softcap=50.0,
        rope_theta=10_000.0,
        eps=1e-6,
    )


def transformer(hidden: int, heads: int, coordinates: str = "v2") -> TransformerConfig:
    """Eight layers: weights per modality in the first and last two, GELU7 in the first two, as published."""
    inner = 4 * (hidden * 8 // 3 // 4)
    first, last = BlockSpec(True, "gelu7", 2 * hidden), BlockSpec(True, "swiglu7", inner)
    shared = BlockSpec(False, "swiglu7", inner)
    return TransformerConfig(
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=heads // 2,
        head_dim=32,
        video_features=4 * VIDEO_CHANNELS,
        audio_features=AUDIO_CHANNELS,
        text_features=TEXT_SIZE,
        bands=4,
        blocks=(first, first, shared, shared, shared, shared, last, last),
        coordinates=coordinates,
    )


BASE = transformer(128, 4)
SUPER_RESOLUTION = transformer(64, 2, "v1")
