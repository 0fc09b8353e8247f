"""HappyHorse for ComfyUI: one transformer that makes a film and its sound together."""

__version__ = "0.1.0"
