"""From model files and a request to a film on disk: every stage once, one network in memory at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import shapes
from ..conditioning.feature_cache import (
    FeatureCache,
    cached_rows,
    encoder_identity,
    tokenizer_fingerprint,
)
from ..conditioning.negative import default_negative
from ..conditioning.text import TextFeatures, check_prompt, encode_ids, tokenize
from ..conditioning.tokenizer import EMBEDDED_NAMES, find_tokenizer
from ..errors import MediaError
from ..media.mux import FilmInfo
from ..media.whole_file import whole_file
from ..model_loading import builder
from ..model_loading.checkpoint import open_checkpoint
from ..model_loading.precision import PRECISIONS, PrecisionPolicy
from ..sampling.joint import PRESETS, SamplingPreset, step_saver
from ..sampling.step_saving import Saved
from ..sampling.streams import Streams
from ..sampling.super_resolution import GUIDED_PRESET, PRESET, SuperResolution
from . import decode, stages
from .files import ModelFiles
from .memory import on_device, once_more

logger = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]  # stage, steps done, steps in all


class Voice(NamedTuple):
    """A sound that drives the film: waveform [C, S] or [B, C, S] and its rate in Hz."""

    waveform: Tensor
    sample_rate: int


@dataclass(frozen=True, slots=True)
class FilmRequest:
    """What is asked for. Sizes are the base stage's; lengths are frames, 4k+1."""

    prompt: str
    num_frames: int
    width: int = 448
    height: int = 256
    variant: Literal["base", "distilled"] = "distilled"
    seed: int = 42
    steps: int | None = None  # None: the variant's own
    step_saving: float = (
        0.0  # base only: relative error by which a step may differ from one before it; 0 is off
    )
    negative: str | None = None  # None: the default; read by guided sampling only
    image: Tensor | None = None  # [H, W, 3]
    voice: Voice | None = None
    soundtrack: Literal["voice", "model"] = "voice"  # with a voice: its own sound, or the autoencoder's
    super_resolution: Literal["none", "540p", "1080p"] = "none"
    exact: bool = False  # 1080p at exactly four times the base
    sr_steps: int | None = None
    sr_seed: int | None = None  # None: seed + 1
    sr_guided: bool = False  # two passes a step with the negative, at 3.5
    align_corners: bool = True
    decoder: Literal["turbo", "wan"] = "turbo"

    @property
    def final_size(self) -> tuple[int, int]:
        """(width, height) of the film."""
        if self.super_resolution == "none":
            return self.width, self.height
        return shapes.super_resolution_size(self.width, self.height, self.super_resolution, exact=self.exact)

    @property
    def preset(self) -> SamplingPreset:
        """The variant's, with the steps that are asked for."""
        preset = PRESETS[self.variant]
        return preset if self.steps is None else replace(preset, steps=self.steps)

    @property
    def needs_negative(self) -> bool:
        return PRESETS[self.variant].guidance is not None or (
            self.super_resolution != "none" and self.sr_guided
        )


@dataclass(frozen=True, slots=True)
class Film:
    """A film, the normalised latents it was decoded from, and with step saving what that came to."""

    info: FilmInfo
    latents: Streams
    base_latents: Streams
    saved: Saved | None = None


def make_film(
    files: ModelFiles,
    request: FilmRequest,
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    policy: PrecisionPolicy = PRECISIONS["auto"],
    save_latents: str | Path | None = None,
    report: Report = lambda stage, done, total: None,
    text_cache: FeatureCache | None = None,
    swapped: int | None = None,
) -> Film:
    """Make the film of ``request`` and write it to ``path``; raises the pack's errors before any long work.

    ``save_latents`` keeps the latents in a safetensors file: ``video`` and ``audio``, and with
    super-resolution also ``base_video`` and ``base_audio``. Words that are in ``text_cache`` need no weights of the
    text encoder. Of a transformer's blocks ``swapped`` are streamed from host memory, None: as many as must be. A
    stage that runs out of memory is begun once more with a smaller plan.
    """
    run = _Run(files, request, torch.device(device), policy, report, text_cache, swapped)
    with torch.inference_mode():
        size = run.check()
        _check_places(path, save_latents)
        positive, negative = run.encode_prompts()
        picture = run.encode_picture(request.width, request.height)
        voice = run.encode_voice()
        base, saved = run.sample(positive, negative, size, picture, voice)
        final = run.enlarge(positive, negative, base)
        if save_latents is not None:
            _save_latents(Path(save_latents), request, base, final)
        return Film(run.write(final, Path(path)), final, base, saved)


