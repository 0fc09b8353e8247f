"""Our autoencoders as ComfyUI VAEs: stock decode, tiled decode and audio nodes work on them.

On the wire video latents are not normalised and sound is at the rates the host's nodes assume: 51 200 Hz
into the audio encoder, 44 100 Hz and 1764 samples a latent out of the decoder.
"""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor, nn

from ..errors import ConditioningError
from ..media.audio import to_output_rate
from ..model.turbo_decoder import TurboDecoder
from ..model.video_latent import denormalise, normalise
from ..model_loading import builder
from ..model_loading.keys import kind_of
from ..model_loading.precision import PRECISIONS
from ..shapes import (
    AUDIO_CHANNELS,
    LATENT_SAMPLE_RATE,
    OUTPUT_SAMPLE_RATE,
    OUTPUT_SAMPLES_PER_LATENT,
    SAMPLES_PER_LATENT,
    SPACE_STRIDE,
    TIME_STRIDE,
    VIDEO_CHANNELS,
    decoded_frames,
    latent_frames,
)


class HostVideoAutoencoder(nn.Module):
    """A Turbo decoder or Wan 2.2 autoencoder on latents as they are on the wire."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, F, H, W] in [-1, 1] -> [B, 48, T, h, w], not normalised."""
        if isinstance(self.network, TurboDecoder):
            raise ConditioningError(
                "vae: the Turbo decoder cannot encode pictures. Connect the Wan 2.2 VAE (Load VAE, "
                "wan2.2_vae.safetensors) here, and keep the Turbo decoder for decoding."
            )
        return denormalise(self.network.encode(pixels))

    def decode(self, latent: Tensor) -> Tensor:
        """[B, 48, T, h, w], not normalised -> [B, 3, F, H, W]"""
        return torch.cat(list(self.decode_chunks(latent)), dim=2)

    def decode_chunks(self, latent: Tensor):
        """The same in pieces along time, as they are decoded."""
        yield from self.network.decode_chunks(normalise(latent.float()))


class HostAudioAutoencoder(nn.Module):
    """The Oobleck autoencoder between 51 200 Hz in and 44 100 Hz out."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def encode(self, waveform: Tensor) -> Tensor:
        """[B, 2, S] at 51 200 Hz -> [B, 64, floor(S/2048)]: the mean, the same every time."""
        return self.network.encode(waveform)

    def decode(self, latent: Tensor) -> Tensor:
        """[B, 64, L] -> [B, 2, 1764*L] at 44 100 Hz."""
        return to_output_rate(self.network.decode(latent))


class HostVAE(comfy.sd.VAE):
    """A VAE around a network of ours; the attributes are those that the host's nodes read."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        # The host's constructor recognises networks by their tensors and would refuse ours.
        self.first_stage_model = network.eval()
        self.device = comfy.model_management.vae_device()
        self.vae_dtype = dtype
        self.output_device = comfy.model_management.intermediate_device()
        self.working_dtypes = [dtype]
        self.size = None
        self.disable_offload = False
        self.not_video = False
        self.crop_input = True
        self.handles_tiling = False
        self.format_encoded = None
        self.extra_1d_channel = None
        self.pad_channel_value = None
        self.audio_sample_rate = OUTPUT_SAMPLE_RATE
        comfy.model_management.archive_model_dtypes(network)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            network, load_device=self.device, offload_device=comfy.model_management.vae_offload_device()
        )
        self.model_size()


