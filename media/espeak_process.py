"""Speech by espeak-ng in a process of its own: run by espeak.py, never imported by it.

The library is under GPL-3 and keeps global state, and a bad voice can end its process: none of that may reach
ComfyUI. Needs the package espeakng-loader and nothing of this pack. Reads from standard input
``[{"text", "voice", "rate", "pitch"}, …]`` (JSON), writes one line of JSON (``{"rate": Hz, "samples": [n, …]}`` or
``{"error": …}``) and then the sound of all utterances, int16, one channel, end to end.
"""

import ctypes
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

LONGEST_PATH = 159  # bytes; the library copies the path into 160
PHONEME_EVENTS, DONT_EXIT = 0x0001, 0x8000  # without the second a bad path would call exit(1)
RETRIEVAL = 1  # sound comes to the callback
UTF8 = 1
RATE, PITCH = 1, 3  # numbers of espeak's parameters


def main() -> None:
    try:
        answer, sound = speak(json.loads(sys.stdin.buffer.read()))
    except Exception as error:  # the parent shows it; this process has nobody else to tell
        answer, sound = {"error": str(error) or type(error).__name__}, b""
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + sound)


def speak(utterances: list[dict]) -> tuple[dict, bytes]:
    """The header and the sound of all utterances."""
    try:
        import espeakng_loader
    except ImportError:
        return {"error": "not-installed"}, b""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(espeakng_loader.get_data_path())
        if len(os.fsencode(data)) > LONGEST_PATH:
            data = shutil.copytree(data, Path(folder) / "espeak-ng-data")
        library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        frequency = library.espeak_Initialize(RETRIEVAL, 0, os.fsencode(data), PHONEME_EVENTS | DONT_EXIT)
        if frequency <= 0:
            raise RuntimeError(f"espeak-ng does not start with its data in {data}")
        pieces: list[bytes] = []
        callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )

        @callback
        def receive(samples, count, _events):
            if count > 0:
                pieces.append(ctypes.string_at(samples, count * ctypes.sizeof(ctypes.c_short)))
            return 0

        library.espeak_SetSynthCallback(receive)
        spoken = []
        for utterance in utterances:
            pieces.clear()
            voice = utterance["voice"].encode()
            if library.espeak_SetVoiceByName(voice) != 0:
                raise RuntimeError(f"espeak-ng has no voice {utterance['voice']!r}")
            library.espeak_SetParameter(RATE, int(utterance["rate"]), 0)
            library.espeak_SetParameter(PITCH, int(utterance["pitch"]), 0)
            text = utterance["text"].encode() + b"\0"
            status = library.espeak_Synth(
                text, ctypes.c_size_t(len(text)), ctypes.c_uint(0), 0, ctypes.c_uint(0), UTF8, None, None
            )
            if status != 0:
                raise RuntimeError(f"espeak-ng refused {utterance['text'][:40]!r} (status {status})")
            library.espeak_Synchronize()
            spoken.append(b"".join(pieces))
        library.espeak_Terminate()
    return {"rate": frequency, "samples": [len(sound) // 2 for sound in spoken]}, b"".join(spoken)


if __name__ == "__main__":
    main()
