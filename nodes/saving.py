"""What a film's node gives to the mux: a format, a place, sound tracks, the workflow, and what the page shows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy.cli_args import args
from comfy_api.latest import InputImpl, io, ui

from ..errors import MediaError
from ..media.codecs import VIDEO_CODECS
from ..media.formats import FilmFormat, formats
from ..media.soundtrack import Track
from ..pipeline.decode import soundtrack
from .latents import sound_of

logger = logging.getLogger(__name__)
LOUDNESS = {"off": None, "-14 LUFS": -14.0, "-16 LUFS": -16.0, "-23 LUFS": -23.0}
# The languages the model speaks, by their two letters, as containers name them.
ISO_639_2 = {"zh": "zho", "en": "eng", "ja": "jpn", "ko": "kor", "fr": "fra", "de": "deu"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where one film goes below the output folder, and where its preview goes if the page needs one."""

    path: Path
    subfolder: str
    preview: Path | None

    @classmethod
    def below_output(cls, prefix: str, kind: FilmFormat, width: int, height: int) -> Place:
        folder, name, number, subfolder, _ = folder_paths.get_save_image_path(
            prefix, folder_paths.get_output_directory(), width, height
        )
        preview = None
        if not kind.plays_in_browsers:
            preview = Path(folder_paths.get_temp_directory()) / f"{name}_{number:05}_.mp4"
            preview.parent.mkdir(parents=True, exist_ok=True)
        return cls(Path(folder) / f"{name}_{number:05}_{kind.box.extension}", subfolder, preview)

    def shown(self) -> io.NodeOutput:
        """The written film as VIDEO, its path, and the player in the node."""
        saved = ui.SavedResult(self.path.name, self.subfolder, io.FolderType.output)
        if self.preview is not None:
            saved = ui.SavedResult(self.preview.name, "", io.FolderType.temp)
        path = str(self.path)
        return io.NodeOutput(InputImpl.VideoFromFile(path), path, ui=ui.PreviewVideo([saved]))


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


def sound_tracks(sounds: list, languages: str) -> list[Track]:
    """The AUDIO that are there, with their languages in order."""
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
        soundtrack(*sound, ISO_639_2.get(code, code or "und"))
        for sound, code in zip(named, codes, strict=True)
    ]


def workflow_tags(hidden) -> Mapping[str, str]:
    """What brings the workflow back when the film is dropped on the canvas; nothing where the user wants none."""
    if args.disable_metadata:
        return {}
    found = {} if hidden.prompt is None else {"prompt": hidden.prompt}
    found |= hidden.extra_pnginfo or {}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in found.items()}


def frame_progress(num_frames: int) -> Callable[[int], None]:
    """Tells the page how many frames are in; a press of stop is raised from there."""
    progress = comfy.utils.ProgressBar(num_frames)

    def on_frames(done):
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.update_absolute(done)

    return on_frames
