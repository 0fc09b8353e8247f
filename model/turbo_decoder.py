"""The Turbo video decoder: latents to films in overlapping windows, smaller and faster than the Wan decoder.

Letters: B batch, T latent frames, h and w latent cells, F = 4(T-1)+1 frames, H and W pixels.
The parameters have the names of the published weight file.

A window's later stages are the large ones: at 1080p one bf16 tensor of the third is 4.8 GB, and five live
together. Stages that are larger than ``piece_bytes`` therefore take the window in pieces along time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..shapes import VIDEO_CHANNELS
from .pixel_patches import PIXEL_CHANNELS, patch_size, unpatchify
from .tensor_shapes import TensorShapes
from .turbo_layers import EdgeConv3d, Pieces, ResidualBlock, Upsampler, norm_silu, smaller
from .video_latent import check_latent, denormalise

SHORTCUT_EPS = 1e-6  # what the published settings say
WINDOW = 7  # latents, likewise
PIECE_BYTES = 256 << 20  # two frames of the third stage at 1080p in bf16

# For ``working_bytes``; counted at the real sizes, see tests/model/test_turbo_decoder.py.
COPIES = 7  # of a stage's tensor live together
HELD_FRAMES = 7  # by a block that takes pieces: two for each convolution, three beside them


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
    """The decoder. Works in ``dtype``; ``ops`` gives the convolutions. It has no encoder.

    ``piece_bytes`` bounds one tensor of a stage's activations (None: nothing does). The film is the same
    within rounding, the memory is not; it may be changed at any time.
    """

    def __init__(
        self,
        config: TurboConfig,
        *,
        ops=nn,
        dtype: torch.dtype = torch.float32,
        piece_bytes: int | None = PIECE_BYTES,
    ):
        super().__init__()
        self.config, self.dtype, self.piece_bytes = config, dtype, piece_bytes
        self.decoder = WindowDecoder(config, ops=ops, dtype=dtype)
        self.requires_grad_(False)  # a recorded graph would keep every window

    def decode(self, latent: Tensor) -> Tensor:
        """The normalised latent [B, 48, T, h, w] to pixels [B, 3, F, H, W] about [-1, 1], not clamped."""
        return torch.cat(list(self.decode_chunks(latent)), dim=2)

    def decode_chunks(self, latent: Tensor) -> Iterator[Tensor]:
        """``decode``, a window at a time, in memory that does not grow with the film."""
        check_latent(latent)
        for window in self.config.windows(latent.shape[2]):
            yield self._pixels(latent, window)  # no name of ours keeps it while the next is decoded

    def working_bytes(self, shape: Sequence[int]) -> int:
        """What decoding a latent [B, 48, T, h, w] takes at its peak, beside the weights: never below a count of it."""
        config, batch = self.config, shape[0]
        frames = batch * max(window.stop - window.start for window in config.windows(shape[2]))
        cells = shape[3] * shape[4] * torch.empty((), dtype=self.dtype).element_size()
        size = config.stages[0].in_channels * frames * cells
        limit = float("inf") if self.piece_bytes is None else self.piece_bytes
        whole, held, piece = size, 0.0, 0.0
        for stage in config.stages:
            frames, cells = frames * 2**stage.doubles_time, cells * 4**stage.doubles_space
            size, before = stage.channels * frames * cells, size
            if not piece and max(size, before) <= limit:
                whole = max(whole, size)
                continue
            held = held or float(before)
            blocks = stage.blocks + (stage.in_channels != stage.channels)
            held += HELD_FRAMES * blocks * batch * size / frames
            piece = max(piece, min(size, max(limit, batch * size / frames)))
        pixels = PIXEL_CHANNELS * config.patch**2 * frames * cells
        return int(max(COPIES * whole, held + COPIES * piece) + 2 * pixels)

    def _pixels(self, latent: Tensor, window: Window) -> Tensor:
        """The window's own frames."""
        frames = torch.arange(window.start, window.stop, device=latent.device).clamp(max=latent.shape[2] - 1)
        # Scaled in float32 and rounded once, as in the reference, unlike the Wan decoder.
        raw = denormalise(latent.index_select(2, frames).float()).to(self.dtype)
        pixels = self.decoder(raw, window.is_first, self.piece_bytes)
        return pixels[:, :, window.drop_front : pixels.shape[2] - window.drop_back]


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

    def forward(self, raw: Tensor, is_first: bool, piece_bytes: int | None = None) -> Tensor:
        """From the first stage that would make a tensor of more than ``piece_bytes`` on, in pieces."""
        x = self.mid_block(self.conv_in(raw))
        stages = list(self.up_blocks)
        while stages and (piece_bytes is None or stages[0].largest(x) <= piece_bytes):
            x = stages.pop(0)(x, is_first)
        if not stages:
            return unpatchify(self.conv_out(norm_silu(x)), self.patch)
        growth = max(accumulate((stage.growth for stage in stages), mul))
        pieces = smaller(iter([x]), piece_bytes / growth)
        for stage in stages:
            pieces = stage.stream(pieces, is_first, piece_bytes)
        pieces = self.conv_out.stream(map(norm_silu, pieces))
        return torch.cat([unpatchify(piece, self.patch) for piece in pieces], dim=2)


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
        self.growth = width * 4**stage.doubles_space * 2**stage.doubles_time / stage.in_channels
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

    def largest(self, x: Tensor) -> float:
        """Bytes of the larger of what comes in and what goes out."""
        return x.numel() * x.element_size() * max(1.0, self.growth)

    def forward(self, x: Tensor, is_first: bool) -> Tensor:
        x = self.conv_in(x)
        for upsampler in self.upsamplers:
            x = upsampler(x, is_first)
        return self.resnets(x)

    def stream(self, pieces: Pieces, is_first: bool, piece_bytes: int) -> Pieces:
        """``forward`` on a window that comes in pieces."""
        if isinstance(self.conv_in, ResidualBlock):
            pieces = self.conv_in.stream(pieces)
        for upsampler in self.upsamplers:
            pieces = upsampler.stream(pieces, is_first, piece_bytes)
        for block in self.resnets:
            pieces = block.stream(pieces)
        return pieces
