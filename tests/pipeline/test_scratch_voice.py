"""The scratch voice: every line at its time, in a film's exact length, each speaker with a voice of their own."""

import numpy as np
import pytest
import torch

from comfyui_happyhorse.conditioning.dialogue.document import Line, Scene, Shot, Speaker
from comfyui_happyhorse.conditioning.dialogue.review import review
from comfyui_happyhorse.errors import ConditioningError
from comfyui_happyhorse.media import espeak
from comfyui_happyhorse.pipeline import scratch_voice as room
from comfyui_happyhorse.pipeline.scratch_voice import PEAK, scratch_voice
from comfyui_happyhorse.shapes import OUTPUT_SAMPLE_RATE as RATE

ANNA, BEN = Speaker("Anna", "young woman, red coat", "left"), Speaker("Ben", "old man, grey beard", "right")


def scene(*lines):
    return Scene((ANNA, BEN), (Shot(lines),))


@pytest.fixture
def synthesiser(monkeypatch):
    """Tones in place of speech, as long as the rate and the letters say; what was asked is in the list."""
    asked = []

    def speak(utterances):
        asked.append(list(utterances))
        sounds = []
        for each in utterances:
            seconds = len(each.text) * 10 / each.rate
            sounds.append(np.sin(np.arange(round(seconds * 22_050)) / 10).astype(np.float32))
        return 22_050, sounds

    monkeypatch.setattr(room, "speak", speak)
    return asked


@pytest.mark.usefixtures("synthesiser")
def test_lines_lie_at_their_times_and_last_as_planned():
    found = review(
        scene(Line("Anna", "English", "Good morning, Ben."), Line("Ben", "German", "Guten Tag.", start=3.0))
    )
    voice, report = scratch_voice(found)
    assert voice.shape == (1, 1, found.timeline.frames * 1764)
    assert float(voice.abs().max()) == pytest.approx(PEAK)
    loud = voice[0, 0].abs() > 1e-4
    for line in found.lines:
        start, end = round(line.span.start * RATE), round(line.span.end * RATE)
        assert loud[start + 200 : end - 200].float().mean() > 0.95
        assert not loud[max(0, start - 2000) : start].any()
        assert abs(int(loud[: end + 8000].nonzero()[-1]) - end) < 0.03 * (end - start) + 500
    assert [row.partition("–")[0] for row in report.splitlines()] == ["0.30", "3.00"]


def test_speakers_have_voices_of_their_own_and_numbers_are_spoken(synthesiser):
    scratch_voice(review(scene(Line("Anna", "English", "At 3."), Line("Ben", "Mandarin", "3点见。"))))
    first, second = synthesiser[-1]
    assert (first.text, second.text) == ("At three.", "三点见。")
    assert first.voice == "en-us+f2"
    assert second.voice.startswith("cmn+m")
    assert first.pitch != second.pitch


@pytest.mark.usefixtures("synthesiser")
def test_a_line_that_cannot_fit_is_named():
    long = "word " * 300
    with pytest.raises(
        ConditioningError, match=r"'word word.* after the film of 1\.00 s, at \d+ words a minute"
    ):
        scratch_voice(review(scene(Line("Anna", "English", long)), frames=25))


def test_a_scene_without_lines_has_no_voice():
    with pytest.raises(ConditioningError, match="no line"):
        scratch_voice(review(Scene()))


def test_real_speech_keeps_to_the_plan():
    pytest.importorskip("espeakng_loader", reason="the extra 'test' brings espeakng-loader")
    found = review(
        scene(
            Line("Anna", "French", "On se retrouve demain matin ?"),
            Line("Ben", "Korean", "내일 아침에 봐요."),
        )
    )
    voice, _ = scratch_voice(found)
    level = voice[0, 0].unfold(0, 441, 441).square().mean(1).sqrt()  # each 10 ms
    times = torch.arange(len(level)) * 0.01
    spoken = level > 0.01
    for line in found.lines:
        inside = (times > line.span.start) & (times < line.span.end)
        assert spoken[inside].float().mean() > 0.5
    first, second = (line.span for line in found.lines)
    between = (times > first.end + 0.15) & (times < second.start - 0.05)
    assert not spoken[between].any()


def test_the_program_beside_the_client_is_there():
    assert espeak.PROGRAM.is_file()
