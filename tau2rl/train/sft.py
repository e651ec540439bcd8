"""Supervised training, the whole loop: rows to train and to validate on, loss on the assistant's tokens only, early stopping."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tau2rl.config import LocalTrainConfig, SftConfig, SftTrainConfig
from tau2rl.data.encoding import Encoded, dropped_account
from tau2rl.data.task_sampling import ShuffledEpochs
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.runs.budget import Spent, step_meter
from tau2rl.runs.checkpoints import STATE, begins_anew, exports
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.timing import PhaseTimer
from tau2rl.runs.trackers import Curves
from tau2rl.train.engine.forward import Work, collate, cut, score_tokens
from tau2rl.train.metrics import sft_work
from tau2rl.train.model import num_parameters, write_checkpoint
from tau2rl.train.optim import Optimizer
from tau2rl.train.state import STATE_FILE, load_state, rng_state, save_state, set_weights, trained_weights, understood
from tau2rl.types import TrainingSample

Conversation = Sequence[TrainingSample]  # its samples: several where thoughts are taken out of it


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTStep:
    """One line of the training log."""

    step: int  # 1, 2, ...
    loss: float  # mean over the step's assistant tokens, in nats
    val_loss: float | None  # only at steps that validate
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
    best_val_loss: float | None
    stopped_early: bool
    final_step: int  # the step whose weights are handed on: the last, or under early stopping the best


def train(
    model: nn.Module,
    conversations: Sequence[Conversation],
    config: SftTrainConfig,
    local: LocalTrainConfig,
    *,
    seed: int = 0,
    val: Sequence[Conversation] = (),
    folder: Path | None = None,
    on_begin: Callable[[int], None] = lambda _: None,
    on_step: Callable[[SFTStep], None] = lambda _: None,
) -> SFTResult:
    """Train in place; with `folder`, save there and continue what is there: interrupted or not, the weights end up the same.

    Every step has the same number of conversations, whatever the number of samples of one; all its assistant tokens weigh alike.
    With early stopping the model ends with the weights of the best validation.
    `on_begin` gets the steps that are done. What it or `on_step` raises to end the run behind a step (RunIncomplete) is kept as
    that step left it. Raises UserError when there is nothing to train on.
    """
    if not any(any(sample.loss_mask[1:]) for sample in training_samples(conversations)):
        raise UserError("no assistant token to train on", hint="look at the report of the data: were all rows left out?")
    optimizer = Optimizer(model, config, total_steps=config.steps)
    order = ShuffledEpochs(len(conversations), seed=seed)
    batch_size = min(config.batch_size, len(conversations))  # none twice in a step
    stopper = EarlyStopping(patience=config.early_stopping_patience)
    state = _State(model=model, optimizer=optimizer, order=order, stopper=stopper, folder=folder)
    state.restore()

    last_loss = float("nan")
    with state.kept_when_interrupted():
        on_begin(optimizer.steps)
        while optimizer.steps < config.steps and not stopper.stops:
            began, rate = time.monotonic(), optimizer.learning_rate
            rows = training_samples([conversations[i] for i in order.take(batch_size)])
            last_loss, norm, work = _step(model, rows, optimizer, local.max_tokens_per_microbatch)
            step, val_loss = optimizer.steps, None
            if val and (step % config.val_every == 0 or step == config.steps):
                val_loss = mean_loss(model, training_samples(val), max_tokens_per_microbatch=local.max_tokens_per_microbatch)
                stopper.see(val_loss, step=step, model=model)
            state.mark()
            if step % config.save_every == 0:
                state.save()
            on_step(
                SFTStep(
                    step=step,
                    loss=last_loss,
                    val_loss=val_loss,
                    learning_rate=rate,
                    gradient_norm=norm,
                    tokens=sum(len(r.token_ids) for r in rows),
                    seconds=time.monotonic() - began,
                    padding_share=work.padding_share,
                    shared_share=work.shared_share,
                )
            )
    state.save()
    if stopper.weights is not None:  # behind the save: what is extended goes on from its last step
        set_weights(model, stopper.weights, source="early stopping")
    return SFTResult(
        steps=optimizer.steps,
        loss=last_loss,
        best_val_loss=stopper.best,
        stopped_early=optimizer.steps < config.steps,
        final_step=optimizer.steps if stopper.weights is None else stopper.best_step,
    )


class SFT:
    """The loop with what a run has around it: curves, progress, the timer, budget, exported checkpoints."""

    def __init__(self, config: SftConfig, folder: RunFolder, progress: Progress, timer: PhaseTimer) -> None:
        self._config, self._folder, self._progress, self._timer = config, folder, progress, timer
        self._began = time.monotonic()
        self._tokens = 0  # of this session

    def train(self, model: nn.Module, rows: Split, start: Path) -> dict[str, Any]:
        """Train the model in place; what the report says of it."""
        config, folder = self._config, self._folder
        if not os.path.lexists(folder.checkpoints / STATE / STATE_FILE):
            begins_anew(folder, save_every=config.train.save_every)

        def val_loss() -> float | None:
            if not rows.val:
                return None
            with self._timer.phase("validation"):
                return mean_loss(
                    model, training_samples(rows.val), max_tokens_per_microbatch=config.local.max_tokens_per_microbatch
                )

        before, meter = val_loss(), step_meter(config, folder, total=config.train.steps)
        with Curves(config, folder) as curves:

            def on_begin(done: int) -> None:
                meter.count_done(done)
                meter.over(done)
                meter.stop(done)

            def on_step(step: SFTStep) -> None:
                meter.count(Spent(seconds=step.seconds))
                self._timer.largest_step = meter.largest
                self._log(step, curves)
                if exports(step.step, config.train.export_every):
                    with self._timer.phase("saving"):
                        write_checkpoint(model, folder.checkpoints / f"step_{step.step:05}", tokenizer=start)
                if exports(step.step, config.train.save_every):
                    self._timer.write()
                meter.over(step.step)
                meter.stop(step.step)

            result = train(
                model, rows.train, config.train, config.local,
                seed=config.seed, val=rows.val, folder=folder.checkpoints / STATE, on_begin=on_begin, on_step=on_step,
            )  # fmt: skip
        return {
            **asdict(result),
            "loss": result.loss if math.isfinite(result.loss) else None,  # nan: there was no step left
            "val_loss_before": before,
            "val_loss_after": val_loss(),
            "parameters": num_parameters(model),
            "trained_parameters": num_parameters(model, trainable=True),
            **sft_work(folder.metrics),
        }

    def _log(self, step: SFTStep, curves: Curves) -> None:
        curves.write(step.step, {name: value for name, value in asdict(step).items() if name != "step"})
        self._tokens += step.tokens
        self._timer.trained = self._tokens
        self._timer.add("update", step.seconds)  # with the step's own validation and save
        seconds, note = time.monotonic() - self._began, f"loss {step.loss:.3f}"
        self._progress(
            ProgressEvent(
                done=step.step, total=self._config.train.steps, tokens=self._tokens, seconds=seconds, unit="steps", note=note
            )
        )


@dataclass(slots=True, kw_only=True)
class _State:
    """What a training goes on from, and where it is kept. `mark` is called between two steps, `save` writes the last mark."""

    model: nn.Module
    optimizer: Optimizer
    order: ShuffledEpochs
    stopper: EarlyStopping
    folder: Path | None
    marked: tuple[int, dict[str, Any], dict[str, Any]] = (0, {}, {})  # steps, place in the rows, random numbers

    def restore(self) -> None:
        """Go on from what was saved, if anything was. Raises UserError."""
        if self.folder and (saved := load_state(self.folder, model=self.model)):
            with understood(self.folder):
                self.optimizer.restore(saved["optimizer"])
                self.order.restore(saved["order"])
                for name, value in saved["stopper"].items():
                    if name != "patience":  # the settings' own
                        setattr(self.stopper, name, value)
        self.mark()

    def mark(self) -> None:
        """Here a training can go on."""
        self.marked = (self.optimizer.steps, self.order.state(), rng_state())

    def save(self) -> None:
        """Write the state as it was at the last mark; no weight may have moved since."""
        if self.folder:
            _, order, rng = self.marked
            parts = {"optimizer": self.optimizer.state(), "order": order, "stopper": asdict(self.stopper)}
            save_state(self.folder, model=self.model, parts=parts, rng=rng)

    @contextmanager
    def kept_when_interrupted(self) -> Generator[None]:
        """An interruption inside saves the last mark; where weights have moved since, what was saved before stands."""
        try:
            yield
        except (KeyboardInterrupt, RunIncomplete):
            if self.marked[0] == self.optimizer.steps:
                self.save()
            raise


def _step(model: nn.Module, rows: Sequence[TrainingSample], optimizer: Optimizer, max_tokens: int) -> tuple[float, float, Work]:
    """One optimizer step: loss, gradient norm, work. The mean is over all assistant tokens of the step, however it was cut."""
    device = next(model.parameters()).device
    model.train()
    optimizer.zero()
    count = max(1.0, float(sum(sum(r.loss_mask[1:]) for r in rows)))
    total, work = 0.0, Work()
    for group in cut(model, rows, max_tokens=max_tokens):
        batch = collate([rows[i] for i in group], device=device)
        if batch.num_tokens:
            scores = score_tokens(model, batch)
            loss = -scores.logp.sum() / count
            loss.backward()
            total += float(loss.detach())
            work += scores.work
    return total, optimizer.step(), work


def training_samples(conversations: Sequence[Conversation]) -> list[TrainingSample]:
    """The samples of all of them."""
    return [sample for conversation in conversations for sample in conversation]


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


@dataclass(slots=True, kw_only=True)
class EarlyStopping:
    """The best validation and how many validations ago it was; with a patience, also the weights that it was of."""

    patience: int  # validations without a better loss; 0 = never stop
    best: float | None = None
    best_step: int = 0
    since: int = 0
    weights: dict[str, Any] | None = None  # on the CPU, in the training state too: a resumed run still has them

    @property
    def stops(self) -> bool:
        """Whether the patience has run out."""
        return bool(self.patience) and self.since >= self.patience

    def see(self, loss: float, *, step: int, model: nn.Module) -> None:
        """Take note of a validation."""
        if self.best is not None and loss >= self.best:
            self.since += 1
            return
        self.best, self.best_step, self.since = loss, step, 0
        if self.patience:
            self.weights = trained_weights(model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What is trained on and what is only validated on."""

    train: list[Conversation]
    val: list[Conversation]


