"""Single operations: each way that could run, beside the definition and what the libraries have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...kernels import activation, quantised
from ...kernels.attention import attention, attention_over_ranges
from ...kernels.gate import gate_quantised, gate_rows
from ...kernels.gated_linear import ROWS_PER_COLUMN, gated_linear
from ...kernels.norm import add_norm, norm_quantised, norm_rows
from ...kernels.norm_rope import norm_rope
from ...kernels.quantised_rows import rotated
from ...kernels.registry import forced
from .measure import Case, error_of, row_of
from .network import HOST_ORDER
from .run import Row, Run

COLD_BYTES = 200 << 20  # inputs take turns until they are past any L2
BF16 = torch.bfloat16
CHECKED = 64  # rows compared with float64
# Rows in 8 bits: the most entries rotated together, and the largest error: half a step of the row's scale, or of FP8's mantissa.
ROWS_IN_8_BITS = {torch.int8: (256, 1.5e-2), torch.float8_e4m3fn: (0, 4.5e-2)}
# Rows, columns, depth, abreast, warps, stages, inputs after which FP8 sums are promoted; those that do not fit a card
# are refused by it.
TILES = (
    (128, 256, 128, 8, 8, 4, None),
    (128, 256, 128, 8, 8, 3, None),
    (128, 256, 64, 8, 8, 4, None),
    (128, 128, 128, 8, 8, 4, None),
    (128, 128, 128, 8, 8, 4, 128),
    (128, 128, 128, 8, 4, 3, None),
)
# Of bfloat16's rounding of the result, 1.7e-3, and 1e-3 of the sums.
TILE_GATE = 2.2e-3


@dataclass(frozen=True, slots=True)
class Work:
    """One operation at one size; the first case is the baseline."""

    name: str
    shape: str
    cases: list[Case]
    flops: float = 0.0
    nbytes: float = 0.0
    wanted: Callable[[], Tensor] | None = None  # the first ``CHECKED`` rows in float64, as inputs 0 make them
    part: Callable[[Any], Tensor] = lambda result: result[:CHECKED]
    unit: str = "product"  # the ceiling its FLOPs are compared with
    gate: dict[str, float] | float | None = None  # largest error


def kernel_table(run: Run) -> Iterator[Row]:
    for work in works(run):
        run.say(f"kernels: {work.name}, {work.shape}")
        found = run.clock.compare(work.cases, budget=run.budget(1.0), most=100, least=3, short=True)
        wanted = work.wanted() if work.wanted else None
        baseline = found[work.cases[0].name]
        for case in work.cases:
            timing = found[case.name]
            row = row_of(timing, baseline, kernel=work.name, shape=work.shape, case=case.name)
            row |= _rates(work, timing.median, run)
            row["error"] = _error(case, work, wanted) if wanted is not None and timing.note is None else None
            limit = work.gate.get(case.name) if isinstance(work.gate, dict) else work.gate
            row["gate"] = limit
            row["passes"] = None if limit is None or row["error"] is None else row["error"] <= limit
            yield row


def _rates(work: Work, seconds: float | None, run: Run) -> dict:
    if seconds is None:
        return {"TFLOP/s": None, "GB/s": None, "% of ceiling": None}
    if work.flops:
        ceiling = run.ceilings.attention if work.unit == "attention" else run.ceilings.product
        rate = work.flops / seconds
        return {"TFLOP/s": rate / 1e12, "GB/s": None, "% of ceiling": 100 * rate / ceiling}
    rate = work.nbytes / seconds
    return {"TFLOP/s": None, "GB/s": rate / 1e9, "% of ceiling": 100 * rate / run.ceilings.copy}


def _error(case: Case, work: Work, wanted: Tensor) -> float:
    """Of a call of its own: the inputs took turns in the timed ones."""
    with torch.inference_mode(), case.setting():
        return error_of(work.part(case.run(0)).double(), wanted)


def works(run: Run) -> Iterator[Work]:
    for name in run.clips[: 1 if run.is_quick else 2]:
        clip = run.sizes.clips[name]
        yield from elementwise(run, clip)
        yield from up_projections(run, clip)
        yield full_attention(run, clip)
    yield from alignment(run)
    if run.clock.is_cuda and not run.is_quick:
        yield from tiles(run)
    if not run.is_quick:
        yield ranged_attention(run)


def turns(make: Callable[[], tuple[Tensor, ...]], device: torch.device) -> list[tuple[Tensor, ...]]:
    """As many sets of inputs as pass the L2; one on the CPU."""
    first = make()
    nbytes = sum(part.numel() * part.element_size() for part in first)
    count = 1 if device.type != "cuda" else min(max(2, -(-COLD_BYTES // nbytes)), 16)
    return [first, *(make() for _ in range(count - 1))]


def _pair(operation, sets, *rest, has_cuda: bool = True) -> list[Case]:
    """The definition, the way that is chosen here, and on a card the one for machines without Triton."""

    def run(number):
        return operation(*sets[number % len(sets)], *rest)

    cases = [Case("definition", run, lambda: forced("definition")), Case("chosen", run)]
    if has_cuda and sets[0][0].is_cuda:
        cases.append(Case("compiled at run time", run, lambda: forced("cuda")))
    return cases


def elementwise(run: Run, clip) -> Iterator[Work]:
    config, device, tokens = run.sizes.config, run.device, clip.tokens
    width, depth, heads, keys = config.hidden_size, config.head_dim, config.num_heads, config.num_kv_heads
    sizes = [tokens - clip.audio - clip.text, clip.audio, clip.text]
    weight = torch.randn(3 * width, device=device) * 0.1
    shape = f"{tokens} x {width}"

    # Some of every modality: each has its own part of the weight.
    starts = [sum(sizes[:kind]) for kind in range(3)]
    some = torch.cat(
        [torch.arange(start, start + min(size, 20)) for start, size in zip(starts, sizes, strict=True)]
    )
    some = some.to(device)
    kinds = torch.cat([torch.full((min(size, 20),), kind) for kind, size in enumerate(sizes)]).to(device)
    weights = weight.view(3, -1)[kinds]

    def rows(count, *dtypes):
        return lambda: tuple(torch.randn(tokens, count, device=device).to(dtype) for dtype in dtypes)

    sets = turns(rows(width, torch.float32), device)
    yield Work(
        "norm_rows",
        shape,
        _pair(norm_rows, sets, weight, sizes, BF16),
        nbytes=6.0 * tokens * width,
        wanted=lambda: _normed(sets[0][0][some].double(), weights),
        part=lambda result: result[some],
        gate=4e-3,
    )
    for stored, (most, limit) in ROWS_IN_8_BITS.items():
        group = next((each for each in (256, 64, 16, 4) if each <= most and width % each == 0), 0)
        turned = rotated if group else lambda x, _: x
        yield Work(
            f"norm_quantised to {str(stored).removeprefix('torch.')}",
            shape,
            _pair(norm_quantised, sets, weight, sizes, stored, width, group, None, has_cuda=False),
            nbytes=5.0 * tokens * width,
            wanted=lambda turned=turned, group=group: turned(
                _normed(sets[0][0][some].double(), weights), group
            ),
            part=lambda result: result[0][some].double() * result[1][some].double(),
            gate=limit,
        )
    both = turns(rows(width, torch.float32, BF16), device)
    yield Work(
        "add_norm",
        shape,
        _pair(add_norm, both, weight, sizes, BF16),
        nbytes=12.0 * tokens * width,
        wanted=lambda: _normed(both[0][0][some].double() + both[0][1][some].double(), weights),
        part=lambda result: result[1][some],
        gate=4e-3,
    )

    fused = turns(rows(sum(config.qkvg_split), BF16), device)
    q_weight, k_weight = (torch.randn(depth, device=device) * 0.1 for _ in range(2))
    angles = torch.rand(tokens, 3 * config.bands, device=device)
    rope = torch.cat([angles.sin(), angles.cos()], 1)
    heads_of = [
        tuple(part.unflatten(-1, (-1, depth)) for part in row.split(config.qkvg_split, -1)[:2])
        for (row,) in fused
    ]
    yield Work(
        "norm_rope",
        f"{tokens} x ({heads} + {keys}) x {depth}",
        _pair(norm_rope, heads_of, q_weight, k_weight, sizes, rope, BF16),
        nbytes=4.0 * tokens * (heads + keys) * depth,
        wanted=lambda: _turned(_normed(heads_of[0][0][:CHECKED].double(), q_weight), rope[:CHECKED].double()),
        part=lambda result: result[0][:CHECKED],
        gate=4e-3,
    )

    outs = turns(rows(heads * depth, BF16), device)
    gates = torch.randn(tokens, heads, device=device).to(BF16)
    shaped = [(out.unflatten(-1, (heads, depth)), gates) for (out,) in outs]
    yield Work(
        "gate_rows",
        shape,
        _pair(gate_rows, shaped, BF16),
        nbytes=4.0 * tokens * heads * depth,
        wanted=lambda: (
            shaped[0][0][:CHECKED].double() * gates[:CHECKED].double().sigmoid().unsqueeze(-1)
        ).flatten(1),
        gate=4e-3,
    )

    for stored, (most, limit) in ROWS_IN_8_BITS.items():
        group = next((each for each in (256, 64, 16, 4) if each <= most and width % each == 0), 0)
        turned = rotated if group else lambda x, _: x
        yield Work(
            f"gate_quantised to {str(stored).removeprefix('torch.')}",
            shape,
            _pair(gate_quantised, shaped, stored, heads * depth, group, None, has_cuda=False),
            nbytes=3.0 * tokens * heads * depth,
            wanted=lambda turned=turned, group=group: turned(
                (shaped[0][0][:CHECKED].double() * gates[:CHECKED].double().sigmoid().unsqueeze(-1)).flatten(
                    1
                ),
                group,
            ),
            part=lambda result: result[0][:CHECKED].double() * result[1][:CHECKED].double(),
            gate=limit,
        )

    inner = config.blocks[-1].inner_size
    ups = turns(rows(2 * inner, BF16), device)
    wide = inner + -inner % 128
    for dtype, limit in ((BF16, 4e-3), (torch.float8_e4m3fn, 4.5e-2)):
        gain = activation.FP8_GAIN["swiglu7"] if dtype != BF16 else 1.0
        yield Work(
            f"activate swiglu7 to {str(dtype).removeprefix('torch.')}",
            f"{tokens} x {2 * inner} to {wide}",
            _pair(activation.activate, ups, "swiglu7", dtype, wide),
            nbytes=tokens * (4.0 * inner + wide * (2 if dtype == BF16 else 1)),
            wanted=lambda: _gated(ups[0][0][:CHECKED].double()),
            part=lambda result, gain=gain: result[:CHECKED, :inner].double() / gain,
            gate=limit,
        )


def up_projections(run: Run, clip) -> Iterator[Work]:
    """The up-projection with SwiGLU7: bf16, 8-bit product then activation, and 8-bit in one kernel."""
    config, device, tokens = run.sizes.config, run.device, clip.tokens
    spec, width = config.blocks[-1], config.hidden_size
    tall = spec.inner_size * ROWS_PER_COLUMN["swiglu7"]
    x = torch.randn(tokens, width, device=device).to(BF16)
    weight = (torch.randn(tall, width, device=device) * width**-0.5).to(BF16)

    def in_two(stored, products):
        return lambda _: activation.activate(
            quantised.linear(x, stored, products), "swiglu7", BF16, spec.inner_size
        )

    cases = [Case("bf16, then activation", in_two(weight, "stored"))]
    forms = [("FP8", quantised.quantise_fp8, "fast"), ("INT8 ConvRot", quantised.quantise_int8, "stored")]
    for name, quantise, products in forms:
        stored = cache(
            lambda quantise=quantise: quantise(weight)
        )  # in the first call, whose refusal is a note
        cases.append(Case(f"{name}, then activation", lambda n, s=stored, p=products: in_two(s(), p)(n)))
        fused = Case(
            f"{name}, fused", lambda _, s=stored: gated_linear(x, s(), "swiglu7"), lambda: forced("triton")
        )
        cases.append(fused)
    # Two factors of a result carry the product's error each: the gates are 1.5 times those of the product.
    yield Work(
        "up-projection with SwiGLU7",
        f"{tokens} x {width} x {tall}",
        cases,
        flops=2.0 * tokens * width * tall,
        wanted=lambda: _gated(x[:CHECKED].double() @ weight.double().T),
        gate={
            "bf16, then activation": 8e-3,
            "FP8, then activation": 6.8e-2,
            "FP8, fused": 6.8e-2,
            "INT8 ConvRot, then activation": 2.4e-2,
            "INT8 ConvRot, fused": 2.4e-2,
        },
    )


def full_attention(run: Run, clip) -> Work:
    config = run.sizes.config
    q, k, v = _qkv(config, clip.tokens, run.device)

    def plain(_):
        batch = (part.transpose(0, 1).unsqueeze(0) for part in (q, k, v))
        return F.scaled_dot_product_attention(*batch, enable_gqa=True).squeeze(0).transpose(0, 1)

    def only(backend):
        return lambda: sdpa_kernel(backend)

    return Work(
        "attention",
        f"{clip.tokens}, {config.num_heads} over {config.num_kv_heads} heads of {config.head_dim}",
        [
            Case("host's order", plain, lambda: sdpa_kernel(HOST_ORDER, set_priority=True)),
            Case("chosen", lambda _: attention(q, k, v)),
            Case("cudnn", plain, only(SDPBackend.CUDNN_ATTENTION), is_optional=True),
            Case("flash", plain, only(SDPBackend.FLASH_ATTENTION), is_optional=True),
        ],
        flops=4.0 * clip.tokens**2 * config.num_heads * config.head_dim,
        wanted=lambda: _attended(q[:CHECKED], k, v),
        unit="attention",
        gate=5e-3,
    )


def ranged_attention(run: Run) -> Work:
    """A local layer of the 1080p stage."""
    from ...kernels.range_plan import flatten
    from ...model.sequence import SequenceLayout

    clip, config = run.sizes.clips["1080p"], run.sizes.config
    q, k, v = _qkv(config, clip.tokens, run.device)
    layout = SequenceLayout(clip.frames, clip.height // 32, clip.width // 32, clip.audio, clip.text)
    ranges = layout.local_ranges(config.window)
    flat = list(flatten(ranges))
    frame = layout.height * layout.width
    near = min(config.window + 1, clip.frames) * frame  # what the first frame sees
    rest = slice(layout.video, clip.tokens)

    def call(_):
        return attention_over_ranges(q, k, v, flat, None)

    def wanted():
        keys = [torch.cat([part[:near], part[rest]]) for part in (k, v)]
        return _attended(q[:CHECKED][:frame], *keys)

    pairs = sum((q1 - q0) * (k1 - k0) for (q0, q1), (k0, k1) in ranges)
    return Work(
        "attention over ranges",
        f"{clip.tokens}, window {config.window} of {clip.frames} frames",
        [Case(name, call, lambda name=name: forced(name)) for name in ("definition", "frames", "triton")],
        flops=4.0 * pairs * config.num_heads * config.head_dim,
        wanted=wanted,
        part=lambda result: result[:CHECKED][:frame],
        unit="attention",
        gate=5e-3,
    )


def alignment(run: Run) -> Iterator[Work]:
    """What the published sizes lose to their alignment: rows of 7208 and 27,304, inputs of 13,652."""
    tokens, device = run.sizes.clips["256p"].tokens, run.device
    sides = (
        ((48, 40), (48, 48))
        if run.sizes.is_tiny
        else ((5120, 7208), (5120, 7168), (5120, 27304), (5120, 27392))
    )
    downs = ((170, 64), (176, 64)) if run.sizes.is_tiny else ((13652, 5120), (13696, 5120), (13824, 5120))
    for depth, tall in sides + downs:
        x, weight = (torch.randn(count, depth, device=device).to(BF16) for count in (tokens, tall))
        yield Work(
            "product bf16",
            f"{tokens} x {depth} x {tall}",
            [Case("torch", lambda _, x=x, weight=weight: F.linear(x, weight))],
            flops=2.0 * tokens * depth * tall,
            wanted=lambda x=x, weight=weight: x[:CHECKED].double() @ weight.double().T,
            gate=3e-3,
        )


def tiles(run: Run) -> Iterator[Work]:
    """What kernels/triton/gated_linear.py would choose its tiles by: each is compiled, so this takes a while."""
    config, device = run.sizes.config, run.device
    tokens, width = run.sizes.clips["256p"].tokens, config.hidden_size
    columns = config.blocks[-1].inner_size
    for dtype in (torch.float8_e4m3fn, torch.int8):
        x, weight = (
            torch.randn(count, width, device=device).mul_(16).to(dtype) for count in (tokens, 2 * columns)
        )
        scales = [torch.full((count,), width**-0.5 / 256, device=device) for count in (1, 2 * columns)]

        def run_tile(_, shape, x=x, weight=weight, scales=scales):
            from ...kernels.triton.gated_linear import Tile, plan

            chosen = Tile((0, 0), *shape)
            arguments = (x, weight, *scales, "swiglu7", BF16, columns, 1.0, None)
            launch, out = plan(*arguments, chosen)
            launch.run()
            return out

        def named(shape, run_tile=run_tile):
            title = "{}x{}x{}, {} abreast, {} warps, {} stages, promoted: {}".format(*shape)
            return Case(title, lambda number: run_tile(number, shape), is_optional=True)

        yield Work(
            f"tiles of the fused product, {str(dtype).removeprefix('torch.')}",
            f"{tokens} x {width} x {2 * columns}",
            [named(shape) for shape in TILES],
            flops=4.0 * tokens * width * columns,
            wanted=lambda x=x, weight=weight, scales=scales: _gated(
                x[:CHECKED].double() @ weight.double().T * scales[0].double() * scales[1].double()
            ),
            gate=TILE_GATE,
        )


def _qkv(config, tokens: int, device: torch.device) -> list[Tensor]:
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    return [torch.randn(tokens, count, config.head_dim, device=device).to(BF16) for count in heads]


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for head in range(q.shape[1]):
        logits = q[:, head].double() @ k[:, head // groups].double().T * q.shape[-1] ** -0.5
        out[:, head] = logits.softmax(-1) @ v[:, head // groups].double()
    return out


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + weight.double())


def _turned(x: Tensor, rope: Tensor) -> Tensor:
    sine, cosine = rope.unsqueeze(1).chunk(2, -1)
    half = sine.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine, x[..., 2 * half :]], -1)


def _gated(up: Tensor) -> Tensor:
    gate_part, linear = up[:, ::2].clamp(max=7), up[:, 1::2].clamp(-7, 7)
    return gate_part / (1 + torch.exp(-1.702 * gate_part)) * (linear + 1)
