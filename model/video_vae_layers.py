"""The causal layers of the Wan 2.2 video autoencoder, which take a film whole or in pieces.

Letters: B batch, C channels, T frames at the layer's own rate, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Past:
    """What the layers remember of a film's frames so far. One for each film and network; see ``stream``."""

    def __init__(self) -> None:
        self.is_start = True  # no frame has passed yet: frame 0 is treated alone by the time resampling
        self._frames: dict[nn.Module, Tensor] = {}

    def prepend(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """[B, C, T, H, W] -> [B, C, count+T, H, W]: the frames ``layer`` saw last, then ``x``.

        What lies before the first frame is zero.
        """
        if count == 0:
            return x
        before = self._frames.get(layer)
        if before is None:
            before = x.new_zeros(*x.shape[:2], count, *x.shape[3:])
        joined = torch.cat([before, x], dim=2)
        self._frames[layer] = joined[:, :, -count:].clone()  # a view would keep the whole piece in memory
        return joined


def stream(network: Callable[[Tensor, Past], Tensor], pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """What ``network`` makes of a film that comes in pieces along time; joined, it equals one whole pass."""
    past = Past()
    for piece in pieces:
        yield network(piece, past)
        past.is_start = False


def causal(conv: nn.Module, x: Tensor, past: Past) -> Tensor:
    """A 3-D convolution that sees no frame later than the one it makes."""
    return conv(past.prepend(conv, x, conv.kernel_size[0] - 1))


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer of pictures over every frame of [B, C, T, H, W]."""
    frames = layer(rearrange(x, "b c t h w -> (b t) c h w"))
    return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])


def space_time_to_depth(x: Tensor, time: int, space: int) -> Tensor:
    """[B, C, T*time, H*space, W*space] -> [B, C*time*space^2, T, H, W]; channel phases time, row, column."""
    return rearrange(x, "b c (t p) (h q) (w r) -> b (c p q r) t h w", p=time, q=space, r=space)


def depth_to_space_time(x: Tensor, time: int, space: int) -> Tensor:
    """The inverse of ``space_time_to_depth``."""
    return rearrange(x, "b (c p q r) t h w -> b c (t p) (h q) (w r)", p=time, q=space, r=space)


def mean_shortcut(x: Tensor, channels: int, time: int, space: int) -> Tensor:
    """[B, C, T, H, W] past an encoder stage: space and time to depth, then means of neighbouring channels.

    A film of odd length gets one zero frame in front, so that frame 0 stays alone.
    """
    if x.shape[2] % time:
        x = F.pad(x, (0, 0, 0, 0, 1, 0))
    return space_time_to_depth(x, time, space).unflatten(1, (channels, -1)).mean(dim=2)


def repeat_shortcut(x: Tensor, channels: int, time: int, space: int, past: Past) -> Tensor:
    """[B, C, T, H, W] past a decoder stage: each channel repeated in place, then depth to space and time.

    Frame 0 becomes one frame, not ``time``: the first ones are dropped at the film's start.
    """
    repeats = channels * time * space**2 // x.shape[1]
    x = depth_to_space_time(x.repeat_interleave(repeats, dim=1), time, space)
    return x[:, :, time - 1 :] if past.is_start else x


class ChannelNorm(nn.Module):
    """x / |x| * sqrt(C) * gamma, with the length |x| taken over channels and at least 1e-12."""

    def __init__(self, channels: int, rank: int, dtype: torch.dtype):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * rank, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1, eps=1e-12) * (self.gamma.to(x) * x.shape[1] ** 0.5)


class ResidualBlock(nn.Module):
    """Twice norm, SiLU and a 3x3x3 convolution, beside the input or its 1x1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, ops, dtype: torch.dtype):
        super().__init__()
        self.residual = nn.ModuleDict(  # the numbers are the checkpoint's
            {
                "0": ChannelNorm(in_channels, 3, dtype),
                "2": ops.Conv3d(in_channels, channels, 3, padding=(0, 1, 1), dtype=dtype),
                "3": ChannelNorm(channels, 3, dtype),
                "6": ops.Conv3d(channels, channels, 3, padding=(0, 1, 1), dtype=dtype),
            }
        )
        self.shortcut = (
            ops.Conv3d(in_channels, channels, 1, dtype=dtype) if in_channels != channels else nn.Identity()
        )

    def forward(self, x: Tensor, past: Past) -> Tensor:
        y = causal(self.residual["2"], F.silu(self.residual["0"](x)), past)
        y = causal(self.residual["6"], F.silu(self.residual["3"](y)), past)
        return y + self.shortcut(x)


class FrameAttention(nn.Module):
    """Single-head attention among the pixels of each frame, added to the input."""

    def __init__(self, channels: int, ops, dtype: torch.dtype):
        super().__init__()
        self.norm = ChannelNorm(channels, 2, dtype)
        self.to_qkv = ops.Conv2d(channels, 3 * channels, 1, dtype=dtype)
        self.proj = ops.Conv2d(channels, channels, 1, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x + per_frame(self._attend, x)

    def _attend(self, frames: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]"""
        qkv = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2)  # [N, H*W, 3C]
        q, k, v = (part.unsqueeze(1) for part in qkv.chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        return self.proj(mixed.unflatten(2, frames.shape[2:]))


class Downsample(nn.Module):
    """Halves rows and columns, and time where ``halves_time``; frame 0 stays alone in time."""

    def __init__(self, channels: int, halves_time: bool, ops, dtype: torch.dtype):
        super().__init__()
        self.resample = nn.ModuleDict({"1": ops.Conv2d(channels, channels, 3, stride=2, dtype=dtype)})
        self.time_conv = (
            ops.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1), dtype=dtype) if halves_time else None
        )

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = per_frame(lambda frames: self.resample["1"](F.pad(frames, (0, 1, 0, 1))), x)
        if self.time_conv is None:
            return x
        joined = past.prepend(self.time_conv, x, 1)
        if not past.is_start:
            return self.time_conv(joined)
        first, has_more = x[:, :, :1], x.shape[2] > 1
        return torch.cat([first, self.time_conv(x)], dim=2) if has_more else first


class Upsample(nn.Module):
    """Doubles rows and columns, and before that time where ``doubles_time``; frame 0 stays one frame."""

    def __init__(self, channels: int, doubles_time: bool, ops, dtype: torch.dtype):
        super().__init__()
        self.resample = nn.ModuleDict({"1": ops.Conv2d(channels, channels, 3, padding=1, dtype=dtype)})
        self.time_conv = ops.Conv3d(channels, 2 * channels, (3, 1, 1), dtype=dtype) if doubles_time else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        if self.time_conv is not None:
            x = self._double_time(x, past)
        return per_frame(lambda frames: self.resample["1"](F.interpolate(frames, scale_factor=2.0)), x)

    def _double_time(self, x: Tensor, past: Past) -> Tensor:
        # The convolution never sees frame 0: for frame 1 the two before it are zero.
        alone = 1 if past.is_start else 0
        first, rest = x[:, :, :alone], x[:, :, alone:]
        if rest.shape[2]:
            pairs = causal(self.time_conv, rest, past)  # even frames in the first C channels, odd in the last
            rest = rearrange(pairs, "b (two c) t h w -> b c (t two) h w", two=2)
        return torch.cat([first, rest], dim=2)


class Middle(nn.ModuleList):
    """What runs at the latent's size: a residual block, attention within frames, a residual block."""

    def __init__(self, channels: int, ops, dtype: torch.dtype):
        super().__init__(
            [
                ResidualBlock(channels, channels, ops, dtype),
                FrameAttention(channels, ops, dtype),
                ResidualBlock(channels, channels, ops, dtype),
            ]
        )

    def forward(self, x: Tensor, past: Past) -> Tensor:
        before, attention, after = self
        return after(attention(before(x, past)), past)


class Head(nn.ModuleDict):
    """The last norm, SiLU and 3x3x3 convolution of either half."""

    def __init__(self, channels: int, out_channels: int, ops, dtype: torch.dtype):
        super().__init__(  # the numbers are the checkpoint's
            {
                "0": ChannelNorm(channels, 3, dtype),
                "2": ops.Conv3d(channels, out_channels, 3, padding=(0, 1, 1), dtype=dtype),
            }
        )

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return causal(self["2"], F.silu(self["0"](x)), past)
