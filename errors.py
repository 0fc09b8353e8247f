"""The pack's errors, each raised where the fact is known.

HappyHorseError          anything below; catch this one to show a message to a person
├── CheckpointError      a weight file: missing, truncated, of another model, with wrong names or shapes
├── ConditioningError    what the user asks for: prompt, tokeniser, picture, voice
├── GeometryError        sizes, lengths and frame counts that cannot be made
├── SamplingError        numbers that stopped being numbers, stages that do not fit each other
└── MediaError           reading or writing pictures, sound and films

A message says what happened, with the numbers, and what to do.
"""


class HappyHorseError(Exception):
    """Anything this pack refuses, in words meant for the person at the screen."""


class CheckpointError(HappyHorseError):
    """A weight file cannot be used."""


class ConditioningError(HappyHorseError):
    """A prompt, tokeniser, picture or voice cannot be used."""


class GeometryError(HappyHorseError, ValueError):
    """A size, length or frame count cannot be made."""


class SamplingError(HappyHorseError):
    """Sampling cannot go on with these numbers."""


class MediaError(HappyHorseError):
    """A picture, sound or film cannot be read or written."""


def missing_package(package: str, purpose: str, extra: str | None = None) -> HappyHorseError:
    """The error for an optional package that is not installed."""
    command = f'pip install "comfyui-happyhorse[{extra}]"' if extra else f"pip install {package}"
    return HappyHorseError(
        f"{purpose} needs the Python package '{package}', which is not installed: {command}"
    )
