"""The Oobleck audio autoencoder of Stable Audio Open 1.0: stereo at 51 200 Hz to latents and back.

Letters: B batch, S samples, L = floor(S / 2048) latents, C channels. Always float32, as in the reference.
The parameters have the names of the published weight file below ``pretransform.model.``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import GeometryError
from .tensor_shapes import TensorShapes

DILATIONS = (1, 3, 9)  # of a block's residual units


@dataclass(frozen=True, slots=True)
class StackConfig:
    """One half: the widths between its blocks and the stride of each block, in the order they run."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OobleckConfig:
    """Every size of the network."""

    audio_channels: int
    latent_channels: int
    encoder: StackConfig
    decoder: StackConfig

    @property
    def samples_per_latent(self) -> int:
        return math.prod(self.encoder.strides)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> OobleckConfig:
        """The sizes of the network whose tensors have these names and shapes; other tensors are ignored.

        Raises CheckpointError with the tensor's name where they do not make a whole network.
        """
        tensors = TensorShapes("Oobleck audio VAE", shapes)
        width, audio_channels = tensors.channels("encoder.layers.0.weight_v", 3)
        encoder = _stack(tensors, "encoder", width, conv=4, out_dim=0)
        width, latent_channels = tensors.channels("decoder.layers.0.weight_v", 3)
        decoder = _stack(tensors, "decoder", width, conv=1, out_dim=1)
        config = cls(audio_channels, latent_channels, encoder, decoder)
        if math.prod(encoder.strides) != math.prod(decoder.strides):
            raise tensors.wrong(
                "decoder.layers.0.weight_v",
                f"begins a decoder of {math.prod(decoder.strides)} samples a latent; "
                f"the encoder has {math.prod(encoder.strides)}",
            )
        tensors.verify(lambda: OobleckVAE(config))
        return config