class HostVideoVAE(HostVAE):
    """48 latent channels, 16x16 pixels and 4 frames to a cell."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        self.latent_channels, self.latent_dim, self.output_channels = VIDEO_CHANNELS, 3, 3
        self.upscale_ratio = (decoded_frames, SPACE_STRIDE, SPACE_STRIDE)
        self.downscale_ratio = (latent_frames, SPACE_STRIDE, SPACE_STRIDE)
        self.upscale_index_formula = (TIME_STRIDE, SPACE_STRIDE, SPACE_STRIDE)
        self.downscale_index_formula = self.upscale_index_formula
        self.process_input = lambda pixels: pixels * 2 - 1
        # In place: the host calls it for its effect.
        self.process_output = lambda pixels: pixels.add_(1).div_(2).clamp_(0, 1)
        # Windows of at most 9 latent frames are decoded at once; the widest stage has about 128 channels at
        # half the pixels' resolution, of which four copies live together.
        self.memory_used_decode = lambda shape, dtype: (
            min(shape[2], 9)
            * TIME_STRIDE
            * shape[3]
            * shape[4]
            * SPACE_STRIDE**2
            // 4
            * 128
            * 4
            * dtype.itemsize
        )
        self.memory_used_encode = lambda shape, dtype: (
            min(shape[2], 5) * shape[3] * shape[4] // 4 * 160 * 4 * dtype.itemsize
        )
        super().__init__(HostVideoAutoencoder(network), dtype)


class HostAudioVAE(HostVAE):
    """64 latent channels, 25 latents a second."""

    def __init__(self, network: nn.Module):
        self.latent_channels, self.latent_dim, self.output_channels = AUDIO_CHANNELS, 1, 2
        self.upscale_ratio, self.downscale_ratio = OUTPUT_SAMPLES_PER_LATENT, SAMPLES_PER_LATENT
        self.upscale_index_formula = self.downscale_index_formula = None
        self.process_input = self.process_output = lambda sound: sound
        self.memory_used_decode = lambda shape, dtype: (
            shape[-1] * SAMPLES_PER_LATENT * 128 * 4 * dtype.itemsize
        )
        self.memory_used_encode = lambda shape, dtype: shape[-1] * 128 * 4 * dtype.itemsize
        super().__init__(HostAudioAutoencoder(network), torch.float32)
        self.pad_channel_value = "replicate"  # mono becomes stereo
        self.audio_sample_rate = LATENT_SAMPLE_RATE  # what stock encoding resamples to
        self.audio_sample_rate_output = OUTPUT_SAMPLE_RATE  # what stock decoding labels its sound with


def load_video_vae(path: str, precision: str) -> HostVideoVAE:
    """A VAE for a Turbo decoder or a Wan 2.2 autoencoder file."""
    policy = PRECISIONS[precision]
    kind = kind_of(builder.open_checkpoint(path).names)
    load = (
        builder.load_video_vae
        if kind is not None and kind.name == "video_vae"
        else builder.load_turbo_decoder
    )
    return HostVideoVAE(load(path, policy), policy.dtype)


def load_audio_vae(path: str) -> HostAudioVAE:
    """A VAE for the Oobleck audio autoencoder."""
    return HostAudioVAE(builder.load_audio_vae(path))


def encode_sound(vae, waveform: Tensor) -> Tensor:
    """[1, 2, S] at 51 200 Hz -> [1, 64, L], by mean, with our VAE or the host's own Oobleck VAE."""
    if isinstance(vae, HostAudioVAE):
        return vae.encode(waveform.movedim(1, -1))
    # The host's VAE draws at random from what its encoder says; the mean is the first half of it.
    comfy.model_management.load_models_gpu(
        [vae.patcher], memory_required=vae.memory_used_encode(waveform.shape, vae.vae_dtype)
    )
    moments = vae.first_stage_model.encoder(waveform.to(vae.device, vae.vae_dtype))
    return moments.chunk(2, dim=1)[0].to(vae.output_device).float()


def decode_sound(vae, latent: Tensor) -> Tensor:
    """[1, 64, L] -> [1, 2, 1764*L] at 44 100 Hz, with our VAE or the host's own Oobleck VAE."""
    sound = vae.decode(latent).movedim(-1, 1).float()
    # The host's decoder gives 2048 samples a latent and calls them 44.1 kHz; they are 51.2 kHz here.
    return sound if isinstance(vae, HostAudioVAE) else to_output_rate(sound)
