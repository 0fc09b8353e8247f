"""The Turbo decoder against float64 definitions written out here, and its windows against counting."""

import itertools
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comfyui_happyhorse.errors import CheckpointError, GeometryError
from comfyui_happyhorse.model import turbo_decoder as turbo
from comfyui_happyhorse.model import turbo_layers as layers
from comfyui_happyhorse.model.turbo_decoder import TurboConfig, TurboDecoder, TurboStage, Window
from comfyui_happyhorse.model.video_latent import LATENT_MEAN, LATENT_STD, denormalise

# As the real decoder: one stage without a change of width, one that changes width and doubles time, one
# that doubles space alone, one that does neither.
CONFIG = TurboConfig(
    latent_channels=48,
    middle_blocks=2,
    stages=(
        TurboStage(4, 4, 1, True, True),
        TurboStage(4, 3, 2, True, True),
        TurboStage(3, 2, 1, True, False),
        TurboStage(2, 5, 1, False, False),
    ),
    patch=2,
)
# A small one with other windows, for the films it takes whole.
SHORT = TurboConfig(48, 1, (TurboStage(2, 2, 1, True, True),), patch=1, first_chunk=2, step=3)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_weights(module, seed=0):
    """The module in float64 with every parameter drawn."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for parameter in module.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(scale * drawn)
    return module.requires_grad_(False)


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


# The definitions. x is [C, T, H, W]: one window.


def convolve(x, layer):
    """sum over offsets of weight * x, with the edge frames repeated in time and zeros around each frame."""
    conv = layer.conv if hasattr(layer, "conv") else layer
    weight = conv.weight if conv.weight.ndim == 5 else conv.weight.unsqueeze(2)
    _, frames, height, width = x.shape
    out = conv.bias.view(-1, 1, 1, 1).expand(-1, *x.shape[1:]).clone()
    middle = [size // 2 for size in weight.shape[2:]]
    for t, dt, dy, dx in itertools.product(range(frames), *map(range, weight.shape[2:])):
        source = x[:, min(max(t + dt - middle[0], 0), frames - 1)]
        padded = x.new_zeros(x.shape[0], height + 2, width + 2)
        padded[:, 1:-1, 1:-1] = source
        top, left = 1 + dy - middle[1], 1 + dx - middle[2]
        seen = padded[:, top : top + height, left : left + width]
        out[:, t] += torch.einsum("oc,chw->ohw", weight[:, :, dt, dy, dx], seen)
    return out


def norm(x, eps=1e-8):
    return x / (sum(channel**2 for channel in x) / len(x) + eps).sqrt()


def silu(x):
    return x / (1 + (-x).exp())


def relu(x):
    return torch.where(x > 0, x, 0)


def residual(x, block, activation, shortcut_eps=1e-6):
    y = convolve(activation(norm(x)), block.conv1)
    y = convolve(silu(norm(y)), block.conv2)
    return y + (x if block.conv_shortcut is None else convolve(norm(x, shortcut_eps), block.conv_shortcut))


def upsample(x, layer, is_first):
    if layer.time_conv is not None:
        pairs = convolve(x, layer.time_conv)
        frames = []
        for t in range(x.shape[1]):
            frames += [pairs[: x.shape[0], t], pairs[x.shape[0] :, t]]
        x = torch.stack(frames[1:] if is_first else frames, dim=1)
    doubled = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    for row, column in itertools.product(range(2), range(2)):
        doubled[:, :, row::2, column::2] = x
    return convolve(doubled, layer.resample["1"])


def up_stage(x, module, stage, is_first):
    if stage.in_channels != stage.channels:
        x = residual(x, module.conv_in, silu)
    if stage.doubles_space:
        x = upsample(x, module.upsamplers[0], is_first)
    for block in module.resnets:
        x = residual(x, block, relu if stage.doubles_space else silu)
    return x


def decoded_window(x, model, is_first):
    net, patch = model.decoder, model.config.patch
    x = convolve(x, net.conv_in)
    for block in net.mid_block.resnets:
        x = residual(x, block, silu)
    for module, stage in zip(net.up_blocks, model.config.stages, strict=True):
        x = up_stage(x, module, stage, is_first)
    x = convolve(silu(norm(x)), net.conv_out)
    pixels = x.new_zeros(3, x.shape[1], patch * x.shape[2], patch * x.shape[3])
    for c, row, column in itertools.product(range(3), range(patch), range(patch)):
        pixels[c, :, row::patch, column::patch] = x[(c * patch + column) * patch + row]
    return pixels


def decoded_film(latent, model):
    """The sliding window in the words of the reference: pad, decode each chunk, cut, join, cut the padding."""
    config = model.config
    first, step, stride = config.first_chunk, config.step, config.time_stride
    std, mean = (torch.tensor(x, dtype=latent.dtype).view(48, 1, 1, 1) for x in (LATENT_STD, LATENT_MEAN))
    raw = latent * std + mean
    padding = 0
    while raw.shape[1] < first or (raw.shape[1] - first) % step:
        raw, padding = torch.cat([raw, raw[:, -1:]], dim=1), padding + 1
    if raw.shape[1] == first:
        film = decoded_window(raw, model, True)
    else:
        chunks = [decoded_window(raw[:, : first + 1], model, True)[:, :-stride]]
        for start in range(first, raw.shape[1], step):
            if start + step < raw.shape[1]:
                chunk = decoded_window(raw[:, start - 1 : start + step + 1], model, False)
                chunks.append(chunk[:, stride:-stride])
            else:
                chunks.append(decoded_window(raw[:, start - 1 :], model, False)[:, stride:])
        film = torch.cat(chunks, dim=1)
    return film[:, : film.shape[1] - stride * padding]


# Layers


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("frames", [1, 4])
def test_convolution_repeats_the_edge_frames(kernel, frames):
    layer = with_weights(layers.EdgeConv3d(2, 3, kernel, nn, torch.float64))
    x = draw(2, 2, frames, 3, 2)
    for film in range(2):
        equal(layer(x)[film], convolve(x[film], layer))


@pytest.mark.parametrize("eps", [1e-8, 1e-6])
def test_norm_has_its_epsilon_under_the_root(eps):
    x = 1e-4 * draw(2, 5, 2, 3, 2)  # so small that the epsilon decides
    for film in range(2):
        equal(layers.channel_norm(x, eps)[film], norm(x[film], eps))


def test_norm_rounds_once():
    x = draw(1, 7, 2, 3, 2).bfloat16()
    wide = x.float()
    expected = wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + 1e-8)
    # Rounded twice, a good part would lie a step beside; by another order in float32, next to none does.
    assert (layers.channel_norm(x, 1e-8) != expected.bfloat16()).sum() <= 1
    assert (
        x * torch.rsqrt(wide.square().mean(dim=1, keepdim=True)).bfloat16() != expected.bfloat16()
    ).sum() > 10


@pytest.mark.parametrize(("ours", "theirs"), [(torch.relu, relu), (torch.nn.functional.silu, silu)])
@pytest.mark.parametrize("channels", [3, 5])
def test_residual_block(ours, theirs, channels):
    block = with_weights(layers.ResidualBlock(3, channels, ours, 1e-6, nn, torch.float64))
    for size in (1, 1e-3):  # at the smaller the epsilons show: 1e-8 in the block, 1e-6 beside it
        x = size * draw(1, 3, 2, 3, 2)
        equal(block(x)[0], residual(x[0], block, theirs))


@pytest.mark.parametrize("doubles_time", [False, True])
@pytest.mark.parametrize("is_first", [False, True])
def test_upsampler(doubles_time, is_first):
    layer = with_weights(layers.Upsampler(3, doubles_time, nn, torch.float64))
    x = draw(1, 3, 3, 2, 3)
    equal(layer(x, is_first)[0], upsample(x[0], layer, is_first))


@pytest.mark.parametrize("stage", CONFIG.stages)
@pytest.mark.parametrize("is_first", [False, True])
def test_stage(stage, is_first):
    module = with_weights(turbo.UpStage(stage, 1e-6, nn, torch.float64))
    x = 0.01 * draw(1, stage.in_channels, 2, 2, 1)
    equal(module(x, is_first)[0], up_stage(x[0], module, stage, is_first))


@pytest.mark.parametrize("is_first", [False, True])
def test_decoder_of_one_window_is_its_definition(is_first):
    model = with_weights(TurboDecoder(CONFIG, dtype=torch.float64))
    raw = draw(1, 48, 2, 1, 2)
    pixels = model.decoder(raw, is_first)
    assert pixels.shape == (1, 3, 5 if is_first else 8, 16, 32)
    equal(pixels[0], decoded_window(raw[0], model, is_first))


# Windows


@pytest.mark.parametrize(
    ("frames", "windows"),
    [
        (1, [(0, 7, True, 0, 24)]),
        (4, [(0, 7, True, 0, 12)]),
        (7, [(0, 7, True, 0, 0)]),
        (8, [(0, 8, True, 0, 4), (6, 14, False, 4, 24)]),
        (14, [(0, 8, True, 0, 4), (6, 14, False, 4, 0)]),
        (16, [(0, 8, True, 0, 4), (6, 15, False, 4, 4), (13, 21, False, 4, 20)]),
        (26, [(0, 8, True, 0, 4), (6, 15, False, 4, 4), (13, 22, False, 4, 4), (20, 28, False, 4, 8)]),
    ],
)
def test_windows_of_the_real_decoder(frames, windows):
    """Counted by hand for windows of 7, steps of 7 and 4 frames a latent."""
    assert CONFIG.time_stride == 4
    assert list(CONFIG.windows(frames)) == [Window(*window) for window in windows]


@pytest.mark.parametrize(("first", "step"), [(7, 7), (2, 3), (1, 1), (5, 2)])
def test_windows_make_each_frame_once(first, step):
    config = TurboConfig(48, 1, CONFIG.stages, 2, first, step)
    for frames in range(1, 40):
        made = []
        for window in config.windows(frames):
            # Frame 0 belongs to latent 0; latent i makes frames 4i-3 to 4i.
            start = 0 if window.is_first else 4 * window.start - 3
            all_frames = list(range(start, 4 * window.stop - 3))
            made += all_frames[window.drop_front : len(all_frames) - window.drop_back]
            assert window.stop - window.start <= max(first + 1, step + 2)
        assert made == list(range(4 * (frames - 1) + 1))


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 6, 9])
def test_decode_is_the_sliding_window(frames):
    model = with_weights(TurboDecoder(SHORT, dtype=torch.float64))
    # Scaled in float32 by the decoder: what is equal in float32 is what can be compared.
    latent = draw(2, 48, frames, 2, 1)
    pixels = model.decode(latent)
    assert pixels.shape == (2, 3, 2 * frames - 1, 4, 2)
    for film in range(2):
        expected = decoded_film(latent[film], model)
        torch.testing.assert_close(pixels[film], expected, rtol=1e-5, atol=1e-5)


def test_decode_does_not_clamp():
    model = with_weights(TurboDecoder(SHORT, dtype=torch.float64))
    assert model.decode(4 * draw(1, 48, 2, 2, 2)).abs().max() > 1.1


def test_chunks_are_windows_and_join_to_the_film():
    model = with_weights(TurboDecoder(SHORT, dtype=torch.float64))
    latent = draw(1, 48, 9, 1, 1)
    seen = []
    model.decoder.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[2]))
    chunks = model.decode_chunks(latent)
    first = next(chunks)
    assert seen == [3], "later windows are decoded before they are asked for"
    rest = list(chunks)
    assert seen == [3, 5, 5, 4]
    assert [chunk.shape[2] for chunk in (first, *rest)] == [3, 6, 6, 2]
    assert torch.equal(torch.cat([first, *rest], dim=2), model.decode(latent))


def test_latents_are_scaled_in_float32_and_rounded_once():
    model = TurboDecoder(SHORT, dtype=torch.bfloat16)
    latent = draw(1, 48, 2, 1, 2).bfloat16()
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.decode(latent)
    wide = latent.float() * torch.tensor(LATENT_STD).view(1, 48, 1, 1, 1)
    expected = (wide + torch.tensor(LATENT_MEAN).view(1, 48, 1, 1, 1)).bfloat16()
    # Scaled in bf16, a good part of the values lie a step beside; by another float32 order, next to none.
    assert (seen[0] != expected).sum() <= 1 < 10 < (denormalise(latent) != expected).sum()


# Pieces: the same frames in less memory


def cut(x, lengths):
    """[B, C, T, H, W] -> pieces of these lengths, and of what is left."""
    return x.split([*lengths, x.shape[2] - sum(lengths)], dim=2)


CUTS = [(7, ()), (7, (1,) * 6), (7, (4, 1)), (1, ()), (3, (1, 1))]


@pytest.mark.parametrize(("frames", "lengths"), CUTS)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 1, 1), (5, 1, 3)])
def test_convolution_in_pieces(kernel, frames, lengths):
    layer = with_weights(layers.EdgeConv3d(2, 3, kernel, nn, torch.float64))
    x = draw(2, 2, frames, 3, 5)
    made = list(layer.stream(iter(cut(x, lengths))))
    assert all(piece.shape[2] for piece in made)
    equal(torch.cat(made, dim=2), layer(x))


@pytest.mark.parametrize(("frames", "lengths"), CUTS)
@pytest.mark.parametrize("stage", CONFIG.stages)
@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("piece_bytes", [1, 2_500])
def test_stage_in_pieces(stage, is_first, piece_bytes, frames, lengths):
    module = with_weights(turbo.UpStage(stage, 1e-6, nn, torch.float64))
    x = 0.01 * draw(2, stage.in_channels, frames, 3, 1)
    made = list(module.stream(iter(cut(x, lengths)), is_first, piece_bytes))
    equal(torch.cat(made, dim=2), module(x, is_first))


@pytest.mark.parametrize("frames", [1, 6, 9])
@pytest.mark.parametrize("size", [(1, 3), (3, 2)])
def test_film_in_pieces(frames, size):
    model = with_weights(TurboDecoder(CONFIG, dtype=torch.float64))
    latent = draw(1, 48, frames, *size)
    model.piece_bytes = None
    exact = model.decode(latent)
    for model.piece_bytes in (1, 2_000):
        equal(model.decode(latent), exact)
    # In float32 a convolution of another length may sum in another order. Whole or in pieces, all were within
    # 7e-6 of the norm: sixty roundings of 6e-8, amplified by norms over two channels.
    model, model.dtype = model.float(), torch.float32
    for model.piece_bytes in (None, 1, 2_000):
        assert (model.decode(latent) - exact).norm() < 2e-5 * exact.norm()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every storage made inside while it lives."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.alive = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.alive:
                self.alive.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return out

    def freed(self, key, nbytes):
        self.alive.discard(key)
        self.now -= nbytes


# The real decoder, of which model.md has the widths.
REAL = TurboConfig(
    48,
    3,
    (
        TurboStage(512, 512, 3, True, True),
        TurboStage(512, 256, 2, True, True),
        TurboStage(256, 128, 2, True, False),
        TurboStage(128, 64, 2, False, False),
    ),
    patch=2,
)


def counted(width, height, frames, piece_bytes, dtype=torch.bfloat16):
    """(peak bytes of decoding at these pixels without weights, the decoder's own estimate): on no device."""
    with torch.device("meta"):
        model = TurboDecoder(REAL, dtype=dtype, piece_bytes=piece_bytes)
        latent = torch.empty(1, 48, frames, height // 16, width // 16)
    with LiveBytes() as live:
        for number, pixels in enumerate(model.decode_chunks(latent)):
            del pixels
            if number == 1:  # later windows are like the second
                break
    return live.peak, model.working_bytes(latent.shape)


def test_memory_at_1080p():
    whole, _ = counted(1920, 1088, 16, None)
    default, _ = counted(1920, 1088, 16, turbo.PIECE_BYTES)
    assert whole > 29 << 30  # six tensors of 4.8 GB, the third stage's
    assert default < 7 << 30


def test_memory_grows_neither_with_the_film_nor_with_a_window_gone_by():
    assert counted(448, 256, 16, 128 << 20) == counted(448, 256, 63, 128 << 20)


@pytest.mark.parametrize(
    ("size", "frames", "piece_bytes"),
    [
        ((448, 256), 1, None),
        ((448, 256), 63, turbo.PIECE_BYTES),
        ((960, 544), 63, turbo.PIECE_BYTES),
        ((960, 544), 1, 512 << 20),
        ((1088, 1920), 63, 512 << 20),
        ((1920, 1088), 63, None),
    ],
)
def test_the_estimate_is_never_below_the_count(size, frames, piece_bytes):
    peak, estimate = counted(*size, frames, piece_bytes)
    assert peak <= estimate <= 1.6 * peak


def test_a_window_that_was_taken_is_gone_when_the_next_begins():
    model, alive = with_weights(TurboDecoder(SHORT, dtype=torch.float64)), weakref.WeakSet()
    left = []
    model.decoder.register_forward_pre_hook(lambda module, args: left.append(len(alive)))
    for pixels in model.decode_chunks(draw(1, 48, 9, 1, 1)):
        alive.add(pixels.untyped_storage())
        del pixels
    assert left == [0, 0, 0, 0]


def test_memory_really_used():
    """Counted while numbers are made: the real decoder with a sixteenth of its widths, one window."""
    stages = (
        TurboStage(32, 32, 3, True, True),
        TurboStage(32, 16, 2, True, True),
        TurboStage(16, 8, 2, True, False),
        TurboStage(8, 4, 2, False, False),
    )
    model = with_weights(turbo.WindowDecoder(TurboConfig(48, 3, stages, 2), ops=nn, dtype=torch.float64))
    raw, peaks, films = draw(1, 48, 9, 4, 6), [], []
    for piece_bytes in (None, 40_000):
        with LiveBytes() as live:
            films.append(model(raw, False, piece_bytes))
        peaks.append(live.peak)
    equal(films[1], films[0])
    assert peaks[1] < 0.5 * peaks[0]


# Sizes, names and hosts


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("config", [CONFIG, SHORT])
def test_sizes_are_read_off_the_shapes(config):
    with torch.device("meta"):
        shapes = shapes_of(TurboDecoder(config))
    settings = {"first_chunk_size": config.first_chunk, "step_size": config.step}
    shapes["aligned_feature_projection_heads.0.weight"] = (3, 3)  # left over from training
    assert TurboConfig.from_shapes(shapes, settings) == config
    assert config.time_stride == (4 if config is CONFIG else 2)


def test_settings_are_the_windows_and_the_shortcut_epsilon():
    shapes = shapes_of(TurboDecoder(CONFIG))
    default = TurboConfig.from_shapes(shapes)
    assert (default.first_chunk, default.step, default.shortcut_eps) == (7, 7, 1e-6)
    settings = {
        "first_chunk_size": 3,
        "step_size": 2,
        "temporal_compression_ratio": 4,
        "resnet_norm_eps": 1e-5,
    }
    config = TurboConfig.from_shapes(shapes, settings)
    assert (config.first_chunk, config.step, config.shortcut_eps) == (3, 2, 1e-5)
    blocks = [m for m in TurboDecoder(config).modules() if isinstance(m, layers.ResidualBlock)]
    assert {block.shortcut_eps for block in blocks} == {1e-5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temporal_compression_ratio": 8}, "8 frames per latent .* make 4"),
        ({"decoder_causal": True}, "decoder_causal"),
        ({"step_size": 0}, "windows of 7 .* and 0"),
    ],
)
def test_settings_of_another_decoder_are_refused(settings, message):
    with pytest.raises(CheckpointError, match=message):
        TurboConfig.from_shapes(shapes_of(TurboDecoder(CONFIG)), settings)


def test_every_missing_tensor_is_named():
    shapes = shapes_of(TurboDecoder(CONFIG))
    for name in shapes:
        with pytest.raises(CheckpointError) as caught:
            TurboConfig.from_shapes({other: shape for other, shape in shapes.items() if other != name})
        assert f"'{name}'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("decoder.conv_in.conv.weight", (4, 16, 3, 3, 3)),
        ("decoder.conv_out.conv.weight", (13, 5, 3, 3, 3)),
        ("decoder.up_blocks.1.resnets.1.conv2.conv.weight", (3, 4, 3, 3, 3)),
        ("decoder.up_blocks.0.upsamplers.0.time_conv.conv.weight", (4, 4, 3, 1, 1)),
        ("decoder.up_blocks.0.resnets.0.conv1.conv.weight", (4, 4)),
    ],
)
def test_a_shape_that_does_not_fit_is_named(name, shape):
    with pytest.raises(CheckpointError, match=name):
        TurboConfig.from_shapes(shapes_of(TurboDecoder(CONFIG)) | {name: shape})


