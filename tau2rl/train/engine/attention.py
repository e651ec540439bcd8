"""Attention over rows that share their beginnings, in training and in sampling, as transformers calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tau2rl.train.model import backbone

if TYPE_CHECKING:
    from torch import Tensor

    from tau2rl.train.engine.shared_prefix import AttentionCall, Layout


NAME = "tau2rl"  # of our attention, among those of transformers
KINDS = {"full_attention", "sliding_attention"}  # of layers whose tokens meet in attention and nowhere else


def attends(model: nn.Module) -> bool:
    """Whether the model can use our attention; it is switched to it, which changes nothing for who does not ask for more.

    It cannot where tokens meet outside attention (recurrent layers), or in one that torch's kernel does not compute.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    base: Any = backbone(model)
    if base.config._attn_implementation == "sdpa":
        kinds = set(getattr(base.config, "layer_types", None) or KINDS)
        if kinds <= KINDS and not getattr(base, "_is_stateful", False):
            AttentionInterface.register(NAME, attend)
            AttentionMaskInterface.register(NAME, sdpa_mask)
            base.set_attn_implementation(NAME)
    return base.config._attn_implementation == NAME


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tau2rl_layout: Layout | None = None,
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


def _by_rows(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, layout: Layout, kwargs: dict[str, Any]) -> Tensor:
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
