"""HappyHorse for ComfyUI: one transformer that makes a film and its sound together."""

__version__ = "0.1.0"

WEB_DIRECTORY = "web"


async def comfy_entrypoint():
    """What ComfyUI calls to get the nodes."""
    # Imported late, so that tests and tools can import this package without ComfyUI.
    from .nodes.version import require_comfyui

    require_comfyui()
    from .nodes.extension import HappyHorseExtension

    return HappyHorseExtension()
