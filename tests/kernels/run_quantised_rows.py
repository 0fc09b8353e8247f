"""Runs the kernels that write 8-bit rows in Triton's interpreter, beside their definitions and float64.

Also a whole layer of QuantisedLinear, which takes every fused path there, beside the same layer without them.
"""

from dataclasses import replace

import interpreted
import torch

from comfyui_happyhorse import kernels
from comfyui_happyhorse.kernels import gated_linear
from comfyui_happyhorse.kernels.quantised_rows import rotated
from comfyui_happyhorse.kernels.registry import OPERATIONS, forced
from comfyui_happyhorse.model.config import BlockSpec, TransformerConfig
from comfyui_happyhorse.model.layers import Block, Context
from comfyui_happyhorse.model_loading.precision import precision
from comfyui_happyhorse.model_loading.quantised_layers import QuantisedLinear

FP8, INT8 = torch.float8_e4m3fn, torch.int8
LIMITS = {FP8: 448, INT8: 127}
# name -> (rows by modality, entries, as stored, group, parts of the weight)
NORMS = {
    "groups of 4": ((3, 2, 4), 36, 36, 4, 1),
    "padded to 16": ((2, 0, 3), 41, 48, 16, 3),
    "groups of 64": ((0, 0, 1), 192, 192, 64, 3),
    "padded to 256": ((2, 1, 1), 300, 512, 256, 1),
    "published": ((1, 1, 1), 5120, 5120, 256, 3),
}
ALONE = ("padded to 16", "groups of 64")  # also without a sum, and with a scale that is given
# name -> (tokens, heads, entries, group)
GATES = {"published head": (3, 10, 128, 256), "small": (5, 3, 8, 4), "one head": (2, 1, 64, 64)}


def measure() -> dict:
    torch.manual_seed(0)
    found = {}
    for stored in (INT8, FP8):
        for name, (sizes, size, width, group, parts) in NORMS.items():
            count = sum(sizes)
            x = torch.randn(count, size + 3)[:, :size] * torch.logspace(-2, 2, count)[:, None]
            branch = torch.randn(count, 2 * size).half()[:, size:]
            weight = torch.randn(parts * size)
            form = (stored, width, group if stored == INT8 else 0)
            title, total = f"{name} {stored}", x.double() + branch.double()
            wanted = exact_norm(total, weight, sizes)
            added = compare(kernels.add_norm_quantised, (x, branch, weight, sizes), form, None, wanted)
            found[f"add_norm {title}"] = added
            if name not in ALONE:
                continue
            alone = (x, weight, sizes)
            wanted = exact_norm(*alone)
            found[f"norm {title}"] = compare(kernels.norm_quantised, alone, form, None, wanted)
            wanted = exact_norm(total, weight, sizes)
            static = torch.tensor(wanted.abs().max().item() / LIMITS[stored] / 2)  # some are cut off
            given = compare(kernels.norm_quantised, (total.float(), weight, sizes), form, static, wanted)
            found[f"static {title}"] = given
        for name, (count, heads, size, group) in GATES.items():
            for layout in ("rows", "heads"):
                out = torch.randn(count, heads, size) if layout == "rows" else torch.randn(heads, count, size)
                out = (out if layout == "rows" else out.transpose(0, 1)).half()
                gate = (torch.randn(count, heads + 5) * 4).half()[:, 3:-2]
                form = (stored, heads * size, group if stored == INT8 else 0)
                wanted = (out.double() / (1 + (-gate.double()).exp())[..., None]).reshape(count, -1)
                run = compare(kernels.gate_quantised, (out, gate), form, None, wanted)
                found[f"gate {name} {layout} {stored}"] = run
    return found | {"odd": odd_ones()} | layers()


def exact_norm(x, weight, sizes):
    x, size = x.double(), x.shape[-1]
    weights = weight.double().view(-1, size)
    kinds = [kind if len(weights) > 1 else 0 for kind, rows in enumerate(sizes) for _ in range(rows)]
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + weights[kinds])


def compare(operation, arguments, form, static, wanted) -> dict:
    """Against float64 quantised as the definition of these formats has it, and against the numbers themselves."""
    stored, width, group = form
    wanted = torch.nn.functional.pad(wanted, (0, width - wanted.shape[1]))
    turned = rotated(wanted, group) if group else wanted
    scales = turned.abs().amax(1, keepdim=True) / LIMITS[stored] if static is None else static.double()
    report = {}
    for way in ("triton", "definition"):
        with forced(way):
            *total, values, found = operation(*arguments, *form, static)
        if total:
            assert torch.equal(total[0], arguments[0] + arguments[1])
        apart = ((found.double() - scales) / scales).abs().max().item()
        exact = (turned / scales).clamp(-LIMITS[stored], LIMITS[stored])
        steps = (values.double() - exact).abs() / half_a_step(exact, stored)
        if way == "triton" and stored == FP8:
            # The interpreter forgets to carry into the exponent, 1.97 becomes 1, and cuts what is below 2^-6 off.
            carried = (exact.to(FP8).double().abs() > exact.abs()) & is_power(exact.to(FP8))
            steps[carried | (exact.abs() < 2**-6)] = 0
        report[way] = {"scales": apart, "steps": steps.max().item(), "dtype": str(values.dtype)}
        if static is None and (way == "definition" or stored == INT8):
            back = values.double() * found.double()
            report[way]["error"] = interpreted.relative_error(rotated(back, group) if group else back, wanted)
    return report


