"""Muon for matrices and convolutions, AdamW for the rest, and the running mean of weights that is kept in the end.

AdamW alone left the video autoencoder at 12 dB where Muon reached 31 in the same minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .peers import ALONE, Peers

# Quintic Newton-Schulz coefficients that push singular values towards one in five rounds (Jordan et al. 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """[.., M, K] -> about U V' of its singular value decomposition."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if is_tall else matrix
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).bfloat16()  # it is a rough method anyway
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is orthogonalised, for weights of two dimensions and more.

    ``parts`` of a group: matrices that are stacked in its rows and are orthogonalised each for itself.
    """

    def __init__(self, groups, lr: float, momentum: float = 0.95, peers: Peers = ALONE):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "parts": 1})
        self.peers = peers

    @torch.no_grad()
    def step(self) -> None:
        changes = []  # the peers share the work: what is not ours is added as zeros
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                mine = self.peers.owns(len(changes))
                changes.append((weight, self._change(weight, group) if mine else torch.zeros_like(weight)))
        self.peers.add([change for _, change in changes])
        for weight, change in changes:
            weight.add_(change)

    def _change(self, weight: Tensor, group: dict) -> Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        kept = state["momentum"].mul_(group["momentum"]).add_(weight.grad)
        push = weight.grad.add(kept, alpha=group["momentum"])  # Nesterov's
        rows = push.flatten(1).unflatten(0, (group["parts"], -1))
        gain = max(1.0, rows.shape[-2] / rows.shape[-1]) ** 0.5
        return orthogonal(rows).reshape_as(weight) * (-group["lr"] * gain)


class Optimisers:
    """Muon and AdamW over one set of parameters, with one schedule: a short rise, then down to a tenth."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        lr: float,
        adam_lr: float,
        steps: int,
        parts: Mapping[str, int] | None = None,
        plain: Iterable[str] = (),
        rise: int = 20,
        peers: Peers = ALONE,
    ):
        """``plain``: parts of the names of matrices that AdamW takes: embeddings and heads."""
        by_muon: dict[int, list] = {}
        by_adam = []
        for name, weight in parameters.items():
            is_matrix = weight.ndim > 1 and weight[0].numel() > 1 and weight.shape[0] > 1
            if is_matrix and not any(part in name for part in plain):
                by_muon.setdefault((parts or {}).get(name, 1), []).append(weight)
            else:
                by_adam.append(weight)
        groups = [{"params": weights, "parts": count} for count, weights in by_muon.items()]
        self.all = [
            *([Muon(groups, lr, peers=peers)] if groups else []),
            torch.optim.AdamW(by_adam, adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates = [optimiser.param_groups[0]["lr"] for optimiser in self.all]
        self.steps, self.rise, self.done, self.peers = steps, rise, 0, peers
        self.parameters = list(parameters.values())

    def step(self, loss: Tensor) -> float:
        """Backward and one step; returns the gradient's length. A loss that is not a number changes nothing."""
        for optimiser in self.all:
            optimiser.zero_grad(set_to_none=True)
        (loss / self.peers.count).backward()
        self.peers.add([weight.grad for weight in self.parameters if weight.grad is not None])
        length = float(nn.utils.clip_grad_norm_(self.parameters, 1.0))
        share = min(1.0, (self.done + 1) / self.rise)
        left = max(0.0, 1 - self.done / self.steps)
        for optimiser, rate in zip(self.all, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * share * (0.05 + 0.95 * min(1.0, left / 0.6))
            if length == length:
                optimiser.step()
        self.done += 1
        return length

    def state_dict(self) -> dict:
        return {"done": self.done, "all": [optimiser.state_dict() for optimiser in self.all]}

    def load_state_dict(self, state: dict) -> None:
        self.done = state["done"]
        for optimiser, kept in zip(self.all, state["all"], strict=True):
            optimiser.load_state_dict(kept)


class RunningMean:
    """Exponential mean of a network's parameters, what is saved when training ends."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float):
        self.decay, self.done = decay, 0
        self.kept = {name: value.detach().clone().float() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        self.done += 1
        share = 1 - min(
            self.decay, (1 + self.done) / (10 + self.done)
        )  # the first steps are not kept for long
        for name, value in parameters.items():
            self.kept[name].lerp_(value.detach().float(), share)
