"""The layers of the Turbo decoder, which take a window whole or in pieces along time.

``forward`` is the definition. ``stream`` makes the same frames from an iterator of pieces, each as soon as the
frames it depends on have come, and keeps only what later frames still see: two frames a convolution. Joined,
its pieces equal ``forward``.

Letters: B batch, C channels, T frames at the layer's own rate, H and W rows and columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

NORM_EPS = 1e-8

# Pieces go from layer to layer through map(), and names are deleted before each yield: whatever a waiting
# generator still names stays in memory, one piece for every layer.
Pieces = Iterator[Tensor]  # of [B, C, T, H, W] along T, none of them empty


class Upsampler(nn.Module):
    """Doubles time where ``doubles_time``, then rows and columns."""

    def __init__(self, channels: int, doubles_time: bool, ops, dtype: torch.dtype):
        super().__init__()
        self.resample = nn.ModuleDict({"1": ops.Conv2d(channels, channels, 3, padding=1, dtype=dtype)})
        self.time_conv = EdgeConv3d(channels, 2 * channels, (3, 1, 1), ops, dtype) if doubles_time else None

    def forward(self, x: Tensor, is_first: bool) -> Tensor:
        if self.time_conv is not None:
            x = _interleaved(self.time_conv(x))
            x = x[:, :, 1:] if is_first else x  # the film's first latent is one frame, not four
        return self._enlarged(x)

    def stream(self, pieces: Pieces, is_first: bool, piece_bytes: int) -> Pieces:
        """Makes pieces of at most ``piece_bytes``, but of one frame at least."""
        if self.time_conv is not None:
            pieces = map(_interleaved, self.time_conv.stream(pieces))
            pieces = _without_first_frame(pieces) if is_first else pieces
        return map(self._enlarged, smaller(pieces, piece_bytes // 4))

    def _enlarged(self, x: Tensor) -> Tensor:
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
        return self.conv2(norm_silu(y)) + self._shortcut(x)

    def stream(self, pieces: Pieces) -> Pieces:
        kept: deque[Tensor] = deque()  # the input that waits for the frames beside it

        def entered(piece: Tensor) -> Tensor:
            kept.append(piece)
            return self.activation(channel_norm(piece, NORM_EPS))

        def joined(y: Tensor) -> Tensor:
            return y + self._shortcut(_take(kept, y.shape[2]))

        inner = self.conv1.stream(map(entered, pieces))
        return map(joined, self.conv2.stream(map(norm_silu, inner)))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.conv_shortcut is None:
            return x
        return self.conv_shortcut(channel_norm(x, self.shortcut_eps))


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

    def stream(self, pieces: Pieces) -> Pieces:
        seen: list[Tensor] = []  # one tensor: the frames that are not done with
        for piece in pieces:
            seen[:] = [torch.cat([*(seen or [piece[:, :, :1]] * self.margin), piece], dim=2)]
            del piece
            if seen[0].shape[2] > 2 * self.margin:
                yield self._known(seen)
        if self.margin:
            after = [seen[0][:, :, -1:]] * self.margin
            yield self.conv(torch.cat([seen.pop(), *after], dim=2))

    def _known(self, seen: list[Tensor]) -> Tensor:
        """The frames that those in ``seen`` decide; what later ones will see stays in it."""
        joined = seen.pop()
        if self.margin:
            seen.append(joined[:, :, -2 * self.margin :].clone())  # a view would keep the whole piece
        return self.conv(joined)


def norm_silu(y: Tensor) -> Tensor:
    """What stands before a convolution, except where an upsampling stage has ReLU."""
    return F.silu(channel_norm(y, NORM_EPS))


def channel_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean of x^2 over channels + eps), in float32 or better and rounded once to x's dtype."""
    precision = torch.promote_types(x.dtype, torch.float32)
    square = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=precision).square() / x.shape[1]
    # Written straight into x's dtype: at 1080p a float32 copy of a bf16 window would be several GB.
    return torch.mul(x, torch.rsqrt(square + eps), out=torch.empty_like(x))


def smaller(pieces: Pieces, most: float) -> Pieces:
    """The same frames in pieces of at most ``most`` bytes, but of one frame at least."""
    for piece in pieces:
        frame = piece[:, :, :1].numel() * piece.element_size()
        yield from piece.split(max(1, int(most // frame)), dim=2)


def _interleaved(pairs: Tensor) -> Tensor:
    """[B, 2C, T, H, W], even frames in the first half of the channels, odd ones in the second -> [B, C, 2T, H, W]"""
    return rearrange(pairs, "b (two c) t h w -> b c (t two) h w", two=2)


def _without_first_frame(pieces: Pieces) -> Pieces:
    """For pieces of two frames or more."""
    yield next(pieces)[:, :, 1:]
    yield from pieces


def _take(kept: deque[Tensor], count: int) -> Tensor:
    """The oldest ``count`` frames, taken out of ``kept``."""
    parts = []
    while count:
        piece = kept.popleft()
        parts.append(piece[:, :, :count])
        if piece.shape[2] > count:
            kept.appendleft(piece[:, :, count:])
        count -= parts[-1].shape[2]
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
