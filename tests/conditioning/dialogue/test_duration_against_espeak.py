"""Durations against espeak-ng, which knows nothing of our rates: one factor a language, fitted on half the sentences.

``pytest -rP`` on this file prints the table that docs/dialogue.md keeps.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from comfyui_happyhorse.conditioning.dialogue.duration import estimate
from comfyui_happyhorse.conditioning.dialogue.languages import LANGUAGES
from comfyui_happyhorse.media.espeak import Utterance, speak

SENTENCES = json.loads((Path(__file__).parent / "sentences.json").read_text(encoding="utf-8"))
WORDS_A_MINUTE = 175  # espeak-ng's own
CORRELATION, ERROR = 0.95, 0.09
DOC = Path(__file__).resolve().parents[3] / "docs" / "dialogue.md"


def seconds(language: str) -> tuple[np.ndarray, np.ndarray]:
    """(estimated, spoken) of every sentence; the estimate reads what a person types, the voice its kana."""
    pairs = [(item, item) if isinstance(item, str) else item for item in SENTENCES[language]]
    assert len(pairs) >= 30
    rate, sounds = speak([Utterance(heard, LANGUAGES[language].voice, WORDS_A_MINUTE) for _, heard in pairs])
    estimated = [estimate(typed, language).natural for typed, _ in pairs]
    return np.array(estimated), np.array([len(sound) / rate for sound in sounds])


def figures(language: str) -> tuple[float, float, float]:
    """(factor, correlation, mean error): the factor of the even sentences, tried on the odd ones."""
    estimated, spoken = seconds(language)
    factor = float(np.exp(np.log(spoken[::2] / estimated[::2]).mean()))
    correlation = float(np.corrcoef(estimated[1::2], spoken[1::2])[0, 1])
    error = float(np.abs(factor * estimated[1::2] / spoken[1::2] - 1).mean())
    return factor, correlation, error


@pytest.mark.parametrize("language", LANGUAGES)
def test_durations_are_those_of_an_independent_voice(language):
    pytest.importorskip("espeakng_loader", reason="the extra 'test' brings espeakng-loader")
    factor, correlation, error = figures(language)
    row = f"| {language} | {len(SENTENCES[language])} | {factor:.2f} | {correlation:.3f} | {100 * error:.1f} % |"
    print(row)  # noqa: T201
    assert correlation >= CORRELATION
    assert error <= ERROR
    assert 0.8 < factor < 1.5  # at its own pace the voice is a plausible speaker
    if DOC.is_file():
        kept = [float(cell.strip(" %")) for cell in _kept_row(language)]
        assert kept == pytest.approx([factor, correlation, 100 * error], abs=0.6)


def _kept_row(language: str) -> list[str]:
    rows = DOC.read_text(encoding="utf-8").splitlines()
    row = next(row for row in rows if row.startswith(f"| {language} |"))
    return row.split("|")[3:6]


def test_a_wrong_count_would_be_noticed(monkeypatch):
    """The check can fail: with syllables of the first half of a line only, it does."""
    pytest.importorskip("espeakng_loader", reason="the extra 'test' brings espeakng-loader")
    from comfyui_happyhorse.conditioning.dialogue import duration

    count = duration.count
    monkeypatch.setattr(duration, "count", lambda text, language: count(text[:30], language))
    _, correlation, error = figures("English")
    assert correlation < CORRELATION or error > ERROR
