"""Keys and values of many conversations, kept from turn to turn, in the shape that transformers asks its cache for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


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
