"""The nodes that write a film, from frames or straight from latents: one file, in the format that is asked for."""

from __future__ import annotations

import logging
from fractions import Fraction

import torch
from comfy_api.latest import io

from ..errors import MediaError
from ..media.mux import write_film
from ..pipeline.decode import use_smaller_pieces, write_decoded
from ..pipeline.memory import once_more
from ..shapes import FPS, OUTPUT_SAMPLE_RATE, SPACE_STRIDE, decoded_frames
from .autoencoders import decode_sound
from .decoding import decoded_windows
from .saving import (
    LOUDNESS,
    Place,
    film_format,
    format_names,
    frame_progress,
    sound_tracks,
    workflow_tags,
)
from .wire import check_vae, streams_of

logger = logging.getLogger(__name__)
CATEGORY = "HappyHorse/video"
CHUNK = 8  # frames handed to the encoder at once


def _file() -> list:
    """Inputs: where the film goes, and as what."""
    return [
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
    ]


def _finish() -> list:
    """Inputs: how good the picture is, and what becomes of the sound."""
    return [
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
    ]


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
                *_file(),
                io.Float.Input(
                    "frame_rate",
                    default=float(FPS),
                    min=1.0,
                    max=240.0,
                    step=0.01,
                    tooltip="The model makes 25 frames a second; any other rate puts lips and voice apart.",
                ),
                *_finish(),
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
        sounds = sound_tracks([sound, *(tracks or {}).values()], languages)
        height, width = frames.shape[1:3]
        place = Place.below_output(filename_prefix, kind, width, height)
        write_film(
            place.path,
            (chunk[..., :3] for chunk in frames.split(CHUNK)),
            None,  # the film's own sound is the first of the tracks, so that it has a language too
            format=kind,
            fps=rate,
            tracks=sounds,
            fit=fit,
            loudness=LOUDNESS[loudness],
            metadata=workflow_tags(cls.hidden),
            preview=place.preview,
            on_frames=frame_progress(len(frames)),
        )
        return place.shown()


class HappyHorseDecodeToVideo(io.ComfyNode):
    """Latents to a film on disk, without the frames ever being together in memory."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseDecodeToVideo",
            display_name="HappyHorse Decode to Video",
            category=CATEGORY,
            description="Decodes latents straight into one file, a few frames at a time: the memory that HappyHorse "
            "Decode and Mux need for long or large films stays free.",
            search_aliases=["decode", "save video", "video combine", "low memory"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Latent.Input("latent", tooltip="Films of a batch are written one after the other."),
                io.Vae.Input("video_vae", tooltip="The Turbo decoder (fast) or the Wan 2.2 VAE."),
                io.Vae.Input("audio_vae", tooltip="Makes the sound, unless audio is connected."),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Your own recording, in place of the sound that the model made.",
                ),
                *_file(),
                *_finish(),
            ],
            outputs=[io.Video.Output(), io.String.Output(display_name="path")],
        )

    @classmethod
    def execute(
        cls,
        latent,
        video_vae,
        audio_vae,
        filename_prefix,
        format,
        quality,
        audio=None,
        bit_depth="8",
        loudness="off",
        fit="exact",
        languages="",
        tracks=None,
    ) -> io.NodeOutput:
        check_vae(video_vae, "video_vae", "video")
        check_vae(audio_vae, "audio_vae", "audio")
        video, voices = streams_of(latent)
        kind = film_format(format, quality, int(bit_depth))
        films, _, length, rows, columns = video.shape
        width, height = columns * SPACE_STRIDE, rows * SPACE_STRIDE
        kind.check_size(width, height)
        if audio is None:
            spoken = torch.cat([decode_sound(audio_vae, voice[None]) for voice in voices], dim=-1)
            audio = {"waveform": spoken, "sample_rate": OUTPUT_SAMPLE_RATE}
        sounds = sound_tracks([audio, *(tracks or {}).values()], languages)
        place = Place.below_output(filename_prefix, kind, width, height)
        num_frames = films * decoded_frames(length)

        def run(is_smaller: bool) -> None:
            if is_smaller:
                use_smaller_pieces(getattr(video_vae.first_stage_model, "network", None))
            write_decoded(
                place.path,
                decoded_windows(video_vae, video),
                video_vae.device,
                num_frames,
                sounds,
                format=kind,
                fit=fit,
                loudness=LOUDNESS[loudness],
                metadata=workflow_tags(cls.hidden),
                preview=place.preview,
                on_frames=frame_progress(num_frames),
            )

        once_more("Decoding", run, "in smaller pieces")
        return place.shown()


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


NODES = [HappyHorseMux, HappyHorseDecodeToVideo]
