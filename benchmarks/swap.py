"""Times block swap: seconds a step with weights resident, swapped, and swapped the plain way.

    python benchmarks/swap.py [--tokens 4110 14862] [--width 5120] [--layers 40] [--slots 2]

Random weights in the published shapes, no checkpoint. On a CUDA machine the cases are measured interleaved
(forth and back, so that a warming card favours none), a median of several steps each; without one the
swapper's own order of copies runs on a simulated clock. Prints Markdown and writes it, with the numbers as
JSON, into benchmarks/results/.

* overlap: 1 - (t - max(Tc, Ts)) / min(Tc, Ts), Tc the resident step, Ts the bytes at the measured peak
* synchronous: copy a block, wait, compute, wait; what "swap" means in most packs, without their copies back
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
EDGE = 4  # layers with weights per modality at each end
LINK_PROBE = 1 << 30

# performance.md, section 1.4: card, shape, tokens, bytes a weight, TFLOP/s, resident GB, slots, link GB/s
ROWS = [
    ("RTX 4090", "448x256", 4110, 2, 132, 14, (1, 2), 25),
    ("RTX 4090", "448x256", 4110, 1, 264, 8, (1, 2), 25),
    ("RTX 4090", "448x256", 4110, 1, 264, 4, (1, 2), 25),
    ("RTX 4090", "896x512", 14862, 1, 132, 0, (1, 2), 25),
    ("RTX 5090", "448x256", 4110, 2, 168, 10, (1, 2), 50),
    ("RTX 5090", "448x256", 4110, 1, 335, 0, (1, 2), 50),
    ("RTX 4060 Ti", "448x256", 4110, 1, 35, 0, (1, 2), 12.5),
    ("RTX 4060 Ti", "448x256", 4110, 1, 100, 6, (1, 2), 12.5),
    ("RTX 3090", "448x256", 4110, 2, 57, 0, (1, 2), 25),
    ("H100", "448x256", 4110, 2, 800, 20, (1, 2), 50),
]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4110, 14862])
    parser.add_argument(
        "--width", type=int, default=5120, help="hidden size, a multiple of 640 (default: %(default)s)"
    )
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6, help="visits to each case (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="timed steps a visit (default: %(default)s)")
    parser.add_argument("--simulate", action="store_true", help="the simulated clock, also beside a GPU")
    parser.add_argument("--device", help="cpu walks through the measurement; its numbers mean nothing")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    load_pack()
    device = options.device or ("cuda" if torch.cuda.is_available() else None)
    if device is None or options.simulate:
        if not options.simulate:
            print("There is no CUDA device here: the swapper's order of copies on a simulated clock.\n")
        title, rows = "swap_simulated", simulated()
        head = {"network": "15B, 40 layers", "unit": "seconds a step"}
    else:
        title, rows = "swap", measured(torch.device(device), options)
        head = machine(torch.device(device)) | {"layers": options.layers, "width": options.width}
    text = table(rows)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    facts = "\n".join(f"- {name}: {value}" for name, value in head.items())
    (options.output / f"{title}.md").write_text(f"# Block swap\n\n{facts}\n\n{text}\n", encoding="utf-8")
    (options.output / f"{title}.json").write_text(
        json.dumps(head | {"rows": rows}, indent=1), encoding="utf-8"
    )


def load_pack() -> None:
    """Imports the checkout as ``comfyui_happyhorse``, whatever its folder is called."""
    if "comfyui_happyhorse" not in sys.modules:
        spec = importlib.util.spec_from_file_location("comfyui_happyhorse", ROOT / "__init__.py")
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])


# --- simulated -------------------------------------------------------------------------------------------


def simulated() -> list[dict]:
    from comfyui_happyhorse.model_loading.swap_plan import choose_resident, floor_seconds, simulate

    rows = []
    for card, shape, tokens, stored, teraflops, resident, choices, link in ROWS:
        costs, budget, bandwidth = published(tokens, stored, teraflops), int(resident * 1e9), link * 1e9
        total = sum(cost.nbytes for cost in costs)
        heavy, front = filled(costs, budget, heavy_first=True), filled(costs, budget, heavy_first=False)
        compute = sum(cost.seconds for cost in costs)
        streamed = total - sum(costs[layer].nbytes for layer in heavy)
        for slots in choices:
            chosen = choose_resident(costs, budget, slots, bandwidth)
            rows.append(
                {
                    "card": card,
                    "shape": shape,
                    "weights": "bf16" if stored == 2 else "8-bit",
                    "TFLOP/s": teraflops,
                    "link GB/s": link,
                    "resident GB": resident,
                    "slots GB": round(slots * max(cost.nbytes for cost in costs) / 1e9, 1),
                    "no overlap": round(compute + streamed / bandwidth, 3),
                    "first N": round(simulate(costs, front, slots, bandwidth), 3),
                    "per-modality first": round(simulate(costs, heavy, slots, bandwidth), 3),
                    "chosen": round(simulate(costs, chosen, slots, bandwidth), 3),
                    "floor": round(floor_seconds(costs, chosen, bandwidth), 3),
                }
            )
    return rows


def published(tokens: int, stored: float, teraflops: float) -> list:
    """Costs of the published 40 layers: bytes of the projections, seconds of projections and attention."""
    from comfyui_happyhorse.model_loading.swap_plan import BlockCost

    config, costs = network_config(5120, 40), []
    for block in config.blocks:
        up = block.inner_size * (2 if block.activation == "swiglu7" else 1)
        rows = sum(config.qkvg_split) + config.qkvg_split[0] + up + block.inner_size
        weights = config.hidden_size * rows
        flop = 2 * weights * tokens + 4 * tokens**2 * config.num_heads * config.head_dim
        nbytes = int(weights * (3 if block.per_modality else 1) * stored)
        costs.append(BlockCost(nbytes, flop / (teraflops * 1e12)))
    return costs


def filled(costs, budget: int, *, heavy_first: bool) -> set[int]:
    """Layers kept from the front, those with most bytes before the others or not."""
    kept: set[int] = set()
    for layer in sorted(range(len(costs)), key=lambda n: (-round(costs[n].nbytes / 1e8) * heavy_first, n)):
        if costs[layer].nbytes > budget:
            if heavy_first:
                continue
            break
        kept.add(layer)
        budget -= costs[layer].nbytes
    return kept


# --- measured --------------------------------------------------------------------------------------------


def network_config(width: int, layers: int):
    """The published network, or one of other width and depth in its proportions."""
    from comfyui_happyhorse.model.config import BlockSpec, TransformerConfig

    swiglu = width * 4 * 2 // 3 // 4 * 4
    edge_in, edge_out = BlockSpec(True, "gelu7", 4 * width), BlockSpec(True, "swiglu7", swiglu)
    middle = (BlockSpec(False, "swiglu7", swiglu),) * (layers - 2 * EDGE)
    return TransformerConfig(
        hidden_size=width,
        num_heads=width // 128,
        num_kv_heads=width // 640,
        head_dim=128,
        video_features=192,
        audio_features=64,
        text_features=3584,
        bands=16,
        blocks=(edge_in,) * EDGE + middle + (edge_out,) * EDGE,
    )


class Steps:
    """Times steps on a device, and remembers how fast its copies were."""

    def __init__(self, device: torch.device):
        self.device, self.is_cuda, self.copies = device, device.type == "cuda", []

    def seconds(self, step, count: int) -> list[float]:
        """Of each of ``count`` steps that follow one another without a pause, after one that is not timed."""
        step()
        self.copies.clear()
        if not self.is_cuda:
            return [self._by_clock(step) for _ in range(count)]
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for mark in marks[1:]:
            step()
            mark.record()
        torch.cuda.synchronize(self.device)
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]

    def _by_clock(self, step) -> float:
        started = time.perf_counter()
        step()
        return time.perf_counter() - started

    def lane(self, host, streamed):
        """The swapper's own lane; a CudaLane with timing events around each copy."""
        from comfyui_happyhorse.model_loading.block_swap import lane_for
        from comfyui_happyhorse.model_loading.copy_lane import CudaLane

        copies, lane = self.copies, lane_for(self.device, host, streamed)
        if type(lane) is not CudaLane:
            return lane

        class Timed(CudaLane):
            def _move(self, target, source):
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record(self.stream)
                super()._move(target, source)
                last.record(self.stream)
                copies.append((source.numel(), first, last))

        return Timed(self.device)

    def gigabytes_per_second(self) -> float | None:
        """Of the copies since the last warm-up, while one was under way."""
        if not self.copies:
            return None
        busy = sum(first.elapsed_time(last) for _, first, last in self.copies) / 1e3
        return sum(nbytes for nbytes, *_ in self.copies) / busy / 1e9

    def reset_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.is_cuda else 0.0


