"""Crops, lengths, resampling, window merging, 8 bits and resizing against the reference's."""

import pytest
import torch

from comfyui_happyhorse import shapes
from comfyui_happyhorse.conditioning.image import crop_box, first_frame
from comfyui_happyhorse.conditioning.voice import encode_in_windows, merge_windows
from comfyui_happyhorse.media.audio import fourier_resample, to_output_rate
from comfyui_happyhorse.media.frames import resize_frames, to_uint8

pytestmark = pytest.mark.golden("media_helpers")


def cases(golden, group):
    """The group's cases; a file without the group runs nothing of it."""
    if group not in golden.json:
        pytest.skip(f"{golden.name} has no {group}")
    return golden[group]


def test_crop_boxes(golden):
    for case in cases(golden, "resizecrop"):
        box = crop_box(case["image_w"], case["image_h"], case["target_w"], case["target_h"])
        first, last = case["first_pixel_xy"], case["last_pixel_xy"]
        assert box == (*first, last[0] + 1, last[1] + 1), case
        assert (box[2] - box[0], box[3] - box[1]) == (case["crop_w"], case["crop_h"])


def test_first_frames_are_equal(golden):
    for name, case in cases(golden, "preprocess").items():
        height, width = case["target_hw"]
        frame = first_frame(golden.tensors[f"in.{name}.rgb_uint8"], width, height)
        assert torch.equal(frame[:, :, 0], golden.tensors[f"out.{name}.preprocessed"].cpu()), name


def test_lengths(golden):
    for case in cases(golden, "latent_lengths"):
        audio = case["seconds"] * case["fps"] + 1
        frames = shapes.latent_frames_for_audio(audio)
        height, width = shapes.latent_side(case["request_h"]), shapes.latent_side(case["request_w"])
        given = case["seconds"] * shapes.FPS  # a voice has 25 latents per second whatever the film has
        samples = audio * shapes.SAMPLES_PER_LATENT
        ours = {
            "t2v_audio_latents": audio,
            "t2v_video_latents": frames,
            "latent_h": height,
            "latent_w": width,
            "actual_h": shapes.floor_to_grid(case["request_h"]),
            "actual_w": shapes.floor_to_grid(case["request_w"]),
            "decoded_frames": shapes.decoded_frames(frames),
            "decoded_audio_samples_51200": samples,
            "resampled_audio_samples_44100": to_output_rate(torch.zeros(1, 1, samples)).shape[-1],
            "video_tokens": frames * (height // shapes.PATCH) * (width // shapes.PATCH),
            "a2v_audio_latents_if_exact_duration": given,
            "a2v_video_latents": shapes.latent_frames_for_audio(given),
        }
        asked = {"seconds", "fps", "request_h", "request_w"}
        assert ours == {field: value for field, value in case.items() if field not in asked}
        assert ours["resampled_audio_samples_44100"] == audio * shapes.OUTPUT_SAMPLES_PER_LATENT
        assert shapes.latent_frames(ours["decoded_frames"]) == frames


def test_merged_windows(golden, close):
    for name, case in cases(golden, "merge_overlapping").items():
        windows = golden.tensors[f"in.{name}"].transpose(-1, -2)  # [n, 1, L, C] -> [n, 1, C, L]
        merged = merge_windows(list(windows), case["overlap_ratio"])
        assert merged.shape[-1] == case["final_length"]
        close(merged.transpose(-1, -2), golden.tensors[f"out.{name}"], 1e-6, name)


def test_resampled_sound(golden, close):
    for name, case in cases(golden, "resample").items():
        waveform = golden.tensors[f"in.{name}"].T
        expected = golden.tensors[f"out.{name}"].T
        close(fourier_resample(waveform, case["out"][0]), expected, 1e-6, name)
        close(to_output_rate(waveform[None])[0], expected, 1e-6, name)


def test_long_voices(golden, close, device):
    def encode(waveform):
        """The stand-in of the golden file's note: block means, first samples, block numbers."""
        assert waveform.shape[:2] == (1, 2)
        blocks = waveform[0].unfold(-1, 2048, 2048)
        numbers = torch.arange(blocks.shape[1], device=device) / 1000
        return torch.stack([blocks[0].mean(-1), blocks[1, :, 0], numbers])[None]

    for name, case in cases(golden, "audio_chunking").items():
        n = torch.arange(case["n_samples"], dtype=torch.float64, device=device)
        tone = 0.5 * torch.sin(2 * torch.pi * n / 70001) + 0.25 * torch.cos(2 * torch.pi * n / 5003)
        if case["seconds_arg"] is not None:
            tone = tone[: case["seconds_arg"] * shapes.LATENT_SAMPLE_RATE]
        latent = encode_in_windows(encode, tone.float().expand(1, 2, -1))
        assert list(latent.shape) == case["out_shape"]
        close(latent, golden.tensors[f"out.{name}"], 1e-6, name)


def test_8_bits(golden):
    cases(golden, "uint8")
    frames = to_uint8(golden.tensors["in.uint8.video"], rounding="truncate")
    assert torch.equal(frames, golden.tensors["out.uint8.frames"])


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("rounding", ["round", "truncate"])
def test_resized_frames_differ_by_a_level_at_most(golden, mode, rounding):
    case = cases(golden, "upsample")
    frames = golden.tensors["in.upsample.frames"]
    resized = resize_frames(frames, case["target_h"], case["target_w"], mode, rounding)
    expected = golden.tensors[f"out.upsample.{mode}"]
    assert (resized.int() - expected.int()).abs().max() <= 1
    if mode == "nearest" and rounding == "round":
        assert torch.equal(resized.unique(), frames.unique())  # no level is invented


@pytest.mark.golden("oobleck_audio_vae")
def test_decoded_sound_at_the_output_rate(golden, close):
    """What the reference writes to its WAV from what its decoder gave."""
    for name, expected in golden.tensors.items():
        if name.endswith(".pcm44100"):
            waveform = golden.tensors[name.replace(".pcm44100", ".audio")]
            close(to_output_rate(waveform)[0].T, expected, 1e-6, name)
