"""The published 15B network with random weights, made on the device; in bfloat16, in 8 bits, or tiny."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import HappyHorseError
from ...kernels.registry import forced
from ...model.config import BlockSpec, TransformerConfig
from ...model_loading.precision import PRECISIONS
from ...model_loading.quantised_layers import QuantisedLinear
from ...shapes import VIDEO_CHANNELS
from .stand_in import provide_einops

EDGE = 4  # layers with weights per modality at each end
GLOBAL_LAYERS = frozenset(range(3, 32, 4))  # of the 1080p network; the others are local
# The order ComfyUI 0.33 gives torch [performance.md, section 0.4].
HOST_ORDER = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class Clip(NamedTuple):
    """One stage of five seconds: pixels, latent frames, tokens of sound and text, steps, and whether it is local."""

    width: int
    height: int
    frames: int
    audio: int
    text: int
    steps: int
    is_local: bool

    @property
    def tokens(self) -> int:
        return self.frames * (self.width // 32) * (self.height // 32) + self.audio + self.text


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is."""

    is_tiny: bool
    config: TransformerConfig
    clips: dict[str, Clip]


def scale(*, tiny: bool) -> Scale:
    """The published sizes, or ones that a processor walks through in seconds."""
    width, layers, depth, heads, keys, features = (
        (64, 6, 16, 4, 2, 64) if tiny else (5120, 40, 128, 40, 8, 3584)
    )
    edge = 1 if tiny else EDGE
    swiglu = width * 4 * 2 // 3 // 4 * 4
    first, last = BlockSpec(True, "gelu7", 4 * width), BlockSpec(True, "swiglu7", swiglu)
    shared = BlockSpec(False, "swiglu7", swiglu)
    config = TransformerConfig(
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=keys,
        head_dim=depth,
        video_features=4 * VIDEO_CHANNELS,
        audio_features=64,
        text_features=features,
        bands=depth // 8,
        blocks=(first,) * edge + (shared,) * (layers - 2 * edge) + (last,) * edge,
        window=1 if tiny else 11,
    )
    if tiny:
        clips = {
            "odd": Clip(96, 64, 1, 3, 2, 1, False),
            "256p": Clip(64, 64, 2, 5, 4, 2, False),
            "540p": Clip(96, 64, 2, 5, 4, 1, False),
            "1080p": Clip(96, 96, 4, 13, 4, 1, True),
        }
    else:
        clips = {
            "odd": Clip(320, 256, 3, 9, 68, 1, False),  # 317 tokens
            "256p": Clip(448, 256, 32, 126, 400, 8, False),
            "540p": Clip(896, 512, 32, 126, 400, 5, False),
            "1080p": Clip(1920, 1088, 32, 126, 400, 5, True),
        }
    return Scale(tiny, config, clips)


def with_local_layers(config: TransformerConfig) -> TransformerConfig:
    """As the 1080p checkpoint is used: all but every fourth layer look at a window of frames."""
    blocks = (
        replace(spec, is_local=number not in GLOBAL_LAYERS) for number, spec in enumerate(config.blocks)
    )
    return replace(config, blocks=tuple(blocks), coordinates="v1")


class Networks:
    """The networks of one run; all share what can be shared."""

    def __init__(self, sizes: Scale, device: torch.device, precision: str):
        provide_einops()
        self.sizes, self.device, self.precision = sizes, device, precision
        self._made: dict[str, nn.Module] = {}

    def get(self, kind: str, *, local: bool = False) -> nn.Module:
        """``kind`` is "bf16" or "8-bit". Weights are the same for both values of ``local``."""
        if kind not in self._made:
            made = self._random() if kind == "bf16" else self._quantised(self.get("bf16"))
            self._made[kind] = made.requires_grad_(False).eval()
        network = self._made[kind]
        config = with_local_layers(self.sizes.config) if local else self.sizes.config
        network.config = config
        for block, spec in zip(network.block.layers, config.blocks, strict=True):
            block.attention.is_local = spec.is_local
        return network

    def prepare(self) -> None:
        """Make both now, so that no first call counts it; what 8 bits lack is said by the rows that need them."""
        self.get("bf16")
        with suppress(HappyHorseError):
            self.get("8-bit")

    def _random(self) -> nn.Module:
        from ...model.transformer import JointTransformer

        with torch.device("meta"):
            network = JointTransformer(self.sizes.config)
        bands = network.adapter.rope.bands.shape
        network = network.to_empty(device=self.device)
        random = torch.Generator(self.device).manual_seed(2026)
        with torch.no_grad():
            for parameter in network.parameters():
                size = parameter.shape[1] ** -0.5 if parameter.ndim == 2 else 0.1
                parameter.normal_(0, size, generator=random)
            count = bands[0]
            network.adapter.rope.bands.copy_(10_000.0 ** (-torch.arange(count, device=self.device) / count))
        return network

    def _quantised(self, network: nn.Module) -> nn.Module:
        from ...model.transformer import JointTransformer

        policy = PRECISIONS[self.precision]
        with torch.device("meta"):
            copy = JointTransformer(self.sizes.config)
        for name, module in network.named_modules():
            if not name:
                continue
            parent, _, leaf = name.rpartition(".")
            if isinstance(module, nn.Linear) and name.startswith("block."):
                stored = QuantisedLinear(policy.quantise(module.weight), policy.products)
                setattr(copy.get_submodule(parent), leaf, stored)
            elif not list(module.children()):
                setattr(copy.get_submodule(parent), leaf, module)
        return copy


def eight_bit(device: torch.device) -> str:
    """The precision that is fastest where the card has FP8 units, and the one for all others."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        return "int8"
    return "fp8_fast"


@contextmanager
def as_host():
    """What ComfyUI does with these layers today: every operation by its definition, FlashAttention before cuDNN."""
    with forced("definition"), sdpa_kernel(HOST_ORDER, set_priority=True):
        yield


def inputs(clip: Clip, config: TransformerConfig, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random video [C, T, h, w], audio [C, L] and text [N, D]: zeros would run faster."""
    video = torch.randn(VIDEO_CHANNELS, clip.frames, clip.height // 16, clip.width // 16, device=device)
    audio = torch.randn(config.audio_features, clip.audio, device=device)
    return video, audio, torch.randn(clip.text, config.text_features, device=device)


def flops(config: TransformerConfig, clip: Clip) -> tuple[float, float]:
    """(of the products, of attention) in one pass through all layers."""
    products = attention = 0.0
    frame = (clip.width // 32) * (clip.height // 32)
    video, rest = clip.frames * frame, clip.audio + clip.text
    for spec in config.blocks:
        products += 2 * clip.tokens * parameters(config, spec)
        pairs = clip.tokens**2
        if spec.is_local:
            near = sum(
                min(i + config.window + 1, clip.frames) - max(i - config.window, 0)
                for i in range(clip.frames)
            )
            pairs = frame * frame * near + video * rest + rest * clip.tokens
        attention += 4 * pairs * config.num_heads * config.head_dim
    return products, attention


def parameters(config: TransformerConfig, spec: BlockSpec) -> int:
    """Of the projections a token meets in one layer."""
    up = spec.inner_size * (2 if spec.activation == "swiglu7" else 1)
    return config.hidden_size * (sum(config.qkvg_split) + config.qkvg_split[0] + up + spec.inner_size)
