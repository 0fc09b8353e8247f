"""Run by test_planner.py in a process of its own: how much resident memory one pass adds, in bytes.

Arguments: the pack's folder, rows of a feed-forward layer at once (0: all). A process with other tests behind it
holds and frees memory of theirs while this would be measured.
"""

import ctypes
import importlib.util
import sys
import threading
import time
from dataclasses import replace

import torch

root, mlp_rows = sys.argv[1], int(sys.argv[2]) or None
spec = importlib.util.spec_from_file_location("comfyui_happyhorse", f"{root}/__init__.py")
sys.modules["comfyui_happyhorse"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["comfyui_happyhorse"])

from comfyui_happyhorse.model.config import BlockSpec, TransformerConfig  # noqa: E402
from comfyui_happyhorse.model.sequence import SequenceLayout  # noqa: E402
from comfyui_happyhorse.model.transformer import JointTransformer  # noqa: E402

FRAMES, ROWS, AUDIO, TEXT, INNER, HIDDEN = 24, 40, 37, 40, 1_600, 512


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


torch.set_num_threads(1)
layer = BlockSpec(False, "swiglu7", INNER)
config = TransformerConfig(HIDDEN, 1, 1, 128, 192, 64, 64, 16, (layer, layer))
network = JointTransformer(config, dtype=torch.float32).requires_grad_(False)
video, audio, text = torch.randn(48, FRAMES, ROWS, ROWS), torch.randn(64, AUDIO), torch.randn(TEXT, 64)
layout = SequenceLayout.of(video, audio, text)
peak, stop = 0, threading.Event()


def watch():
    global peak
    while not stop.is_set():
        peak = max(peak, resident_bytes())
        time.sleep(0.001)


with torch.inference_mode():
    context = replace(network.context(layout, "cpu"), mlp_rows=mlp_rows)
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD: what is freed goes back, instead of being kept in pieces
    network(video, audio, text, context)  # the libraries' first use of these sizes
    libc.malloc_trim(0)
    before = resident_bytes()
    thread = threading.Thread(target=watch)
    thread.start()
    network(video, audio, text, context)
    stop.set()
    thread.join()
sys.stdout.write(f"{peak - before} {layout.video} {layout.audio} {layout.text}\n")
