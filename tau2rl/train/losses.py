"""The policy-gradient loss, whole: every estimator and option that GRPO runs with, in one file to be read top to bottom.

Tensors are [batch, time]. Column t speaks of token t; only columns where `mask` is 1 were sampled by the policy, and
only they have a loss or a gradient. Advantages come from `rewards/` (grpo, dr_grpo, rloo, per turn or per episode):
here they are numbers. Sums are divided by totals over the *whole* batch, which the caller passes in, so that splitting
the batch into micro-batches changes nothing.
Formulas: `max(-A r, -A clip(r))` is PPO's (arXiv 1707.06347); two clip bounds and the token mean are DAPO's (2503.14476);
the constant loss_aggregation is Dr. GRPO's (2503.20783); the sequence ratio is GSPO's (2507.18071); k1, k2, k3 are Schulman's
"Approximating KL divergence"; truncated importance sampling is that of verl and slime; dual clip is 1912.09729.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

Ratio = Literal["token", "sequence"]
LossAggregation = Literal["token-mean", "seq-mean", "constant"]
KL = Literal["k1", "k2", "k3"]
Correction = Literal["none", "tis", "mis", "clip"]
Level = Literal["token", "sequence", "geometric"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSpec:
    """Which loss: `LossSpec(eps_high=0.28, kl_coef=0.001)`. The defaults are DAPO's without its length penalty."""

    ratio: Ratio = "token"  # "sequence": GSPO, one ratio a sequence (its geometric mean), shared by its tokens
    eps_low: float = 0.2
    eps_high: float = 0.28
    dual_clip: float | None = None  # bounds the loss of a token with a negative advantage by `-dual_clip * A`
    loss_aggregation: LossAggregation = "token-mean"  # "constant": sum / (sequences * constant), Dr. GRPO
    loss_scale: int = 1024
    kl_coef: float = 0.0
    kl: KL = "k3"
    entropy_coef: float = 0.0
    correction: Correction = "none"  # for samplers whose log-probabilities differ from the trainer's
    level: Level = "token"
    correction_low: float = 0.5
    correction_high: float = 2.0
    veto: float | None = None  # drop a sequence with a token whose weight is below this


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What sums are divided by: the whole batch, every micro-batch and rank included."""

    tokens: float
    sequences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """One micro-batch's share of the loss, and sums to report; the shares of all micro-batches add up."""

    loss: Tensor  # []
    policy: float
    kl: float
    entropy: float
    clipped_tokens: float
    corrected_tokens: float  # tokens whose correction weight was cut, clipped or masked


def policy_loss(
    spec: LossSpec,
    *,
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    totals: Totals,
    ref_logp: Tensor | None = None,
    rollout_logp: Tensor | None = None,
    entropy: Tensor | None = None,
) -> PolicyLoss:
    """The loss of a micro-batch.

    `old_logp` is the trainer's own, before the first update on this batch; `rollout_logp` the sampler's, needed by a
    correction; `ref_logp` the frozen reference's, needed by `kl_coef`; `entropy` needed by `entropy_coef`.
    """
    weights = token_weights(mask, spec, totals)
    ratio = _ratio(logp, old_logp, mask, spec.ratio)
    surrogate, clipped = _clipped(ratio, advantages, spec)
    correction, corrected = correction_weights(spec, old_logp=old_logp, rollout_logp=rollout_logp, mask=mask)
    policy = (surrogate * correction * weights).sum()
    kl = entropy_bonus = torch.zeros((), dtype=logp.dtype, device=logp.device)
    if spec.kl_coef:
        if ref_logp is None:
            raise ValueError("kl_coef needs ref_logp")
        kl = (kl_estimate(spec.kl, logp, ref_logp) * weights).sum()
    if spec.entropy_coef:
        if entropy is None:
            raise ValueError("entropy_coef needs entropy")
        entropy_bonus = (entropy * weights).sum()
    return PolicyLoss(
        loss=policy + spec.kl_coef * kl - spec.entropy_coef * entropy_bonus,
        policy=float(policy.detach()),
        kl=float(kl.detach()),
        entropy=float(entropy_bonus.detach()),
        clipped_tokens=float((clipped * mask).sum()),
        corrected_tokens=float((corrected * mask).sum()),
    )


