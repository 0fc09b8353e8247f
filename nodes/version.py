"""The oldest ComfyUI that this pack runs on, said once and clearly."""

from __future__ import annotations

OLDEST = (0, 31)  # the first whose sampler tells a model the shapes of its streams


def require_comfyui() -> None:
    """Raise RuntimeError on an older ComfyUI, where our other modules would fail on imports."""
    from comfyui_version import __version__ as found

    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise RuntimeError(
            f"HappyHorse needs ComfyUI {oldest} or newer and this is {found}. Update ComfyUI and start it again."
        )
