"""One training run: steps, a log of JSON lines, and a checkpoint that it goes on from after a stop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .backward import differentiable
from .optimiser import Optimisers, RunningMean
from .peers import ALONE, Peers

Batch = Callable[[int], Tensor]  # step -> loss


@dataclass(frozen=True, slots=True)
class Work:
    """Where a training keeps its results, and on what it runs."""

    folder: Path
    device: torch.device
    seed: int = 2026

    def path(self, name: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def log(self, stage: str, **numbers) -> None:
        """One JSON line in log.jsonl."""
        rounded = {
            name: round(value, 5) if isinstance(value, float) else value for name, value in numbers.items()
        }
        line = json.dumps({"time": round(time.time(), 1), "stage": stage, **rounded})
        with self.path("log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def train(
    work: Work,
    stage: str,
    parameters: Mapping[str, nn.Parameter],
    optimisers: Optimisers,
    loss_of: Batch,
    *,
    decay: float = 0.995,
    report_every: int = 25,
    save_every: int = 100,
    check: Callable[[], Mapping[str, float]] | None = None,
    check_every: int = 0,
    peers: Peers = ALONE,
) -> None:
    """Step until the optimisers' schedule ends, then leave the running mean in ``parameters``.

    Seeds torch by the step, so that a run that was stopped goes on with the same noise. ``check`` measures
    something now and then, for the log only.
    """
    mean = RunningMean(parameters, decay)
    kept = work.path(f"{stage}.part.pt")
    if kept.is_file():
        state = torch.load(kept, map_location=work.device)
        optimisers.load_state_dict(state["optimisers"])
        mean.kept, mean.done = state["mean"], state["mean_done"]
        _assign(parameters, state["parameters"])
    for weight in parameters.values():
        weight.requires_grad_(True)
    started, total, lengths, count = time.monotonic(), 0.0, 0.0, 0
    with differentiable():
        while optimisers.done < optimisers.steps:
            step = optimisers.done
            torch.manual_seed(work.seed * 100_003 + step)
            loss = loss_of(step)
            lengths += optimisers.step(loss)
            mean.update(parameters)
            total, count = total + float(loss.detach()), count + 1
            if count == report_every or optimisers.done == optimisers.steps:
                seconds = time.monotonic() - started
                numbers = (
                    dict(check()) if check and check_every and optimisers.done % check_every == 0 else {}
                )
                if peers.rank == 0:
                    work.log(
                        stage,
                        step=optimisers.done,
                        loss=total / count,
                        gradient=lengths / count,
                        seconds_a_step=seconds / count,
                        **numbers,
                    )
                started, total, lengths, count = time.monotonic(), 0.0, 0.0, 0
            is_due = optimisers.done % save_every == 0 and optimisers.done < optimisers.steps
            if is_due and peers.rank == 0:
                state = {name: weight.detach() for name, weight in parameters.items()}
                whole = {
                    "optimisers": optimisers.state_dict(),
                    "mean": mean.kept,
                    "mean_done": mean.done,
                    "parameters": state,
                }
                torch.save(whole, kept.with_suffix(".new"))
                kept.with_suffix(".new").replace(kept)  # a stop while it is written leaves the old one
    for weight in parameters.values():
        weight.requires_grad_(False)
    _assign(parameters, mean.kept)
    if peers.rank == 0:
        kept.unlink(missing_ok=True)


@torch.no_grad()
def _assign(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, weight in parameters.items():
        weight.copy_(values[name])


def named(**networks: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of several networks, each network's name before theirs."""
    return {
        f"{prefix}.{name}": weight
        for prefix, network in networks.items()
        for name, weight in network.named_parameters()
    }


def start_convolutions(network: nn.Module, seed: int) -> None:
    """Seeded weights of torch's own kind for every convolution and linear layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
                bound = module.weight[0].numel() ** -0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
