"""The Wan 2.2 VAE against float64 definitions written out here, and in pieces against whole."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from comfyui_happyhorse.errors import CheckpointError, GeometryError
from comfyui_happyhorse.model import video_vae_layers as layers
from comfyui_happyhorse.model.pixel_patches import patchify, unpatchify
from comfyui_happyhorse.model.video_latent import LATENT_MEAN, LATENT_STD, denormalise, normalise
from comfyui_happyhorse.model.video_vae import StageConfig, Wan22VAE, WanConfig
from comfyui_happyhorse.model.video_vae_layers import Past, stream

# Unlike the real network in every size: two resampled stages, time first halved in the second.
CONFIG = WanConfig(
    encoder=(StageConfig(2, 4, 2, 2, 1), StageConfig(4, 8, 1, 2, 2), StageConfig(8, 4, 1, 1, 1)),
    decoder=(StageConfig(4, 4, 2, 2, 2), StageConfig(4, 2, 1, 2, 1), StageConfig(2, 3, 2, 1, 1)),
    latent_channels=48,
    patch=2,
)
# Time strides as in the real network, where a doubled frame is doubled again.
QUARTERING = WanConfig(
    encoder=(StageConfig(2, 2, 1, 2, 2), StageConfig(2, 4, 1, 2, 2), StageConfig(4, 4, 1, 1, 1)),
    decoder=(StageConfig(4, 4, 1, 2, 2), StageConfig(4, 2, 1, 2, 2), StageConfig(2, 2, 1, 1, 1)),
    latent_channels=48,
    patch=2,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_weights(module, seed=0):
    """The module in float64 with every parameter drawn, none left at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.data.copy_(1 + 0.3 * drawn if name.endswith("gamma") else scale * drawn)
    return module.requires_grad_(False)


def network(config, seed=0):
    return with_weights(Wan22VAE(config, dtype=torch.float64), seed)


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


# The definitions. x is [C, T, H, W]: one film, loops where a loop says it best.


