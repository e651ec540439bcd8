"""Samples to tensors, and a batch cut into micro-batches: rows that begin alike together, so that beginnings are shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tau2rl.types import TrainingSample

if TYPE_CHECKING:
    from torch import Tensor


REPEATS = 8
BLOCK = 64  # tokens that are compared at once
CALL = 64  # tokens that cost about as much as one forward pass more


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Right-padded sequences. Column t of `mask` speaks of token t, which is predicted at t - 1."""

    ids: Tensor  # [batch, time]
    mask: Tensor  # [batch, time], 1.0 on tokens that count
    logprobs: Tensor | None  # [batch, time], of the sampling distribution, 0 where the mask is 0

    @property
    def num_tokens(self) -> float:
        """How many tokens count."""
        return float(self.mask.sum())


def collate(samples: Sequence[TrainingSample], *, pad: int = 0, device: str | torch.device = "cpu") -> Batch:
    """One batch; it has sampling log-probabilities only when every sample has them."""
    width = max(len(s.token_ids) for s in samples)
    rows = [list(s.token_ids) + [pad] * (width - len(s.token_ids)) for s in samples]
    masks = [[float(m) for m in s.loss_mask] + [0.0] * (width - len(s.loss_mask)) for s in samples]
    mask = torch.tensor(masks, device=device)
    mask[:, 0] = 0.0  # nothing predicts the first token
    logprobs: Tensor | None = None
    if all(s.logprobs is not None for s in samples):
        padded = [list(s.logprobs or ()) + [0.0] * (width - len(s.token_ids)) for s in samples]
        logprobs = torch.tensor(padded, device=device) * mask
    return Batch(ids=torch.tensor(rows, device=device), mask=mask, logprobs=logprobs)


def micro_batches(rows: Sequence[tuple[int, ...]], *, max_tokens: int) -> list[list[int]]:
    """Indices of rows of one forward pass each: rows that begin alike together, at most `max_tokens` that have to be computed.

    A token that stands behind the same tokens in several rows of a pass counts once. A longer row stands alone. The tokens of
    all rows of a pass are at most `REPEATS` times `max_tokens`: attention has them all in memory.

    >>> micro_batches([(1, 2, 3, 4), (7, 8), (1, 2, 3, 5), (1, 2, 3, 6, 7)], max_tokens=7)
    [[0, 2, 3], [1]]
    """
    groups: list[list[int]] = []
    computed = held = 0
    for i in sorted(range(len(rows)), key=rows.__getitem__):
        size = len(rows[i])
        new = size - (common(rows[groups[-1][-1]], rows[i]) if groups else 0)
        if groups and computed + new <= max_tokens and held + size <= REPEATS * max_tokens:
            groups[-1].append(i)
            computed, held = computed + new, held + size
        else:
            groups.append([i])
            computed = held = size
    return groups


def padded_batches(lengths: Sequence[int], *, max_tokens: int, call: int = CALL) -> list[list[int]]:
    """Indices grouped by similar length, each group at most `max_tokens` when padded (a longer sequence stands alone).

    Padding is worth it as long as it costs less than one group more, which costs as much as `call` tokens.

    >>> padded_batches([3, 9, 4, 10], max_tokens=20, call=8)
    [[0, 2], [1, 3]]
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        longest, rows = (lengths[groups[-1][-1]], len(groups[-1])) if groups else (0, 0)
        if groups and lengths[i] * (rows + 1) <= max_tokens and rows * (lengths[i] - longest) <= call:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences of one type share; as fast as comparing them.

    >>> common([1, 2, 3], [1, 2, 4, 5])
    2
    """
    shorter, i = min(len(a), len(b)), 0
    while i < shorter and a[i : i + BLOCK] == b[i : i + BLOCK]:
        i += BLOCK
    while i < shorter and a[i] == b[i]:
        i += 1
    return min(i, shorter)


def begins(tokens: Sequence[int], wanted: Sequence[int], least: int) -> bool:
    """Whether both begin with the same `least` tokens; most pairs are told apart by one of them.

    >>> begins([1, 2, 3], [1, 2, 4], 2), begins([1, 2, 3], [1, 2, 4], 3)
    (True, False)
    """
    long_enough = min(len(tokens), len(wanted)) >= least
    return long_enough and tokens[least - 1] == wanted[least - 1] and tokens[:least] == wanted[:least]