@pytest.mark.parametrize("shape", [(1, 47, 2, 1, 1), (48, 2, 1, 1), (1, 48, 0, 1, 1)])
def test_latents_that_cannot_be_decoded(shape):
    with pytest.raises(GeometryError, match="48, T, h, w"):
        TurboDecoder(SHORT).decode(torch.zeros(shape))


def test_weights_are_adopted_from_meta():
    source = with_weights(TurboDecoder(SHORT, dtype=torch.float64))
    with torch.device("meta"):
        model = TurboDecoder(SHORT, dtype=torch.float64)
    model.load_state_dict(source.state_dict(), assign=True)
    latent = draw(1, 48, 3, 1, 1)
    assert torch.equal(model.decode(latent), source.decode(latent))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_host_gives_the_convolutions():
    """Layers that hold float64 weights and cast them at each call, as a host's do."""

    def casting(convolution):
        class Casting(convolution):
            def forward(self, x):
                return self._conv_forward(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

        return Casting

    ops = SimpleNamespace(Conv2d=casting(nn.Conv2d), Conv3d=casting(nn.Conv3d))
    source = with_weights(TurboDecoder(CONFIG, dtype=torch.float64))
    model = TurboDecoder(CONFIG, ops=ops)
    model.load_state_dict(source.state_dict(), assign=True)
    found = {type(module) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)}
    assert found == {ops.Conv2d, ops.Conv3d}
    latent = draw(1, 48, 2, 1, 1)
    torch.testing.assert_close(model.decode(latent).double(), source.decode(latent), rtol=1e-4, atol=1e-4)


def test_bf16_is_near_float32():
    source = with_weights(TurboDecoder(CONFIG, dtype=torch.float64))
    weights = {name: tensor.bfloat16() for name, tensor in source.state_dict().items()}
    model = TurboDecoder(CONFIG, dtype=torch.bfloat16)
    model.load_state_dict(weights, assign=True)
    source.load_state_dict(weights)
    latent = draw(1, 48, 3, 1, 2)
    ours, theirs = model.decode(latent), source.decode(latent)
    assert ours.dtype == torch.bfloat16
    # bf16 has 8 bits of mantissa, some twenty layers round, and norms over two channels amplify.
    assert (ours.double() - theirs).norm() < 0.1 * theirs.norm()
