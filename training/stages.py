"""The training from nothing to files, in stages whose results are kept: what is there is not done again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..conditioning.tokenizer import SentencePieceTokenizer, load_tokenizer
from ..model.audio_vae import OobleckVAE
from ..model.turbo_decoder import TurboDecoder
from ..model.video_vae import Wan22VAE
from . import export, latents, sizes, text, transformer
from .audio_autoencoder import train_audio
from .decoders import train_turbo, train_wan_decoder
from .loop import Work
from .measure import measure
from .peers import ALONE, Peers
from .super_resolution import new_super_resolution, train_super_resolution
from .video_autoencoder import finish_encoder, train_encoder


@dataclass(frozen=True, slots=True)
class Plan:
    """How long each stage is, in steps; the defaults made the committed set."""

    images: int = 600
    clips: int = 830
    audio: int = 240
    base: int = 2300
    distilled: int = 120
    turbo: int = 400
    wan_decoder: int = 640
    super_resolution: int = 350
    shelf_share: float = 1.0  # of the clips that are encoded
    measured: int = 64  # films in a full row

    def scaled(self, factor: float) -> Plan:
        """Every count times ``factor``, for a trial."""
        return Plan(
            *(max(1, round(getattr(self, name) * factor)) for name in list(self.__dataclass_fields__)[:8]),
            shelf_share=min(1.0, self.shelf_share * factor),
            measured=max(1, round(self.measured * factor)),
        )


@dataclass(frozen=True, slots=True)
class Job:
    """One call of the command."""

    work: Work
    plan: Plan
    out: Path
    peers: Peers = ALONE

    def tokenizer(self) -> SentencePieceTokenizer:
        return load_tokenizer(self.work.path("tokenizer.model"))

    def video_vae(self) -> Wan22VAE:
        """With the Wan decoder's weights where they are trained."""
        vae = Wan22VAE(sizes.WAN)
        name = "wan.pt" if self.work.path("wan.pt").is_file() else "encoder.pt"
        state = torch.load(self.work.path(name))
        vae.load_state_dict(state.get("vae", state))
        return vae

    def turbo_decoder(self) -> TurboDecoder:
        decoder = TurboDecoder(sizes.TURBO)
        done = self.work.path("turbo.pt")
        decoder.load_state_dict(
            torch.load(done) if done.is_file() else torch.load(self.work.path("encoder.pt"))["turbo"]
        )
        return decoder

    def audio_vae(self) -> OobleckVAE:
        vae = OobleckVAE(sizes.OOBLECK)
        vae.load_state_dict(torch.load(self.work.path("audio.pt")))
        return vae

    def shelves(self) -> list[latents.Shelf]:
        names = [self.work.path(f"shelf_{size.name}.pt") for size in latents.SHELVES]
        return [torch.load(name, weights_only=False) for name in names]

    def transformers(self, stage: str):
        """The transformer and text encoder that a stage left."""
        network, encoder = transformer.networks_of(self.work, self.tokenizer())
        state = torch.load(self.work.path(f"{stage}.pt"))
        network.load_state_dict(state["transformer"])
        encoder.load_state_dict(state["text"])
        return network, encoder


def tokenizer_stage(job: Job) -> None:
    job.work.path("tokenizer.model").write_bytes(text.train_tokenizer(10_000_000))


def audio_stage(job: Job) -> None:
    train_audio(job.work, job.plan.audio)


def video_stage(job: Job) -> None:
    finish_encoder(job.work, *train_encoder(job.work, job.plan.images, job.plan.clips))


def shelves_stage(job: Job) -> None:
    """Encoded clips, a file for each size."""
    vae, sound, tokenizer = job.video_vae(), job.audio_vae(), job.tokenizer()
    for number, size in enumerate(latents.SHELVES):
        done = job.work.path(f"shelf_{size.name}.pt")
        if not done.is_file():
            clips = size.clips(10_000_000 * (number + 1))
            # Every n-th of them: plain and other voices keep their ratio.
            clips = clips[:: max(1, round(1 / job.plan.shelf_share))]
            torch.save(latents.shelve(clips, vae, sound, tokenizer), done)
    job.work.path("shelves.done").touch()