@dataclass(slots=True)
class _Run:
    """One film being made: the stages in order. A network lives as long as the method that loads it."""

    files: ModelFiles
    request: FilmRequest
    device: torch.device
    policy: PrecisionPolicy
    report: Report
    text_cache: FeatureCache | None
    swapped: int | None = None  # blocks that are streamed; None: as many as must be

    def check(self) -> shapes.LatentSize:
        """Refuse what cannot be made before anything is loaded."""
        request = self.request
        size = shapes.latent_size(request.width, request.height, request.num_frames)
        shapes.check_size(*request.final_size)
        check_prompt(request.prompt)
        step_saver(request.preset, request.step_saving)
        if request.voice is not None:
            stages.check_voice(*request.voice, request.num_frames)
        self.files.check(request)
        if request.negative is not None and not request.needs_negative:
            logger.warning(
                "The %s model is sampled without a negative prompt; yours is not used.", request.variant
            )
        return size

    def encode_prompts(self) -> tuple[TextFeatures, TextFeatures | None]:
        request = self.request
        prompts = [request.prompt]
        if request.needs_negative:
            prompts.append(default_negative() if request.negative is None else request.negative)
        self.report("text", 0, len(prompts))
        path, named = self.files.text_encoder, self.files.tokenizer
        stored = open_checkpoint(path)
        embedded = {name: stored.read(name) for name in EMBEDDED_NAMES if name in stored.names}
        checkpoint = builder.open_kind(path, "text_encoder")
        config = builder.text_encoder_config(checkpoint)
        tokenizer = find_tokenizer(path, embedded, named, rows=config.vocab_size)
        fingerprint = tokenizer_fingerprint(path, embedded, named) if self.text_cache else ""

        def run(is_smaller: bool) -> list[TextFeatures]:
            device = torch.device("cpu") if is_smaller else self.device
            identity = self.text_cache and encoder_identity(
                checkpoint,
                config,
                fingerprint,
                precision=self.policy.name,
                dtype=self.policy.dtype,
                device=device.type,  # whose bits differ
            )
            encoder = cache(lambda: builder.load_text_encoder(path, self.policy).to(device))

            def encode(ids: Sequence[int]) -> Tensor:
                return encode_ids(
                    ids,
                    lambda batch: encoder()(batch.to(device)),
                    half_precision_rows=self.policy.dtype == torch.bfloat16,
                )

            features = []
            for number, prompt in enumerate(prompts, 1):
                ids = tokenize(prompt, tokenizer)
                rows = cached_rows(ids, encode, self.text_cache, identity or "")
                features.append(TextFeatures(rows.to(self.device), len(ids)))
                self.report("text", number, len(prompts))
            return features

        features = once_more("The text encoder", run, "on the CPU")
        return features[0], features[1] if len(features) > 1 else None

    def encode_picture(self, width: int, height: int) -> Tensor | None:
        """The picture's latent at this size, or None without a picture."""
        if self.request.image is None:
            return None
        self.report("picture", 0, 1)
        vae = builder.load_video_vae(self.files.video_vae, self.policy).to(self.device)
        latent = stages.encode_picture(self.request.image, width, height, vae, self.device)
        self.report("picture", 1, 1)
        return latent

    def encode_voice(self) -> Tensor | None:
        if self.request.voice is None:
            return None
        self.report("voice", 0, 1)
        vae = builder.load_audio_vae(self.files.audio_vae).to(self.device)
        latent = stages.encode_voice(*self.request.voice, self.request.num_frames, vae, self.device)
        self.report("voice", 1, 1)
        return latent

    def sample(self, positive, negative, size, picture, voice) -> tuple[Streams, Saved | None]:
        request, preset = self.request, self.request.preset
        self.report("film", 0, preset.steps)
        tokens = _tokens(size.video_shape, size.audio_shape, positive.rows)

        def run(is_smaller: bool) -> tuple[Streams, Saved | None]:
            network = builder.load_transformer(self.files.transformer, request.variant, self.policy)
            saver = step_saver(preset, request.step_saving)
            with on_device(network, self.device, self.swapped, tokens, is_smaller) as placed:
                latents = stages.sample_film(
                    network,
                    positive.rows,
                    negative and negative.rows,
                    size,
                    request.seed,
                    preset,
                    first_frame=picture,
                    voice=voice,
                    on_step=lambda step: self.report("film", step + 1, preset.steps),
                    placed=placed,
                    saver=saver,
                )
            return latents, saver and saver.saved

        return once_more("The film", run, "with all blocks swapped")

    def enlarge(self, positive, negative, base: Streams) -> Streams:
        request = self.request
        if request.super_resolution == "none":
            return base
        width, height = request.final_size
        picture = self.encode_picture(width, height)
        preset = GUIDED_PRESET if request.sr_guided else PRESET
        preset = replace(preset, steps=preset.steps if request.sr_steps is None else request.sr_steps)
        settings = SuperResolution(preset, align_corners=request.align_corners)
        self.report("super-resolution", 0, preset.steps)
        variant = f"sr_{request.super_resolution}"
        rows, columns = height // shapes.SPACE_STRIDE, width // shapes.SPACE_STRIDE
        tokens = _tokens((*base.video.shape[:3], rows, columns), base.audio.shape, positive.rows)

        def run(is_smaller: bool) -> Streams:
            network = builder.load_transformer(self.files.super_resolution, variant, self.policy)
            with on_device(network, self.device, self.swapped, tokens, is_smaller) as placed:
                return stages.enlarge_film(
                    network,
                    positive.rows,
                    negative.rows if request.sr_guided else None,
                    base,
                    width,
                    height,
                    request.seed + 1 if request.sr_seed is None else request.sr_seed,
                    settings,
                    first_frame=picture,
                    on_step=lambda step: self.report("super-resolution", step + 1, preset.steps),
                    placed=placed,
                )

        return once_more("Super-resolution", run, "with all blocks swapped")

    def write(self, latents: Streams, path: Path) -> FilmInfo:
        """Decode sound and picture into one file, the picture as it is decoded."""
        request = self.request
        if request.voice is not None and request.soundtrack == "voice":
            sound = decode.soundtrack(*request.voice)
        else:
            vae = builder.load_audio_vae(self.files.audio_vae).to(self.device)
            sound = decode.decode_sound(latents.audio, vae)
            del vae
        self.report("picture and sound", 0, request.num_frames)
        decoder = self._load_decoder().to(self.device)

        def run(is_smaller: bool) -> FilmInfo:
            if is_smaller:
                decode.use_smaller_pieces(decoder)
            return decode.write_decoded(
                path,
                decoder.decode_chunks(latents.video),
                self.device,
                request.num_frames,
                [sound],
                metadata={"comment": request.prompt, "happyhorse": json.dumps(_settings(request))},
                on_frames=lambda done: self.report("picture and sound", done, request.num_frames),
            )

        return once_more("Decoding", run, "in smaller pieces")

    def _load_decoder(self) -> nn.Module:
        if self.request.decoder == "turbo":
            return builder.load_turbo_decoder(self.files.turbo_decoder, self.policy)
        return builder.load_video_vae(self.files.video_vae, self.policy)


