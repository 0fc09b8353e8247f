"""The libraries that compute attention, why each may refuse, and which is asked first on which card.

Every way takes q [L, H, D], k and v [K, G, D] as they are: no key head is repeated in memory, none needs a mask. A way
of torch's runs with all its other kernels switched off, so that it is the kernel its name says or an error: torch left
to itself falls without a word to its "math" path, which writes the logits of all pairs, where heads are grouped.

FlexAttention is not among them: at 460-500 TFLOP/s reported on an H100 against cuDNN's 595-631 (pytorch#142132) it would
be faster only where a mask saves much, and the dense calls of range_plan.py need none. FlashAttention-3 and 4 are called by their own packages: torch's
``activate_flash_attention_impl`` would change the attention of every other model in the process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import cards
from .cards import ANY, LAST, Capability, Preference

HALF = (torch.bfloat16, torch.float16)


class Library(NamedTuple):
    """One way: whether it gives the definition's numbers up to rounding, and what it is called by."""

    run: Callable[[Tensor, Tensor, Tensor], Tensor]
    refuses: Callable[[Tensor, Tensor, Tensor], str | None]
    is_lossy: bool = False  # these run only when asked for by name


# The first row that fits decides. No row was measured with this pack yet.
PREFERENCES = (
    Preference(
        *ANY,
        "win32",
        ("cudnn", "flash", LAST),
        "torch has no FlashAttention on Windows (ComfyUI#9299); grouped heads would fall to the math path",
    ),
    Preference(
        (9, 0),
        (10, 0),
        None,
        ("cudnn", "flash3", "flash", LAST),
        "H100: 631 against 329 TFLOP/s of Flash at (1, 24, 4608, 128) (pytorch#142132); 1.7-2.3 x (transformers#48163)",
    ),
    Preference(
        (10, 0),
        (11, 0),
        None,
        ("cudnn", "flash4", "flash", LAST),
        "B200: 1.24-1.98 x FlashAttention-4 (sglang#33655)",
    ),
    Preference(
        *ANY,
        None,
        ("flash", "cudnn", LAST),
        "cuDNN is 0.82 x Flash on A100, 0.88 x on RTX PRO 6000, 1.00 x on L40S (transformers#48163)",
    ),
)


# Of attention over ranges; the same for all cards until it is measured.
RANGE_PREFERENCES = (
    Preference(
        *ANY,
        None,
        ("frames", "triton"),
        "dense calls run at cuDNN's or Flash's rate; Triton's attention reaches 487-502 TFLOP/s on an H100 (triton#206 of "
        "facebookexperimental) against cuDNN's 595-631 (pytorch#142132)",
    ),
)


def _rows(part: Tensor) -> Tensor:
    """[L, H, D] -> [1, H, L, D], the same memory."""
    return part.transpose(0, 1).unsqueeze(0)


def refuses_tensors(
    q: Tensor, *others: Tensor, dtypes: tuple[torch.dtype, ...] = HALF, least: Capability = (8, 0)
) -> str | None:
    """Why no fast kernel takes these tensors, before a library is asked."""
    if not cards.has_card(q):
        return f"{q.device.type} is not an NVIDIA card"
    if any(part.dtype != q.dtype for part in others):
        return f"q, k and v are of {', '.join(sorted({str(part.dtype) for part in (q, *others)}))}"
    if q.dtype not in dtypes:
        return f"{q.dtype} is not {' or '.join(map(str, dtypes))}"
    if (capability := cards.capability(q)) < least:
        return "sm_{}{} is older than sm_{}{}".format(*capability, *least)
    if q.shape[1] % others[0].shape[1]:
        return f"{q.shape[1]} query heads are not a multiple of {others[0].shape[1]} key heads"
    return None


def _by_torch(backend: SDPBackend, asks: str) -> Library:
    """One of torch's kernels, with all others switched off while it is called."""
    allowed = {
        "can_use_cudnn_attention": "cudnn_sdp_enabled",
        "can_use_flash_attention": "flash_sdp_enabled",
    }[asks]

    def refuses(q: Tensor, k: Tensor, v: Tensor) -> str | None:
        if reason := refuses_tensors(q, k, v):
            return reason
        if not getattr(torch.backends.cuda, allowed)():
            return f"torch.backends.cuda.{allowed}() is False"
        params = torch.backends.cuda.SDPAParams(
            *(_rows(part) for part in (q, k, v)), None, 0.0, False, q.shape[1] != k.shape[1]
        )
        if not getattr(torch.backends.cuda, asks)(params):
            return _cannot(q, k)
        return None

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(q, k, v)

    return Library(run, refuses)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's attention with the kernel that it chooses among those switched on; [L, H, D], laid out in that order."""
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(_rows(q), _rows(k), _rows(v), enable_gqa=grouped)
    return out.squeeze(0).transpose(0, 1).contiguous()  # the kernels lay it out so: nothing is copied


