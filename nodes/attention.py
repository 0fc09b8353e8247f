"""The node that chooses which library computes attention for our MODEL."""

from __future__ import annotations

import comfy.ldm.modules.attention as host
import torch
from comfy_api.latest import io

from ..errors import SamplingError
from ..kernels.attention import AttentionBy
from ..kernels.attention import attention as ours
from ..kernels.attention import attention_over_ranges as over_ranges
from ..kernels.attention_ways import LIBRARIES
from ..kernels.cards import has_card
from ..kernels.range_plan import flatten
from ..model.config import VARIANTS
from .host_attention import OVERRIDE, ChosenAttention, host_option, leave_to_host
from .loaders import CATEGORY
from .wire import check_model

HOST, AUTO = "host", "auto"
PROBE = (256, 512)  # rows of q and of k that a card is asked about
# Not torch's last resort, nor its own choice: they are never better than what "auto" finds.
CHOICES = (AUTO, HOST, "cudnn", "flash", "flash3", "flash4", "sage", "int8")
TOOLTIP = (
    "auto takes what is fastest on your card: cuDNN on H100, B200 and on Windows, FlashAttention on others. host leaves "
    "it to ComfyUI and its --use-...-attention options. cudnn and flash are torch's own; flash3, flash4 and sage need "
    "their packages. sage and int8 calculate with 8-bit numbers: faster on RTX 40 and 50, and not quite the same film. "
    "What cannot run here is refused with the reason."
)


class HappyHorseAttention(io.ComfyNode):
    """The library that computes attention."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseAttention",
            display_name="HappyHorse Attention",
            category=CATEGORY,
            description="Chooses the library that computes a HappyHorse transformer's attention, and says which one "
            "runs on this card and why.",
            search_aliases=["sage attention", "flash attention", "cudnn", "int8 attention", "speed"],
            inputs=[
                io.Model.Input("model", tooltip="From HappyHorse Model Loader, or another node after it."),
                io.Combo.Input("attention", options=list(CHOICES), default=AUTO, tooltip=TOOLTIP),
            ],
            outputs=[io.Model.Output(), io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(cls, model, attention) -> io.NodeOutput:
        network = check_model(model, "model", tuple(VARIANTS)).diffusion_model
        patched = model.clone()
        options = dict(patched.model_options.get("transformer_options", {}))
        patched.model_options["transformer_options"] = options
        if attention == HOST:
            if isinstance(options.get(OVERRIDE, ChosenAttention(None)), ChosenAttention):
                options[OVERRIDE] = leave_to_host
            return io.NodeOutput(patched, host_report(options[OVERRIDE]))
        attend = AttentionBy(None if attention == AUTO else attention)
        said = report(attend, network, model.load_device)
        options[OVERRIDE] = ChosenAttention(attend)
        return io.NodeOutput(patched, said)


def host_report(override) -> str:
    """What the host will run."""
    if override is not leave_to_host:
        return (
            f"Attention as another node has set it: {getattr(override, '__name__', type(override).__name__)}."
        )
    option = host_option()
    by = f"chosen by {option}" if option else "its own choice"
    return f"Attention as ComfyUI computes it: {host.optimized_attention.__name__}, {by}."


def report(attend: AttentionBy, network, device: torch.device) -> str:
    """What will run on ``device``, and why the others do not. Raises SamplingError where ``attend`` cannot."""
    config = network.config
    rows = [(PROBE[0], config.num_heads), (PROBE[1], config.num_kv_heads), (PROBE[1], config.num_kv_heads)]
    q, k, v = (
        torch.empty(count, heads, config.head_dim, dtype=network.dtype, device=device)
        for count, heads in rows
    )
    try:
        chosen = ours.chosen(q, k, v, attend.way)
    except SamplingError as error:
        raise SamplingError(f"{error} Set attention to {AUTO}, which takes what can run.") from None
    lossy = " It calculates with 8-bit numbers; the film differs a little." if _is_lossy(chosen) else ""
    lines = [f"Attention on {device}: {chosen}.{lossy}"]
    if not has_card(q):
        return f"{lines[0]} Libraries are chosen among on an NVIDIA card; elsewhere torch decides."
    if any(block.is_local for block in config.blocks):
        window = flatten([((0, PROBE[0]), (0, PROBE[0])), ((0, PROBE[0]), (PROBE[1] - 1, PROBE[1]))])
        lines.append(f"Windows of frames: {over_ranges.chosen(q, k, v, window, None, attend.way)}.")
    refused = {way: reason for way, reason in ours.explain(q, k, v).items() if way != chosen}
    return "\n".join([*lines, *(f"{way}: {reason or 'can run'}" for way, reason in refused.items())])


def _is_lossy(way: str) -> bool:
    return way in LIBRARIES and LIBRARIES[way].is_lossy


NODES = [HappyHorseAttention]
