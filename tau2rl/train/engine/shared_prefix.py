"""The shared-prefix layout: a token that stands behind the same tokens in several rows goes through the model once.

The tokens of a micro-batch lie in one line, none of them padding and none there twice; only attention goes over whole rows.
So a system prompt with its tools is computed once for all rows, a task's first message once for its group, and what two
attempts sampled alike once for both. Gradients meet where the rows part.

Attention over rows that share their beginnings is the same in training and in sampling, and transformers calls it by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

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


ATTENTION = "tau2rl"  # of our attention, among those of transformers


def bare(model: nn.Module) -> nn.Module:
    """The causal LM inside LoRA's wrapper, adapters included; any other model as it is."""
    return cast(nn.Module, model.get_base_model()) if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]


def backbone(model: nn.Module) -> nn.Module:
    """The decoder without its output layer."""
    return cast(nn.Module, bare(model).base_model)


def head(model: nn.Module) -> nn.Module:
    """The output layer: hidden states to logits."""
    return cast(nn.Module, bare(model).get_output_embeddings())  # pyright: ignore[reportCallIssue]


def attends(model: nn.Module) -> bool:
    """Whether the model was switched to our attention: it is one for which `proof.engine_of` found that it may be."""
    config: Any = bare(model).config
    return config._attn_implementation == ATTENTION


def switch_on(model: nn.Module) -> None:
    """Give the model our attention, which is torch's own for who does not ask for more."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    cast(Any, bare(model)).set_attn_implementation(ATTENTION)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tau2rl_layout: PackedLayout | None = None,
    tau2rl_rows: Tensor | None = None,
    tau2rl_positions: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: [batch, heads, time, head_dim] in, [batch, time, heads, head_dim] out.

    `tau2rl_layout`: the batch is one line of positions, and rows are as it says. `tau2rl_rows`, [batch]: keys, values and mask
    are those of more rows than the queries; which of them each query belongs to. `tau2rl_positions`, [rows, new]: where
    the mask's queries stand; a layer with a sliding window sees no further then, which the mask does not know of.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if tau2rl_layout is not None:
        return _by_rows(module, query, key, value, tau2rl_layout, kwargs), None
    window = kwargs.get("sliding_window")
    if tau2rl_positions is not None and attention_mask is not None and window is not None and window < key.shape[2]:
        columns = torch.arange(key.shape[2], device=key.device)
        attention_mask = attention_mask & (columns > tau2rl_positions[:, None, :, None] - window)
    if tau2rl_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    spread = query.new_zeros(len(key), *query.shape[1:]).index_copy_(0, tau2rl_rows, query)
    out, _ = sdpa_attention_forward(module, spread, key, value, attention_mask, **kwargs)
    return out.index_select(0, tau2rl_rows), None


def _by_rows(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, kwargs: dict[str, Any]
) -> Tensor:
    """[1, heads, positions, head_dim] to [1, positions, heads, head_dim]"""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    asks, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))  # [positions, heads, head_dim]
    outputs: list[Tensor] = []
    for call in layout.calls:
        q, k, v = (_rows(x, at, call.rows) for x, at in ((asks, call.queries), (keys, call.keys), (values, call.keys)))
        out, _ = sdpa_attention_forward(module, q, k, v, _mask(call, kwargs.get("sliding_window")), **kwargs)
        outputs.append(out.flatten(0, 1))
    return torch.cat(outputs).index_select(0, layout.answers)[None]


def _rows(line: Tensor, index: Tensor, rows: int) -> Tensor:
    """[positions, heads, head_dim] to [rows, heads, columns, head_dim]"""
    return line.index_select(0, index).unflatten(0, (rows, -1)).transpose(1, 2)


def _mask(call: AttentionCall, window: int | None) -> Tensor | None:
    """What each query may attend to, [1, 1, width - start, width]; None: all that is not behind it, the kernel's own way."""
    if not call.start and (window is None or window >= call.width):
        return None
    columns = torch.arange(call.width, device=call.keys.device)
    queries = columns[call.start :, None]
    seen = columns <= queries
    if window is not None:
        seen = seen & (columns > queries - window)
    return seen[None, None]
