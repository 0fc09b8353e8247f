"""The Wan 2.2 video autoencoder: films to latents and back, a few frames at a time.

Letters: B batch, F = time_stride*(T-1)+1 frames, H and W pixels, T latent frames, h and w latent cells.
The parameters have the names of the published weight file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import GeometryError
from ..shapes import VIDEO_CHANNELS
from .pixel_patches import PIXEL_CHANNELS, patch_size, patchify, unpatchify
from .tensor_shapes import TensorShapes
from .video_latent import check_latent, denormalise, normalise
from .video_vae_layers import (
    Downsample,
    Head,
    Middle,
    Past,
    ResidualBlock,
    Upsample,
    causal,
    mean_shortcut,
    repeat_shortcut,
    stream,
)


@dataclass(frozen=True, slots=True)
class StageConfig:
    """One stage: residual blocks, then a resampling of space and time by 1 or 2."""

    in_channels: int
    channels: int
    blocks: int
    space: int
    time: int

    @property
    def volume(self) -> int:
        """Pixels of the finer side for each of the coarser."""
        return self.time * self.space**2


@dataclass(frozen=True, slots=True)
class WanConfig:
    """Every size of the network, stages in the order they run."""

    encoder: tuple[StageConfig, ...]
    decoder: tuple[StageConfig, ...]
    latent_channels: int
    patch: int

    @property
    def space_stride(self) -> int:
        """Pixels per latent cell."""
        return self.patch * math.prod(stage.space for stage in self.encoder)

    @property
    def time_stride(self) -> int:
        """Frames per latent frame, after the first."""
        return math.prod(stage.time for stage in self.encoder)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> WanConfig:
        """The sizes of the network whose tensors have these names and shapes.

        Raises CheckpointError with the tensor's name where they do not make a whole network.
        """
        tensors = TensorShapes("Wan 2.2 VAE", shapes)
        _, patch_channels = tensors.channels("encoder.conv1.weight", 5)
        latent_channels, _ = tensors.channels("conv2.weight", 5)
        patch = patch_size(patch_channels)
        if not patch:
            raise tensors.wrong(
                "encoder.conv1.weight", f"takes no square patches of {PIXEL_CHANNELS} colours"
            )
        if latent_channels != VIDEO_CHANNELS:
            raise tensors.wrong("conv2.weight", f"does not take the {VIDEO_CHANNELS} channels of our latents")
        config = cls(
            encoder=_stages(tensors, "encoder.downsamples", "downsamples"),
            decoder=_stages(tensors, "decoder.upsamples", "upsamples"),
            latent_channels=latent_channels,
            patch=patch,
        )
        _check_shortcuts(tensors, config)
        tensors.verify(lambda: Wan22VAE(config))
        return config


def _stages(tensors: TensorShapes, root: str, inner: str) -> tuple[StageConfig, ...]:
    """The stages below ``root``: in each, numbered blocks and last, if at all, the resampling."""
    stages = []
    for number in range(tensors.children(root)):
        prefix = f"{root}.{number}.{inner}"
        last = tensors.children(prefix) - 1
        resamples = tensors.has(f"{prefix}.{last}.resample")
        resamples_time = tensors.has(f"{prefix}.{last}.time_conv")
        channels, in_channels = tensors.channels(f"{prefix}.0.residual.2.weight", 5)
        blocks = last if resamples or resamples_time else last + 1
        stages.append(
            StageConfig(in_channels, channels, blocks, 2 if resamples else 1, 2 if resamples_time else 1)
        )
    return tuple(stages)


def _check_shortcuts(tensors: TensorShapes, config: WanConfig) -> None:
    """Raise CheckpointError where a stage's channels do not divide, or the halves resample differently."""
    for number, stage in enumerate(config.encoder):
        if stage.in_channels * stage.volume % stage.channels:
            name = f"encoder.downsamples.{number}.downsamples.0.residual.2.weight"
            raise tensors.wrong(name, "does not fit the stage's shortcut")
    for number, stage in enumerate(config.decoder):
        if stage.channels * stage.volume % stage.in_channels and stage.volume > 1:
            name = f"decoder.upsamples.{number}.upsamples.0.residual.2.weight"
            raise tensors.wrong(name, "does not fit the stage's shortcut")
    for factor in ("space", "time"):
        down, up = (
            math.prod(getattr(stage, factor) for stage in stages)
            for stages in (config.encoder, config.decoder)
        )
        if down != up:
            raise tensors.wrong(
                "conv2.weight",
                f"joins an encoder and a decoder that differ in {factor}: one divides by {down}, one multiplies by {up}",
            )


