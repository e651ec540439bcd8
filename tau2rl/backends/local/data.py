"""Sequences to batches: masks, padding, order. What a token counts for is decided before it gets here."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tau2rl.types import TrainingSample

if TYPE_CHECKING:
    from torch import Tensor


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


def micro_batches(lengths: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Indices grouped by similar length, each group at most `max_tokens` when padded (a longer sequence stands alone).

    >>> micro_batches([3, 9, 4, 10], max_tokens=20)
    [[0, 2], [1, 3]]
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and lengths[i] * (len(groups[-1]) + 1) <= max_tokens and lengths[i] <= 2 * lengths[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def epochs(count: int, *, batch_size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Endless batches of indices, a fresh shuffle an epoch; `start` skips batches, so a resumed run sees the same ones.

    >>> [sorted(b) for b in (lambda it: [next(it), next(it)])(epochs(4, batch_size=4, seed=0))]
    [[0, 1, 2, 3], [0, 1, 2, 3]]
    """
    per_epoch = max(1, -(-count // batch_size))
    epoch, skip = divmod(start, per_epoch)
    while True:
        order = list(range(count))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for i in range(skip, per_epoch):
            yield order[i * batch_size : (i + 1) * batch_size]
        epoch, skip = epoch + 1, 0
