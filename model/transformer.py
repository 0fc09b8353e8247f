"""The joint audio-video transformer: one pass over [video | audio | text] gives both velocities.

There is no timestep input: the network reads the noise level from the tokens. Letters: C channels, T
latent frames, h and w latent cells, L audio latents, N tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import SamplingError
from ..kernels import attention
from .config import TransformerConfig
from .layers import Attend, Block, Context, RMSNorm
from .sequence import (
    SequenceLayout,
    pack_audio,
    pack_video,
    rotary_angles,
    unpack_audio,
    unpack_video,
)


class Rope(nn.Module):
    """Holds the rotary frequencies that the checkpoint stores."""

    def __init__(self, bands: int):
        super().__init__()
        self.register_buffer("bands", 10_000.0 ** (-torch.arange(bands, dtype=torch.float32) / bands))


class Adapter(nn.Module):
    """Embeds the tokens of each modality, and their coordinates, in float32."""

    def __init__(self, config: TransformerConfig, *, ops=nn):
        super().__init__()
        float32 = {"bias": True, "dtype": torch.float32}
        self.video_embedder = ops.Linear(config.video_features, config.hidden_size, **float32)
        self.text_embedder = ops.Linear(config.text_features, config.hidden_size, **float32)
        self.audio_embedder = ops.Linear(config.audio_features, config.hidden_size, **float32)
        self.rope = Rope(config.bands)

    def forward(self, video: Tensor, audio: Tensor, text: Tensor) -> Tensor:
        """Tokens of each modality -> [N, D]"""
        return torch.cat(
            [
                self.video_embedder(video.float()),
                self.audio_embedder(audio.float()),
                self.text_embedder(text.float()),
            ]
        )


class Blocks(nn.Module):
    """The stack of layers, under the name the checkpoint has for it."""

    def __init__(self, config: TransformerConfig, *, ops=nn, dtype: torch.dtype):
        super().__init__()
        self.layers = nn.ModuleList(Block(config, spec, ops=ops, dtype=dtype) for spec in config.blocks)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[N, D] -> [N, D]"""
        for block in self.layers:
            x = block(x, context)
        return x


class JointTransformer(nn.Module):
    """Velocities of video and audio latents under a prompt; one sample at a time.

    ``ops`` supplies ``Linear`` (and may supply ``PerModalityLinear``), so that a host can cast, quantise or
    offload. ``dtype`` is the projections': bfloat16 as in the reference, float32 to switch rounding off.
    """

    def __init__(self, config: TransformerConfig, *, ops=nn, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.adapter = Adapter(config, ops=ops)
        self.block = Blocks(config, ops=ops, dtype=dtype)
        float32 = {"bias": False, "dtype": torch.float32}
        self.final_norm_video = RMSNorm(config.hidden_size)
        self.final_norm_audio = RMSNorm(config.hidden_size)
        self.final_linear_video = ops.Linear(config.hidden_size, config.video_features, **float32)
        self.final_linear_audio = ops.Linear(config.hidden_size, config.audio_features, **float32)

    def context(
        self,
        layout: SequenceLayout,
        device: torch.device | str,
        attend: Attend = attention,
        mlp_rows: int | None = None,
    ) -> Context:
        """What the blocks share for sequences of this layout; the same at every step of a run.

        ``attend`` computes softmax attention; a host brings its own. ``mlp_rows`` go through a feed-forward layer at
        once, None: all.
        """
        coordinates = layout.coordinates(self.config.coordinates).to(device)
        rope = rotary_angles(coordinates, self.adapter.rope.bands.to(device))
        return Context(layout.sizes, rope, layout.local_ranges(self.config.window), attend, mlp_rows)

    def forward(
        self,
        video_latent: Tensor,
        audio_latent: Tensor,
        text: Tensor,
        context: Context | None = None,
        run_blocks: Callable[[Tensor, Context], Tensor] | None = None,
        *,
        wants_audio: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Velocities [C, T, h, w] and [C, L] (noise minus data) in float32.

        video_latent [C, T, h, w], audio_latent [C, L], text [N, D] with real rows only. ``context`` may be
        reused between calls of equal sizes; ``run_blocks`` stands in for the loop over the blocks;
        ``wants_audio`` as ``velocities`` has it. Raises SamplingError where the inputs are of another model.
        """
        layout = SequenceLayout.of(video_latent, audio_latent, text)
        x = self.embed(video_latent, audio_latent, text)
        if context is None:
            context = self.context(layout, video_latent.device)
        return self.velocities((run_blocks or self.block)(x, context), layout, wants_audio=wants_audio)

    def embed(self, video_latent: Tensor, audio_latent: Tensor, text: Tensor) -> Tensor:
        """The first part of ``forward``: what the blocks begin with, [N, D]. Raises SamplingError as it does.

        With ``velocities`` it lets a caller run the blocks for several samples side by side.
        """
        self._check(video_latent, audio_latent, text)
        return self.adapter(pack_video(video_latent), pack_audio(audio_latent), text)

    def velocities(
        self, x: Tensor, layout: SequenceLayout, *, wants_audio: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The last part of ``forward``: what the blocks end with, [N, D] -> [C, T, h, w] and [C, L].

        Unless ``wants_audio`` the audio's head is left out and its velocity is zero: super-resolution, and a given
        voice, put the audio they have in its place at every step.
        """
        video, audio, _ = x.split(layout.sizes)
        video = self.final_linear_video(self.final_norm_video(video))
        if not wants_audio:
            return unpack_video(video, layout), x.new_zeros(self.config.audio_features, layout.audio)
        audio = self.final_linear_audio(self.final_norm_audio(audio))
        return unpack_video(video, layout), unpack_audio(audio)

    def _check(self, video_latent: Tensor, audio_latent: Tensor, text: Tensor) -> None:
        config = self.config
        found = (video_latent.shape[0] * 4, audio_latent.shape[0], text.shape[-1])
        wanted = (config.video_features, config.audio_features, config.text_features)
        for name, has, needs in zip(("video", "audio", "text"), found, wanted, strict=True):
            if has != needs:
                raise SamplingError(
                    f"The {name} given to the transformer has {has} features a token, this checkpoint reads "
                    f"{needs}: latents or text features of another model."
                )
        if not all((video_latent.numel(), audio_latent.numel(), text.shape[0])):
            raise SamplingError(
                f"The transformer needs video, audio and text; it got video {tuple(video_latent.shape)}, "
                f"audio {tuple(audio_latent.shape)} and {text.shape[0]} text tokens."
            )
