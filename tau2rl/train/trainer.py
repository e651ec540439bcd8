"""The GRPO update: scored trajectories in, moved weights and a page of numbers out.

Who sampled them, what they scored and how advantages were made is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from tau2rl.train.engine.forward import Batch, Work, collate, cut, score_tokens
from tau2rl.train.losses import Mismatch, Totals, mismatch, policy_loss
from tau2rl.train.optim import Optimizer
from tau2rl.train.state import load_state, save_state, understood
from tau2rl.types import TrainingSample

if TYPE_CHECKING:
    from torch import Tensor

    from tau2rl.config import AlgoConfig, GrpoTrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrajectory:
    """A conversation with its advantages: `ScoredTrajectory(samples=(sample,), advantages=(0.7, 0.7))`.

    One with several samples (see `data.encoding.pack`) is one in every mean: it weighs what it would weigh in one piece.
    """

    samples: tuple[TrainingSample, ...]
    advantages: tuple[float, ...]  # [num_turns], of all samples in their order, or a single one for all turns
    attempt: str = ""  # its key; "" where nobody asks for what the trainer thought of it

    @property
    def num_sampled(self) -> int:
        """Tokens that were sampled, in all samples."""
        return sum(sum(sample.loss_mask[1:]) for sample in self.samples)

    def parts(self) -> list[_Row]:
        """Its samples, each with the advantages of its own turns."""
        rows: list[_Row] = []
        done = 0
        for sample in self.samples:
            mine = slice(done, done := done + len(sample.turn_spans))
            advantages = self.advantages if len(self.advantages) == 1 else self.advantages[mine]
            rows.append(_Row(sample=sample, advantages=advantages, num_sampled=self.num_sampled))
        if len(self.advantages) not in (1, done):
            raise ValueError(f"{len(self.advantages)} advantages for {done} turns")
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One sample of a trajectory."""

    sample: TrainingSample
    advantages: tuple[float, ...]
    num_sampled: int  # of its whole trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one call of `GRPOTrainer.update` did; means over its optimizer steps."""

    loss: float
    policy_loss: float
    kl: float
    entropy: float  # mean over sampled tokens, in nats, before the step that they are in
    gradient_norm: float  # before clipping
    learning_rate: float  # of the first optimizer step
    clipped_share: float  # of the sampled tokens, here and below
    corrected_share: float
    tokens: int
    padding_share: float  # of the places in attention; nothing else is padded
    shared_share: float  # of the tokens that went through the model as part of another conversation
    mismatch: Mismatch  # the sampler's log-probabilities against the trainer's
    old_logprobs: dict[str, list[list[float]]]  # attempt -> [num_turns][num_tokens], before the step; 0 where the mask is 0


