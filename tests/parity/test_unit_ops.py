"""Single operations against the golden files."""

import pytest
import torch

from comfyui_happyhorse.kernels import (
    attention,
    gelu7,
    range_attention,
    range_log_sum_exp,
    rms_norm,
    rotate,
    swiglu7,
)
from comfyui_happyhorse.model.layers import PerModalityLinear
from comfyui_happyhorse.model.sequence import (
    SequenceLayout,
    pack_video,
    rotary_angles,
    unpack_audio,
    unpack_video,
)

unit_ops = pytest.mark.golden("unit_ops")


def counts(modality):
    """Rows of each modality; the golden rows may come in any order, so also the order that sorts them."""
    order = torch.argsort(modality, stable=True)
    return order, torch.argsort(order), torch.bincount(modality, minlength=3).tolist()


@unit_ops
def test_activations(golden, close):
    x = golden.tensors["in.act.x"]
    close(swiglu7(x), golden.tensors["out.act.swiglu7"], 1e-6)
    close(gelu7(x), golden.tensors["out.act.gelu7"], 1e-6)


@unit_ops
def test_rms_norm(golden, close):
    x = golden.tensors["in.rms.x"]
    order, back, sizes = counts(golden.tensors["in.rms.modality"])
    y = rms_norm(x[order], golden.tensors["in.rms.weight"], sizes)[back]
    close(y, golden.tensors["out.rms.y"], 1e-6)
    close(rms_norm(x, golden.tensors["in.rms1.weight"]), golden.tensors["out.rms1.y"], 1e-6)


@unit_ops
@pytest.mark.parametrize(
    ("name", "dtype", "limit"), [("fp32", torch.float32, 1e-6), ("bf16", torch.bfloat16, 1e-2)]
)
def test_linear_per_modality(golden, close, name, dtype, limit):
    weight, x = golden.tensors["in.moelinear.weight"], golden.tensors["in.moelinear.x"]
    order, back, sizes = counts(golden.tensors["in.rms.modality"])
    layer = PerModalityLinear(x.shape[-1], weight.shape[0] // 3, dtype=dtype)
    layer.load_state_dict({"weight": weight.to(dtype)}, assign=True)
    with torch.no_grad():
        y = layer(x[order].to(dtype), sizes)[back]
    close(y.float(), golden.tensors[f"out.moelinear.{name}"], limit)


@unit_ops
def test_coordinates_to_rotation(golden, close):
    coordinates, q = golden.tensors["in.rope.coords"], golden.tensors["in.rope.q"]
    embedding = rotary_angles(coordinates, golden.tensors["w.adapter.rope.bands"])
    close(embedding, golden.tensors["out.rope.embedding"], 1e-6)
    close(rotate(q, embedding), golden.tensors["out.rope.q_rotated"], 1e-6)


@unit_ops
def test_attention(golden, close):
    q, k, v = (golden.tensors[name] for name in ("in.rope.q", "in.attn.k", "in.attn.v"))
    close(attention(q, k, v), golden.tensors["out.attn.full"], 1e-6)
    starts_stops = zip(
        golden.tensors["in.attn.q_ranges"].tolist(), golden.tensors["in.attn.k_ranges"].tolist(), strict=True
    )
    ranges = [(tuple(q_range), tuple(k_range)) for q_range, k_range in starts_stops]
    close(range_attention(q, k, v, ranges), golden.tensors["out.attn.ranges"], 1e-6)
    found, wanted = range_log_sum_exp(q, k, ranges), golden.tensors["out.attn.ranges_lse"]
    assert torch.equal(found.isinf(), wanted.isinf())  # rows that see nothing
    close(found[wanted.isfinite()], wanted[wanted.isfinite()], 1e-6)


@unit_ops
def test_packing_and_unpacking(golden):
    latent = golden.tensors["in.patch.latent"]
    assert torch.equal(pack_video(latent[0]), golden.tensors["out.patch.tokens"])
    tokens, video = golden.tensors["in.depack.sequence"], golden.tensors["out.depack.video"]
    audio = golden.tensors["out.depack.audio"]
    _, _, frames, height, width = video.shape
    layout = SequenceLayout(frames, height // 2, width // 2, audio.shape[1], 0)
    assert torch.equal(unpack_video(tokens[: layout.video, : 4 * video.shape[1]], layout), video[0])
    rows = tokens[layout.video : layout.video + layout.audio, : audio.shape[2]]
    assert torch.equal(unpack_audio(rows).T, audio[0])
