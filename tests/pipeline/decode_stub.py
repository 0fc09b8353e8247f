"""Run by test_decode.py in a process of its own: how much memory a film of the arguments takes while it is written.

Arguments: PATH FRAMES HEIGHT WIDTH. Prints JSON: frames, seconds, the bytes that the process grew by at its most.
"""

import importlib.util
import json
import re
import sys
import threading
import time
from pathlib import Path

spec = importlib.util.spec_from_file_location("conftest", Path(__file__).parent.parent / "conftest.py")
spec.loader.exec_module(importlib.util.module_from_spec(spec))

import torch  # noqa: E402

from comfyui_happyhorse.media.formats import FilmFormat  # noqa: E402
from comfyui_happyhorse.media.soundtrack import Track  # noqa: E402
from comfyui_happyhorse.pipeline.decode import write_decoded  # noqa: E402

PATH, FRAMES, HEIGHT, WIDTH = Path(sys.argv[1]), *map(int, sys.argv[2:])
FAST = FilmFormat(quality=0)
CPU = torch.device("cpu")


def windows(frames, height, width):
    """Pixels as the Turbo decoder gives them: 25 frames, then 28 at a time, in bf16; a grey that covers a ramp."""
    ramp = torch.linspace(-1, 1, width).expand(3, height, width).to(torch.bfloat16)
    done = 0
    while done < frames:
        length = min(28 if done else 25, frames - done)
        window = torch.empty(1, 3, length, height, width, dtype=torch.bfloat16)
        for number in range(length):
            window[0, :, number] = ramp
            window[0, :, number, :, : 4 * (done + number)] = 0
        done += length
        yield window
        del window


def write(frames, height, width):
    sound = Track(0.1 * torch.ones(2, frames * 1764), 44_100)
    return write_decoded(PATH, windows(frames, height, width), CPU, frames, [sound], format=FAST)


def resident() -> int:
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


write(9, 64, 64)  # libraries, their tables and threads
start, before = time.monotonic(), resident()
seen, over = [before], threading.Event()


def watch():
    while not over.wait(0.01):
        seen.append(resident())


watcher = threading.Thread(target=watch)
watcher.start()
info = write(FRAMES, HEIGHT, WIDTH)
over.set()
watcher.join()
found = {"frames": info.frames, "seconds": time.monotonic() - start, "grew": max(seen) - before}
sys.stdout.write(json.dumps(found) + "\n")
