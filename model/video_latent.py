"""The scale of video latents: what the sampler sees against what the video autoencoders make."""

from __future__ import annotations

from torch import Tensor

from ..errors import GeometryError
from ..shapes import VIDEO_CHANNELS

# Per channel, measured by the authors of the Wan 2.2 VAE; both decoders use the same.
# fmt: off
LATENT_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
    -0.1382, 0.0542, 0.2813, 0.0891, 0.157, -0.0098, 0.0375, -0.1825,
    -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123,
    -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748,
    0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
LATENT_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013,
    0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
    0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
    0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
    0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on


def normalise(raw: Tensor) -> Tensor:
    """(raw - mean) / std per channel: an encoder's [B, 48, T, h, w] to what the sampler sees.

    The constants are held in the dtype of ``raw``, and 1/std is rounded once more, as in the reference:
    this is what makes the bf16 encoder agree with it.
    """
    mean, inverse_std = _constants(raw)
    return (raw - mean) * inverse_std


def denormalise(latent: Tensor) -> Tensor:
    """latent * std + mean per channel: the sampler's [B, 48, T, h, w] to what a decoder takes.

    Divides by the 1/std of ``normalise``, so that the two are inverse in every dtype.
    """
    mean, inverse_std = _constants(latent)
    return latent / inverse_std + mean


def check_latent(latent: Tensor) -> None:
    """Raise GeometryError unless ``latent`` is [B, 48, T, h, w] with at least one of each."""
    if latent.ndim != 5 or latent.shape[1] != VIDEO_CHANNELS or 0 in latent.shape:
        raise GeometryError(
            f"A video latent is [B, {VIDEO_CHANNELS}, T, h, w]; this one is {list(latent.shape)}."
        )


def _constants(like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1/std as [1, 48, 1, 1, 1] in the dtype and on the device of ``like``."""
    mean, std = (like.new_tensor(values).view(1, -1, 1, 1, 1) for values in (LATENT_MEAN, LATENT_STD))
    return mean, 1 / std
