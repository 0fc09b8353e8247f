"""The Turbo video decoder: latents to films in overlapping windows, smaller and faster than the Wan decoder.

Letters: B batch, T latent frames, h and w latent cells, F = 4(T-1)+1 frames, H and W pixels.
The parameters have the names of the published weight file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import CheckpointError
from ..shapes import VIDEO_CHANNELS
from .pixel_patches import PIXEL_CHANNELS, patch_size, unpatchify
from .tensor_shapes import TensorShapes
from .video_latent import check_latent, denormalise

NORM_EPS = 1e-8
SHORTCUT_EPS = 1e-6  # what the published settings say
WINDOW = 7  # latents, likewise


class Window(NamedTuple):
    """Latents decoded together, and the frames of theirs that belong to the film."""

    start: int
    stop: int  # past the last latent; beyond the film's end the last latent is repeated
    is_first: bool
    drop_front: int  # frames
    drop_back: int  # frames


@dataclass(frozen=True, slots=True)
class TurboStage:
    """One stage: its width, its residual blocks, and whether it doubles space and time before them."""

    in_channels: int
    channels: int
    blocks: int
    doubles_space: bool
    doubles_time: bool


@dataclass(frozen=True, slots=True)
class TurboConfig:
    """Every size of the decoder, stages in the order they run."""

    latent_channels: int
    middle_blocks: int
    stages: tuple[TurboStage, ...]
    patch: int
    first_chunk: int = WINDOW  # latents
    step: int = WINDOW  # latents
    shortcut_eps: float = SHORTCUT_EPS

    @property
    def time_stride(self) -> int:
        """Frames per latent, after the first."""
        return 2 ** sum(stage.doubles_time for stage in self.stages)

    @classmethod
    def from_shapes(
        cls, shapes: Mapping[str, tuple[int, ...]], settings: Mapping | None = None
    ) -> TurboConfig:
        """The sizes of the decoder whose tensors have these names and shapes; other tensors are ignored.

        ``settings`` is the JSON file beside the weights; it says how long the windows are. Raises
        CheckpointError with the tensor's name where they do not make a whole decoder.
        """
        settings = settings or {}
        tensors = TensorShapes("Turbo decoder", shapes)
        _, latent_channels = tensors.channels("decoder.conv_in.conv.weight", 5)
        if latent_channels != VIDEO_CHANNELS:
            raise tensors.wrong(
                "decoder.conv_in.conv.weight", f"does not take the {VIDEO_CHANNELS} channels of our latents"
            )
        patch_channels, _ = tensors.channels("decoder.conv_out.conv.weight", 5)
        patch = patch_size(patch_channels)
        if not patch:
            raise tensors.wrong(
                "decoder.conv_out.conv.weight", f"makes no square patches of {PIXEL_CHANNELS} colours"
            )
        config = cls(
            latent_channels,
            tensors.children("decoder.mid_block.resnets"),
            tuple(_stage(tensors, i) for i in range(tensors.children("decoder.up_blocks"))),
            patch,
            settings.get("first_chunk_size", WINDOW),
            settings.get("step_size", WINDOW),
            settings.get("resnet_norm_eps", SHORTCUT_EPS),
        )
        tensors.verify(lambda: TurboDecoder(config))
        _check_settings(config, settings)
        return config

    def windows(self, frames: int) -> Iterator[Window]:
        """The windows of a latent of ``frames`` frames: together they make each frame of the film once.

        Each window but a lone one sees one latent more on the sides where the film goes on, and the frames
        of those latents are dropped. The last window is filled up by repeating the last latent.
        """
        later = max(0, -(-(frames - self.first_chunk) // self.step))  # windows after the first
        end = self.first_chunk + self.step * later
        filling = self.time_stride * (end - frames)
        for number in range(later + 1):
            is_first, is_last = number == 0, number == later
            stop = self.first_chunk + self.step * number
            yield Window(
                start=0 if is_first else stop - self.step - 1,
                stop=stop if is_last else stop + 1,
                is_first=is_first,
                drop_front=0 if is_first else self.time_stride,
                drop_back=filling if is_last else self.time_stride,
            )


def _stage(tensors: TensorShapes, number: int) -> TurboStage:
    prefix = f"decoder.up_blocks.{number}"
    channels, in_channels = tensors.channels(f"{prefix}.resnets.0.conv1.conv.weight", 5)
    if tensors.has(f"{prefix}.conv_in"):
        _, in_channels = tensors.channels(f"{prefix}.conv_in.conv1.conv.weight", 5)
    return TurboStage(
        in_channels=in_channels,
        channels=channels,
        blocks=tensors.children(f"{prefix}.resnets"),
        doubles_space=tensors.has(f"{prefix}.upsamplers"),
        doubles_time=tensors.has(f"{prefix}.upsamplers.0.time_conv"),
    )


def _check_settings(config: TurboConfig, settings: Mapping) -> None:
    """Raise CheckpointError where the JSON file describes another decoder than the weights."""
    stride = settings.get("temporal_compression_ratio", config.time_stride)
    if stride != config.time_stride:
        raise CheckpointError(
            f"The Turbo decoder's settings say {stride} frames per latent (temporal_compression_ratio), "
            f"its weights make {config.time_stride}. Use the JSON file that belongs to the weights."
        )
    if settings.get("decoder_causal"):
        raise CheckpointError(
            "The Turbo decoder's settings say decoder_causal: only decoders that look both ways can be run."
        )
    if min(config.first_chunk, config.step) < 1:
        raise CheckpointError(
            f"The Turbo decoder's settings give windows of {config.first_chunk} (first_chunk_size) and "
            f"{config.step} (step_size) latents; both must be 1 or more."
        )


class TurboDecoder(nn.Module):
    """The decoder. Works in ``dtype``; ``ops`` gives the convolutions. It has no encoder."""

    def __init__(self, config: TurboConfig, *, ops=nn, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.decoder = WindowDecoder(config, ops=ops, dtype=dtype)
        self.requires_grad_(False)  # a recorded graph would keep every window

    def decode(self, latent: Tensor) -> Tensor:
        """The normalised latent [B, 48, T, h, w] to pixels [B, 3, F, H, W] about [-1, 1], not clamped."""
        return torch.cat(list(self.decode_chunks(latent)), dim=2)

    def decode_chunks(self, latent: Tensor) -> Iterator[Tensor]:
        """``decode``, a window at a time, in memory that does not grow with the film."""
        check_latent(latent)
        last = latent.shape[2] - 1
        for window in self.config.windows(latent.shape[2]):
            frames = torch.arange(window.start, window.stop, device=latent.device).clamp(max=last)
            # Scaled in float32 and rounded once, as in the reference, unlike the Wan decoder.
            raw = denormalise(latent.index_select(2, frames).float()).to(self.dtype)
            pixels = self.decoder(raw, window.is_first)
            yield pixels[:, :, window.drop_front : pixels.shape[2] - window.drop_back]


class WindowDecoder(nn.Module):
    """Raw latents [B, 48, T, h, w] of one window to pixels: 4(T-1)+1 frames if it is the first, else 4T."""

    def __init__(self, config: TurboConfig, *, ops, dtype: torch.dtype):
        super().__init__()
        self.patch = config.patch
        first, last = config.stages[0].in_channels, config.stages[-1].channels
        self.conv_in = EdgeConv3d(config.latent_channels, first, (3, 3, 3), ops, dtype)
        self.mid_block = MiddleStage(first, config.middle_blocks, config.shortcut_eps, ops, dtype)
        self.up_blocks = nn.ModuleList(
            UpStage(stage, config.shortcut_eps, ops, dtype) for stage in config.stages
        )
        self.conv_out = EdgeConv3d(last, PIXEL_CHANNELS * config.patch**2, (3, 3, 3), ops, dtype)

    def forward(self, raw: Tensor, is_first: bool) -> Tensor:
        x = self.mid_block(self.conv_in(raw))
        for stage in self.up_blocks:
            x = stage(x, is_first)
        return unpatchify(self.conv_out(F.silu(channel_norm(x, NORM_EPS))), self.patch)


class MiddleStage(nn.Module):
    """Residual blocks at the latent's size."""

    def __init__(self, channels: int, blocks: int, shortcut_eps: float, ops, dtype: torch.dtype):
        super().__init__()
        self.resnets = nn.Sequential(
            *[ResidualBlock(channels, channels, F.silu, shortcut_eps, ops, dtype) for _ in range(blocks)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets(x)


class UpStage(nn.Module):
    """A change of width, an upsampling, then residual blocks."""

    def __init__(self, stage: TurboStage, shortcut_eps: float, ops, dtype: torch.dtype):
        super().__init__()
        width = stage.channels
        self.conv_in = (
            ResidualBlock(stage.in_channels, width, F.silu, shortcut_eps, ops, dtype)
            if stage.in_channels != width
            else nn.Identity()
        )
        self.upsamplers = nn.ModuleList(
            [Upsampler(width, stage.doubles_time, ops, dtype)] if stage.doubles_space else []
        )
        # The trained decoder has ReLU in just these blocks; the names and shapes do not show it.
        activation = F.relu if stage.doubles_space else F.silu
        self.resnets = nn.Sequential(
            *[ResidualBlock(width, width, activation, shortcut_eps, ops, dtype) for _ in range(stage.blocks)]
        )

    def forward(self, x: Tensor, is_first: bool) -> Tensor:
        x = self.conv_in(x)
        for upsampler in self.upsamplers:
            x = upsampler(x, is_first)
        return self.resnets(x)


class Upsampler(nn.Module):
    """Doubles time where ``doubles_time``, then rows and columns."""

    def __init__(self, channels: int, doubles_time: bool, ops, dtype: torch.dtype):
        super().__init__()
        self.resample = nn.ModuleDict({"1": ops.Conv2d(channels, channels, 3, padding=1, dtype=dtype)})
        self.time_conv = EdgeConv3d(channels, 2 * channels, (3, 1, 1), ops, dtype) if doubles_time else None

    def forward(self, x: Tensor, is_first: bool) -> Tensor:
        if self.time_conv is not None:
            # Even frames in the first half of the channels, odd ones in the second.
            x = rearrange(self.time_conv(x), "b (two c) t h w -> b c (t two) h w", two=2)
            x = x[:, :, 1:] if is_first else x  # the film's first latent is one frame, not four
        batch = x.shape[0]
        frames = F.interpolate(rearrange(x, "b c t h w -> (b t) c h w"), scale_factor=2.0)
        return rearrange(self.resample["1"](frames), "(b t) c h w -> b c t h w", b=batch)


class ResidualBlock(nn.Module):
    """Norm, activation, convolution, norm, SiLU, convolution, beside the input or its narrowed norm."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        activation: Callable[[Tensor], Tensor],
        shortcut_eps: float,
        ops,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.activation, self.shortcut_eps = activation, shortcut_eps
        self.conv1 = EdgeConv3d(in_channels, channels, (3, 3, 3), ops, dtype)
        self.conv2 = EdgeConv3d(channels, channels, (3, 3, 3), ops, dtype)
        self.conv_shortcut = (
            EdgeConv3d(in_channels, channels, (1, 1, 1), ops, dtype) if in_channels != channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.activation(channel_norm(x, NORM_EPS)))
        y = self.conv2(F.silu(channel_norm(y, NORM_EPS)))
        if self.conv_shortcut is None:
            return y + x
        return y + self.conv_shortcut(channel_norm(x, self.shortcut_eps))


class EdgeConv3d(nn.Module):
    """A convolution that sees the edge frames repeated before and after the window, and zeros around it."""

    def __init__(
        self, in_channels: int, channels: int, kernel: tuple[int, int, int], ops, dtype: torch.dtype
    ):
        super().__init__()
        self.margin = kernel[0] // 2  # frames
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        self.conv = ops.Conv3d(in_channels, channels, kernel, padding=padding, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.margin:
            before, after = ([frame] * self.margin for frame in (x[:, :, :1], x[:, :, -1:]))
            x = torch.cat([*before, x, *after], dim=2)
        return self.conv(x)


def channel_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean of x^2 over channels + eps), in float32 or better and rounded once to x's dtype."""
    precision = torch.promote_types(x.dtype, torch.float32)
    square = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=precision).square() / x.shape[1]
    # Written straight into x's dtype: at 1080p a float32 copy of a bf16 window would be several GB.
    return torch.mul(x, torch.rsqrt(square + eps), out=torch.empty_like(x))
