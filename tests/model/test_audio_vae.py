"""The Oobleck audio VAE against definitions in float64 written out here."""

import math

import pytest
import torch

from comfyui_happyhorse.errors import CheckpointError, GeometryError
from comfyui_happyhorse.model import audio_vae as oobleck
from comfyui_happyhorse.model.audio_vae import OobleckConfig, OobleckVAE, StackConfig

CONFIG = OobleckConfig(
    audio_channels=2,
    latent_channels=3,
    encoder=StackConfig(widths=(2, 3, 5), strides=(2, 4)),
    decoder=StackConfig(widths=(6, 3, 2), strides=(4, 2)),
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_weights(module, seed=0):
    """The module in float64 with every parameter drawn; alpha and beta differ, so that a swap shows."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(0.4 * drawn + (0.5 if name.endswith(("alpha", "weight_g")) else 0))
    return module.requires_grad_(False)


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


# The definitions. x is [C, S]: one sound.


def snake(x, module):
    rows = [
        x[c] + torch.sin(math.exp(module.alpha[c]) * x[c]) ** 2 / (math.exp(module.beta[c]) + 1e-9)
        for c in range(len(x))
    ]
    return torch.stack(rows)


def weight_of(module):
    """g * v / |v|, one row of dimension 0 after the other."""
    rows = [g * v / math.sqrt((v**2).sum()) for g, v in zip(module.weight_g, module.weight_v, strict=True)]
    return torch.stack(rows)


def convolve(x, module, stride=1, padding=0, dilation=1):
    weight = weight_of(module)
    padded = torch.cat([x.new_zeros(len(x), padding), x, x.new_zeros(len(x), padding)], dim=1)
    length = (padded.shape[1] - dilation * (weight.shape[2] - 1) - 1) // stride + 1
    out = x.new_zeros(len(weight), length)
    for s in range(length):
        for k in range(weight.shape[2]):
            out[:, s] += weight[:, :, k] @ padded[:, s * stride + k * dilation]
    return out if module.bias is None else out + module.bias.unsqueeze(1)


def spread(x, module, stride):
    """The transposed convolution: each input sample adds a whole kernel, `padding` is cut at both ends."""
    weight, padding = weight_of(module), math.ceil(stride / 2)
    out = x.new_zeros(weight.shape[1], (x.shape[1] - 1) * stride + weight.shape[2])
    for s in range(x.shape[1]):
        for k in range(weight.shape[2]):
            out[:, s * stride + k] += weight[:, :, k].T @ x[:, s]
    return out[:, padding : out.shape[1] - padding] + module.bias.unsqueeze(1)


def unit(x, module, dilation):
    y = convolve(snake(x, module.layers[0]), module.layers[1], padding=3 * dilation, dilation=dilation)
    return x + convolve(snake(y, module.layers[2]), module.layers[3])


def encoder_block(x, module, stride):
    for dilation, layer in zip((1, 3, 9), module.layers[:3], strict=True):
        x = unit(x, layer, dilation)
    x = snake(x, module.layers[3])
    return convolve(x, module.layers[4], stride=stride, padding=math.ceil(stride / 2))


def decoder_block(x, module, stride):
    x = spread(snake(x, module.layers[0]), module.layers[1], stride)
    for dilation, layer in zip((1, 3, 9), module.layers[2:], strict=True):
        x = unit(x, layer, dilation)
    return x


def encoded(x, vae):
    first, *blocks, last_snake, last = vae.encoder.layers
    x = convolve(x, first, padding=3)
    for stride, block in zip(vae.config.encoder.strides, blocks, strict=True):
        x = encoder_block(x, block, stride)
    return convolve(snake(x, last_snake), last, padding=1)


def decoded(x, vae):
    first, *blocks, last_snake, last = vae.decoder.layers
    x = convolve(x, first, padding=3)
    for stride, block in zip(vae.config.decoder.strides, blocks, strict=True):
        x = decoder_block(x, block, stride)
    return convolve(snake(x, last_snake), last, padding=3)


# Layers


def test_snake_has_its_logs_and_its_floor():
    module = with_weights(oobleck.Snake(3))
    module.beta[2] = -21.0  # e^-21 is 7.6e-10: the 1e-9 decides
    x = draw(2, 3, 7)
    for sound in range(2):
        equal(module(x)[sound], snake(x[sound], module))


@pytest.mark.parametrize("dilation", [1, 3, 9])
def test_convolution_scales_each_output_channel(dilation):
    layer = with_weights(oobleck.NormConv1d(2, 3, 7, padding=3 * dilation, dilation=dilation))
    x = draw(1, 2, 11)
    equal(layer(x)[0], convolve(x[0], layer, padding=3 * dilation, dilation=dilation))


@pytest.mark.parametrize("stride", [2, 4])
def test_transposed_convolution_scales_each_input_channel(stride):
    layer = with_weights(oobleck.NormConvTranspose1d(4, 3, stride))
    x = draw(1, 4, 5)
    assert layer(x).shape == (1, 3, 5 * stride)
    equal(layer(x)[0], spread(x[0], layer, stride))


def test_a_direction_without_length_gives_no_weight():
    length, direction = draw(4, 1, 1), draw(4, 2, 3)
    direction[1] = 0
    weight = oobleck.scaled_directions(length, direction)
    assert (weight[1] == 0).all()
    for row in (0, 2, 3):
        equal(weight[row], length[row] * direction[row] / math.sqrt((direction[row] ** 2).sum()))
    assert torch.isfinite(oobleck.scaled_directions(torch.full((1, 1, 1), 3e38), torch.zeros(1, 2, 3))).all()


def test_a_network_with_zero_rows_stays_finite():
    vae = with_weights(OobleckVAE(CONFIG)).float()
    for name, parameter in vae.named_parameters():
        if name.endswith("weight_v"):
            parameter[0] = 0
    assert torch.isfinite(vae.decode(vae.encode(draw(1, 2, 24)))).all()


@pytest.mark.parametrize("dilation", [1, 3, 9])
def test_residual_unit(dilation):
    module = with_weights(oobleck.ResidualUnit(3, dilation))
    x = draw(1, 3, 20)
    equal(module(x)[0], unit(x[0], module, dilation))


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("samples", [12, 15])
def test_encoder_block(stride, samples):
    module = with_weights(oobleck.EncoderBlock(2, 3, stride))
    x = draw(1, 2, samples)
    assert module(x).shape == (1, 3, samples // stride)
    equal(module(x)[0], encoder_block(x[0], module, stride))


@pytest.mark.parametrize("stride", [2, 4])
def test_decoder_block(stride):
    module = with_weights(oobleck.DecoderBlock(3, 2, stride))
    x = draw(1, 3, 5)
    equal(module(x)[0], decoder_block(x[0], module, stride))


# The network


def test_encoder_and_decoder_are_their_definitions():
    vae = with_weights(OobleckVAE(CONFIG))
    waveform, latent = draw(2, 2, 27), draw(2, 3, 4)
    for sound in range(2):
        equal(vae.encoder(waveform)[sound], encoded(waveform[sound], vae))
        equal(vae.decoder(latent)[sound], decoded(latent[sound], vae))


def test_encode_gives_the_mean_or_a_draw():
    vae = with_weights(OobleckVAE(CONFIG)).float()
    waveform, noise = draw(2, 2, 29).float(), draw(2, 3, 3, seed=1).float()
    both = torch.stack([encoded(sound, vae.double()) for sound in waveform.double()])
    mean, scale = both[:, :3], both[:, 3:]
    vae.float()

    def near(actual, expected):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)

    near(vae.encode_moments(waveform)[0], mean)
    near(vae.encode_moments(waveform)[1], scale)
    near(vae.encode(waveform), mean)
    near(vae.encode(waveform, noise), mean + ((1 + scale.exp()).log() + 1e-4) * noise.double())


def test_a_draw_has_a_deviation_of_at_least_1e_4():
    vae = with_weights(OobleckVAE(CONFIG)).float()
    vae.encoder.layers[-1].bias[3:] = -1e3  # no scale left
    waveform = draw(1, 2, 16)
    ones = torch.ones(1, 3, 2)
    difference = vae.encode(waveform, 1e4 * ones) - vae.encode(waveform)
    torch.testing.assert_close(difference, ones, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("samples", "latents"), [(8, 1), (15, 1), (16, 2), (63, 7)])
def test_lengths(samples, latents):
    vae = with_weights(OobleckVAE(CONFIG)).float()
    assert CONFIG.samples_per_latent == 8
    latent = vae.encode(draw(1, 2, samples))
    assert latent.shape == (1, 3, latents)
    assert vae.decode(latent).shape == (1, 2, 8 * latents)


def test_decode_neither_squashes_nor_clips():
    vae = with_weights(OobleckVAE(CONFIG)).float()
    latent = 3 * draw(1, 3, 4)
    loud = vae.decode(latent)
    assert loud.abs().max() > 1
    torch.testing.assert_close(loud[0].double(), decoded(latent[0], vae.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_everything_is_float32(dtype):
    vae = OobleckVAE(CONFIG)
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    assert vae.encode(draw(1, 2, 8).to(dtype)).dtype == torch.float32
    assert vae.decode(draw(1, 3, 1).to(dtype)).dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 7), "7 samples is shorter than one latent, which is 8"),
        ((1, 1, 16), r"B, 2, S.*\[1, 1, 16\]"),
        ((2, 16), r"B, 2, S.*\[2, 16\]"),
    ],
)
def test_sounds_that_cannot_be_encoded(shape, message):
    with pytest.raises(GeometryError, match=message):
        OobleckVAE(CONFIG).encode(torch.zeros(shape))


def test_noise_of_another_length_is_refused():
    with pytest.raises(GeometryError, match=r"\[1, 3, 4\] does not fit the latents \[1, 3, 2\]"):
        OobleckVAE(CONFIG).encode(torch.zeros(1, 2, 16), torch.zeros(1, 3, 4))


@pytest.mark.parametrize("shape", [(1, 4, 2), (3, 2), (1, 3, 0)])
def test_latents_that_cannot_be_decoded(shape):
    with pytest.raises(GeometryError, match="B, 3, L"):
        OobleckVAE(CONFIG).decode(torch.zeros(shape))


# Sizes and names


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_sizes_are_read_off_the_shapes():
    with torch.device("meta"):
        shapes = shapes_of(OobleckVAE(CONFIG))
    shapes["conditioner.weight"] = (3, 3)  # the published file holds a whole sound model
    assert OobleckConfig.from_shapes(shapes) == CONFIG


def test_every_missing_tensor_is_named():
    shapes = shapes_of(OobleckVAE(CONFIG))
    for name in shapes:
        with pytest.raises(CheckpointError) as caught:
            OobleckConfig.from_shapes({other: shape for other, shape in shapes.items() if other != name})
        assert f"'{name}'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder.layers.1.layers.4.weight_v", (3, 2, 5)),
        ("encoder.layers.1.layers.4.weight_v", (3, 2)),
        ("decoder.layers.1.layers.1.weight_g", (3, 1, 1)),
        ("decoder.layers.0.weight_v", (6, 4, 7)),
    ],
)
def test_a_shape_that_does_not_fit_is_named(name, shape):
    with pytest.raises(CheckpointError, match=name if "layers.0" not in name else "should have the shape"):
        OobleckConfig.from_shapes(shapes_of(OobleckVAE(CONFIG)) | {name: shape})


def test_halves_of_different_strides_are_refused():
    mixed = OobleckConfig(2, 3, CONFIG.encoder, StackConfig((6, 3, 2), (4, 4)))
    with pytest.raises(CheckpointError, match="16 samples a latent; the encoder has 8"):
        OobleckConfig.from_shapes(shapes_of(OobleckVAE(mixed)))


def test_weights_are_adopted_from_meta():
    source = with_weights(OobleckVAE(CONFIG)).float()
    with torch.device("meta"):
        vae = OobleckVAE(CONFIG)
    vae.load_state_dict(source.state_dict(), assign=True)
    latent = draw(1, 3, 3)
    assert torch.equal(vae.decode(latent), source.decode(latent))
    assert not any(parameter.requires_grad for parameter in vae.parameters())
