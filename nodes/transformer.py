"""Our transformer as a ComfyUI MODEL: the host's layers, attention, wrappers, patches and latents.

On the wire and in the host's samplers a latent is video and audio laid end to end; the network works on one
sample of normalised streams at a time.
"""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_prefetch
import comfy.model_sampling
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConditioningError
from ..kernels import modality_linear
from ..kernels.quantised import QuantisedWeight
from ..model.config import MODALITIES, VARIANTS, TransformerConfig
from ..model.layers import Context
from ..model.sequence import SequenceLayout
from ..model.transformer import JointTransformer
from ..model.video_latent import denormalise, normalise
from ..model_loading import builder
from ..model_loading.find import variant_hint
from ..model_loading.precision import PRECISIONS, PrecisionPolicy
from ..sampling.schedule import SHIFT, SIGMA_MAX
from .feature_cache import let_go_of_encoders
from .host_attention import attend_for
from .quantised import describe, host_layers, load_weights

logger = logging.getLogger(__name__)

WANTS_AUDIO = (
    "happyhorse_wants_audio"  # in transformer_options: False where a run puts the audio it has in its place
)


class HostLayers:
    """The layers our networks are built of in ComfyUI: cast, patched and offloaded by the host."""

    Linear = comfy.ops.manual_cast.Linear
    Embedding = comfy.ops.manual_cast.Embedding

    class PerModalityLinear(comfy.ops.manual_cast.Linear):
        """A projection with stacked matrices [video | audio | text]; LoRA patches the stack as one weight."""

        def __init__(self, in_features, out_features, bias=False, device=None, dtype=None):
            super().__init__(in_features, out_features * MODALITIES, bias=bias, device=device, dtype=dtype)

        def forward(self, x: Tensor, sizes) -> Tensor:
            comfy.ops.run_every_op()
            weight, bias, stream = comfy.ops.cast_bias_weight(self, x, offloadable=True)
            out = modality_linear(x, weight, sizes)
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return out


def layers_for(weights, policy: PrecisionPolicy):
    """The host's plain layers, or those that hold quantised weights where there are any."""
    is_quantised = any(isinstance(weight, QuantisedWeight) for weight in weights.values())
    return host_layers(policy) if is_quantised else HostLayers


class HostTransformer(JointTransformer):
    """The network as the host calls it: lists of streams in, lists of velocities out, any batch size."""

    def __init__(self, config: TransformerConfig, dtype=torch.bfloat16, device=None, operations=None, **_):
        with torch.device("meta"):  # the file's tensors are adopted; nothing is allocated twice
            super().__init__(config, ops=operations or HostLayers, dtype=dtype)

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        """x = [video [B, C, T, h, w], audio [B, C, L]], context [B, N, D] -> velocities of the same shapes."""
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._batch, self, wrappers)
        return executor.execute(x, timestep, context, options)

    def _batch(self, x, timestep, context, options):
        video, audio = x
        # Samples go through one by one: in one sequence they would attend to each other.
        out = [
            self._sample(video[index], audio[index], context[index % context.shape[0]], options)
            for index in range(video.shape[0])
        ]
        return [torch.stack([part[stream] for part in out]) for stream in range(2)]

    def _sample(self, video, audio, text, options):
        context = self.host_context(SequenceLayout.of(video, audio, text), video.device, options)
        return super().forward(
            video,
            audio,
            text,
            context,
            run_blocks=lambda h, c: self._blocks(h, c, options),
            wants_audio=options.get(WANTS_AUDIO, True),
        )

    def host_context(self, layout: SequenceLayout, device, options) -> Context:
        """What the blocks share, with the host's attention."""
        return self.context(layout, device, attend_for(options, device))

    def _blocks(self, h: Tensor, context: Context, options) -> Tensor:
        """All blocks, with the host's replacements and its prefetching of offloaded weights."""
        queue = comfy.model_prefetch.make_prefetch_queue(list(self.block.layers), h.device, options)
        for index, block in enumerate(self.block.layers):
            comfy.model_prefetch.prefetch_queue_pop(queue, h.device, block)
            h = run_block(index, block, h, context, options)
        if queue is not None:
            comfy.model_prefetch.prefetch_queue_pop(queue, h.device, None)
        return h


def run_block(index: int, block: nn.Module, h: Tensor, context: Context, options) -> Tensor:
    """[N, D] -> [N, D]: one block, or what the host's user has put in its place."""
    replacement = options.get("patches_replace", {}).get("dit", {}).get(("double_block", index))
    if replacement is None:
        return block(h, context)
    original = {"original_block": lambda args: {"img": block(args["img"], context)}}
    return replacement({"img": h, "transformer_options": options}, original)["img"]


def activation_bytes(config: TransformerConfig, values: int, mlp_rows: int | None = None) -> float:
    """What a pass needs beside the weights, for a latent of so many values in all streams of a sample.

    ``mlp_rows`` go through a feed-forward layer at once, None: all.
    """
    tokens = values / config.video_features + 1024  # audio and text are few beside the video
    # At the widest place of a block: the up-projection's result, its float32 copy and the activation, beside the
    # residual stream with a branch; in shares of a long sequence attention's q, k and v are as wide.
    wide = 10 * max(block.inner_size for block in config.blocks) * 2
    if mlp_rows is None or mlp_rows >= tokens:
        return tokens * (wide + 12 * config.hidden_size) + 512 * 1024**2
    return mlp_rows * wide + tokens * 24 * config.hidden_size + 512 * 1024**2


