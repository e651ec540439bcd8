"""One GRPO update: sampled conversations with advantages in, moved weights and a page of numbers out.

Who sampled them, what they scored and how advantages were made is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from tau2rl.train.batching import Batch, collate
from tau2rl.train.forward import Work, cut, score_tokens
from tau2rl.train.losses import LossSpec, Mismatch, Totals, mismatch, policy_loss
from tau2rl.train.optim import Optimiser, OptimSpec, learning_rate, load_state, save_state
from tau2rl.types import TrainingSample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPOSpec:
    """How to update: `GRPOSpec(optim=OptimSpec(lr=1e-3, total_steps=40), loss=LossSpec())`."""

    optim: OptimSpec
    loss: LossSpec = field(default_factory=LossSpec)
    temperature: float = 1.0  # that the conversations were sampled at
    updates: int = 1  # passes over the same batch; 1 = on-policy
    max_tokens_per_microbatch: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A conversation and what each of its turns is worth: `Judged(sample=..., advantages=(0.7, 0.7))`."""

    sample: TrainingSample
    advantages: tuple[float, ...]  # one a turn, or a single one for all


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one call of `GRPOTrainer.update` did."""

    loss: float
    policy_loss: float
    kl: float
    entropy: float  # mean over sampled tokens, in nats, before the update
    gradient_norm: float
    learning_rate: float
    clipped_share: float
    corrected_share: float
    tokens: int
    padding_share: float  # of the places in attention; nothing else is padded
    shared_share: float  # of the tokens that went through the model as part of another conversation
    mismatch: Mismatch  # the sampler's log-probabilities against the trainer's


class GRPOTrainer:
    """Owns the optimiser. `reference` is a frozen model, needed by `kl_coef`; with LoRA the bare weights serve."""

    def __init__(self, model: nn.Module, spec: GRPOSpec, *, reference: nn.Module | None = None) -> None:
        self.model = model
        self.spec = spec
        self.optimiser = Optimiser(model, spec.optim)
        self._reference = reference
        if spec.loss.kl_coef and reference is None and not hasattr(model, "disable_adapter"):
            raise ValueError("kl_coef needs a reference model")

    def update(self, judged: Sequence[Judged]) -> Update | None:
        """Move the weights once for each of `spec.updates`; None, and no move, when there is nothing to learn from.

        An advantage of 0 pushes nothing, and is still evidence: its tokens are in every mean, and in KL and entropy.
        """
        judged = [j for j in judged if any(j.sample.loss_mask[1:])]
        if not any(any(j.advantages) for j in judged):
            return None
        self.model.train()
        totals = Totals(tokens=float(sum(sum(j.sample.loss_mask[1:]) for j in judged)), sequences=len(judged))
        parts = self._parts(judged)
        rate = learning_rate(self.spec.optim, self.optimiser.steps)
        passes = [self._pass(parts, totals, first=i == 0) for i in range(self.spec.updates)]
        first, last = passes[0], passes[-1]
        return Update(
            loss=first.loss,
            policy_loss=first.policy,
            kl=first.kl,
            entropy=first.entropy / totals.tokens,
            gradient_norm=first.norm,
            learning_rate=rate,
            clipped_share=last.clipped / totals.tokens,
            corrected_share=first.corrected / totals.tokens,
            tokens=sum(len(j.sample.token_ids) for j in judged),
            padding_share=first.work.padding_share,
            shared_share=first.work.shared_share,
            mismatch=_compare(parts),
        )

    def save(self, folder: Path, **more: Any) -> Path:
        """Weights, optimiser, random numbers and whatever else the loop needs to go on."""
        return save_state(folder, model=self.model, parts={"optimiser": self.optimiser.state(), **more})

    def restore(self, folder: Path) -> dict[str, Any] | None:
        """Go on from `save`; returns what it was given beside, None when nothing was saved."""
        parts = load_state(folder, model=self.model)
        if parts is None:
            return None
        self.optimiser.restore(parts.pop("optimiser"))
        return parts

    def _parts(self, judged: Sequence[Judged]) -> list[_Part]:
        device = next(self.model.parameters()).device
        parts: list[_Part] = []
        for group in cut(self.model, [j.sample for j in judged], max_tokens=self.spec.max_tokens_per_microbatch):
            batch = collate([judged[i].sample for i in group], device=device)
            advantages = torch.zeros_like(batch.mask)
            for row, i in enumerate(group):
                _spread(advantages[row], judged[i])
            parts.append(_Part(batch=batch, advantages=advantages, reference=self._score_reference(batch)))
        if self.spec.updates > 1:
            for part in parts:
                part.old = self._score(self.model, part.batch)
        return parts

    def _pass(self, parts: Sequence[_Part], totals: Totals, *, first: bool) -> _Pass:
        self.optimiser.zero()
        sums = _Pass()
        entropy = "gradient" if self.spec.loss.entropy_coef else "value"
        for part in parts:
            scores = score_tokens(self.model, part.batch, temperature=self.spec.temperature, entropy=entropy)
            if part.old is None:  # on-policy: the trainer's own, before this first update
                part.old = scores.logp.detach()
            result = policy_loss(
                self.spec.loss,
                logp=scores.logp,
                old_logp=part.old,
                advantages=part.advantages,
                mask=part.batch.mask,
                totals=totals,
                ref_logp=part.reference,
                rollout_logp=part.batch.logprobs,
                entropy=scores.entropy,
            )
            result.loss.backward()
            sums.loss += float(result.loss.detach())
            sums.work += scores.work
            sums.policy += result.policy
            sums.kl += result.kl
            sums.clipped += result.clipped_tokens
            sums.corrected += result.corrected_tokens
            if first and scores.entropy is not None:
                sums.entropy += float((scores.entropy.detach() * part.batch.mask).sum())
        sums.norm = self.optimiser.step()
        return sums

    def _score_reference(self, batch: Batch) -> Tensor | None:
        if not self.spec.loss.kl_coef:
            return None
        if self._reference is not None:
            return self._score(self._reference, batch)
        bare = cast("AbstractContextManager[None]", self.model.disable_adapter())  # pyright: ignore[reportCallIssue]
        return self._score(self.model, batch, bare)

    @torch.no_grad()
    def _score(self, model: nn.Module, batch: Batch, context: AbstractContextManager[None] | None = None) -> Tensor:
        with context or nullcontext():
            return score_tokens(model, batch, temperature=self.spec.temperature).logp


@dataclass(slots=True, kw_only=True)
class _Part:
    batch: Batch
    advantages: Tensor  # [batch, time]
    reference: Tensor | None
    old: Tensor | None = None


@dataclass(slots=True)
class _Pass:
    work: Work = field(default_factory=Work)
    loss: float = 0.0
    policy: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    corrected: float = 0.0
    norm: float = 0.0


def _spread(row: Tensor, judged: Judged) -> None:
    """Write a turn's advantage on its tokens."""
    if len(judged.advantages) == 1:
        row.fill_(judged.advantages[0])
        return
    for (start, end), value in zip(judged.sample.turn_spans, judged.advantages, strict=True):
        row[start:end] = value


def _compare(parts: Sequence[_Part]) -> Mismatch:
    known = [p for p in parts if p.batch.logprobs is not None and p.old is not None]
    old = [cast("Tensor", p.old)[p.batch.mask > 0] for p in known]
    sampled = [cast("Tensor", p.batch.logprobs)[p.batch.mask > 0] for p in known]
    if not known:
        empty = torch.zeros(0)
        return mismatch(empty, empty, empty)
    ours, theirs = torch.cat(old), torch.cat(sampled)
    return mismatch(ours, theirs, torch.ones_like(ours))
