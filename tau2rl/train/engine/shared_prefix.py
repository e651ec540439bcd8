"""The shared-prefix layout: a token that stands behind the same tokens in several rows goes through the model once.

The tokens of a micro-batch lie in one line, none of them padding and none there twice; only attention goes over whole rows.
So a system prompt with its tools is computed once for all rows, a task's first message once for its group, and what two
attempts sampled alike once for both. Gradients meet where the rows part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tau2rl.train.engine.forward import Batch


JOIN_CALL = 4096  # pairs of a query and a key whose cost is that of one more call


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCall:
    """Rows that go through one call of the attention kernel, padded on the right to one width."""

    rows: int
    start: int  # the first column that asks: what stands before it was answered for another row
    keys: Tensor  # [rows * width], index into the positions
    queries: Tensor  # [rows * (width - start)]

    @property
    def width(self) -> int:
        """Columns of the longest row."""
        return len(self.keys) // self.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLayout:
    """Where each token of a batch is computed."""

    ids: Tensor  # [positions]
    depth: Tensor  # [positions], columns before it in its row
    place: Tensor  # [batch, time], index into the positions; no meaning behind a row's end
    calls: tuple[AttentionCall, ...]
    answers: Tensor  # [positions], index into the outputs of all calls, one behind the other
    tokens: int  # of all rows: the positions that there would be if nothing were shared
    padding: int  # places of the calls that hold no token


def lay_out(batch: Batch) -> PackedLayout:
    """Find what the rows share. A row ends with the last token that counts: what stands behind has no gradient."""
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
    calls, answers, padding = _attention_calls(place, own, alike.tolist(), ends.tolist())
    return PackedLayout(
        ids=ids[own].to(device),
        depth=columns.expand_as(own)[own].to(device),
        place=torch.empty_like(place).index_copy_(0, order, place).to(device),
        calls=tuple(
            AttentionCall(rows=x.rows, start=x.start, keys=x.keys.to(device), queries=x.queries.to(device)) for x in calls
        ),
        answers=answers.to(device),
        tokens=int(ends.sum()),
        padding=padding,
    )


def _attention_calls(
    place: Tensor, own: Tensor, starts: Sequence[int], ends: Sequence[int]
) -> tuple[list[AttentionCall], Tensor, int]:
    """The calls, where each position's answer stands in their outputs, and how many places of them are padding."""
    calls: list[AttentionCall] = []
    answers = torch.zeros(int(own.sum()), dtype=torch.long)
    done = padding = 0
    for group in bundles(starts, ends):
        start, width = _span(group, starts, ends)
        index = torch.tensor(group)
        valid = torch.arange(width) < torch.tensor([ends[i] for i in group])[:, None]
        keys = place[index, :width].where(valid, place[index, :1])  # a row's padding is its first token: nobody attends there
        asked = own[index, start:width]
        size = asked.numel()
        answers[place[index, start:width][asked]] = torch.arange(done, done + size).view_as(asked)[asked]
        calls.append(AttentionCall(rows=len(group), start=start, keys=keys.flatten(), queries=keys[:, start:].flatten()))
        done += size
        padding += int((~valid).sum())
    return calls, answers, padding


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
    """What a row of a call costs, in pairs of a query and a key: without a mask the kernel leaves out most that lies behind."""
    return (width - start) * width if start else min(width * width, width * width // 2 + 128 * width)
