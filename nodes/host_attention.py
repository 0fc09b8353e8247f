"""Whose attention our transformer computes with: ours, the host's by its command line, or another pack's override."""

from __future__ import annotations

import comfy.cli_args
import comfy.ldm.modules.attention as host
import torch
from torch import Tensor

from ..kernels.attention import AttentionBy, attention

OVERRIDE = "optimized_attention_override"  # the host's name of it in transformer_options
# ComfyUI's options by which a user has chosen its attention.
HOST_OPTIONS = (
    "use_pytorch_cross_attention",
    "use_sage_attention",
    "use_flash_attention",
    "use_ck_attention",
    "use_split_cross_attention",
    "use_quad_cross_attention",
)


class ChosenAttention:
    """What the host calls in place of its own attention, and what our transformer asks for its ``attend``.

    The host's transformer_options hold it as its override, so that it goes the way other packs' overrides go: the last
    one set counts.
    """

    def __init__(self, attend: AttentionBy):
        self.attend = attend

    def __call__(
        self, func, q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **kwargs
    ):
        """As the host calls an override: ``func`` is what it would have run itself."""
        if mask is not None or not skip_reshape or q.shape[0] != 1 or kwargs.get("scale") is not None:
            return func(  # not one of our transformer's calls
                q,
                k,
                v,
                heads,
                mask=mask,
                skip_reshape=skip_reshape,
                skip_output_reshape=skip_output_reshape,
                **kwargs,
            )
        out = self.attend(*(part[0].transpose(0, 1) for part in (q, k, v)))
        return out.transpose(0, 1).unsqueeze(0) if skip_output_reshape else out.flatten(1).unsqueeze(0)


def attend_for(options: dict, device: torch.device):
    """softmax attention for ``Context.attend``: q [L, H, D], k and v [K, G, D] -> [L, H, D].

    Ours, where our node chose it, or where nobody chose anything and there is a card whose best way we know; else
    the host's, with its command line's option or another pack's override.
    """
    override = options.get(OVERRIDE)
    if isinstance(override, ChosenAttention):
        return override.attend
    is_free = override is None and host_option() is None and torch.version.hip is None
    if is_free and torch.device(device).type == "cuda":
        return attention

    def by_host(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = q.shape[1]
        q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in (q, k, v))
        out = host.optimized_attention(
            q, k, v, heads, skip_reshape=True, enable_gqa=True, transformer_options=options
        )
        return out.squeeze(0).unflatten(-1, (heads, -1))

    return by_host


def host_option() -> str | None:
    """The option of ComfyUI's command line that chose its attention, None where there is none."""
    given = next((name for name in HOST_OPTIONS if getattr(comfy.cli_args.args, name, False)), None)
    return given and f"--{given.replace('_', '-')}"


def leave_to_host(func, *args, **kwargs):
    """An override that overrides nothing: the host's attention, where ours would be taken otherwise."""
    return func(*args, **kwargs)