def convolve(x, conv, front=0, sides=0, stride=(1, 1, 1)):
    """sum over offsets of weight * x, with zeros `front` in time and `sides` around each frame."""
    weight = conv.weight if conv.weight.ndim == 5 else conv.weight.unsqueeze(2)
    channels, frames, height, width = x.shape
    padded = x.new_zeros(channels, front + frames, height + 2 * sides, width + 2 * sides)
    padded[:, front:, sides : sides + height, sides : sides + width] = x
    size = [(padded.shape[1 + d] - weight.shape[2 + d]) // stride[d] + 1 for d in range(3)]
    out = conv.bias.view(-1, 1, 1, 1).expand(-1, *size).clone()
    for offsets in itertools.product(*map(range, weight.shape[2:])):
        seen = padded
        for d in range(3):
            seen = seen.narrow(1 + d, offsets[d], (size[d] - 1) * stride[d] + 1)
        seen = seen[:, :: stride[0], :: stride[1], :: stride[2]]
        out += torch.einsum("oc,cthw->othw", weight[(slice(None), slice(None), *offsets)], seen)
    return out


def norm(x, module):
    length = x.square().sum(0, keepdim=True).sqrt().clamp_min(1e-12)
    return x / length * math.sqrt(x.shape[0]) * module.gamma.view(-1, 1, 1, 1)


def silu(x):
    return x / (1 + (-x).exp())


def residual(x, block):
    y = convolve(silu(norm(x, block.residual["0"])), block.residual["2"], front=2, sides=1)
    y = convolve(silu(norm(y, block.residual["3"])), block.residual["6"], front=2, sides=1)
    return y + (x if isinstance(block.shortcut, nn.Identity) else convolve(x, block.shortcut))


def attention(x, block):
    channels, frames, height, width = x.shape
    out = x.clone()
    qkv = convolve(norm(x, block.norm), block.to_qkv)
    for t in range(frames):
        q, k, v = qkv[:, t].reshape(3, channels, height * width)
        mixed = torch.zeros(channels, height * width, dtype=x.dtype)
        for pixel in range(height * width):
            scores = (q[:, pixel : pixel + 1] * k).sum(0) / math.sqrt(channels)
            mixed[:, pixel] = (v * (scores.exp() / scores.exp().sum())).sum(1)
        out[:, t] += convolve(mixed.view(channels, 1, height, width), block.proj)[:, 0]
    return out


def downsample(x, layer):
    padded = x.new_zeros(x.shape[0], x.shape[1], x.shape[2] + 1, x.shape[3] + 1)
    padded[:, :, :-1, :-1] = x
    x = convolve(padded, layer.resample["1"], stride=(1, 2, 2))
    if layer.time_conv is None:
        return x
    later = [convolve(x[:, 2 * j - 2 : 2 * j + 1], layer.time_conv) for j in range(1, (x.shape[1] + 1) // 2)]
    return torch.cat([x[:, :1], *later], dim=1)


def upsample(x, layer):
    if layer.time_conv is not None:
        frames = [x[:, :1]]
        if x.shape[1] > 1:
            pairs = convolve(x[:, 1:], layer.time_conv, front=2)
            for t in range(pairs.shape[1]):
                frames += [pairs[: x.shape[0], t : t + 1], pairs[x.shape[0] :, t : t + 1]]
        x = torch.cat(frames, dim=1)
    doubled = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    for row, column in itertools.product(range(2), range(2)):
        doubled[:, :, row::2, column::2] = x
    return convolve(doubled, layer.resample["1"], sides=1)


def shrink(x, channels, time, space):
    """The encoder stage's shortcut, entry by entry."""
    if x.shape[1] % time:
        x = torch.cat([torch.zeros_like(x[:, :1]), x], dim=1)
    out = x.new_zeros(channels, x.shape[1] // time, x.shape[2] // space, x.shape[3] // space)
    group = x.shape[0] * time * space * space // channels
    for c, p, q, r in itertools.product(range(x.shape[0]), range(time), range(space), range(space)):
        index = ((c * time + p) * space + q) * space + r
        out[index // group] += x[c, p::time, q::space, r::space] / group
    return out


def grow(x, channels, time, space):
    """The decoder stage's shortcut, entry by entry."""
    repeats = channels * time * space * space // x.shape[0]
    out = x.new_zeros(channels, x.shape[1] * time, x.shape[2] * space, x.shape[3] * space)
    for c, p, q, r in itertools.product(range(channels), range(time), range(space), range(space)):
        index = ((c * time + p) * space + q) * space + r
        out[c, p::time, q::space, r::space] = x[index // repeats]
    return out[:, time - 1 :]


def middle(x, blocks):
    return residual(attention(residual(x, blocks[0]), blocks[1]), blocks[2])


def head(x, module):
    return convolve(silu(norm(x, module["0"])), module["2"], front=2, sides=1)


def encoded(x, vae):
    x = convolve(x, vae.encoder.conv1, front=2, sides=1)
    for stage, module in zip(vae.config.encoder, vae.encoder.downsamples, strict=True):
        y = x
        for block in module.downsamples[: stage.blocks]:
            y = residual(y, block)
        if stage.space == 2:
            y = downsample(y, module.downsamples[stage.blocks])
        x = y + shrink(x, stage.channels, stage.time, stage.space)
    return head(middle(x, vae.encoder.middle), vae.encoder.head)


def decoded(x, vae):
    x = middle(convolve(x, vae.decoder.conv1, front=2, sides=1), vae.decoder.middle)
    for stage, module in zip(vae.config.decoder, vae.decoder.upsamples, strict=True):
        y = x
        for block in module.upsamples[: stage.blocks]:
            y = residual(y, block)
        if stage.space == 2:
            y = upsample(y, module.upsamples[stage.blocks])
            y = y + grow(x, stage.channels, stage.time, stage.space)
        x = y
    return head(x, vae.decoder.head)


# Layers


def test_causal_convolution_sees_zeros_before_the_film_and_nothing_after():
    conv = with_weights(nn.Conv3d(2, 3, 3, padding=(0, 1, 1)))
    x = draw(1, 2, 4, 3, 5)
    y = layers.causal(conv, x, Past())
    equal(y[0], convolve(x[0], conv, front=2, sides=1))
    x[:, :, 2:] += 1
    equal(layers.causal(conv, x, Past())[:, :, :2], y[:, :, :2])


def test_norm_divides_by_the_length_over_channels():
    module = with_weights(layers.ChannelNorm(5, 3, torch.float64))
    x = draw(2, 5, 2, 3, 2)
    for film in range(2):
        equal(module(x)[film], norm(x[film], module))


def test_norm_has_a_floor_of_1e_12_under_the_length():
    module = layers.ChannelNorm(2, 2, torch.float64)
    x = torch.tensor([3e-13, 4e-13], dtype=torch.float64).view(1, 2, 1, 1)
    equal(module(x).detach(), x / 1e-12 * math.sqrt(2))
    assert (module(torch.zeros_like(x)) == 0).all()


@pytest.mark.parametrize("widths", [(3, 3), (3, 5)])
def test_residual_block(widths):
    block = with_weights(layers.ResidualBlock(*widths, nn, torch.float64))
    x = draw(1, 3, 3, 2, 4)
    equal(block(x, Past())[0], residual(x[0], block))


def test_attention_stays_within_each_frame():
    block = with_weights(layers.FrameAttention(4, nn, torch.float64))
    x = draw(2, 4, 3, 2, 3)
    for film in range(2):
        equal(block(x)[film], attention(x[film], block))


@pytest.mark.parametrize("halves_time", [False, True])
@pytest.mark.parametrize("frames", [1, 3, 5])
def test_downsample(halves_time, frames):
    layer = with_weights(layers.Downsample(3, halves_time, nn, torch.float64))
    x = draw(1, 3, frames, 4, 6)
    equal(layer(x, Past())[0], downsample(x[0], layer))


@pytest.mark.parametrize("doubles_time", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_upsample(doubles_time, frames):
    layer = with_weights(layers.Upsample(3, doubles_time, nn, torch.float64))
    x = draw(1, 3, frames, 2, 3)
    equal(layer(x, Past())[0], upsample(x[0], layer))


@pytest.mark.parametrize(
    ("channels", "time", "space"), [(4, 1, 2), (8, 2, 2), (3, 2, 2), (2, 2, 1), (4, 1, 1)]
)
def test_encoder_shortcut_averages_neighbouring_channels(channels, time, space):
    x = draw(1, 4 if channels != 3 else 3, 5, 4, 2)
    equal(layers.mean_shortcut(x, channels, time, space)[0], shrink(x[0], channels, time, space))


@pytest.mark.parametrize(("channels", "time", "space"), [(4, 2, 2), (2, 2, 2), (1, 1, 2), (6, 2, 1)])
def test_decoder_shortcut_repeats_each_channel_in_place(channels, time, space):
    x = draw(1, 4, 3, 2, 3)
    equal(layers.repeat_shortcut(x, channels, time, space, Past())[0], grow(x[0], channels, time, space))


def test_patches_hold_the_column_before_the_row():
    pixels = draw(2, 3, 2, 4, 6)
    patches = patchify(pixels, 2)
    for c, row, column in itertools.product(range(3), range(2), range(2)):
        equal(patches[:, c * 4 + column * 2 + row], pixels[:, c, :, row::2, column::2])
    equal(unpatchify(patches, 2), pixels)


def test_latent_scale_has_the_published_constants():
    assert len(LATENT_MEAN) == len(LATENT_STD) == 48
    raw, latent = draw(2, 48, 2, 1, 3), draw(2, 48, 2, 1, 3, seed=1)
    for c in range(48):
        equal(normalise(raw)[:, c], (raw[:, c] - LATENT_MEAN[c]) / LATENT_STD[c])
        equal(denormalise(latent)[:, c], latent[:, c] * LATENT_STD[c] + LATENT_MEAN[c])
    # The first, the last and the sums, so that one slipped digit shows.
    assert (LATENT_MEAN[0], LATENT_MEAN[47]) == (-0.2289, -0.0667)
    assert (LATENT_STD[0], LATENT_STD[47]) == (0.4765, 0.7744)
    assert sum(LATENT_MEAN) == pytest.approx(-0.5589, abs=1e-9)
    assert sum(LATENT_STD) == pytest.approx(32.536, abs=1e-9)


def test_bf16_latents_are_scaled_by_bf16_constants():
    raw = draw(1, 48, 1, 2, 2).bfloat16()
    mean, std = (torch.tensor(x).bfloat16().view(1, 48, 1, 1, 1) for x in (LATENT_MEAN, LATENT_STD))
    inverse = (1 / std.float()).bfloat16()
    difference = (raw.float() - mean.float()).bfloat16()
    assert torch.equal(normalise(raw), (difference.float() * inverse.float()).bfloat16())
    quotient = (raw.float() / inverse.float()).bfloat16()
    assert torch.equal(denormalise(raw), (quotient.float() + mean.float()).bfloat16())


# The network


@pytest.mark.parametrize(("config", "frames"), [(CONFIG, 1), (CONFIG, 5), (QUARTERING, 5), (QUARTERING, 9)])
def test_encoder_is_its_definition(config, frames):
    vae = network(config)
    patches = draw(1, 12, frames, 4, 8)
    equal(vae.encoder(patches, Past())[0], encoded(patches[0], vae))


@pytest.mark.parametrize(("config", "frames"), [(CONFIG, 1), (CONFIG, 3), (QUARTERING, 2), (QUARTERING, 3)])
def test_decoder_is_its_definition(config, frames):
    vae = network(config)
    latent = draw(1, 48, frames, 1, 2)
    equal(vae.decoder(latent, Past())[0], decoded(latent[0], vae))


def test_encode_takes_the_mean_and_scales_it():
    vae = network(QUARTERING)
    pixels = draw(2, 3, 5, 8, 16)
    for film in range(2):
        both = convolve(encoded(patchify(pixels, 2)[film], vae), vae.conv1)
        expected = normalise(both[None, :48]).float()
        torch.testing.assert_close(vae.encode(pixels)[film], expected[0], rtol=1e-6, atol=1e-6)
    assert vae.encode(pixels).dtype == torch.float32


def test_decode_undoes_the_scale_and_clamps():
    vae = network(QUARTERING)
    latent = 2 * draw(2, 48, 2, 1, 2)
    pixels = vae.decode(latent)
    for film in range(2):
        raw = convolve(denormalise(latent)[film], vae.conv2)
        expected = unpatchify(decoded(raw, vae)[None], 2)
        assert 0.01 < (expected.abs() > 1).double().mean() < 0.9, "the clamp is not tested by these numbers"
        equal(pixels[film], expected[0].clamp(-1, 1))


def splits(total):
    """All the ways to write ``total`` as an ordered sum."""
    for cuts in itertools.product([False, True], repeat=total - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), total]
        yield [b - a for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("frames", [1, 5, 9, 13])
def test_encoding_in_pieces_is_encoding_whole(frames):
    vae = network(QUARTERING)
    patches = draw(1, 12, frames, 4, 4)
    whole = vae.encoder(patches, Past())
    for later in splits((frames - 1) // 4 + 1):
        lengths = [4 * later[0] - 3, *(4 * count for count in later[1:])]  # the first piece holds frame 0
        pieces = list(stream(vae.encoder, patches.split(lengths, dim=2)))
        assert [piece.shape[2] for piece in pieces] == later
        equal(torch.cat(pieces, dim=2), whole)


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_decoding_in_pieces_is_decoding_whole(frames):
    vae = network(QUARTERING)
    latent = draw(1, 48, frames, 1, 2)
    whole = vae.decoder(latent, Past())
    assert whole.shape[2] == 4 * (frames - 1) + 1
    for lengths in splits(frames):
        pieces = list(stream(vae.decoder, latent.split(lengths, dim=2)))
        assert [piece.shape[2] for piece in pieces] == [4 * lengths[0] - 3, *(4 * n for n in lengths[1:])]
        equal(torch.cat(pieces, dim=2), whole)


def test_encode_and_decode_run_the_smallest_pieces():
    vae = network(QUARTERING)
    seen = []
    for half in (vae.encoder, vae.decoder):
        half.register_forward_hook(lambda module, args, out: seen.append((args[0].shape[2], out.shape[2])))
    vae.encode(draw(1, 3, 9, 8, 8))
    assert seen == [(1, 1), (4, 1), (4, 1)]
    assert [chunk.shape[2] for chunk in vae.decode_chunks(draw(1, 48, 3, 1, 1))] == [1, 4, 4]
    assert seen[3:] == [(1, 1), (1, 4), (1, 4)]


def test_memory_of_the_past_does_not_grow():
    vae = network(QUARTERING)

    def held(frames):
        past = Past()
        for piece in draw(1, 48, frames, 1, 1).split(1, dim=2):
            vae.decoder(piece, past)
            past.is_start = False
        kept = past._frames.values()
        # Not a view: that would hold the whole piece it was cut from.
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept)
        return sum(tensor.nbytes for tensor in kept)

    assert held(2) == held(5) > 0


def test_nothing_of_a_film_stays_for_the_next():
    vae = network(QUARTERING)
    latent = draw(1, 48, 3, 1, 1)
    assert torch.equal(vae.decode(latent), vae.decode(latent))


# Sizes, names and hosts


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("config", [CONFIG, QUARTERING])
def test_sizes_are_read_off_the_shapes(config):
    with torch.device("meta"):
        vae = Wan22VAE(config)
    assert WanConfig.from_shapes(shapes_of(vae)) == config
    assert (config.space_stride, config.time_stride) == (8, 2 if config is CONFIG else 4)


def test_every_missing_tensor_is_named():
    shapes = shapes_of(Wan22VAE(QUARTERING))
    assert len(shapes) > 100
    for name in shapes:
        with pytest.raises(CheckpointError) as caught:
            WanConfig.from_shapes({other: shape for other, shape in shapes.items() if other != name})
        assert f"'{name}'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder.head.2.weight", (96, 5, 3, 3, 3)),
        ("encoder.conv1.weight", (2, 13, 3, 3, 3)),
        ("conv2.weight", (16, 16, 1, 1, 1)),
        ("decoder.middle.1.to_qkv.weight", (12, 4)),
        ("decoder.upsamples.0.upsamples.0.residual.2.weight", (4, 4)),
        ("encoder.downsamples.1.downsamples.0.residual.2.weight", (5, 2, 3, 3, 3)),
        ("decoder.upsamples.1.upsamples.0.residual.2.weight", (1, 7, 3, 3, 3)),
    ],
)
def test_a_shape_that_does_not_fit_is_named(name, shape):
    with pytest.raises(CheckpointError, match=name):
        WanConfig.from_shapes(shapes_of(Wan22VAE(QUARTERING)) | {name: shape})


def test_halves_that_differ_in_time_are_refused():
    mixed = WanConfig(CONFIG.encoder, QUARTERING.decoder, 48, 2)
    with pytest.raises(CheckpointError, match="divides by 2, one multiplies by 4"):
        WanConfig.from_shapes(shapes_of(Wan22VAE(mixed)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 6, 8, 8), "6 frames .* 4k.1, the nearest are 5 and 9"),
        ((1, 3, 5, 8, 20), "20x8 .* multiples of 8.* 16x8"),
        ((1, 3, 5, 12, 8), "8x12 .* multiples of 8.* 8x8"),
        ((1, 4, 5, 8, 8), r"\[1, 4, 5, 8, 8\]"),
        ((3, 5, 8, 8), r"\[3, 5, 8, 8\]"),
        ((1, 3, 0, 8, 8), r"\[1, 3, 0, 8, 8\]"),
    ],
)
def test_films_that_cannot_be_encoded(shape, message):
    with pytest.raises(GeometryError, match=message):
        Wan22VAE(QUARTERING).encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 47, 2, 1, 1), (48, 2, 1, 1), (1, 48, 0, 1, 1)])
