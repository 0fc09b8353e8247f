"""The film that a plan is made for: sizes, length and steps, checked."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import GeometryError
from ..shapes import MAX_TEXT_TOKENS, check_frames, check_size, super_resolution_size

STEPS = {"distilled": (8, 1), "base": (32, 2)}  # and passes a step; super-resolution takes five
SR_STEPS = 5
MAX_STEPS = 1000


@dataclass(frozen=True, slots=True)
class FilmSize:
    """What is made. Sizes are the base stage's; raises GeometryError where they cannot be."""

    width: int = 448
    height: int = 256
    num_frames: int = 125
    variant: str = "distilled"
    super_resolution: str = "none"
    exact: bool = False
    steps: int | None = None
    sr_steps: int | None = None
    sr_guided: bool = False
    text_tokens: int = MAX_TEXT_TOKENS
    has_picture: bool = False
    decoder: str = "turbo"

    def __post_init__(self):
        check_size(self.width, self.height)
        check_frames(self.num_frames)
        for what, choices in (
            ("variant", STEPS),
            ("super_resolution", ("none", "540p", "1080p")),
            ("decoder", ("turbo", "wan")),
        ):
            if getattr(self, what) not in choices:
                raise GeometryError(f"There is no {what} '{getattr(self, what)}'; use {', '.join(choices)}.")
        check_size(*self.final_size)
        for steps in (self.steps, self.sr_steps):
            if steps is not None and not 1 <= steps <= MAX_STEPS:
                raise GeometryError(f"{steps} steps cannot be planned for; use 1 to {MAX_STEPS}.")
        if self.text_tokens < 1:
            raise GeometryError(f"A prompt of {self.text_tokens} tokens is none; use 1 or more.")

    @property
    def final_size(self) -> tuple[int, int]:
        """(width, height) of the film."""
        if self.super_resolution == "none":
            return self.width, self.height
        return super_resolution_size(self.width, self.height, self.super_resolution, exact=self.exact)
