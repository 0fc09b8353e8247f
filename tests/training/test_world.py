"""The drawn world: what is drawn and sung is what its readings say, and training never sees what is measured."""

import numpy as np
import pytest

from comfyui_happyhorse.training import readout
from comfyui_happyhorse.training.clips import BODIES, clip_of, is_held_out
from comfyui_happyhorse.training.scene import BACKGROUNDS, FACES, Face, draw
from comfyui_happyhorse.training.voice import LEVEL, PITCHES, STRANGER, Syllable, period, sing
from comfyui_happyhorse.training.words import LANGUAGES, VOWELS, WORDS, vowels_of

RATE = 51_200


def seen_and_heard(clip):
    """Frames [F, H, W, 3] in 0 … 1 and samples [S]."""
    pixels, wave = clip.film()
    return ((pixels + 1) / 2).permute(1, 2, 3, 0).numpy(), wave[0].numpy()


@pytest.fixture(scope="module", params=[25, 49])
def clips(request):
    return [clip_of(seed, request.param, held_out=True) for seed in range(12)]


def test_a_mouth_moves_with_its_voice_and_with_no_other(clips):
    mouths, sounds = [], []
    for clip in clips:
        frames, wave = seen_and_heard(clip)
        mouths.append(readout.mouth_area(frames))
        sounds.append(readout.loudness(wave, RATE, clip.frames))
    own = [readout.correlation(m, s) for m, s in zip(mouths, sounds, strict=True)]
    others = [readout.correlation(m, s) for m, s in zip(mouths, sounds[1:] + sounds[:1], strict=True)]
    assert min(own) > 0.95
    assert np.mean(others) < 0.5
    curve = np.mean([readout.lag_curve(m, s) for m, s in zip(mouths, sounds, strict=True)], axis=0)
    assert curve.argmax() == 2
    assert curve[2] > max(curve[1], curve[3]) + 0.15


def test_readings_say_what_was_drawn_and_sung(clips):
    for clip in clips:
        frames, wave = seen_and_heard(clip)
        assert readout.colours(frames) == (clip.faces[0].colour, clip.background)
        assert readout.pitch(wave, RATE) == clip.voices[0]
        assert readout.vowels(wave, RATE, clip.voices[0]) == clip.vowels


