"""Which file is which part of the model set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ..model_loading.find import find_parts, the_part

if TYPE_CHECKING:
    from .film import FilmRequest


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The parts of a model set; those a film does not need may be None."""

    transformer: Path | None = None
    text_encoder: Path | None = None
    audio_vae: Path | None = None
    turbo_decoder: Path | None = None
    video_vae: Path | None = None
    super_resolution: Path | None = None
    tokenizer: Path | None = None

    @classmethod
    def locate(cls, folder: str | Path | None, request: FilmRequest, named: ModelFiles) -> ModelFiles:
        """The parts this film needs: those ``named``, the others searched for in ``folder``.

        Raises CheckpointError where a part is missing or where there are several.
        """
        parts = None
        found = {}
        for part, (kind, variant) in _needs(request).items():
            path = getattr(named, part)
            if path is None and folder is not None:
                parts = find_parts(folder) if parts is None else parts
                path = the_part(parts, kind, variant, folder, f"--{part.replace('_', '-')}")
            found[part] = path
        return cls(**found, tokenizer=named.tokenizer)

    def check(self, request: FilmRequest) -> None:
        """Raise CheckpointError unless every part this film needs is named and exists."""
        for part in _needs(request):
            path = getattr(self, part)
            option = f"--{part.replace('_', '-')}"
            if path is None:
                raise CheckpointError(
                    f"This film needs a {part.replace('_', ' ')}: name it with {option}, or name a folder with --models."
                )
            if not path.exists():
                raise CheckpointError(f"{path} ({option}) does not exist.")


def _needs(request: FilmRequest) -> dict[str, tuple[str, str | None]]:
    """{part: (kind of network, variant)} for this film."""
    needs: dict[str, tuple[str, str | None]] = {
        "transformer": ("transformer", request.variant),
        "text_encoder": ("text_encoder", None),
        "audio_vae": ("audio_vae", None),
    }
    if request.decoder == "turbo":
        needs["turbo_decoder"] = ("turbo_decoder", None)
    if request.decoder == "wan" or request.image is not None:
        needs["video_vae"] = ("video_vae", None)
    if request.super_resolution != "none":
        needs["super_resolution"] = ("transformer", f"sr_{request.super_resolution}")
    return needs
