"""Keys and values of many conversations, kept from turn to turn, in the shape that transformers asks its cache for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tau2rl.train.model import backbone

if TYPE_CHECKING:
    from torch import Tensor

    from tau2rl.train.batching import Layout, Look


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
    the mask's queries stand; a layer that looks back a window looks no further then, which the mask does not know of.
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
    for look in layout.looks:
        q, k, v = (_rows(x, at, look.rows) for x, at in ((asks, look.queries), (keys, look.keys), (values, look.keys)))
        out, _ = sdpa_attention_forward(module, q, k, v, _mask(look, kwargs.get("sliding_window")), **kwargs)
        outputs.append(out.flatten(0, 1))
    return torch.cat(outputs).index_select(0, layout.answers)[None]


def _rows(line: Tensor, index: Tensor, rows: int) -> Tensor:
    """[positions, heads, head_dim] to [rows, heads, columns, head_dim]"""
    return line.index_select(0, index).unflatten(0, (rows, -1)).transpose(1, 2)


def _mask(look: Look, window: int | None) -> Tensor | None:
    """What each query may look at, [1, 1, width - start, width]; None: all that is not behind it, the kernel's own way."""
    if not look.start and (window is None or window >= look.width):
        return None
    columns = torch.arange(look.width, device=look.keys.device)
    queries = columns[look.start :, None]
    seen = columns <= queries
    if window is not None:
        seen = seen & (columns > queries - window)
    return seen[None, None]


class SlotCache:
    """Keys and values of every conversation, [layers][slots, heads, capacity, head_dim]; speaks transformers' cache protocol."""

    def __init__(self, *, layers: int, slots: int, device: torch.device) -> None:
        self.slots = slots
        self.device = device
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.capacity = 0
        self.rows = torch.zeros(0, dtype=torch.long)  # [batch], the slots of this forward pass
        self.columns = torch.zeros(0, 0, dtype=torch.long)  # [batch, new], where its new tokens go
        self.width = 0  # how far back this pass looks
        self.window: slice | None = (
            None  # slots to hand out where they lie, `rows` and any others between; None: copies of `rows`
        )
        self.is_compileable = False

    def reserve(self, capacity: int) -> None:
        """Room for conversations of `capacity` tokens; what is stored stays."""
        if capacity <= self.capacity:
            return
        wanted = max(capacity, 2 * self.capacity, 256)
        for store in (self.keys, self.values):
            for i, old in enumerate(store):
                if old is not None:
                    new = old.new_zeros(old.shape[0], old.shape[1], wanted, old.shape[3])
                    new[:, :, : old.shape[2]] = old
                    store[i] = new
        self.capacity = wanted

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the new keys and values, [batch, heads, new, head_dim]; return all that these rows (this window) may look at."""
        out: list[Tensor] = []
        for store, new in ((self.keys, key_states), (self.values, value_states)):
            held = store[layer_idx]
            if held is None:
                held = new.new_zeros(self.slots, new.shape[1], self.capacity, new.shape[3])
                store[layer_idx] = held
            held[self.rows[:, None], :, self.columns] = new.transpose(1, 2)
            seen = held[:, :, : self.width]
            # index_select is several times faster than held[rows, :, :width]
            out.append(seen.index_select(0, self.rows) if self.window is None else seen[self.window])
        return out[0], out[1]

    def clear(self) -> None:
        """Forget what is stored. A GPU's memory is freed; a CPU's is kept, because fresh pages take time."""
        if self.device.type != "cpu":
            self.keys, self.values = [None] * len(self.keys), [None] * len(self.values)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Part of the cache protocol; positions are always passed in."""
        return self.width

    def copy(self, source: int, target: int, length: int) -> None:
        """Give one conversation the beginning of another."""
        for store in (self.keys, self.values):
            for held in store:
                if held is not None:
                    held[target, :, :length] = held[source, :, :length]