def test_latents_that_cannot_be_decoded(shape):
    with pytest.raises(GeometryError, match="48, T, h, w"):
        Wan22VAE(QUARTERING).decode(torch.zeros(shape))


def test_weights_are_adopted_from_meta():
    source = network(QUARTERING)
    with torch.device("meta"):
        vae = Wan22VAE(QUARTERING, dtype=torch.float64)
    vae.load_state_dict(source.state_dict(), assign=True)
    latent = draw(1, 48, 2, 1, 1)
    assert torch.equal(vae.decode(latent), source.decode(latent))
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_the_host_gives_the_convolutions():
    """Layers that hold float64 weights and cast them at each call, as a host's do."""

    def casting(convolution):
        class Casting(convolution):
            def forward(self, x):
                return self._conv_forward(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

        return Casting

    ops = SimpleNamespace(Conv2d=casting(nn.Conv2d), Conv3d=casting(nn.Conv3d))
    source = network(QUARTERING)
    vae = Wan22VAE(QUARTERING, ops=ops)
    vae.load_state_dict(source.state_dict(), assign=True)
    found = {type(module) for module in vae.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)}
    assert found == {ops.Conv2d, ops.Conv3d}
    latent = draw(1, 48, 2, 1, 1)
    torch.testing.assert_close(
        vae.decode(latent.float()).double(), source.decode(latent), rtol=1e-4, atol=1e-5
    )


def test_bf16_is_near_float32():
    source = network(QUARTERING)
    weights = {name: tensor.bfloat16() for name, tensor in source.state_dict().items()}
    vae = Wan22VAE(QUARTERING, dtype=torch.bfloat16)
    vae.load_state_dict(weights, assign=True)
    source.load_state_dict(weights)
    latent, pixels = draw(1, 48, 3, 1, 1), draw(1, 3, 5, 8, 8)
    for ours, theirs, dtype in (
        (vae.decode(latent), source.decode(latent), torch.bfloat16),
        (vae.encode(pixels), source.encode(pixels), torch.float32),
    ):
        assert ours.dtype == dtype
        # bf16 has 8 bits of mantissa, and some twenty layers round.
        assert (ours.double() - theirs).norm() < 0.05 * theirs.double().norm()
