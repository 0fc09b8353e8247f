"""The scratch voice's synthesiser in its own process, and what is said when it cannot speak."""

import sys

import numpy as np
import pytest

from comfyui_happyhorse.errors import HappyHorseError, MediaError
from comfyui_happyhorse.media import espeak
from comfyui_happyhorse.media.espeak import Utterance, speak, trim


@pytest.fixture
def synthesiser():
    pytest.importorskip("espeakng_loader", reason="the extra 'test' brings espeakng-loader")


@pytest.mark.usefixtures("synthesiser")
def test_lines_are_spoken_in_order_at_their_rates():
    text = "One line is spoken twice."
    rate, (slow, fast, other) = speak(
        [Utterance(text, "en-us", 150), Utterance(text, "en-us", 300), Utterance("你好。", "cmn+f2", 150, 60)]
    )
    assert rate == 22_050
    assert 1.6 < len(slow) / len(fast) < 2.4
    assert len(other) < len(fast)
    for sound in (slow, fast, other):
        assert sound.dtype == np.float32
        assert 0.05 < np.abs(sound).max() <= 1
        assert abs(sound[0]) > 1e-3 < abs(sound[-1])  # silence at the ends is cut off


@pytest.mark.usefixtures("synthesiser")
def test_the_same_line_is_the_same_sound():
    _, (first,) = speak([Utterance("Again.", "de")])
    _, (second,) = speak([Utterance("Again.", "de")])
    np.testing.assert_array_equal(first, second)


@pytest.mark.usefixtures("synthesiser")
def test_an_unknown_voice_is_named():
    with pytest.raises(MediaError, match="no voice 'nobody'"):
        speak([Utterance("x", "nobody")])


@pytest.mark.usefixtures("synthesiser")
def test_a_long_data_path_is_copied_to_a_short_one(tmp_path, monkeypatch):
    """The library copies the path into 160 bytes, and would fail."""
    import espeakng_loader

    far = tmp_path / ("far" * 40) / ("away" * 10)
    far.mkdir(parents=True)
    (far / "data").symlink_to(espeakng_loader.get_data_path())
    (far / "espeakng_loader.py").write_text(
        f"def get_data_path(): return {str(far / 'data')!r}\n"
        f"def get_library_path(): return {str(espeakng_loader.get_library_path())!r}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(far))
    _, (sound,) = speak([Utterance("far away", "en-us")])
    assert len(sound) > 5_000


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    (tmp_path / "espeakng_loader.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(HappyHorseError, match=r"espeakng-loader.*comfyui-happyhorse\[voice\]"):
        speak([Utterance("x", "en-us")])


def test_a_crash_of_the_library_reaches_nobody(tmp_path, monkeypatch):
    program = tmp_path / "crash.py"
    program.write_text("import os, sys; sys.stderr.write('lost'); os.abort()\n")
    monkeypatch.setattr(espeak, "PROGRAM", program)
    with pytest.raises(MediaError, match=r"ended with -?\d+ before it spoke. lost"):
        speak([Utterance("x", "en-us")])


def test_one_that_hangs_is_stopped(tmp_path, monkeypatch):
    program = tmp_path / "hang.py"
    program.write_text("import time; time.sleep(60)\n")
    monkeypatch.setattr(espeak, "PROGRAM", program)
    monkeypatch.setattr(espeak, "SECONDS", 0.3)
    with pytest.raises(MediaError, match="did not finish 1 lines"):
        speak([Utterance("x", "en-us")])


def test_nothing_is_spoken_without_a_process(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere")
    assert speak([])[1] == []


def test_silence_is_trimmed_to_nothing():
    assert len(trim(np.zeros(100, np.float32))) == 0
    np.testing.assert_array_equal(trim(np.array([0, 0.5, 0, -0.5, 0], np.float32)), [0.5, 0, -0.5])
