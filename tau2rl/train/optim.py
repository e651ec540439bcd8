"""AdamW with a schedule: clips, moves the weights, counts the steps; weights of 16 bits are kept in 32 as well."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tau2rl.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor


def learning_rate(train: TrainConfig, step: int, *, total_steps: int) -> float:
    """The rate of optimizer step 0, 1, ...: a linear warm-up, then half a cosine down to `min_lr_ratio * lr`.

    >>> train = TrainConfig(lr=1.0, warmup_steps=10, min_lr_ratio=0.0)
    >>> [round(learning_rate(train, step, total_steps=20), 6) for step in (0, 9, 15)]
    [0.1, 1.0, 0.5]
    """
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.lr
    done = min(1.0, (step - train.warmup_steps) / max(1, total_steps - train.warmup_steps))
    return train.lr * (train.min_lr_ratio + (1.0 - train.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * done)))


class Optimizer:
    """Owns the AdamW state and counts the steps.

    Weights of 16 bits are kept here in 32 as well, with their gradients: one step moves a weight by less than the last digit of
    bfloat16, and steps that are rounded away are lost.
    """

    def __init__(self, model: nn.Module, train: TrainConfig, *, total_steps: int) -> None:
        """One for each model: it takes the gradients of its short weights away as they come.

        `total_steps` is the length of the schedule, in optimizer steps. A training that is extended has the new one from then on.
        """
        self.train = train
        self.total_steps = total_steps
        self.steps = 0
        weights = [p for p in model.parameters() if p.requires_grad]
        self._short = [(p, nn.Parameter(p.detach().float())) for p in weights if torch.finfo(p.dtype).bits < 32]
        for weight, exact in self._short:
            weight.register_post_accumulate_grad_hook(_handed_on(exact))
        exact_of = dict(self._short)
        self._weights = [exact_of.get(p, p) for p in weights]
        groups = [
            {"params": [p for p in self._weights if p.dim() > 1], "weight_decay": train.weight_decay},
            {"params": [p for p in self._weights if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(groups, lr=train.lr, betas=train.betas)

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        return learning_rate(self.train, self.steps, total_steps=self.total_steps)

    def zero(self) -> None:
        """Forget the gradients."""
        self._adam.zero_grad(set_to_none=True)

    def step(self) -> float:
        """Count, clip, move; returns the gradient norm before clipping. A norm that is not finite moves nothing.

        The count comes first: where it is the old one, no weight has moved, whatever interrupted a step.
        """
        rate = self.learning_rate
        self.steps += 1
        norm = float(torch.nn.utils.clip_grad_norm_(self._weights, self.train.max_grad_norm or math.inf))
        for group in self._adam.param_groups:
            group["lr"] = rate
        if math.isfinite(norm):
            self._adam.step()
            self._round()
        return norm

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        exact = [exact.detach() for _, exact in self._short]
        return {"steps": self.steps, "adam": self._adam.state_dict(), "exact": exact}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; the settings are this optimizer's own."""
        self.steps = int(state["steps"])
        groups = self._adam.state_dict()["param_groups"]
        self._adam.load_state_dict({**state["adam"], "param_groups": groups})
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
