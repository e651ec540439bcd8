"""Attention over rows that share their beginnings, in training and in sampling, as transformers calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from tau2rl.train.engine.shared_prefix import AttentionCall, PackedLayout


NAME = "tau2rl"  # of our attention, among those of transformers


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
    return config._attn_implementation == NAME


def switch_on(model: nn.Module) -> None:
    """Give the model our attention, which is torch's own for who does not ask for more."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    cast(Any, bare(model)).set_attn_implementation(NAME)


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