class Wan22VAE(nn.Module):
    """Encoder and decoder. Works in ``dtype``; ``ops`` gives the convolutions.

    Both directions keep only the last frames that each layer still needs, so memory does not grow with the
    length of the film (the result does). What they make is, as in the reference, what one whole pass makes.
    """

    def __init__(self, config: WanConfig, *, ops=nn, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config, self.dtype = config, dtype
        both = 2 * config.latent_channels
        self.encoder = Encoder(config, ops=ops, dtype=dtype)
        self.conv1 = ops.Conv3d(both, both, 1, dtype=dtype)
        self.conv2 = ops.Conv3d(config.latent_channels, config.latent_channels, 1, dtype=dtype)
        self.decoder = Decoder(config, ops=ops, dtype=dtype)
        self.requires_grad_(False)  # a recorded graph would keep every frame

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, F, H, W] in [-1, 1] to the normalised latent [B, 48, T, h, w] in float32.

        The mean of the posterior: nothing is drawn. Raises GeometryError unless F = time_stride*k + 1 and
        the sides are multiples of space_stride.
        """
        self._check_pixels(pixels)
        stride = self.config.time_stride
        lengths = [1] + [stride] * ((pixels.shape[2] - 1) // stride)
        pieces = (patchify(piece.to(self.dtype), self.config.patch) for piece in pixels.split(lengths, dim=2))
        mean = [
            self.conv1(moments)[:, : self.config.latent_channels] for moments in stream(self.encoder, pieces)
        ]
        return normalise(torch.cat(mean, dim=2)).float()

    def decode(self, latent: Tensor) -> Tensor:
        """The normalised latent [B, 48, T, h, w] to pixels [B, 3, F, H, W] in [-1, 1], in ``dtype``."""
        return torch.cat(list(self.decode_chunks(latent)), dim=2)

    def decode_chunks(self, latent: Tensor) -> Iterator[Tensor]:
        """``decode``, a latent frame at a time: one frame first, then time_stride frames each time."""
        check_latent(latent)
        pieces = (self.conv2(denormalise(piece.to(self.dtype))) for piece in latent.split(1, dim=2))
        for patches in stream(self.decoder, pieces):
            yield unpatchify(patches, self.config.patch).clamp(-1, 1)

    def _check_pixels(self, pixels: Tensor) -> None:
        time, space = self.config.time_stride, self.config.space_stride
        if pixels.ndim != 5 or pixels.shape[1] != PIXEL_CHANNELS or 0 in pixels.shape:
            raise GeometryError(
                f"A film is [B, {PIXEL_CHANNELS}, F, H, W]; this one is {list(pixels.shape)}."
            )
        frames, height, width = pixels.shape[2:]
        if (frames - 1) % time:
            below = (frames - 1) // time * time + 1
            raise GeometryError(
                f"{frames} frames cannot be encoded: counts are {time}k+1, the nearest are {below} and {below + time}."
            )
        if height % space or width % space:
            raise GeometryError(
                f"{width}x{height} pixels cannot be encoded: both sides must be multiples of {space}; "
                f"the nearest size below is {width // space * space}x{height // space * space}."
            )


class Encoder(nn.Module):
    """Patches [B, C, F, H, W] to mean and variance [B, 96, T, h, w]."""

    def __init__(self, config: WanConfig, *, ops, dtype: torch.dtype):
        super().__init__()
        outside = PIXEL_CHANNELS * config.patch**2
        first, last = config.encoder[0].in_channels, config.encoder[-1].channels
        self.conv1 = ops.Conv3d(outside, first, 3, padding=(0, 1, 1), dtype=dtype)
        self.downsamples = nn.ModuleList(EncoderStage(stage, ops, dtype) for stage in config.encoder)
        self.middle = Middle(last, ops, dtype)
        self.head = Head(last, 2 * config.latent_channels, ops, dtype)

    def forward(self, patches: Tensor, past: Past) -> Tensor:
        x = causal(self.conv1, patches, past)
        for stage in self.downsamples:
            x = stage(x, past)
        return self.head(self.middle(x, past), past)


class Decoder(nn.Module):
    """Raw latents [B, 48, T, h, w] to patches [B, C, F, H, W]."""

    def __init__(self, config: WanConfig, *, ops, dtype: torch.dtype):
        super().__init__()
        outside = PIXEL_CHANNELS * config.patch**2
        first, last = config.decoder[0].in_channels, config.decoder[-1].channels
        self.conv1 = ops.Conv3d(config.latent_channels, first, 3, padding=(0, 1, 1), dtype=dtype)
        self.middle = Middle(first, ops, dtype)
        self.upsamples = nn.ModuleList(DecoderStage(stage, ops, dtype) for stage in config.decoder)
        self.head = Head(last, outside, ops, dtype)

    def forward(self, latent: Tensor, past: Past) -> Tensor:
        x = self.middle(causal(self.conv1, latent, past), past)
        for stage in self.upsamples:
            x = stage(x, past)
        return self.head(x, past)


class EncoderStage(nn.Module):
    """Residual blocks and a downsampling, beside the stage's input shrunk to the same shape."""

    def __init__(self, stage: StageConfig, ops, dtype: torch.dtype):
        super().__init__()
        self.stage = stage
        self.downsamples = _blocks(stage, ops, dtype)
        if stage.volume > 1:
            self.downsamples.append(Downsample(stage.channels, stage.time == 2, ops, dtype))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        y = x
        for layer in self.downsamples:
            y = layer(y, past)
        return y + mean_shortcut(x, self.stage.channels, self.stage.time, self.stage.space)


class DecoderStage(nn.Module):
    """Residual blocks and an upsampling, beside the stage's input grown to the same shape.

    The stage that does not upsample has nothing beside it; the encoder's has.
    """

    def __init__(self, stage: StageConfig, ops, dtype: torch.dtype):
        super().__init__()
        self.stage = stage
        self.upsamples = _blocks(stage, ops, dtype)
        if stage.volume > 1:
            self.upsamples.append(Upsample(stage.channels, stage.time == 2, ops, dtype))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        y = x
        for layer in self.upsamples:
            y = layer(y, past)
        if self.stage.volume == 1:
            return y
        return y + repeat_shortcut(x, self.stage.channels, self.stage.time, self.stage.space, past)


def _blocks(stage: StageConfig, ops, dtype: torch.dtype) -> nn.ModuleList:
    widths = [stage.in_channels] + [stage.channels] * stage.blocks
    return nn.ModuleList(ResidualBlock(*widths[i : i + 2], ops, dtype) for i in range(stage.blocks))
