"""The second stage: the base film's latents, enlarged and noised again, sampled by the super-resolution model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from ..errors import SamplingError
from .guidance import Branches, FrameGuidance, StreamVelocity
from .joint import OnStreamStep, SamplingPreset, sample
from .schedule import zero_terminal_snr
from .streams import Streams

PRESET = SamplingPreset("super-resolution", 5, "unipc", None)
GUIDED_PRESET = replace(PRESET, guidance=FrameGuidance())


@dataclass(frozen=True, slots=True)
class SuperResolution:
    """Settings of the stage; the defaults are the published ones."""

    preset: SamplingPreset = PRESET
    noise_value: int = 220  # entry of the zero-terminal-SNR table; 0 adds no noise
    audio_noise: float = 0.7  # share of noise in the audio the model listens to
    align_corners: bool = True


def prepare(base: Streams, height: int, width: int, noise: Streams, settings: SuperResolution) -> Streams:
    """What the stage starts from: video enlarged to [1, C, T, height, width] and noised, audio noised.

    ``noise`` has the enlarged shapes. The number of latent frames stays.
    """
    if not 0 <= settings.noise_value < 1000:
        raise SamplingError(f"A noise value of {settings.noise_value} is not in the table; use 0 to 999.")
    size = (base.video.shape[2], height, width)
    video = F.interpolate(base.video, size=size, mode="trilinear", align_corners=settings.align_corners)
    if settings.noise_value:
        signal = zero_terminal_snr()[settings.noise_value].to(video)
        video = signal * video + (1 - signal**2).sqrt() * noise.video
    share = settings.audio_noise
    return Streams(video, share * noise.audio + (1 - share) * base.audio)


def super_resolve(
    conditional: StreamVelocity,
    unconditional: StreamVelocity | None,
    base: Streams,
    height: int,
    width: int,
    noise: Callable[[], Streams],
    settings: SuperResolution = SuperResolution(),
    *,
    first_frame: Tensor | None = None,
    on_step: OnStreamStep | None = None,
    together: Branches | None = None,
) -> Streams:
    """Video latents at [height, width] latent cells; the audio comes back as it was.

    The model listens to a noised copy of the base audio at every step and never changes it: of its velocities only
    the video's count. ``first_frame`` is the picture encoded at the new size; ``together`` as ``sample`` has it.
    """
    start = prepare(base, height, width, noise(), settings)
    out = sample(
        conditional,
        unconditional,
        start,
        settings.preset,
        noise,
        first_frame=first_frame,
        voice=start.audio,
        on_step=on_step,
        together=together,
    )
    return Streams(out.video, base.audio)