def split_rows(encoded: Encoded, *, val_fraction: float) -> Split:
    """Hold out a share of the rows, by a hash of their ids: attempts at one task (`mock/a#0`, `mock/a#1`) stay together."""
    held_out = [val_fraction > 0 and _fraction(name.rpartition("#")[0] or name) < val_fraction for name in encoded.ids]
    pairs = list(zip(encoded.rows, held_out, strict=True))
    return Split(train=[row for row, out in pairs if not out], val=[row for row, out in pairs if out])


def account_of(encoded: Encoded, rows: Split) -> dict[str, Any]:
    """Where every row went, for the report."""
    return {
        "used": len(rows.train),
        "held_out": len(rows.val),
        "dropped": len(encoded.dropped),
        "exact": encoded.exact,  # of used and held out: trained on as they were sampled
        "rendered": len(encoded.rows) - encoded.exact,  # written anew from their messages
        "samples": sum(len(row) for row in rows.train),  # more than rows where thoughts are taken out
        "thoughts_left_out": encoded.thoughts_left_out,
        **dropped_account(encoded.dropped),
        "tokens": sum(len(s.token_ids) for s in training_samples(rows.train)),
        "assistant_tokens": sum(sum(s.loss_mask) for s in training_samples(rows.train)),
        "longest": max((len(s.token_ids) for s in encoded.samples), default=0),
    }


def _fraction(name: str) -> float:
    """A number in [0, 1) that only the name decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
