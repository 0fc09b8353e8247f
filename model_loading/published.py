"""The sizes of the published networks, for plans that are made before any file is there."""

from __future__ import annotations

from dataclasses import replace

from ..model.audio_vae import OobleckConfig, StackConfig
from ..model.config import VARIANTS, BlockSpec, TransformerConfig
from ..model.text_encoder import T5GemmaConfig
from ..model.turbo_decoder import TurboConfig, TurboStage
from ..model.video_vae import StageConfig, WanConfig

LAYERS, EDGE = 40, 4  # of which the first and last four have weights per modality

TEXT_ENCODER = T5GemmaConfig(
    vocab_size=256_000,
    hidden_size=3_584,
    intermediate_size=14_336,
    num_heads=16,
    num_kv_heads=8,
    head_dim=256,
    sliding_layers=(True, False) * 21,
    sliding_window=4_096,
    query_pre_attn_scalar=256,
    softcap=50.0,
    rope_theta=10_000.0,
    eps=1e-6,
)
WAN = WanConfig(
    encoder=(
        StageConfig(160, 160, 2, 2, 1),
        StageConfig(160, 320, 2, 2, 2),
        StageConfig(320, 640, 2, 2, 2),
        StageConfig(640, 640, 2, 1, 1),
    ),
    decoder=(
        StageConfig(1024, 1024, 3, 2, 2),
        StageConfig(1024, 1024, 3, 2, 2),
        StageConfig(1024, 512, 3, 2, 1),
        StageConfig(512, 256, 3, 1, 1),
    ),
    latent_channels=48,
    patch=2,
)
TURBO = TurboConfig(
    latent_channels=48,
    middle_blocks=3,
    stages=(
        TurboStage(512, 512, 3, True, True),
        TurboStage(512, 256, 2, True, True),
        TurboStage(256, 128, 2, True, False),
        TurboStage(128, 64, 2, False, False),
    ),
    patch=2,
)
OOBLECK = OobleckConfig(
    audio_channels=2,
    latent_channels=64,
    encoder=StackConfig((128, 128, 256, 512, 1024, 2048), (2, 4, 4, 8, 8)),
    decoder=StackConfig((2048, 1024, 512, 256, 128, 128), (8, 8, 4, 4, 2)),
)


def transformer(variant: str) -> TransformerConfig:
    """The 15B network of this variant."""
    row = VARIANTS[variant]
    blocks = []
    for layer in range(LAYERS):
        first, last = layer < EDGE, layer >= LAYERS - EDGE
        is_local = row.global_layers is not None and layer not in row.global_layers
        kind = ("gelu7", 20_480) if first else ("swiglu7", 13_652)
        blocks.append(BlockSpec(first or last, *kind, is_local))
    base = TransformerConfig(5_120, 40, 8, 128, 192, 64, 3_584, 16, tuple(blocks))
    return replace(base, coordinates=row.coordinates, window=row.window)