def half_a_step(exact, stored):
    """What rounding may be off by."""
    if stored == INT8:
        return 0.5
    return (exact.abs().clamp(min=2**-6).log2().floor() - 4).exp2()


def is_power(values):
    return values.double().abs().log2() % 1 == 0


def odd_ones() -> dict:
    """Zeros, a number that is none, and no rows."""
    found = {}
    for stored, group in ((INT8, 16), (FP8, 0)):
        x = torch.randn(3, 48)
        x[0], x[1, 7] = 0, float("nan")
        with forced("triton"):
            values, scales = kernels.norm_quantised(x, torch.zeros(48), [], stored, 48, group, None)
            out = torch.randn(2, 3, 16)
            out[1, 2, 3] = float("nan")
            gated, gates = kernels.gate_quantised(out, torch.zeros(2, 3), stored, 48, group, None)
            empty = kernels.norm_quantised(x[:0], torch.zeros(48), [], stored, 48, group, None)
        found[str(stored)] = {
            "zeros": [values[0].float().abs().max().item(), scales[0].item()],
            "none": [scales.isnan().flatten().tolist(), gates.isnan().flatten().tolist()],
            "numbers": (gated[0].float() * gates[0]).isfinite().all().item(),
            "empty": [list(part.shape) for part in empty],
        }
    return found


def layers() -> dict:
    """A block in 8 bits: all fused, not fused, and in float64 of the rounded weights."""
    found = {}
    for chosen in ("int8", "fp8_fast"):
        for title, spec in (
            ("shared", BlockSpec(False, "swiglu7", 44)),
            ("per modality", BlockSpec(True, "gelu7", 48)),
        ):
            found[f"layer {chosen} {title}"] = layer(chosen, spec)
    return found


def config_of(spec):
    return TransformerConfig(64, 4, 2, 16, 12, 4, 4, 1, (spec,))


def layer(chosen, spec) -> dict:
    policy = precision(chosen)
    block = Block(config_of(spec), spec, dtype=torch.float32).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, module in list(block.named_modules()):
        if isinstance(module, torch.nn.Linear):
            weight = torch.randn(module.weight.shape, generator=generator) / module.weight.shape[1] ** 0.5
            block.set_submodule(name, QuantisedLinear(policy.quantise(weight), policy.products))
    for module in (block.attention, block.mlp):
        module.dtype = torch.float16  # the interpreter's bfloat16 is cut off, not rounded
    sizes, rope = (9, 3, 2), torch.randn(14, 12, generator=generator)
    x = torch.randn(14, 64, generator=generator)
    context = Context(sizes, rope, ())
    ran = []
    is_exact = chosen == "int8"  # the interpreter errs in FP8
    fused = counted(block, x, context, ran) if is_exact else None
    shared = block(x, replace(context, mlp_rows=5)) if is_exact and not spec.per_modality else None
    ways = {name: operation.ways.get("triton") for name, operation in OPERATIONS.items()}
    for name, way in ways.items():  # the same path, with each kernel's definition in its place
        if way:
            OPERATIONS[name].ways["triton"] = way._replace(run=OPERATIONS[name].definition)
    defined = counted(block, x, context, ran if fused is None else [])
    for name, way in ways.items():
        if way:
            OPERATIONS[name].ways["triton"] = way
    with forced("definition"):
        unfused = block(x, context)
    exact = in_numbers(block, x, context)
    found = {"ran": ran}
    for title, made, wanted in (
        ("fused", fused, exact),
        ("defined", defined, exact),
        ("unfused", unfused, exact),
        ("shares", shared, fused),
    ):
        if made is not None:
            found[title] = interpreted.relative_error(made - x, wanted - x)
    return found


def counted(block, x, context, ran):
    """The block's result; ``ran`` gets the name of every operation with the way it took."""
    real = {name: operation.chosen for name, operation in OPERATIONS.items()}
    depth = []

    def watched(name):
        def chosen(*args, **kwargs):
            way = real[name](*args, **kwargs)
            if not depth:
                ran.append(f"{name} {way}")
            return way

        return chosen

    for name, operation in OPERATIONS.items():
        operation.chosen = watched(name)
    refusal = gated_linear.refusal

    def asked(*args):  # which asks gated_product what it would do
        depth.append(1)
        try:
            return refusal(*args)
        finally:
            depth.pop()

    gated_linear.refusal = asked
    try:
        return block(x, context)
    finally:
        gated_linear.refusal = refusal
        for operation in OPERATIONS.values():
            del operation.chosen


def in_numbers(block, x, context):
    """The block with the numbers that its weights stand for, without 8-bit rows and in float32."""
    spec = BlockSpec(block.mlp.per_modality, block.mlp.activation, block.mlp.inner_size)
    plain = Block(config_of(spec), spec, dtype=torch.float32).requires_grad_(False)
    for name, module in block.named_modules():
        if isinstance(module, QuantisedLinear):
            plain.get_submodule(name).weight.copy_(kernels.quantised.dequantise(module.stored))
        elif getattr(module, "weight", None) is not None:
            plain.get_submodule(name).weight.copy_(module.weight)
    with forced("definition"):
        return plain(x, context)
