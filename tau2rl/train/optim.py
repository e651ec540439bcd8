"""A training state on disk: weights, optimiser, random numbers, counters. Written whole or not at all."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from tau2rl.errors import UserError

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
    max_grad_norm: float = 1.0  # largest gradient norm; 0 = off


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
        norm = float(torch.nn.utils.clip_grad_norm_(self._weights, self.spec.max_grad_norm or math.inf))
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


STATE_FILE = "training_state.pt"


def save_state(folder: Path, *, model: nn.Module, parts: dict[str, Any]) -> Path:
    """Write the state of an interrupted training; `parts` is whatever its owner needs (optimiser, step, curriculum).

    Only weights that are trained are kept (all of them, or LoRA's), in their own precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    weights = {k: v.detach().cpu() for k, v in model.state_dict().items() if k in trained}
    path = folder / STATE_FILE
    draft = path.with_suffix(".tmp")
    torch.save({"weights": weights, "parts": parts, "random": _random_state()}, draft)
    os.replace(draft, path)  # a kill in between leaves the previous state
    return path


def load_state(folder: Path, *, model: nn.Module) -> dict[str, Any] | None:
    """Put weights and random numbers back and return `parts`; None when there is no state. Raises UserError on a foreign one."""
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    state = cast("dict[str, Any]", torch.load(path, map_location="cpu", weights_only=True))
    own = model.state_dict()
    weights = cast("dict[str, torch.Tensor]", state["weights"])
    wrong = [k for k, v in weights.items() if k not in own or own[k].shape != v.shape]
    if wrong:
        raise UserError(f"the training state in `{folder}` is of another model: `{wrong[0]}` does not fit")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    _restore_random(state["random"])
    return cast("dict[str, Any]", state["parts"])


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": devices, "python": [version, list(internal), gauss]}


def _restore_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