class GRPOTrainer:
    """Owns the optimizer. `reference` is a frozen model, needed by `kl_coef`; with LoRA the bare weights serve."""

    def __init__(
        self,
        model: nn.Module,
        algo: AlgoConfig,
        train: GrpoTrainConfig,
        *,
        temperature: float = 1.0,
        max_tokens_per_microbatch: int = 8192,
        reference: nn.Module | None = None,
    ) -> None:
        """`temperature` is that which the trajectories were sampled at.

        Raises ValueError for a loss that cannot be computed, or has an option without an effect.
        """
        self.model = model
        self.optimizer = Optimizer(model, train, total_steps=train.steps * train.num_minibatches)
        self._algo = algo
        self._num_minibatches = train.num_minibatches
        self._temperature = temperature
        self._max_tokens = max_tokens_per_microbatch
        self._reference = reference
        if algo.kl_coef and reference is None and not hasattr(model, "disable_adapter"):
            raise ValueError("kl_coef needs a reference model")
        if algo.kl_coef and algo.kl == "k1":
            raise ValueError("kl k1 has no gradient in expectation: k2 or k3")
        if algo.veto is not None and algo.correction == "none":
            raise ValueError("veto has no effect without a correction")

    def update(self, batch: Sequence[ScoredTrajectory]) -> Update | None:
        """Take `num_minibatches` optimizer steps, each over its share of the batch; None, and no step, when nothing has a signal.

        A share is a run of the batch, which lists groups one behind the other: what slime makes of one rollout. All shares are
        compared with the policy before the first step. An advantage of 0 pushes nothing, and is still evidence: its tokens are in
        every mean, and in KL and entropy.
        """
        batch = [t for t in batch if any(any(sample.loss_mask[1:]) for sample in t.samples)]
        if not any(any(t.advantages) for t in batch):
            return None
        self.model.train()
        runs = equal_shares(batch, self._num_minibatches)
        minibatches = [self._micro_batches(run) for run in runs]
        if len(minibatches) > 1:  # a single one is computed with the gradient anyway
            for micro in (m for minibatch in minibatches for m in minibatch):
                micro.old = self._score(self.model, micro.batch)
        rate = self.optimizer.learning_rate
        steps = [self._step(minibatch, num_sequences=len(run)) for minibatch, run in zip(minibatches, runs, strict=True)]
        tokens, work = sum(s.totals.tokens for s in steps), sum((s.work for s in steps), Work())
        return Update(
            loss=_mean([s.loss for s in steps]),
            policy_loss=_mean([s.policy for s in steps]),
            kl=_mean([s.kl for s in steps]),
            entropy=sum(s.entropy for s in steps) / tokens,
            gradient_norm=_mean([s.norm for s in steps]),
            learning_rate=rate,
            clipped_share=sum(s.clipped for s in steps) / tokens,
            corrected_share=sum(s.corrected for s in steps) / tokens,
            tokens=sum(len(sample.token_ids) for t in batch for sample in t.samples),
            padding_share=work.padding_share,
            shared_share=work.shared_share,
            mismatch=_compare([micro for minibatch in minibatches for micro in minibatch]),
            old_logprobs=dict(each for run, micros in zip(runs, minibatches, strict=True) for each in _of_turns(run, micros)),
        )

    def save(self, folder: Path, *, rng: dict[str, Any] | None = None, **more: Any) -> Path:
        """Weights, optimizer, random numbers (`rng`: of an earlier moment) and whatever else the loop needs to go on."""
        return save_state(folder, model=self.model, parts={"optimizer": self.optimizer.state(), **more}, rng=rng)

    def restore(self, folder: Path) -> dict[str, Any] | None:
        """Go on from `save`; returns what it was given beside, None when nothing was saved."""
        parts = load_state(folder, model=self.model)
        if parts is None:
            return None
        with understood(folder):
            self.optimizer.restore(parts.pop("optimizer"))
        return parts

    def _micro_batches(self, minibatch: Sequence[ScoredTrajectory]) -> list[_MicroBatch]:
        device = next(self.model.parameters()).device
        parts = [row for trajectory in minibatch for row in trajectory.parts()]
        found: list[_MicroBatch] = []
        for rows in cut(self.model, [part.sample for part in parts], max_tokens=self._max_tokens):
            batch = collate([parts[i].sample for i in rows], device=device)
            advantages = torch.zeros_like(batch.mask)
            for row, i in enumerate(rows):
                _write_advantages(advantages[row], parts[i])
            sizes = torch.tensor([parts[i].num_sampled for i in rows], dtype=batch.mask.dtype, device=device)
            reference = self._score_reference(batch)
            found.append(_MicroBatch(rows=rows, batch=batch, advantages=advantages, sizes=sizes, reference=reference))
        return found

    def _step(self, minibatch: Sequence[_MicroBatch], *, num_sequences: int) -> _Step:
        """One optimizer step over so many trajectories."""
        self.optimizer.zero()
        totals = Totals(tokens=sum(micro.batch.num_tokens for micro in minibatch), sequences=num_sequences)
        sums = _Step(totals=totals)
        entropy = "gradient" if self._algo.entropy_coef else "value"
        for micro in minibatch:
            scores = score_tokens(self.model, micro.batch, temperature=self._temperature, entropy=entropy)
            if micro.old is None:  # on-policy: the trainer's own, before this step
                micro.old = scores.logp.detach()
            result = policy_loss(
                self._algo,
                logp=scores.logp,
                old_logp=micro.old,
                advantages=micro.advantages,
                mask=micro.batch.mask,
                totals=totals,
                sizes=micro.sizes,
                ref_logp=micro.reference,
                rollout_logp=micro.batch.logprobs,
                entropy=scores.entropy,
            )
            result.loss.backward()
            sums.loss += float(result.loss.detach())
            sums.work += scores.work
            sums.policy += result.policy
            sums.kl += result.kl
            sums.clipped += result.clipped_tokens
            sums.corrected += result.corrected_tokens
            if scores.entropy is not None:
                sums.entropy += float((scores.entropy.detach() * micro.batch.mask).sum())
        sums.norm = self.optimizer.step()
        return sums

    def _score_reference(self, batch: Batch) -> Tensor | None:
        if not self._algo.kl_coef:
            return None
        if self._reference is not None:
            return self._score(self._reference, batch)
        bare = cast("AbstractContextManager[None]", self.model.disable_adapter())  # pyright: ignore[reportCallIssue]
        return self._score(self.model, batch, bare)

    @torch.no_grad()
    def _score(self, model: nn.Module, batch: Batch, context: AbstractContextManager[None] | None = None) -> Tensor:
        with context or nullcontext():
            return score_tokens(model, batch, temperature=self._temperature).logp