def token_weights(mask: Tensor, spec: LossSpec, totals: Totals) -> Tensor:
    """What each token's term is multiplied by; 0 where the mask is 0.

    token-mean: 1 / all tokens. seq-mean: 1 / (tokens of its sequence * sequences). constant: 1 / (loss_scale * sequences).
    """
    if spec.loss_aggregation == "token-mean":
        return mask / max(totals.tokens, 1.0)
    if spec.loss_aggregation == "seq-mean":
        return mask / (mask.sum(-1, keepdim=True).clamp(min=1.0) * totals.sequences)
    return mask / (spec.loss_scale * totals.sequences)


def _ratio(logp: Tensor, old_logp: Tensor, mask: Tensor, kind: Ratio) -> Tensor:
    difference = (logp - old_logp) * mask
    if kind == "sequence":
        difference = difference.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1.0)
        difference = difference.expand_as(mask)
    return difference.exp()


def _clipped(ratio: Tensor, advantages: Tensor, spec: LossSpec) -> tuple[Tensor, Tensor]:
    """max(-A r, -A clip(r)), at most -c A where A < 0 under dual clip; and where the clip was active."""
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1.0 - spec.eps_low, 1.0 + spec.eps_high)
    loss = torch.maximum(plain, bounded)
    clipped = bounded > plain
    if spec.dual_clip is not None:
        ceiling = -advantages * spec.dual_clip
        over = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(over, ceiling, loss), clipped | over
    return loss, clipped.to(ratio.dtype)


def kl_estimate(kind: KL, logp: Tensor, ref_logp: Tensor) -> Tensor:
    """A per-token estimate of KL(policy || reference) from sampled tokens.

    With d = ref - policy: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - 1 - d (never negative, unbiased; cut at 10 as slime does).
    """
    d = ref_logp - logp
    if kind == "k1":
        return -d
    if kind == "k2":
        return 0.5 * d * d
    return (d.exp() - 1.0 - d).clamp(-10.0, 10.0)


def correction_weights(spec: LossSpec, *, old_logp: Tensor, rollout_logp: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
    """w = p_trainer / p_sampler of the sampled tokens, treated per `correction`; and where the treatment changed it.

    tis: min(w, high). clip: clamp(w, low, high). mis: w inside [low, high], else 0.
    Level: a token's own w, its sequence's product, or its sequence's geometric mean. No gradient flows through w.
    """
    if spec.correction == "none":
        return torch.ones_like(mask), torch.zeros_like(mask)
    if rollout_logp is None:
        raise ValueError("a correction needs the sampler's log-probabilities")
    difference = ((old_logp - rollout_logp) * mask).detach()
    raw = difference.exp()
    if spec.level != "token":
        total = difference.sum(-1, keepdim=True)
        if spec.level == "geometric":
            total = total / mask.sum(-1, keepdim=True).clamp(min=1.0)
        difference = total.expand_as(mask)
    weight = difference.clamp(-20.0, 20.0).exp()
    if spec.correction == "tis":
        treated = weight.clamp(max=spec.correction_high)
    elif spec.correction == "clip":
        treated = weight.clamp(spec.correction_low, spec.correction_high)
    else:
        treated = torch.where(
            (weight >= spec.correction_low) & (weight <= spec.correction_high), weight, torch.zeros_like(weight)
        )
    if spec.veto is not None:
        hit = ((raw < spec.veto) & (mask > 0)).any(-1, keepdim=True)
        treated = torch.where(hit, torch.zeros_like(treated), treated)
    return treated, (treated != weight).to(mask.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """How far the sampler's log-probabilities are from the trainer's."""

    mean_abs: float
    max_abs: float
    k3: float
    effective_share: float  # (sum w)^2 / (n sum w^2): 1 when they agree


def mismatch(old_logp: Tensor, rollout_logp: Tensor, mask: Tensor) -> Mismatch:
    """Compare the two on the tokens that count; all zeros and a share of 1 when they agree or nothing counts."""
    d = (old_logp - rollout_logp)[mask > 0].double()
    if d.numel() == 0:
        return Mismatch(mean_abs=0.0, max_abs=0.0, k3=0.0, effective_share=1.0)
    w = d.exp()
    return Mismatch(
        mean_abs=float(d.abs().mean()),
        max_abs=float(d.abs().max()),
        k3=float((w - 1.0 - d).mean()),
        effective_share=float(w.sum() ** 2 / (w.numel() * (w * w).sum())),
    )
