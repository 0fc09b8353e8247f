"""The benchmark behind ``python -m comfyui_happyhorse bench``: what is measured, against what, and how it is told."""