def base_stage(job: Job) -> None:
    network, encoder = transformer.train_base(
        job.work,
        job.shelves(),
        [size.weight for size in latents.SHELVES],
        job.tokenizer(),
        job.plan.base,
        job.peers,
    )
    _keep(job, "base", network, encoder)


def distilled_stage(job: Job) -> None:
    network, encoder = job.transformers("base")
    transformer.continue_distilled(
        job.work,
        network,
        encoder,
        job.shelves(),
        [size.weight for size in latents.SHELVES],
        job.tokenizer(),
        job.plan.distilled,
        job.peers,
    )
    _keep(job, "distilled", network, encoder)


def turbo_stage(job: Job) -> None:
    decoder = job.turbo_decoder()
    train_turbo(job.work, job.video_vae(), decoder, job.plan.turbo)
    torch.save(decoder.state_dict(), job.work.path("turbo.pt"))


def wan_stage(job: Job) -> None:
    vae = job.video_vae()
    train_wan_decoder(job.work, vae, job.plan.wan_decoder)
    torch.save(vae.state_dict(), job.work.path("wan.pt"))


def super_resolution_stage(job: Job) -> None:
    _, encoder = job.transformers("distilled")
    network = train_super_resolution(
        job.work, job.video_vae(), job.audio_vae(), encoder, job.tokenizer(), job.plan.super_resolution
    )
    _keep(job, "super_resolution", network, encoder)


def export_stage(job: Job) -> None:
    """Every part as a file below ``job.out``."""
    base, encoder = job.transformers("base")
    tokenizer = job.work.path("tokenizer.model").read_bytes()
    export.write_transformer(job.out, "base", base)
    export.write_transformer(job.out, "distilled", job.transformers("distilled")[0])
    if job.work.path("super_resolution.pt").is_file():
        state = torch.load(job.work.path("super_resolution.pt"))
        network = new_super_resolution(job.work)
        network.load_state_dict(state["transformer"])
        for variant in ("sr_540p", "sr_1080p"):
            export.write_transformer(job.out, variant, network)
    config = sizes.text_encoder(job.tokenizer().vocab_size)
    export.write_text_encoder(job.out, encoder, config, tokenizer)
    export.write_video_vae(job.out, job.video_vae())
    export.write_turbo_decoder(job.out, job.turbo_decoder(), sizes.TURBO)
    export.write_audio_vae(job.out, job.audio_vae())
    export.finish(job.out)


def measure_stage(job: Job) -> None:
    table = measure(job.out, job.work.path("measured.json"), job.plan.measured)
    job.work.path("measured.md").write_text(table + "\n", encoding="utf-8")


def _keep(job: Job, stage: str, network, encoder) -> None:
    if job.peers.rank == 0:
        state = {"transformer": network.state_dict(), "text": encoder.state_dict()}
        torch.save(state, job.work.path(f"{stage}.pt"))


@dataclass(frozen=True, slots=True)
class Stage:
    """What is run, the file that says it is done, and whether several processes share it."""

    run: Callable[[Job], None]
    done: str
    is_shared: bool = False


STAGES = {
    "tokenizer": Stage(tokenizer_stage, "tokenizer.model"),
    "audio": Stage(audio_stage, "audio.pt"),
    "video": Stage(video_stage, "encoder.pt"),
    "shelves": Stage(shelves_stage, "shelves.done"),
    "base": Stage(base_stage, "base.pt", is_shared=True),
    "distilled": Stage(distilled_stage, "distilled.pt", is_shared=True),
    "turbo": Stage(turbo_stage, "turbo.pt"),
    "wan": Stage(wan_stage, "wan.pt"),
    "super_resolution": Stage(super_resolution_stage, "super_resolution.pt"),
    "export": Stage(export_stage, "exported"),
    "measure": Stage(measure_stage, "measured.md"),
}