def equal_shares(batch: Sequence[ScoredTrajectory], count: int) -> list[Sequence[ScoredTrajectory]]:
    """The batch cut into `count` runs of equal size, or sizes that differ by one; empty ones are left out."""
    cuts = [i * len(batch) // count for i in range(count + 1)]
    return [batch[start:end] for start, end in pairwise(cuts) if start < end]


@dataclass(slots=True, kw_only=True)
class _MicroBatch:
    rows: Sequence[int]  # [batch], the numbers of its samples among those of its minibatch
    batch: Batch
    advantages: Tensor  # [batch, time]
    sizes: Tensor  # [batch], sampled tokens of the trajectory that a row is of
    reference: Tensor | None  # [batch, time], log-probabilities, here and below
    old: Tensor | None = None


@dataclass(slots=True, kw_only=True)
class _Step:
    """Sums over the micro-batches of one optimizer step."""

    totals: Totals
    work: Work = field(default_factory=Work)
    loss: float = 0.0
    policy: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    corrected: float = 0.0
    norm: float = 0.0


def _write_advantages(row: Tensor, part: _Row) -> None:
    """Write each turn's advantage on its tokens."""
    if len(part.advantages) == 1:
        row.fill_(part.advantages[0])
        return
    for (start, end), value in zip(part.sample.turn_spans, part.advantages, strict=True):
        row[start:end] = value


def _of_turns(run: Sequence[ScoredTrajectory], micro_batches: Sequence[_MicroBatch]) -> Iterator[tuple[str, list[list[float]]]]:
    """The named trajectories of a minibatch, each with the old log-probabilities of its turns."""
    rows = {n: micro.old[i] for micro in micro_batches if micro.old is not None for i, n in enumerate(micro.rows)}
    numbers = count()
    for trajectory in run:
        samples = [(rows[next(numbers)], sample.turn_spans) for sample in trajectory.samples]
        if trajectory.attempt:
            yield trajectory.attempt, [row[start:end].tolist() for row, spans in samples for start, end in spans]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _compare(micro_batches: Sequence[_MicroBatch]) -> Mismatch:
    known = [m for m in micro_batches if m.batch.logprobs is not None and m.old is not None]
    if not known:
        empty = torch.zeros(0)
        return mismatch(empty, empty, empty)
    ours = torch.cat([cast("Tensor", m.old)[m.batch.mask > 0] for m in known])
    theirs = torch.cat([cast("Tensor", m.batch.logprobs)[m.batch.mask > 0] for m in known])
    return mismatch(ours, theirs, torch.ones_like(ours))
