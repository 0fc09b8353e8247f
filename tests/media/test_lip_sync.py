"""Lips against sound on films drawn for it: found where they are, timed, and no verdict where there is none."""

import numpy as np
import pytest
import torch

from comfyui_happyhorse.media.lip_sync import block_motion, lip_sync, speech_envelope

RATE, FPS = 16_000, 25
MOUTH = (60, 64)  # row and column of its middle, in a picture of 96 x 160


def bursts(frames: int, seed: int) -> np.ndarray:
    """[frames]: syllables of irregular length with pauses between, from 0 to 1."""
    chance, level, place = np.random.default_rng(seed), np.zeros(frames), 2
    while place < frames:
        length = int(chance.integers(4, 9))
        level[place : place + length] = np.hanning(length + 2)[1:-1][: frames - place]
        place += length + int(chance.integers(1, 9))
    return level


def film(lag=0, linked=True, frames=125, seed=0):
    """Frames [F, 96, 160, 3] of a mouth that trembles as it speaks, before a lamp that sways; a voice [1, S]."""
    level = bursts(frames + 20, seed)
    speech = level[10 : 10 + frames]
    voice = (level if linked else bursts(frames + 20, seed + 1000))[10 - lag : 10 - lag + frames]
    chance = torch.Generator().manual_seed(seed)
    picture = (0.5 + 0.2 * torch.rand(1, 96, 160, 3, generator=chance)).repeat(frames, 1, 1, 1)
    picture += 0.01 * torch.randn(picture.shape, generator=chance)
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(160.0), indexing="ij")
    for number in range(frames):
        height = 1 + 7 * speech[number] * (1 - 0.5 * (number % 2))
        inside = ((rows - MOUTH[0]) / height) ** 2 + ((columns - MOUTH[1]) / 9) ** 2 < 1
        picture[number][inside] = 0.1
        picture[number, 10:24, 100 + round(10 * np.sin(number / 9)) :][:, :16] = 0.9
    time = np.arange(frames * RATE // FPS) / RATE
    sound = np.interp(time * FPS, np.arange(frames) + 0.5, voice) * np.sin(2 * np.pi * 500 * time)
    return picture.clamp(0, 1), torch.from_numpy(sound).float()[None]


@pytest.mark.parametrize("lag", [-2, 0, 2])
def test_a_lag_is_told_to_a_frame_and_the_mouth_is_found(lag):
    found = lip_sync(*film(lag, seed=7), RATE, FPS)
    assert abs(found.lag - lag) <= 1
    assert found.is_sure
    assert found.correlation > 0.6
    left, top, right, bottom = found.box
    assert left < MOUTH[1] / 160 < right
    assert top < MOUTH[0] / 96 < bottom
    assert found.heat.max() == 1
    assert len(found.motion) == len(found.sound) == 125


def test_chance_is_not_taken_for_speech():
    """Of thirty films whose voice is another's, p below 0.1 in about three, and spread over the whole range."""
    chances = np.array(
        [lip_sync(*film(linked=False, frames=100, seed=50 + seed), RATE, FPS).p for seed in range(30)]
    )
    assert (chances < 0.1).sum() <= 7
    assert chances.mean() > 0.3


def test_there_is_no_verdict_without_motion_sound_or_time():
    frames, sound = film()
    assert lip_sync(frames, torch.zeros_like(sound), RATE, FPS) is None
    assert lip_sync(frames[:1].expand(125, -1, -1, -1), sound, RATE, FPS) is None
    assert lip_sync(frames[:40], sound, RATE, FPS) is None
    assert lip_sync(frames, sound[:, : RATE // 2], RATE, FPS) is None


def test_bytes_measure_as_numbers_do():
    frames, sound = film(1)
    whole = lip_sync(frames, sound, RATE, FPS)
    bytes_ = lip_sync((frames * 255).round().to(torch.uint8), sound, RATE, FPS)
    assert bytes_.lag == whole.lag
    assert bytes_.correlation == pytest.approx(whole.correlation, abs=0.02)


def test_motion_is_the_mean_change_of_each_block():
    frames = torch.zeros(3, 8, 8, 3)
    frames[1, 2, 5] = 1.0
    motion = block_motion(frames)
    assert motion.shape == (3, 8, 8)
    assert motion[1, 2, 5] == motion[2, 2, 5] == motion[0, 2, 5] == 1  # the first has the second's
    assert motion.sum() == 3


def test_the_envelope_hears_speech_and_neither_hum_nor_hiss():
    time = torch.arange(RATE * 2) / RATE
    level = (time % 0.5 < 0.25).float()
    voice = (level * torch.sin(2 * torch.pi * 800 * time))[None]
    hum = 0.5 * torch.sin(2 * torch.pi * 60 * time) + 0.5 * torch.sin(2 * torch.pi * 6000 * time)
    alone, covered = (speech_envelope(sound, RATE, FPS, 50) for sound in (voice, voice + hum))
    assert np.abs(alone - covered).max() < 0.02
    loud = torch.arange(50) * 0.04 % 0.5 < 0.2
    assert alone[loud.numpy()].min() > alone[~loud.numpy()].max()
