"""The demo set measured: films of prompts that training never saw, made by the public pipeline, read from their files.

What is read is what a viewer gets: frames after H.264, sound after AAC at 44.1 kHz. Letters: F frames, S samples.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..conditioning.tokenizer import find_tokenizer
from ..media.read import read_film
from ..model_loading import builder
from ..model_loading.precision import PRECISIONS, PrecisionPolicy
from ..pipeline.decode import decode_sound
from ..pipeline.files import ModelFiles
from ..pipeline.film import FilmRequest, Voice, make_film
from ..pipeline.stages import enlarge_film
from ..sampling.streams import Streams
from ..shapes import LATENT_SAMPLE_RATE
from . import readout
from .clips import Clip, clip_of
from .scene import SIDE
from .voice import STRANGER
from .words import LANGUAGES

FIRST_SEED = 9_000  # of held-out clips


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: which clips, and how their films are asked for."""

    name: str
    request: Callable[[Clip, int], FilmRequest]
    frames: int = 25
    faces: int = 1
    language: str | None = None
    is_stranger: bool = False  # a voice with a timbre that was never in training
    share: float = 1.0  # of the clips of a full row


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read from one film."""

    mouth: np.ndarray  # [F], of the face that speaks
    sound: np.ndarray  # [F]
    face: bool
    background: bool
    pitch: bool
    likeness: float
    exact: bool
    first_frame: float  # decibels against the clip's own
    audio_kept: bool


def asked(clip: Clip, seed: int, **settings) -> FilmRequest:
    """The film of a clip's prompt, at the demo set's size."""
    return FilmRequest(clip.prompt, clip.frames, SIDE * len(clip.faces), SIDE, seed=seed, **settings)


def with_picture(clip: Clip, seed: int) -> FilmRequest:
    pixels, _ = clip.film(only=slice(0, 1))
    image = ((pixels[:, 0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    return asked(clip, seed, image=image)


def with_voice(clip: Clip, seed: int) -> FilmRequest:
    return asked(clip, seed, voice=Voice(clip.film(only=slice(0, 1))[1], LATENT_SAMPLE_RATE))


ROWS = (
    Row("text → film, distilled, 8 steps", asked),
    Row("picture → film, distilled", with_picture, share=0.5),
    Row("voice → film, distilled, a voice never heard", with_voice, is_stranger=True, share=0.5),
    Row(
        "text → film, base, 32 steps, guided", lambda clip, seed: asked(clip, seed, variant="base"), share=0.5
    ),
    *(Row(f"text → film, {name}", asked, language=name, share=0.25) for name in LANGUAGES),
    Row("text → film, 2 s", asked, frames=49, share=0.375),
    Row("text → film, 4 s", asked, frames=101, share=0.375),
    Row("text → film, two faces, 2 s", asked, frames=49, faces=2, share=0.25),
    Row("text → film, Wan decoder", lambda clip, seed: asked(clip, seed, decoder="wan"), share=0.25),
    Row(
        "text → film, super-resolution",
        lambda clip, seed: asked(clip, seed, super_resolution="540p"),
        share=0.25,
    ),
)


def clips_of(row: Row, count: int) -> list[Clip]:
    """The held-out clips of a row; every one of them speaks."""
    timbre = {"timbre": STRANGER} if row.is_stranger else {}
    seeds = range(FIRST_SEED, FIRST_SEED + max(4, round(count * row.share)))
    return [
        clip_of(seed, row.frames, held_out=True, faces=row.faces, language=row.language, **timbre)
        for seed in seeds
    ]


def read(clip: Clip, path: Path, latent_kept: bool) -> Reading:
    """What the film at ``path`` shows and says of what ``clip`` asks for."""
    film = read_film(path)
    frames = film.decode_frames().float().div(255).numpy()
    wave = film.decode_waveform().mean(0).numpy()
    rate, count = film.sample_rate, clip.frames
    mouths = np.stack([readout.mouth_area(frames, SIDE * i) for i in range(len(clip.faces))])
    sound = readout.loudness(wave, rate, count)
    seen = [readout.colours(frames, SIDE * i) for i in range(len(clip.faces))]
    if len(clip.faces) == 1:
        pitch = readout.pitch(wave, rate)
        said = readout.vowels(wave, rate, clip.voices[0])
        pitch_right, wanted = pitch == clip.voices[0], clip.vowels
    else:  # one voice after the other: each vowel at the pitch of whoever's mouth is open
        pitch_right, said, wanted = True, "", ""
    original, _ = clip.film(only=slice(0, 1))
    first = ((original[:, 0] + 1) / 2).permute(1, 2, 0).numpy()
    return Reading(
        mouths.max(0),
        sound,
        all(face == own.colour for (face, _), own in zip(seen, clip.faces, strict=True)),
        all(background == clip.background for _, background in seen),
        pitch_right,
        readout.likeness(said, wanted),
        said == wanted,
        readout.psnr(frames[0], first) if frames[0].shape == first.shape else float("nan"),
        latent_kept,
    )


def measure_row(
    models: Path, row: Row, count: int, policy: PrecisionPolicy = PRECISIONS["float32"]
) -> dict[str, float | str | int | list[float]]:
    """Make and read the films of a row."""
    readings = []
    clips = clips_of(row, count)
    with tempfile.TemporaryDirectory() as folder:
        for number, clip in enumerate(clips):
            request = row.request(clip, 1000 + number)
            files = ModelFiles.locate(models, request, ModelFiles())
            path = Path(folder) / "film.mp4"
            film = make_film(files, request, path, policy=policy)
            kept = True
            if request.voice is not None:
                vae = builder.load_audio_vae(files.audio_vae)
                with torch.inference_mode():
                    given = vae.encode(request.voice.waveform[None])
                kept = bool(torch.equal(film.latents.audio, given))
            readings.append(read(clip, path, kept))
    return summary(row.name, readings)


def summary(name: str, readings: Sequence[Reading]) -> dict[str, float | str | int | list[float]]:
    """A row's numbers. "shuffled" pairs every mouth with the next film's sound."""
    sync = [readout.correlation(r.mouth, r.sound) for r in readings]
    others = [*readings[1:], readings[0]]
    shuffled = [readout.correlation(r.mouth, o.sound) for r, o in zip(readings, others, strict=True)]
    curve = np.mean([readout.lag_curve(r.mouth, r.sound) for r in readings], axis=0)
    return {
        "row": name,
        "films": len(readings),
        "sync": float(np.mean(sync)),
        "shuffled": float(np.mean(shuffled)),
        "lags": [round(float(value), 3) for value in curve],
        "face": float(np.mean([r.face for r in readings])),
        "background": float(np.mean([r.background for r in readings])),
        "pitch": float(np.mean([r.pitch for r in readings])),
        "vowels": float(np.mean([r.likeness for r in readings])),
        "exact": float(np.mean([r.exact for r in readings])),
        "first_frame": float(np.mean([r.first_frame for r in readings])),
        "audio_kept": float(np.mean([r.audio_kept for r in readings])),
    }


def round_trips(models: Path, count: int = 16) -> dict[str, float | str | int]:
    """Decibels of what the autoencoders alone make of drawn clips, at 51.2 kHz and after the output rate."""
    clips = [clip_of(FIRST_SEED + i, 25, held_out=True) for i in range(count)]
    request = replace(asked(clips[0], 0), decoder="wan")
    files = ModelFiles.locate(models, request, ModelFiles())
    turbo_file = ModelFiles.locate(models, replace(request, decoder="turbo"), ModelFiles()).turbo_decoder
    policy = PRECISIONS["float32"]
    wan = builder.load_video_vae(files.video_vae, policy)
    turbo = builder.load_turbo_decoder(turbo_file, policy)
    sound_vae = builder.load_audio_vae(files.audio_vae)
    totals = {"turbo": [], "wan": [], "sound": [], "sound_44100": []}
    with torch.inference_mode():
        for clip in clips:
            pixels, sound = (part[None] for part in clip.film())
            latent = wan.encode(pixels)
            for name, decoder in (("turbo", turbo), ("wan", wan)):
                made = decoder.decode(latent).float().clamp(-1, 1)
                totals[name].append(readout.psnr(made.numpy() / 2, pixels.numpy() / 2))
            made = sound_vae.decode(sound_vae.encode(sound))
            totals["sound"].append(_snr(made[0].numpy(), sound[0].numpy()))
            track = decode_sound(sound_vae.encode(sound), sound_vae)
            ideal = torch.from_numpy(_resampled(sound[0].numpy(), track.waveform.shape[-1]))
            totals["sound_44100"].append(_snr(track.waveform.numpy(), ideal.numpy()))
    return {"row": "round trips", "films": count} | {name: float(np.mean(v)) for name, v in totals.items()}


def super_resolution_gain(models: Path, count: int = 8) -> dict[str, float | str | int]:
    """Decibels against the clip drawn at twice the size: by super-resolution, and by enlarging the small film.

    Both start from the small clip's own latents, so that there is something to compare with.
    """
    policy = PRECISIONS["float32"]
    clips = [clip_of(FIRST_SEED + i, 25, held_out=True) for i in range(count)]
    request = asked(clips[0], 0, super_resolution="540p", image=torch.zeros(64, 64, 3))
    files = ModelFiles.locate(models, request, ModelFiles())
    wan = builder.load_video_vae(files.video_vae, policy)
    turbo = builder.load_turbo_decoder(files.turbo_decoder, policy)
    sound = builder.load_audio_vae(files.audio_vae)
    encoder = builder.load_text_encoder(files.text_encoder, policy)
    network = builder.load_transformer(files.super_resolution, "sr_540p", policy)
    tokenizer = find_tokenizer(files.text_encoder, {})
    made, enlarged, kept = [], [], []
    with torch.inference_mode():
        for clip in clips:
            (small, wave), (large, _) = clip.film(), clip.film(2)
            base = Streams(wan.encode(small[None]), sound.encode(wave[None]))
            text = encoder(torch.tensor([tokenizer.encode(clip.prompt)]))[0]
            out = enlarge_film(network, text, None, base, 2 * SIDE, 2 * SIDE, 1)
            film = turbo.decode(out.video)[0].clamp(-1, 1)
            plain = turbo.decode(base.video)[0].clamp(-1, 1)
            plain = F.interpolate(plain.transpose(0, 1), scale_factor=2.0, mode="bilinear").transpose(0, 1)
            made.append(readout.psnr(film.numpy() / 2, large.numpy() / 2))
            enlarged.append(readout.psnr(plain.numpy() / 2, large.numpy() / 2))
            mouths = [
                readout.mouth_area(((pixels + 1) / 2).permute(1, 2, 3, 0).numpy()) for pixels in (film, large)
            ]
            kept.append(readout.correlation(*mouths))
    return {
        "row": "super-resolution of clips' own latents",
        "films": count,
        "super_resolution": float(np.mean(made)),
        "bilinear": float(np.mean(enlarged)),
        "mouth_correlation": float(np.mean(kept)),
    }


def _snr(made: np.ndarray, sound: np.ndarray) -> float:
    return float(10 * np.log10((sound**2).sum() / max(float(((made - sound) ** 2).sum()), 1e-12)))


def _resampled(sound: np.ndarray, samples: int) -> np.ndarray:
    """[2, S] -> [2, samples] by cutting the spectrum."""
    spectrum = np.fft.rfft(sound)[:, : samples // 2 + 1]
    return np.fft.irfft(spectrum, samples) * samples / sound.shape[1]


COLUMNS = ("films", "sync", "shuffled", "face", "background", "pitch", "vowels", "exact", "first_frame")


def table(rows: Sequence[dict]) -> str:
    """The rows as Markdown."""
    lines = ["| | " + " | ".join(COLUMNS) + " | lags −2 … 2 |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in rows:
        if "sync" not in row:
            numbers = ", ".join(f"{k} {v:.2f}" for k, v in row.items() if k not in ("row", "films"))
            lines.append(f"| {row['row']} | {row['films']} | {numbers} |" + " |" * (len(COLUMNS) - 1))
            continue
        cells = [str(row["films"]), *(f"{row[name]:.2f}" for name in COLUMNS[1:])]
        lags = " ".join(f"{value:.2f}" for value in row["lags"])
        lines.append(f"| {row['row']} | " + " | ".join(cells) + f" | {lags} |")
    return "\n".join(lines)


def measure(models: Path, out: Path, count: int, wanted: str = "") -> str:
    """Rows whose names hold ``wanted``; writes ``out`` (JSON) after each and returns the Markdown."""
    rows: list[dict] = []
    for row in ROWS:
        if wanted in row.name:
            rows.append(measure_row(models, row, count))
            out.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    if not wanted:
        rows += [round_trips(models), super_resolution_gain(models)]
        out.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    return table(rows)
