"""The node that writes a film: frames and sound to one file, in the format that is asked for."""

from __future__ import annotations

import json
import logging
from fractions import Fraction
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy.cli_args import args
from comfy_api.latest import InputImpl, io, ui

from ..errors import MediaError
from ..media.codecs import VIDEO_CODECS
from ..media.formats import FilmFormat, formats
from ..media.mux import write_film
from ..media.soundtrack import Track
from ..pipeline.stages import soundtrack
from ..shapes import FPS
from .latents import sound_of

logger = logging.getLogger(__name__)
CATEGORY = "HappyHorse/video"
CHUNK = 8  # frames handed to the encoder at once
LOUDNESS = {"off": None, "-14 LUFS": -14.0, "-16 LUFS": -16.0, "-23 LUFS": -23.0}
# The languages the model speaks, by their two letters, as containers name them.
ISO_639_2 = {"zh": "zho", "en": "eng", "ja": "jpn", "ko": "kor", "fr": "fra", "de": "deu"}


class HappyHorseMux(io.ComfyNode):
    """Frames and sound to a film on disk."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseMux",
            display_name="HappyHorse Mux",
            category=CATEGORY,
            description="Writes frames and sound to one file with the workflow inside, and plays it in the node.",
            search_aliases=["save video", "video combine", "mp4", "webm"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Image.Input("images", optional=True, tooltip="Frames, or connect a video."),
                io.Video.Input(
                    "video", optional=True, tooltip="A video with or without sound, in place of images."
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="The film's sound; your own voice track may be plugged in. Without it, the video's.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/HappyHorse",
                    tooltip="In the output folder; a subfolder may be named.",
                ),
                io.Combo.Input(
                    "format",
                    options=format_names(),
                    default="mp4-h264-aac",
                    tooltip="Container, picture and sound. MP4, MOV and WebM bring the workflow back when dropped on "
                    "the canvas; MKV gets a .json beside it.",
                ),
                io.Float.Input(
                    "frame_rate",
                    default=float(FPS),
                    min=1.0,
                    max=240.0,
                    step=0.01,
                    tooltip="The model makes 25 frames a second; any other rate puts lips and voice apart.",
                ),
                io.Int.Input(
                    "quality",
                    default=80,
                    min=0,
                    max=100,
                    tooltip="75 looks like the original; FFV1 is lossless.",
                ),
                io.Combo.Input(
                    "bit_depth",
                    options=["8", "10"],
                    default="8",
                    optional=True,
                    tooltip="10 keeps soft gradients; browsers get an 8-bit preview.",
                ),
                io.Combo.Input(
                    "loudness",
                    options=list(LOUDNESS),
                    default="off",
                    optional=True,
                    tooltip="Brings the sound to this loudness: -14 for the web, -16 for podcasts, -23 for television.",
                ),
                io.Combo.Input(
                    "fit",
                    options=["exact", "pad", "trim"],
                    default="exact",
                    optional=True,
                    advanced=True,
                    tooltip="exact: sound as long as the picture. pad: silence behind a shorter sound, a longer one is "
                    "refused. trim: a longer sound is cut, a shorter one ends early.",
                ),
                io.String.Input(
                    "languages",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Languages of the sound tracks, the film's own first: ISO codes, such as kor, deu, fra.",
                ),
                io.Autogrow.Input(
                    "tracks",
                    optional=True,
                    template=io.Autogrow.TemplatePrefix(
                        io.Audio.Input("track", optional=True), prefix="track_", min=0, max=7
                    ),
                    tooltip="More sound tracks, such as other languages.",
                ),
            ],
            outputs=[io.Video.Output(), io.String.Output(display_name="path")],
        )

    @classmethod
    def execute(
        cls,
        filename_prefix,
        format,
        frame_rate,
        quality,
        images=None,
        video=None,
        audio=None,
        bit_depth="8",
        loudness="off",
        fit="exact",
        languages="",
        tracks=None,
    ) -> io.NodeOutput:
        frames, sound, rate = _picture_and_sound(images, video, audio, frame_rate)
        if rate != FPS:
            logger.warning(
                "The film is written at %g frames a second; HappyHorse makes %d, and at another rate lips and "
                "voice drift apart.",
                float(rate),
                FPS,
            )
        kind = film_format(format, quality, int(bit_depth))
        sounds = _tracks([sound, *(tracks or {}).values()], languages)
        height, width = frames.shape[1:3]
        folder, name, number, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        path = Path(folder) / f"{name}_{number:05}_{kind.box.extension}"
        preview = None
        if not kind.plays_in_browsers:
            preview = Path(folder_paths.get_temp_directory()) / f"{name}_{number:05}_.mp4"
            preview.parent.mkdir(parents=True, exist_ok=True)
        progress = comfy.utils.ProgressBar(len(frames))

        def on_frames(done):
            comfy.model_management.throw_exception_if_processing_interrupted()
            progress.update_absolute(done)

        write_film(
            path,
            (chunk[..., :3] for chunk in frames.split(CHUNK)),
            None,  # the film's own sound is the first of the tracks, so that it has a language too
            format=kind,
            fps=rate,
            tracks=sounds,
            fit=fit,
            loudness=LOUDNESS[loudness],
            metadata=_workflow(cls.hidden),
            preview=preview,
            on_frames=on_frames,
        )
        shown = ui.SavedResult(path.name, subfolder, io.FolderType.output)
        if preview is not None:
            shown = ui.SavedResult(preview.name, "", io.FolderType.temp)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), str(path), ui=ui.PreviewVideo([shown]))


def format_names() -> list[str]:
    """ "container-picture-sound" of every combination that works, the default first."""
    names = dict.fromkeys(f"{each.container}-{each.video_codec}-{each.audio_codec}" for each in formats())
    return list(names)


def film_format(name: str, quality: int, bit_depth: int) -> FilmFormat:
    """The format of that name; a codec with one bit depth only gets that one, and the log says so."""
    container, video, audio = name.split("-")
    depths = VIDEO_CODECS[video].pixel_formats
    if bit_depth not in depths:
        bit_depth, asked = max(depths), bit_depth
        logger.info("%s has no %d bits; %d are written.", VIDEO_CODECS[video].label, asked, bit_depth)
    return FilmFormat(container, video, audio, quality, bit_depth)


def _picture_and_sound(images, video, audio, frame_rate):
    """(frames [F, H, W, C], AUDIO or None, frames a second) of what is connected."""
    if (images is None) == (video is None):
        came = "nothing is" if images is None else "both are"
        raise MediaError(f"images/video: {came} connected; connect one of them.")
    rate = Fraction(str(round(frame_rate, 3)))
    if video is not None:
        parts = video.get_components()
        images, audio, rate = (
            parts.images,
            parts.audio if audio is None else audio,
            Fraction(parts.frame_rate),
        )
    if images.ndim != 4 or not len(images) or images.shape[-1] not in (3, 4):
        raise MediaError(
            f"images: a picture of shape {tuple(images.shape)} came; expected frames [F, H, W, 3]."
        )
    return images, audio, rate


def _tracks(sounds: list, languages: str) -> list[Track]:
    """The sounds that are there, with their languages in order."""
    named = [
        (sound_of(sound, f"track_{number}" if number else "audio"))
        for number, sound in enumerate(sounds)
        if sound is not None
    ]
    codes = [code.strip().lower() for code in languages.split(",")] if languages.strip() else []
    if len(codes) > len(named):
        raise MediaError(
            f"languages: {len(codes)} are named for {len(named)} sound track(s); connect more tracks or name fewer."
        )
    codes += ["und"] * (len(named) - len(codes))
    return [
        Track(*soundtrack(*sound), ISO_639_2.get(code, code or "und"))
        for sound, code in zip(named, codes, strict=True)
    ]


def _workflow(hidden) -> dict[str, str]:
    """What brings the workflow back when the film is dropped on the canvas; nothing where the user wants none."""
    if args.disable_metadata:
        return {}
    found = {} if hidden.prompt is None else {"prompt": hidden.prompt}
    found |= hidden.extra_pnginfo or {}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in found.items()}


NODES = [HappyHorseMux]