def _check_places(*paths: str | Path | None) -> None:
    """Raise MediaError now for a folder that would be missed when the film is finished."""
    for path in paths:
        if path is not None and not Path(path).parent.is_dir():
            raise MediaError(
                f"The folder {Path(path).parent} for {Path(path).name} does not exist; make it, or choose another."
            )


def _tokens(video: Sequence[int], audio: Sequence[int], text: Tensor) -> int:
    """Rows of a pass over latents of these shapes."""
    return video[-3] * video[-2] * video[-1] // 4 + audio[-1] + len(text)


def _settings(request: FilmRequest) -> dict:
    """What made the film, for its metadata; tensors by their presence only."""
    plain = {name: getattr(request, name) for name in FilmRequest.__dataclass_fields__}
    return {name: value is not None if name in ("image", "voice") else value for name, value in plain.items()}


def _save_latents(path: Path, request: FilmRequest, base: Streams, final: Streams) -> None:
    tensors = {"video": final.video, "audio": final.audio}
    if final is not base:
        tensors |= {"base_video": base.video, "base_audio": base.audio}
    # A copy each: the streams are views of one row, and safetensors refuses shared memory.
    tensors = {name: tensor.float().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole_file(path) as part:
        save_file(tensors, part, metadata={"happyhorse": json.dumps(_settings(request))})
