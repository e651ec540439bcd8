"""Supervised training on whole conversations, loss on the assistant's tokens only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tau2rl.errors import UserError
from tau2rl.train.batching import collate, epochs
from tau2rl.train.forward import Work, cut, score_tokens
from tau2rl.train.optim import Optimiser, OptimSpec, learning_rate, load_state, save_state
from tau2rl.types import TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTSpec:
    """How to train: `SFTSpec(optim=OptimSpec(lr=3e-3, total_steps=300), batch_size=16)`."""

    optim: OptimSpec
    batch_size: int = 16  # conversations a step
    max_tokens_per_microbatch: int = 8192  # positions computed in one forward pass; a step sums over as many as it needs
    seed: int = 0
    val_every: int = 50  # steps between looks at the held-out loss
    patience: int = 0  # looks without a better held-out loss before stopping; 0 = never stop early
    save_every: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTStep:
    """One line of the training log."""

    step: int  # 1, 2, ...
    loss: float  # mean over the step's assistant tokens, in nats
    held_out_loss: float | None  # only at steps that look
    learning_rate: float
    gradient_norm: float
    tokens: int  # of all kinds, without padding
    seconds: float
    padding_share: float  # of the places in attention; nothing else is padded
    shared_share: float  # of the tokens that went through the model as part of another conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTResult:
    """How it ended."""

    steps: int
    loss: float  # of the last step; nan when there was nothing left to do
    best_held_out_loss: float | None
    stopped_early: bool


def train(
    model: nn.Module,
    samples: Sequence[TrainingSample],
    spec: SFTSpec,
    *,
    held_out: Sequence[TrainingSample] = (),
    folder: Path | None = None,
    on_step: Callable[[SFTStep], None] = lambda _: None,
) -> SFTResult:
    """Train in place; with `folder`, save there and continue what is there: interrupted or not, the weights end up the same.

    Raises UserError when there is nothing to train on.
    """
    if not any(any(s.loss_mask[1:]) for s in samples):
        raise UserError("no assistant token to train on", hint="look at the report of the data: were all rows left out?")
    device = next(model.parameters()).device
    optimiser = Optimiser(model, spec.optim)
    watch = _Watch(best=None, since=0)
    state = load_state(folder, model=model) if folder else None
    if state is not None:
        optimiser.restore(state["optimiser"])
        watch = _Watch(**state["watch"])
    final = float("nan")
    order = epochs(len(samples), batch_size=spec.batch_size, seed=spec.seed, start=optimiser.steps)
    while optimiser.steps < spec.optim.total_steps and not watch.ran_out(spec.patience):
        began = time.monotonic()
        model.train()
        rate = learning_rate(spec.optim, optimiser.steps)
        rows = [samples[i] for i in next(order)]
        loss, norm, work = _step(model, rows, optimiser, spec.max_tokens_per_microbatch, device)
        looks = bool(held_out) and (optimiser.steps % spec.val_every == 0 or optimiser.steps == spec.optim.total_steps)
        seen = mean_loss(model, held_out, max_tokens_per_microbatch=spec.max_tokens_per_microbatch) if looks else None
        watch.see(seen)
        if folder and optimiser.steps % spec.save_every == 0:
            _save(folder, model, optimiser, watch)
        on_step(
            SFTStep(
                step=optimiser.steps,
                loss=loss,
                held_out_loss=seen,
                learning_rate=rate,
                gradient_norm=norm,
                tokens=sum(len(r.token_ids) for r in rows),
                seconds=time.monotonic() - began,
                padding_share=work.padding_share,
                shared_share=work.shared_share,
            )
        )
        final = loss
    if folder:
        _save(folder, model, optimiser, watch)
    unfinished = optimiser.steps < spec.optim.total_steps
    return SFTResult(steps=optimiser.steps, loss=final, best_held_out_loss=watch.best, stopped_early=unfinished)


@torch.no_grad()
def mean_loss(model: nn.Module, samples: Sequence[TrainingSample], *, max_tokens_per_microbatch: int = 8192) -> float:
    """Mean negative log-probability of the tokens that count, in nats."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = count = 0.0
    for group in cut(model, samples, max_tokens=max_tokens_per_microbatch):
        batch = collate([samples[i] for i in group], device=device)
        total -= float(score_tokens(model, batch).logp.sum())
        count += batch.num_tokens
    model.train(was_training)
    return total / max(count, 1.0)


def _step(
    model: nn.Module, rows: Sequence[TrainingSample], optimiser: Optimiser, max_tokens_per_microbatch: int, device: torch.device
) -> tuple[float, float, Work]:
    """One optimiser step: loss, gradient norm, work. The mean is over all assistant tokens of the step, however it was cut."""
    optimiser.zero()
    count = max(1.0, float(sum(sum(r.loss_mask[1:]) for r in rows)))
    total, work = 0.0, Work()
    for group in cut(model, rows, max_tokens=max_tokens_per_microbatch):
        batch = collate([rows[i] for i in group], device=device)
        if batch.num_tokens:
            scores = score_tokens(model, batch)
            loss = -scores.logp.sum() / count
            loss.backward()
            total += float(loss.detach())
            work += scores.work
    return total, optimiser.step(), work


@dataclass(slots=True, kw_only=True)
class _Watch:
    """The best held-out loss and how many looks ago it was."""

    best: float | None
    since: int

    def see(self, loss: float | None) -> None:
        if loss is None:
            return
        if self.best is None or loss < self.best:
            self.best, self.since = loss, 0
        else:
            self.since += 1

    def ran_out(self, patience: int) -> bool:
        return bool(patience) and self.since >= patience


def _save(folder: Path, model: nn.Module, optimiser: Optimiser, watch: _Watch) -> None:
    parts: dict[str, Any] = {"optimiser": optimiser.state(), "watch": asdict(watch)}
    save_state(folder, model=model, parts=parts)