def _stack(tensors: TensorShapes, half: str, width: int, conv: int, out_dim: int) -> StackConfig:
    """A half's blocks, which lie between its first convolution and its last snake and convolution.

    ``conv`` is the number of the strided convolution in a block, ``out_dim`` the dimension of its output
    channels; its kernel is twice its stride.
    """
    weights = [
        f"{half}.layers.{number}.layers.{conv}.weight_v"
        for number in range(1, tensors.children(f"{half}.layers") - 2)
    ]
    widths = [width] + [tensors.channels(name, 3)[out_dim] for name in weights]
    return StackConfig(tuple(widths), tuple(tensors[name][2] // 2 for name in weights))


class OobleckVAE(nn.Module):
    """Encoder and decoder. No tanh and no clipping at the end: loud sound may leave [-1, 1]."""

    def __init__(self, config: OobleckConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.requires_grad_(False)

    def encode_moments(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 2, S] at 51 200 Hz to the mean and the raw scale of its latents, [B, 64, L] each.

        Samples after the last whole latent are dropped. Raises GeometryError for other shapes or less than
        one latent of sound.
        """
        channels, stride = self.config.audio_channels, self.config.samples_per_latent
        if waveform.ndim != 3 or waveform.shape[1] != channels or 0 in waveform.shape:
            raise GeometryError(f"A sound is [B, {channels}, S]; this one is {list(waveform.shape)}.")
        if waveform.shape[2] < stride:
            raise GeometryError(
                f"A sound of {waveform.shape[2]} samples is shorter than one latent, which is {stride} samples."
            )
        mean, scale = self.encoder(waveform.float()).chunk(2, dim=1)
        return mean, scale

    def encode(self, waveform: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, 2, S] at 51 200 Hz to latents [B, 64, L]: the mean, or a draw where ``noise`` [B, 64, L] is given.

        A draw is mean + (softplus(scale) + 1e-4) * noise. The reference draws; the mean is cleaner.
        """
        mean, scale = self.encode_moments(waveform)
        if noise is None:
            return mean
        if noise.shape != mean.shape:
            raise GeometryError(f"The noise {list(noise.shape)} does not fit the latents {list(mean.shape)}.")
        return mean + (F.softplus(scale) + 1e-4) * noise

    def decode(self, latent: Tensor) -> Tensor:
        """Latents [B, 64, L] to the waveform [B, 2, 2048*L] at 51 200 Hz."""
        if latent.ndim != 3 or latent.shape[1] != self.config.latent_channels or 0 in latent.shape:
            raise GeometryError(
                f"An audio latent is [B, {self.config.latent_channels}, L]; this one is {list(latent.shape)}."
            )
        return self.decoder(latent.float())


class Encoder(nn.Module):
    """[B, 2, S] -> [B, 128, L]"""

    def __init__(self, config: OobleckConfig):
        super().__init__()
        widths, strides = config.encoder.widths, config.encoder.strides
        self.layers = nn.Sequential(
            NormConv1d(config.audio_channels, widths[0], 7, padding=3),
            *[EncoderBlock(*widths[i : i + 2], stride) for i, stride in enumerate(strides)],
            Snake(widths[-1]),
            NormConv1d(widths[-1], 2 * config.latent_channels, 3, padding=1),
        )

    def forward(self, waveform: Tensor) -> Tensor:
        return self.layers(waveform)


class Decoder(nn.Module):
    """[B, 64, L] -> [B, 2, S]"""

    def __init__(self, config: OobleckConfig):
        super().__init__()
        widths, strides = config.decoder.widths, config.decoder.strides
        self.layers = nn.Sequential(
            NormConv1d(config.latent_channels, widths[0], 7, padding=3),
            *[DecoderBlock(*widths[i : i + 2], stride) for i, stride in enumerate(strides)],
            Snake(widths[-1]),
            NormConv1d(widths[-1], config.audio_channels, 7, padding=3, bias=False),
        )

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent)


class EncoderBlock(nn.Module):
    """Residual units, then a strided convolution: [B, C, S] -> [B, C', floor(S / stride)] for even strides."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.layers = nn.Sequential(
            *[ResidualUnit(in_channels, dilation) for dilation in DILATIONS],
            Snake(in_channels),
            NormConv1d(in_channels, channels, 2 * stride, stride=stride, padding=math.ceil(stride / 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DecoderBlock(nn.Module):
    """A strided transposed convolution, then residual units: [B, C, S] -> [B, C', S*stride] for even strides."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.layers = nn.Sequential(
            Snake(in_channels),
            NormConvTranspose1d(in_channels, channels, stride),
            *[ResidualUnit(channels, dilation) for dilation in DILATIONS],
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ResidualUnit(nn.Module):
    """x + conv1(snake(conv7(snake(x)))), the wide convolution dilated."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.layers = nn.Sequential(
            Snake(channels),
            NormConv1d(channels, channels, 7, padding=3 * dilation, dilation=dilation),
            Snake(channels),
            NormConv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Snake(nn.Module):
    """x + sin^2(e^alpha x) / (e^beta + 1e-9), with alpha and beta per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        frequency, height = self.alpha.exp().unsqueeze(-1), self.beta.exp().unsqueeze(-1)
        return x + (x * frequency).sin().square() / (height + 1e-9)


class NormConv1d(nn.Module):
    """A convolution whose weight is stored as a length and a direction for each output channel."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.weight_g = nn.Parameter(torch.ones(channels, 1, 1))
        self.weight_v = nn.Parameter(torch.zeros(channels, in_channels, kernel))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight = scaled_directions(self.weight_g, self.weight_v)
        return F.conv1d(x, weight, self.bias, self.stride, self.padding, self.dilation)


class NormConvTranspose1d(nn.Module):
    """A transposed convolution, kernel twice the stride, with a length and a direction per *input* channel."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.stride, self.padding = stride, math.ceil(stride / 2)
        self.weight_g = nn.Parameter(torch.ones(in_channels, 1, 1))
        self.weight_v = nn.Parameter(torch.zeros(in_channels, channels, 2 * stride))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight = scaled_directions(self.weight_g, self.weight_v)
        return F.conv_transpose1d(x, weight, self.bias, self.stride, self.padding)


def scaled_directions(length: Tensor, direction: Tensor) -> Tensor:
    """length * direction / |direction|, with the norm over all dimensions but the first.

    A direction of zeros has no norm to divide by and stays zero, where 0/0 would spread NaN over the sound.
    """
    norm = torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True)
    return direction * (length / torch.where(norm > 0, norm, 1))
