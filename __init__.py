"""HappyHorse for ComfyUI: one transformer that makes a film and its sound together."""

__version__ = "0.1.0"

OLDEST_COMFYUI = (0, 31)


async def comfy_entrypoint():
    """What ComfyUI calls to get the nodes."""
    # Imported late, so that tests and tools can import this package without ComfyUI.
    from comfyui_version import __version__ as found

    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_COMFYUI:
        oldest = ".".join(map(str, OLDEST_COMFYUI))
        raise RuntimeError(f"HappyHorse needs ComfyUI {oldest} or newer and this is {found}: update ComfyUI.")

    from .nodes.extension import HappyHorseExtension

    return HappyHorseExtension()
