"""Runs the command line: ``python -m comfyui_happyhorse``."""

import sys

from .cli.main import main

sys.exit(main())