class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """The published schedule's range: it begins at 0.9998 (shift 5), and with pure noise."""

    def set_parameters(self, shift=SHIFT, timesteps=1000, multiplier=1000):
        self.shift, self.multiplier = shift, multiplier
        steps = SIGMA_MAX * torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps
        self.register_buffer("sigmas", (shift * steps / (1 + (shift - 1) * steps)).float())

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        # The reference starts from the noise itself, not from 0.9998 of it.
        return noise if max_denoise else super().noise_scaling(sigma, noise, latent_image)


class HostModel(comfy.model_base.BaseModel):
    """What the host's samplers hold: the network, its latents and its conditioning."""

    def __init__(self, config: HostConfig, variant: str, network=HostTransformer):
        super().__init__(config, comfy.model_base.ModelType.FLOW, unet_model=network)
        self.model_sampling = FlowSampling(config)
        self.variant = variant
        self.text_features = config.unet_config["config"].text_features

    def get_dtype_inference(self):
        # Latents and text features enter the float32 adapter; rounding is the projections' own matter.
        return torch.float32

    def extra_conds(self, **kwargs):
        out = super().extra_conds(**kwargs)
        text = kwargs.get("cross_attn")
        if text is not None:
            if text.shape[-1] != self.text_features:
                raise ConditioningError(
                    f"positive/negative: text features of {text.shape[-1]} values a token came from another text "
                    f"encoder; this model reads {self.text_features}. Use HappyHorse Text Encoder Loader."
                )
            # Not CONDCrossAttn: it repeats tokens to make lengths equal, and here every token counts.
            out["c_crossattn"] = comfy.conds.CONDRegular(text)
        shapes = kwargs.get("latent_shapes")
        if shapes is None or len(shapes) != 2:
            raise ConditioningError(
                f"latent_image: {0 if shapes is None else len(shapes)} stream(s) came; this model denoises video and "
                "audio together. Use HappyHorse Empty Latent, or join both with a Concat AV Latent node."
            )
        out["latent_shapes"] = comfy.conds.CONDConstant(shapes)
        return out

    def process_latent_in(self, latent):
        return self._on_video(latent, normalise)

    def process_latent_out(self, latent):
        return self._on_video(latent, denormalise)

    def scale_latent_inpaint(self, sigma, noise, latent_image, **kwargs):
        # What is known is shown to the network clean, as the first frame and the voice were in training.
        return latent_image

    def memory_required(self, input_shape, cond_shapes=None):
        return activation_bytes(self.model_config.unet_config["config"], input_shape[-1])

    def _on_video(self, latent, change):
        """Apply to the video of a nested latent, of the flat pack, or of a plain video latent."""
        if latent.is_nested:
            streams = latent.unbind()
            return type(latent)((change(streams[0]), *streams[1:]))
        if latent.ndim == 3 and self.latent_shapes is not None:
            video, *others = comfy.utils.unpack_latents(latent, self.latent_shapes)
            return comfy.utils.pack_latents([change(video), *others])[0]
        return change(latent)


class HostConfig(comfy.supported_models_base.BASE):
    """What the host wants to know about a model family."""

    unet_extra_config = {}  # noqa: RUF012 - the host's own form
    sampling_settings = {"shift": SHIFT, "multiplier": 1000}  # noqa: RUF012
    latent_format = comfy.latent_formats.Wan22
    memory_usage_factor = 1.0
    supported_inference_dtypes = [torch.bfloat16, torch.float32]  # noqa: RUF012
    custom_operations = HostLayers


def load_model(path: str, variant: str, precision: str = "auto"):
    """A ModelPatcher for the checkpoint at ``path``, of a variant that ``variant_of`` decided."""
    checkpoint = builder.open_kind(path, "transformer")
    config = TransformerConfig.from_shapes(checkpoint.shapes, VARIANTS[variant])
    policy = PRECISIONS[precision]
    with torch.device("meta"):
        network = JointTransformer(config, dtype=policy.dtype)
    weights = builder.read_weights(network, checkpoint, policy, "transformer")

    host_config = HostConfig({"image_model": "happyhorse", "config": config})
    host_config.set_inference_dtype(policy.dtype, None)
    host_config.custom_operations = layers_for(weights, policy)
    model = HostModel(host_config, variant)
    load_weights(model.diffusion_model, weights)
    model.diffusion_model.requires_grad_(False)
    stored = describe(weights)
    logger.info("%s: %s, %d layers, %s", Path(path).name, variant, len(config.blocks), stored)
    patcher = comfy.model_patcher.CoreModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.cached_patcher_init = (_load_again, (path, variant, precision))
    prepare = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
    patcher.add_wrapper_with_key(prepare, "happyhorse", _prepare_sampling)
    return patcher


def _prepare_sampling(executor, *args, **kwargs):
    """The host makes room on the card by itself; encoders in host memory it would keep."""
    let_go_of_encoders()
    return executor(*args, **kwargs)


def _load_again(path, variant, precision, disable_dynamic=False):
    return load_model(path, variant, precision)


def variant_of(name: str, variant: str) -> str:
    """The variant chosen or, for "auto", what ``name`` says; CheckpointError where it says nothing.

    ``name`` is the one in the loader's list: folders above the models folder say nothing of the weights.
    """
    if variant != "auto":
        return variant
    hint = variant_hint(Path(name))
    if hint is None:
        raise CheckpointError(
            f"variant: '{name}' does not say which model it is, and base, distilled and super-resolution "
            f"weights have the same tensors. Choose one of {', '.join(VARIANTS)}."
        )
    return hint