def test_a_late_sound_is_read_as_late():
    frames, wave = seen_and_heard(clip_of(3, 49, held_out=True))
    late = np.concatenate([np.zeros(RATE // 25, np.float32), wave])[: len(wave)]
    mouth = readout.mouth_area(frames)
    assert np.argmax(readout.lag_curve(mouth, readout.loudness(late, RATE, 49))) == 3
    early = np.concatenate([wave[RATE // 25 :], np.zeros(RATE // 25, np.float32)])
    assert np.argmax(readout.lag_curve(mouth, readout.loudness(early, RATE, 49))) == 1


def test_twice_the_size_reads_the_same():
    clip = clip_of(5, 25, held_out=True)
    small, large = (((clip.film(scale)[0] + 1) / 2).permute(1, 2, 3, 0).numpy() for scale in (1, 2))
    assert large.shape[1:3] == (128, 128)
    assert readout.colours(large) == readout.colours(small)
    assert readout.correlation(readout.mouth_area(large), readout.mouth_area(small)) > 0.99


def test_every_colour_is_read_as_itself():
    still = np.zeros((1, 1), np.float32), np.array([[""]])
    for face in FACES:
        for background in BACKGROUNDS:
            film = draw((Face(face, 3, -3),), background, *still)
            assert readout.colours(((film + 1) / 2).permute(1, 2, 3, 0).numpy()) == (face, background)


@pytest.mark.parametrize("pitch", PITCHES.values())
def test_a_held_vowel_repeats_without_a_seam(pitch):
    for vowel in VOWELS:
        wave = period(vowel, pitch)
        twice = np.tile(wave, 2)
        steps = np.abs(np.diff(twice))
        assert steps[len(wave) - 1] <= steps.max() * 1.001  # the seam is no larger than the wave's own steps
        spectrum = np.abs(np.fft.rfft(twice)) ** 2
        harmonics = spectrum[:: 2 * pitch // 25].sum()
        assert harmonics / spectrum.sum() > 0.9999
    assert np.sqrt((period("a", pitch) ** 2).mean()) == pytest.approx(LEVEL, rel=1e-5)


def test_a_pitch_off_the_grid_is_refused():
    with pytest.raises(ValueError, match="110 Hz"):
        period("a", 110)


def test_a_stranger_sings_the_same_notes_in_another_timbre():
    plain, strange = period("a", 150), period("a", 150, STRANGER)
    assert abs(readout.correlation(plain, strange)) < 0.9
    wave, opening, _ = sing((Syllable("a", 0.1, 0.5, 1.0),), (150,), 25, STRANGER)
    assert readout.pitch(wave, RATE) == "low"
    assert opening.max() == pytest.approx(1, abs=0.01)


def test_no_clip_is_on_both_sides():
    for seed in range(300):
        seen, kept = clip_of(seed, 25), clip_of(seed, 25, held_out=True)
        assert not is_held_out(seen.faces[0].colour, seen.background, seen.voices[0])
        assert is_held_out(kept.faces[0].colour, kept.background, kept.voices[0])
        if len(seen.lines[0].split()) > 1:
            assert not is_held_out(seen.lines[0])
        if len(kept.lines[0].split()) > 1:
            assert is_held_out(kept.lines[0])


def test_a_seed_means_one_clip_and_others_mean_others():
    assert clip_of(7, 49) == clip_of(7, 49)
    assert len({clip_of(seed, 49).prompt for seed in range(50)}) > 45


def test_syllables_follow_the_line_and_fit_the_clip():
    for seed in range(60):
        for frames, faces in ((25, 1), (49, 2), (101, 1)):
            clip = clip_of(seed, frames, faces=faces)
            wanted = "".join(vowels_of(line, clip.language) for line in clip.lines)
            assert clip.vowels == wanted
            ends = [s.start + s.length for s in clip.syllables]
            starts = [s.start for s in clip.syllables]
            assert all(end < start for end, start in zip(ends, starts[1:], strict=False))
            assert all(end < frames / 25 for end in ends)


def test_only_who_speaks_opens_the_mouth():
    clip = clip_of(11, 49, faces=2)
    assert all(clip.lines)
    frames, _ = seen_and_heard(clip)
    mouths = [readout.mouth_area(frames, 64 * number) for number in range(2)]
    first, second = (
        [round(s.start * 25) + 2 for s in clip.syllables if s.speaker == number] for number in range(2)
    )
    assert all(mouths[0][frame] > 2 * mouths[1][frame] for frame in first)
    assert all(mouths[1][frame] > 2 * mouths[0][frame] for frame in second)


def test_prompts_have_the_three_paragraphs():
    styles = set()
    for seed in range(80):
        clip = clip_of(seed, 49, faces=1 + seed % 2)
        parts = clip.prompt.split("\n\n")
        assert parts[-1] == "Background Sound:\n<No prominent background sound>"
        if not any(clip.lines):
            assert len(parts) == 2
            continue
        body, dialogue = parts[:2]
        lines = dialogue.split("\n")
        assert lines[0] == "Dialogue:"
        for spoken, face, line in zip(lines[1:], clip.faces, clip.lines, strict=True):
            assert spoken == f'<{face.colour} face, {clip.language}>: "{line}"'
            assert f'"{line}"' in body
        styles.add(clip.style)
    assert styles == set(range(len(BODIES)))


def test_every_language_has_every_vowel():
    assert len(LANGUAGES) == 7
    for words in WORDS.values():
        assert set("".join(words.values())) == set(VOWELS)
    for language in ("Mandarin", "Cantonese", "Japanese", "Korean"):
        assert all(len(part) == 1 for word in WORDS[language] for part in word.split())


def test_words_outside_the_vocabulary_have_no_vowels():
    assert vowels_of("hello stranger moon", "English") == "eou"
    assert vowels_of("さ く ら x ね こ", "Japanese") == "auaeo"


def test_a_clip_without_room_for_a_word_is_refused():
    with pytest.raises(ValueError, match="9 frames are too short for 1"):
        clip_of(1, 9)
    with pytest.raises(ValueError, match="take 26 or more"):
        clip_of(1, 25, faces=2)
