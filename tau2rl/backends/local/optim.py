"""AdamW, its schedule and its clipping, with a state that can be saved and put back exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimSpec:
    """How weights move: `OptimSpec(lr=3e-3, total_steps=300)`."""

    lr: float
    total_steps: int
    warmup_steps: int = 10
    schedule: Literal["cosine", "constant"] = "cosine"
    min_share: float = 0.1  # of `lr`, at the end of the cosine
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01  # on matrices; never on norms and biases
    clip: float = 1.0  # largest gradient norm; 0 = off


def learning_rate(spec: OptimSpec, step: int) -> float:
    """The rate of step 0, 1, ...: a linear warm-up, then half a cosine down to `min_share`.

    >>> spec = OptimSpec(lr=1.0, total_steps=20, warmup_steps=10, min_share=0.0)
    >>> learning_rate(spec, 0), learning_rate(spec, 9), round(learning_rate(spec, 15), 6)
    (0.1, 1.0, 0.5)
    """
    if step < spec.warmup_steps:
        return spec.lr * (step + 1) / spec.warmup_steps
    if spec.schedule == "constant":
        return spec.lr
    done = min(1.0, (step - spec.warmup_steps) / max(1, spec.total_steps - spec.warmup_steps))
    return spec.lr * (spec.min_share + (1.0 - spec.min_share) * 0.5 * (1.0 + math.cos(math.pi * done)))


class Optimiser:
    """Owns the AdamW state and counts the steps.

    Weights of 16 bits are kept here in 32 as well, with their gradients: one step moves a weight by less than the last digit of
    bfloat16, and steps that are rounded away teach nothing.
    """

    def __init__(self, model: nn.Module, spec: OptimSpec) -> None:
        """One for each model: it takes the gradients of its short weights away as they come."""
        self.spec = spec
        self.steps = 0
        weights = [p for p in model.parameters() if p.requires_grad]
        self._short = [(p, nn.Parameter(p.detach().float())) for p in weights if torch.finfo(p.dtype).bits < 32]
        for weight, exact in self._short:
            weight.register_post_accumulate_grad_hook(_handed_on(exact))
        exact_of = dict(self._short)
        self._weights = [exact_of.get(p, p) for p in weights]
        groups = [
            {"params": [p for p in self._weights if p.dim() > 1], "weight_decay": spec.weight_decay},
            {"params": [p for p in self._weights if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas)

    def zero(self) -> None:
        """Forget the gradients."""
        self._adam.zero_grad(set_to_none=True)

    def step(self) -> float:
        """Clip, move, count; returns the gradient norm before clipping. A norm that is not finite moves nothing."""
        norm = float(torch.nn.utils.clip_grad_norm_(self._weights, self.spec.clip or math.inf))
        for group in self._adam.param_groups:
            group["lr"] = learning_rate(self.spec, self.steps)
        if math.isfinite(norm):
            self._adam.step()
            self._round()
        self.steps += 1
        return norm

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        exact = [exact.detach() for _, exact in self._short]
        return {"steps": self.steps, "adam": self._adam.state_dict(), "exact": exact}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.steps = int(state["steps"])
        self._adam.load_state_dict(state["adam"])
        with torch.no_grad():
            for (_, exact), saved in zip(self._short, state["exact"], strict=True):
                exact.copy_(saved)
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for weight, exact in self._short:
            weight.copy_(exact)


def _handed_on(exact: nn.Parameter) -> Callable[[Tensor], None]:
    """Adds a gradient to that of the exact weight, and frees it."""

    def take(weight: Tensor) -> None:
        assert weight.grad is not None  # autograd calls this when it has just been set
        grad = weight.grad.float()
        exact.grad = grad if exact.grad is None else exact.grad.add_(grad)
        weight.grad = None

    return take