def efficient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's memory-efficient kernel."""
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return F.scaled_dot_product_attention(*_by_group(q, k, v)).permute(2, 0, 1, 3).reshape(q.shape)


def _by_group(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[G, H/G, L or K, D]: for a kernel without grouped heads each key head is a sample of a batch.

    Its query heads see the key head through a stride of 0; nothing is copied.
    """
    groups, each = k.shape[1], q.shape[1] // k.shape[1]
    q = q.unflatten(1, (groups, each)).permute(1, 2, 0, 3)
    k, v = (part.transpose(0, 1).unsqueeze(1).expand(-1, each, -1, -1) for part in (k, v))
    return q, k, v


def _efficient_refuses(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if reason := refuses_tensors(q, k, v, dtypes=(*HALF, torch.float32), least=(5, 0)):
        return reason
    params = torch.backends.cuda.SDPAParams(*_by_group(q, k, v), None, 0.0, False, False)
    return None if torch.backends.cuda.can_use_efficient_attention(params) else _cannot(q, k)


def _cannot(q: Tensor, k: Tensor) -> str:
    return f"torch {torch.__version__} cannot use it for q {tuple(q.shape)} and k {tuple(k.shape)}"


@cache
def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a parent that is absent, or is no package
        return False


def _by_package(
    module: str, package: str, run, *, fits: tuple[Capability, Capability], depths=None, is_lossy=False
) -> Library:
    def refuses(q: Tensor, k: Tensor, v: Tensor) -> str | None:
        if not _is_installed(module):
            return f"the Python package {package} is not installed"
        if reason := refuses_tensors(q, k, v, least=fits[0]):
            return reason
        if (capability := cards.capability(q)) >= fits[1]:
            return "{} has no kernel for sm_{}{}".format(package, *capability)
        if depths and q.shape[2] not in depths:
            return f"{package} takes heads of {', '.join(map(str, depths))} values, these have {q.shape[2]}"
        return None

    return Library(run, refuses, is_lossy)


def _flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn_interface import flash_attn_func

    return _first(flash_attn_func(q[None], k[None], v[None]))


def _flash4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn.cute import flash_attn_func

    return _first(flash_attn_func(q[None], k[None], v[None]))


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Versions differ in whether the log-sum-exp comes along."""
    return (result[0] if isinstance(result, tuple) else result).squeeze(0).contiguous()


def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from sageattention import sageattn

    out = sageattn(q[None], k[None], v[None], tensor_layout="NHD", is_causal=False)
    return out.squeeze(0).contiguous()


def _int8(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    import comfy_kitchen

    out = comfy_kitchen.int8_attention(_rows(q), _rows(k), _rows(v))
    return out.squeeze(0).transpose(0, 1).contiguous()


def _int8_refuses(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if not _is_installed("comfy_kitchen"):
        return "the Python package comfy-kitchen is not installed"
    if reason := refuses_tensors(q, k, v, least=(7, 5)):
        return reason
    import comfy_kitchen

    available = getattr(comfy_kitchen, "int8_attention_is_available", None)
    if available is None:
        return "this comfy-kitchen has no INT8 attention; update it"
    if not available(q.device):
        return "comfy-kitchen's CUDA extension did not load; it needs a torch for CUDA 13 and driver 580 or newer"
    return f"heads of {q.shape[2]} values are longer than 256" if q.shape[2] > 256 else None


LIBRARIES = {
    "cudnn": _by_torch(SDPBackend.CUDNN_ATTENTION, "can_use_cudnn_attention"),
    "flash": _by_torch(SDPBackend.FLASH_ATTENTION, "can_use_flash_attention"),
    "flash3": _by_package("flash_attn_interface", "flash-attn-3", _flash3, fits=((9, 0), (10, 0))),
    "flash4": _by_package("flash_attn.cute", "flash-attn-4", _flash4, fits=((8, 0), (13, 0))),
    LAST: Library(efficient, _efficient_refuses),
    # Their logits are products of 8-bit numbers. Versions 1 and 2 of Sage have one entry point.
    "sage": _by_package(
        "sageattention", "sageattention", _sage, fits=((8, 0), (13, 0)), depths=(64, 96, 128), is_lossy=True
    ),
    "int8": Library(_int8, _int8_refuses, is_lossy=True),
}