def measured(device: torch.device, options) -> list[dict]:
    from comfyui_happyhorse.model_loading.host_weights import CudaPin, HostWeights
    from comfyui_happyhorse.model_loading.swap_plan import BlockCost

    steps = Steps(device)
    config = network_config(options.width, options.layers)
    host = HostWeights(
        make_blocks(config),
        pin=CudaPin(device) if steps.is_cuda else None,
        bake=lambda _, tensor: random_weight(tensor, device),
    )
    print(f"{host.pinned / 1e9:.1f} GB pinned, {host.pageable / 1e9:.1f} GB pageable", file=sys.stderr)
    link, rows = measure_link(steps), []
    for tokens in options.tokens:
        x, context = inputs(config, tokens, device)
        seconds = layer_seconds(host, x, context, steps)
        costs = [BlockCost(*pair) for pair in zip(host.sizes, seconds, strict=True)]
        cases = cases_of(host, costs, link, steps, options.slots)
        rows += run_cases(cases, x, context, steps, options, link, tokens)
    return rows


def make_blocks(config) -> list:
    """The transformer's layers in memory that nothing has touched yet."""
    from comfyui_happyhorse.model.transformer import Blocks

    with torch.device("meta"):
        blocks = Blocks(config, dtype=torch.bfloat16)
    return list(blocks.to_empty(device="cpu").requires_grad_(False).layers)


