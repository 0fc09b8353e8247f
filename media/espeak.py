"""A scratch voice: short lines spoken by espeak-ng, an optional package, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import MediaError, missing_package

PROGRAM = Path(__file__).with_name("espeak_process.py")
SECONDS = 120  # for all utterances; one takes about 0.03 s
SLOWEST, FASTEST = 80, 450  # words a minute, what espeak-ng takes


@dataclass(frozen=True, slots=True)
class Utterance:
    """Something to be said."""

    text: str
    voice: str  # espeak-ng's name, as in "en-us" or "cmn+f2"
    rate: int = 175  # words a minute
    pitch: int = 50  # 0 to 99


def speak(utterances: Sequence[Utterance]) -> tuple[int, list[np.ndarray]]:
    """The sample rate in Hz and each utterance's sound, float32 [N] from -1 to 1, silence at both ends cut off.

    Raises HappyHorseError where espeakng-loader is not installed, and MediaError where it cannot speak.
    """
    if not utterances:
        return 22_050, []
    request = json.dumps([asdict(utterance) for utterance in utterances])
    try:
        result = subprocess.run(
            [sys.executable, str(PROGRAM)], input=request.encode(), capture_output=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise MediaError(f"espeak-ng did not finish {len(utterances)} lines in {SECONDS} s.") from None
    header, _, sound = result.stdout.partition(b"\n")
    try:
        answer = json.loads(header)
    except ValueError:
        detail = result.stderr.decode(errors="replace").strip()[-300:]
        raise MediaError(
            f"espeak-ng ended with {result.returncode} before it spoke. {detail}".strip()
        ) from None
    if answer.get("error") == "not-installed":
        raise missing_package("espeakng-loader", "A scratch voice", "voice")
    if "error" in answer:
        raise MediaError(f"The scratch voice cannot be made: {answer['error']}.")
    samples = np.frombuffer(sound, np.int16).astype(np.float32) / 32_768
    ends = np.cumsum(answer["samples"])
    return answer["rate"], [trim(each) for each in np.split(samples, ends[:-1])]


def trim(sound: np.ndarray, threshold: float = 1e-3) -> np.ndarray:
    """``sound`` [N] without what is quieter than ``threshold`` at its beginning and end; empty for silence."""
    loud = np.flatnonzero(np.abs(sound) > threshold)
    return sound[loud[0] : loud[-1] + 1] if len(loud) else sound[:0]
