"""The lines of a scene, read by a robot at their planned times: to time a film, or to drive its lips."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from ..conditioning.dialogue.languages import LANGUAGES
from ..conditioning.dialogue.readings import kana
from ..conditioning.dialogue.review import Review, ReviewedLine
from ..conditioning.dialogue.spacing import unspace
from ..errors import ConditioningError
from ..media.audio import resample
from ..media.espeak import FASTEST, SLOWEST, Utterance, speak
from ..shapes import FPS, OUTPUT_SAMPLE_RATE

FADE = 0.005  # seconds at both ends of a line, so that none clicks
PEAK = 0.5  # of full scale
TRIAL_RATE = 175  # words a minute, espeak-ng's own
# One voice per speaker, told apart by timbre and pitch; words of the description choose the row.
WOMEN, MEN = ("+f2", "+f4", "+f3"), ("+m3", "+m7", "+m2")
PITCHES = (50, 62, 40, 70)
_WOMAN = re.compile(r"\b(woman|girl|lady|mother|grandmother|female|queen|actress|she|her)\b", re.IGNORECASE)


def scratch_voice(review: Review) -> tuple[Tensor, str]:
    """The voice [1, 1, S] float32 at 44 100 Hz, exactly as long as the film, and a report of each line.

    Each line is spoken at the rate that fills its span; espeak-ng's limits may leave it shorter or longer.
    Raises ConditioningError where nothing is said, and HappyHorseError where a package is missing.
    """
    if not review.lines:
        raise ConditioningError("The scene has no line, so there is nothing to speak. Add a line.")
    voices = {
        speaker.name: _voice(speaker.description, place) for place, speaker in enumerate(review.scene.cast)
    }
    trial = [_utterance(line, voices) for line in review.lines]
    rate, sounds = speak(trial)
    wanted = [line.span.end - line.span.start for line in review.lines]
    fitted = [
        replace(each, rate=round(min(max(TRIAL_RATE * len(sound) / rate / seconds, SLOWEST), FASTEST)))
        for each, sound, seconds in zip(trial, sounds, wanted, strict=True)
    ]
    rate, sounds = speak(fitted)
    total = round(review.timeline.frames / FPS * OUTPUT_SAMPLE_RATE)
    mix = torch.zeros(total)
    report = []
    for line, sound, said in zip(review.lines, sounds, fitted, strict=True):
        start = round(line.span.start * OUTPUT_SAMPLE_RATE)
        voice = _faded(resample(torch.from_numpy(sound.copy())[None], rate, OUTPUT_SAMPLE_RATE)[0])
        if start + len(voice) > total:
            raise ConditioningError(
                f"The line {line.prepared.cleaned[:60]!r} ends {(start + len(voice) - total) / OUTPUT_SAMPLE_RATE:.2f} s after "
                f"the film of {total / OUTPUT_SAMPLE_RATE:.2f} s, at {said.rate} words a minute. Set "
                "the length to 0 (automatic), shorten the line, or start it earlier."
            )
        mix[start : start + len(voice)] += voice
        seconds = len(voice) / OUTPUT_SAMPLE_RATE
        report.append(
            f"{line.span.start:.2f}–{line.span.start + seconds:.2f} s (planned to {line.span.end:.2f}): {line.prepared.cleaned}"
        )
    loudest = mix.abs().max()
    return (mix * (PEAK / loudest) if loudest > 0 else mix)[None, None], "\n".join(report)


def _utterance(line: ReviewedLine, voices: dict[str, tuple[str, int]]) -> Utterance:
    language = LANGUAGES[line.line.language]
    text = unspace(line.prepared.spoken)
    if language.name == "Japanese":
        text = kana(text)
    variant, pitch = voices.get(line.line.speaker, ("", PITCHES[0]))
    return Utterance(text, language.voice + variant, TRIAL_RATE, pitch)


def _voice(description: str, place: int) -> tuple[str, int]:
    variants = WOMEN if _WOMAN.search(description) else MEN
    return variants[place % len(variants)], PITCHES[place % len(PITCHES)]


def _faded(sound: Tensor) -> Tensor:
    length = min(round(FADE * OUTPUT_SAMPLE_RATE), len(sound) // 2)
    ramp = torch.linspace(0, 1, length)
    sound = sound.clone()
    sound[:length] *= ramp
    sound[len(sound) - length :] *= ramp.flip(0)
    return sound
