"""One token from each row of logits, with its log-probability under the distribution that it was drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tau2rl.config import SamplingConfig


def sample_tokens(logits: Tensor, rows: Sequence[SamplingConfig], points: Sequence[float]) -> tuple[list[int], list[float]]:
    """One token and its log-probability for each row of `logits`, [batch, vocab].

    `points` are uniform in [0, 1), one from each request's own stream, so a draw does not depend on who shares the batch.
    A greedy row reports the log-probability at temperature 1: at 0 it would always be 0.
    """
    temperature = torch.tensor([r.temperature or 1.0 for r in rows], device=logits.device)
    logp = torch.log_softmax(logits / temperature[:, None], dim=-1)
    if any(r.top_k > 0 or r.top_p < 1 for r in rows):
        logp = _truncate(logp, rows)
    cumulative = logp.exp().double().cumsum(-1)
    heights = torch.tensor(points, dtype=torch.double, device=logits.device) * cumulative[:, -1]
    tokens = torch.searchsorted(cumulative, heights[:, None], right=True)[:, 0]
    tokens = tokens.clamp(max=logits.shape[1] - 1)
    greedy = torch.tensor([r.temperature == 0 for r in rows], device=logits.device)
    tokens = torch.where(greedy, logits.argmax(-1), tokens)
    return tokens.tolist(), logp.gather(1, tokens[:, None])[:, 0].tolist()


def _truncate(logp: Tensor, rows: Sequence[SamplingConfig]) -> Tensor:
    """Keep each row's top-k tokens, of them the smallest set whose mass reaches top-p, and renormalize."""
    ordered, index = logp.sort(dim=-1, descending=True)
    rank = torch.arange(logp.shape[1], device=logp.device)
    top_k = torch.tensor([r.top_k if r.top_k > 0 else logp.shape[1] for r in rows], device=logp.device)
    kept = torch.where(rank < top_k[:, None], ordered, -torch.inf).log_softmax(-1)
    before = kept.exp().cumsum(-1) - kept.exp()
    top_p = torch.tensor([r.top_p for r in rows], device=logp.device)
    kept = torch.where((before < top_p[:, None]) | (rank == 0), kept, -torch.inf).log_softmax(-1)
    return torch.empty_like(logp).scatter_(1, index, kept)
