"""The policy-gradient loss, whole: every estimator and option that GRPO runs with, in one file to be read top to bottom.

Tensors are [batch, time]. Column t speaks of token t; only columns where `mask` is 1 were sampled by the policy, and
only they have a loss or a gradient. Advantages come from `reward/` (grpo, dr_grpo, rloo, per turn or per episode):
here they are numbers. Options are those of the section `algo`, documented in `config/`. Sums are divided by totals over all of
an optimizer step, which the caller passes in, so that splitting it into micro-batches changes nothing.
Formulas: `max(-A r, -A clip(r))` is PPO's (arXiv 1707.06347); two clip bounds and the token mean are DAPO's (2503.14476);
the constant loss_aggregation is Dr. GRPO's (2503.20783); the sequence ratio is GSPO's (2507.18071); k2 and k3 are Schulman's
"Approximating KL divergence"; truncated importance sampling is that of verl and slime; dual clip is 1912.09729.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tau2rl.config import AlgoConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What sums are divided by: all of an optimizer step, every micro-batch and rank included."""

    tokens: float
    sequences: int  # conversations, whatever the number of rows that one has


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
    algo: AlgoConfig,
    *,
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    totals: Totals,
    sizes: Tensor | None = None,
    ref_logp: Tensor | None = None,
    rollout_logp: Tensor | None = None,
    entropy: Tensor | None = None,
) -> PolicyLoss:
    """The loss of a micro-batch.

    `old_logp` is the trainer's own, before the first update on this batch; `rollout_logp` the sampler's, needed by a
    correction; `ref_logp` the frozen reference's, needed by `kl_coef`; `entropy` needed by `entropy_coef`. `sizes`: see
    `token_weights`. Ratios and corrections of a sequence are those of a row.
    """
    weights = token_weights(mask, algo, totals, sizes)
    ratio = _ratio(logp, old_logp, mask, algo.ratio)
    surrogate, clipped = _clipped(ratio, advantages, algo)
    correction, corrected = correction_weights(algo, old_logp=old_logp, rollout_logp=rollout_logp, mask=mask)
    policy = (surrogate * correction * weights).sum()
    kl = entropy_bonus = torch.zeros((), dtype=logp.dtype, device=logp.device)
    if algo.kl_coef:
        if ref_logp is None:
            raise ValueError("kl_coef needs ref_logp")
        kl = (kl_estimate(algo.kl, logp, ref_logp) * weights).sum()
    if algo.entropy_coef:
        if entropy is None:
            raise ValueError("entropy_coef needs entropy")
        entropy_bonus = (entropy * weights).sum()
    return PolicyLoss(
        loss=policy + algo.kl_coef * kl - algo.entropy_coef * entropy_bonus,
        policy=float(policy.detach()),
        kl=float(kl.detach()),
        entropy=float(entropy_bonus.detach()),
        clipped_tokens=float((clipped * mask).sum()),
        corrected_tokens=float((corrected * mask).sum()),
    )


def token_weights(mask: Tensor, algo: AlgoConfig, totals: Totals, sizes: Tensor | None = None) -> Tensor:
    """What each token's term is multiplied by; 0 where the mask is 0.

    token-mean: 1 / all tokens. seq-mean: 1 / (tokens of its sequence * sequences). constant: 1 / (loss_scale * sequences).
    A sequence is a conversation: one of several rows has the tokens of all of them, `sizes` [batch]; None: one row each.
    """
    if algo.loss_aggregation == "token-mean":
        return mask / max(totals.tokens, 1.0)
    if algo.loss_aggregation == "seq-mean":
        size = mask.sum(-1) if sizes is None else sizes
        return mask / (size.clamp(min=1.0).unsqueeze(-1) * totals.sequences)
    return mask / (algo.loss_scale * totals.sequences)


def _ratio(logp: Tensor, old_logp: Tensor, mask: Tensor, kind: str) -> Tensor:
    difference = (logp - old_logp) * mask
    if kind == "sequence":
        difference = difference.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1.0)
        difference = difference.expand_as(mask)
    return difference.exp()


def _clipped(ratio: Tensor, advantages: Tensor, algo: AlgoConfig) -> tuple[Tensor, Tensor]:
    """max(-A r, -A clip(r)), at most -c A where A < 0 under dual clip; and where the clip was active."""
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1.0 - algo.eps_low, 1.0 + algo.eps_high)
    loss = torch.maximum(plain, bounded)
    clipped = bounded > plain
    if algo.dual_clip is not None:
        ceiling = -advantages * algo.dual_clip
        over = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(over, ceiling, loss), clipped | over
    return loss, clipped.to(ratio.dtype)


def kl_estimate(kind: str, logp: Tensor, ref_logp: Tensor) -> Tensor:
    """A per-token estimate of KL(policy || reference) from sampled tokens, whose gradient pulls the policy to the reference.

    With d = ref - policy: k2 = d^2 / 2, k3 = exp(d) - 1 - d (never negative, unbiased; cut at 10 as slime does). There is no
    k1 = -d here: the expectation of its gradient is that of grad log p, which is 0, so as a loss it is noise.
    """
    d = ref_logp - logp
    if kind == "k2":
        return 0.5 * d * d
    if kind == "k3":
        return (d.exp() - 1.0 - d).clamp(-10.0, 10.0)
    raise ValueError(f"`{kind}` is no loss: k2 or k3")


def correction_weights(algo: AlgoConfig, *, old_logp: Tensor, rollout_logp: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
    """w = p_trainer / p_sampler of the sampled tokens, treated per `correction`; and where the treatment changed it.

    tis: min(w, high). clip: clamp(w, low, high). mis: w inside [low, high], else 0. veto: 0 for a whole sequence in which the w
    of any token, whatever the level, is below it.
    Level: a token's own w, its sequence's product, or its sequence's geometric mean. No gradient flows through w.
    """
    if algo.correction == "none":
        return torch.ones_like(mask), torch.zeros_like(mask)
    if rollout_logp is None:
        raise ValueError("a correction needs the sampler's log-probabilities")
    difference = ((old_logp - rollout_logp) * mask).detach()
    raw = difference.exp()
    if algo.correction_level != "token":
        total = difference.sum(-1, keepdim=True)
        if algo.correction_level == "geometric":
            total = total / mask.sum(-1, keepdim=True).clamp(min=1.0)
        difference = total.expand_as(mask)
    weight = difference.clamp(-20.0, 20.0).exp()
    if algo.correction == "tis":
        treated = weight.clamp(max=algo.correction_high)
    elif algo.correction == "clip":
        treated = weight.clamp(algo.correction_low, algo.correction_high)
    else:
        treated = torch.where(
            (weight >= algo.correction_low) & (weight <= algo.correction_high), weight, torch.zeros_like(weight)
        )
    if algo.veto is not None:
        hit = ((raw < algo.veto) & (mask > 0)).any(-1, keepdim=True)
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
