"""A progress bar per stage, with the time it still needs."""

from __future__ import annotations

import sys
import time
from typing import TextIO

WIDTH = 24


class ProgressBars:
    """Called with (stage, done, total); draws one line per stage on a terminal, prints its end elsewhere."""

    def __init__(self, stream: TextIO | None = None, clock=time.monotonic):
        self.stream = stream or sys.stderr
        self.clock = clock
        self.stage: str | None = None
        self.started = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stage, self.started = stage, self.clock()
        elapsed = self.clock() - self.started
        is_finished = done >= total
        if self.stream.isatty():
            self.stream.write("\r\x1b[K" + self._line(done, total, elapsed) + ("\n" if is_finished else ""))
        elif is_finished:
            self.stream.write(self._line(done, total, elapsed) + "\n")
        self.stream.flush()
        if is_finished:
            self.stage = None

    def _line(self, done: int, total: int, elapsed: float) -> str:
        filled = round(WIDTH * min(done / total, 1))
        if done >= total:
            note = f"{seconds(elapsed)}"
        elif done:
            note = f"{seconds(elapsed * (total - done) / done)} left"
        else:
            note = "loading"
        return f"{self.stage:>17} [{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{total}  {note}"


def seconds(duration: float) -> str:
    """65.2 -> "1:05", 4.21 -> "4.2 s"."""
    if duration < 60:
        return f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