def random_weight(tensor, device: torch.device):
    """Made on the device: 15 billion random numbers take minutes elsewhere."""
    scale = tensor.shape[1] ** -0.5 if tensor.ndim == 2 else 0.1
    return torch.randn(tensor.shape, dtype=tensor.dtype, device=device).mul_(scale)


def inputs(config, tokens: int, device: torch.device):
    """A residual stream and its context: 400 text and 126 audio tokens, or a tenth each."""
    from comfyui_happyhorse.model.layers import Context

    text, audio = min(400, tokens // 10), min(126, tokens // 10)
    rope = torch.rand(tokens, 6 * config.bands, device=device)
    x = torch.randn(tokens, config.hidden_size, device=device)
    return x, Context((tokens - text - audio, audio, text), rope, ())


def measure_link(steps: Steps) -> float:
    """GB/s from pinned memory to the device with nothing else going on."""
    nbytes = LINK_PROBE if steps.is_cuda else LINK_PROBE >> 4
    source = torch.randint(256, (nbytes,), dtype=torch.uint8)
    source = source.pin_memory() if steps.is_cuda else source
    target = torch.empty(nbytes, dtype=torch.uint8, device=steps.device)
    seconds = steps.seconds(lambda: target.copy_(source, non_blocking=True), 9)
    return nbytes / statistics.median(seconds) / 1e9


def layer_seconds(host, x, context, steps: Steps) -> list[float]:
    """Of each block, with its weights on the device."""
    found = []
    for slab in host.slabs:
        slab.point_at(slab.data.to(steps.device))
        with torch.inference_mode():
            found.append(statistics.median(steps.seconds(lambda block=slab.block: block(x, context), 3)))
        slab.point_at(slab.data)
    return found


def cases_of(host, costs, link: float, steps: Steps, slots: int) -> dict:
    """What is compared, by name."""
    from comfyui_happyhorse.model_loading.block_swap import BlockSwapper
    from comfyui_happyhorse.model_loading.swap_plan import choose_resident

    every, total = range(len(costs)), sum(host.sizes)
    # Where copies take as long as compute, overlapping them can gain most.
    balanced = min(max(1 - sum(cost.seconds for cost in costs) * link * 1e9 / total, 0), 1)

    def keep(share: float):
        return choose_resident(costs, int(share * total), slots, link * 1e9)

    def swapped(kept):
        lane = steps.lane(host, [number for number in every if number not in kept])
        return BlockSwapper(host, steps.device, resident=kept, slots=slots, lane=lane)

    return {
        "resident": swapped(every),
        "50 % resident": swapped(keep(0.5)),
        "0 % resident": swapped(()),
        "Tc = Ts": swapped(keep(balanced)),
        "Tc = Ts, pinned synchronous": Synchronous(host, keep(balanced), steps.device),
        "0 %, pinned synchronous": Synchronous(host, (), steps.device),
        "0 %, pageable synchronous": Synchronous(host, (), steps.device, pageable=True),
    }


def run_cases(cases, x, context, steps: Steps, options, link: float, tokens: int) -> list[dict]:
    """One row a case; the order of the cases is turned round at every visit."""
    taken, rates, peaks, wanted = {name: [] for name in cases}, {}, {}, None
    for number in range(options.rounds):
        for name in list(cases)[:: 1 if number % 2 == 0 else -1]:
            swapper = cases[name]
            steps.reset_peak()
            try:
                with swapper.resident(), torch.inference_mode():
                    found = swapper.run_blocks(x, context).clone()
                    taken[name] += steps.seconds(lambda s=swapper: s.run_blocks(x, context), options.steps)
                    rates[name] = steps.gigabytes_per_second()
            except torch.OutOfMemoryError:
                print(f"{name}: does not fit", file=sys.stderr)
                continue
            peaks[name] = max(peaks.get(name, 0), steps.peak())
            wanted = found if wanted is None else wanted
            if "pageable" not in name and not torch.equal(found, wanted):
                raise SystemExit(
                    f"{name}: the result differs from the first case's; the numbers mean nothing."
                )
    rows, resident = [], None
    for name, seconds in taken.items():
        if not seconds:
            rows.append({"tokens": tokens, "case": name, "s/step": "does not fit"})
            continue
        median = statistics.median(seconds)
        resident = median if name == "resident" else resident
        streamed = sum(cases[name].sizes[block] for block in cases[name].swapped_blocks) / 1e9
        row = {
            "tokens": tokens,
            "case": name,
            "s/step": round(median, 4),
            "p10": round(sorted(seconds)[len(seconds) // 10], 4),
            "p90": round(sorted(seconds)[-1 - len(seconds) // 10], 4),
            "to resident": round(median / resident, 3) if resident else None,
            "streamed GB": round(streamed, 2),
            "GB/s while copying": rates[name] and round(rates[name], 1),
            "peak GB/s of the link": round(link, 1),
            "overlap %": None,
            "peak VRAM GB": round(peaks[name], 2),
            "of ceiling": None,
        }
        if resident and streamed:
            longer, shorter = max(resident, streamed / link), min(resident, streamed / link)
            row["overlap %"] = round(100 * (1 - (median - longer) / shorter), 1)
            plain = taken.get(f"{name}, pinned synchronous")
            if plain:
                gain = statistics.median(plain) / median
                row["of ceiling"] = round(gain / ((longer + shorter) / longer), 3)
        rows.append(row)
    return rows


class Synchronous:
    """The plain way, with the swapper's slabs: copy a block, wait, compute, wait.

    Pageable copies all come from one block's worth of random weights: their seconds are right, the result is
    another network's.
    """

    def __init__(self, host, kept, device: torch.device, *, pageable: bool = False):
        self.slabs, self.sizes, self.device = host.slabs, host.sizes, device
        self.swapped_blocks = [number for number in range(len(host.sizes)) if number not in kept]
        self.room, self.pageable = None, None
        if pageable:
            # In bfloat16; two of them make a float32 of about the first one's size, so norms stay sane too.
            weights = torch.randn(max(host.sizes) // 2, dtype=torch.bfloat16).mul_(0.01)
            self.pageable = weights.view(torch.uint8)

    @contextmanager
    def resident(self):
        try:
            self.room = torch.empty(max(self.sizes), dtype=torch.uint8, device=self.device)
            for number, slab in enumerate(self.slabs):
                if number not in self.swapped_blocks:
                    slab.point_at(slab.data.to(self.device))
            yield self
        finally:
            for slab in self.slabs:
                slab.point_at(slab.data)
            self.room = None

    def run_blocks(self, x, context):
        for number, slab in enumerate(self.slabs):
            if number in self.swapped_blocks:
                source = slab.data if self.pageable is None else self.pageable[: slab.nbytes]
                self.room[: slab.nbytes].copy_(source)
                self._wait()
                slab.point_at(self.room[: slab.nbytes])
            x = slab.block(x, context)
            if number in self.swapped_blocks:
                self._wait()
                slab.point_at(slab.data)
        return x

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def machine(device: torch.device) -> dict:
    """What the numbers were taken on."""
    facts = {"torch": torch.__version__, "python": platform.python_version()}
    if device.type != "cuda":
        return facts | {"device": "CPU: a walk through the measurement, its numbers mean nothing"}
    facts |= {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    query = "driver_version,pcie.link.gen.current,pcie.link.width.current,clocks.sm,clocks.mem"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        values = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        facts |= dict(zip(query.split(","), values[device.index or 0].split(", "), strict=True))
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        facts["driver"] = "nvidia-smi does not say"
    return facts


def table(rows: list[dict]) -> str:
    """Markdown."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = ("-" if row.get(column) is None else str(row[column]) for column in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
