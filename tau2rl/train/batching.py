"""Rows that begin alike: a token that stands behind the same tokens in several rows goes through the model once.

The tokens of a micro-batch lie in one line, none of them padding and none there twice; only attention looks at whole rows.
So a system prompt with its tools is computed once for all rows, a task's first message once for its group, and what two
attempts sampled alike once for both. Gradients meet where the rows part.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
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


if TYPE_CHECKING:
    from torch import Tensor


JOIN_CALL = 4096  # pairs of a query and a key whose cost is that of one more call


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Rows that attend together, padded on the right to one width."""

    rows: int
    start: int  # the first column that asks: what stands before it was answered for another row
    keys: Tensor  # [rows * width], index into the positions
    queries: Tensor  # [rows * (width - start)]

    @property
    def width(self) -> int:
        """Columns of the longest row."""
        return len(self.keys) // self.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where each token of a batch is computed."""

    ids: Tensor  # [positions]
    depth: Tensor  # [positions], columns before it in its row
    place: Tensor  # [batch, time], index into the positions; no meaning behind a row's end
    looks: tuple[Look, ...]
    answers: Tensor  # [positions], index into the outputs of all looks, one behind the other
    tokens: int  # of all rows: the positions that there would be if nothing were shared
    padding: int  # places of the looks that hold no token


def lay_out(batch: Batch) -> Layout:
    """Find what the rows share. A row ends with the last token that counts: what stands behind teaches nothing."""
    mask, ids = batch.mask.cpu() > 0, batch.ids.cpu()
    device, time = batch.ids.device, ids.shape[1]
    ends = (mask * torch.arange(1, time + 1)).amax(1)  # [batch]
    rows = [row[:end] for row, end in zip(ids.tolist(), ends.tolist(), strict=True)]
    order = torch.tensor(sorted(range(len(rows)), key=rows.__getitem__))  # rows that begin alike stand together
    ids, ends, columns = ids[order], ends[order], torch.arange(time)
    alike = torch.zeros_like(ends)
    alike[1:] = (ids[1:] == ids[:-1]).long().cumprod(1).sum(1)
    alike[1:] = alike[1:].minimum(ends[1:]).minimum(ends[:-1])  # [batch], columns shared with the row before
    own = (columns >= alike[:, None]) & (columns < ends[:, None])
    number = own.flatten().cumsum(0).view_as(own) - 1
    # What a row shares with the row before lies where that row has it: at the last row that computes this column.
    owner = (own * torch.arange(len(rows))[:, None]).cummax(0).values
    place = number.gather(0, owner)
    looks, answers, padding = _looks(place, own, alike.tolist(), ends.tolist())
    return Layout(
        ids=ids[own].to(device),
        depth=columns.expand_as(own)[own].to(device),
        place=torch.empty_like(place).index_copy_(0, order, place).to(device),
        looks=tuple(Look(rows=x.rows, start=x.start, keys=x.keys.to(device), queries=x.queries.to(device)) for x in looks),
        answers=answers.to(device),
        tokens=int(ends.sum()),
        padding=padding,
    )


def _looks(place: Tensor, own: Tensor, starts: Sequence[int], ends: Sequence[int]) -> tuple[list[Look], Tensor, int]:
    """The looks, where each position's answer stands in their outputs, and how many places of them are padding."""
    looks: list[Look] = []
    answers = torch.zeros(int(own.sum()), dtype=torch.long)
    done = padding = 0
    for group in bundles(starts, ends):
        start, width = _span(group, starts, ends)
        index = torch.tensor(group)
        valid = torch.arange(width) < torch.tensor([ends[i] for i in group])[:, None]
        keys = place[index, :width].where(valid, place[index, :1])  # a row's padding is its first token: nobody looks there
        asked = own[index, start:width]
        size = asked.numel()
        answers[place[index, start:width][asked]] = torch.arange(done, done + size).view_as(asked)[asked]
        looks.append(Look(rows=len(group), start=start, keys=keys.flatten(), queries=keys[:, start:].flatten()))
        done += size
        padding += int((~valid).sum())
    return looks, answers, padding


def bundles(starts: Sequence[int], ends: Sequence[int]) -> list[list[int]]:
    """Rows that attend together, so that padding costs less than the calls that it saves. Rows without a query are in none.

    >>> bundles([0, 90, 95, 100, 0], [100, 120, 118, 100, 500])
    [[0], [4], [2, 1]]
    """
    rows = [i for i, (start, end) in enumerate(zip(starts, ends, strict=True)) if start < end]
    spans = {i: _span([i], starts, ends) for i in rows}
    groups: list[list[int]] = []
    last = 0
    for i in sorted(rows, key=lambda i: (spans[i][0] > 0, ends[i], spans[i][0])):
        alone = _pairs(*spans[i])
        merged = (len(groups[-1]) + 1) * _pairs(*_span([*groups[-1], i], starts, ends)) if groups else 0
        if groups and merged <= last + alone + JOIN_CALL:
            groups[-1].append(i)
            last = merged
        else:
            groups.append([i])
            last = alone
    return groups


def _span(group: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> tuple[int, int]:
    """First column that asks and width: from 0 on where answering everything is cheaper than a mask."""
    start, width = min(starts[i] for i in group), max(ends[i] for i in group)
    return (start if (width - start) * width < _pairs(0, width) else 0), width


def _pairs(start: int, width: int) -> int:
    """What a row of a look costs, in pairs of a query and a key: without a mask the kernel leaves out most that lies behind."""
    return (width - start) * width if start else min(width * width, width * width // 2 + 128 * width)
