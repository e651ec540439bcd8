"""Keys and values of many conversations, kept from turn to turn: the tensors, and which conversation has which slot."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tau2rl.train.engine.forward import begins, common_length

if TYPE_CHECKING:
    from torch import Tensor


class KVCache:
    """Keys and values of every conversation, [layers][slots, heads, capacity, head_dim]; speaks transformers' cache protocol."""

    def __init__(self, *, layers: int, slots: int, device: torch.device) -> None:
        self.slots = slots
        self.device = device
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.capacity = 0
        self.rows = torch.zeros(0, dtype=torch.long)  # [batch], the slots of this forward pass
        self.columns = torch.zeros(0, 0, dtype=torch.long)  # [batch, new], where its new tokens go
        self.width = 0  # columns that this pass attends to
        # Slots to hand out where they lie, `rows` and any others between; None: copies of `rows`.
        self.window: slice | None = None
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
        """Store new keys and values, [batch, heads, new, head_dim]; return all that these rows (this window) may attend to."""
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


SHARING_PAYS = 8  # tokens that are worth waiting for another conversation, or copying from it


class SlotTable:
    """Slots by number; a conversation keeps its slot from turn to turn, until another needs it more."""

    def __init__(self, count: int) -> None:
        self.held: dict[int, list[int]] = {}  # slot -> the tokens whose keys and values it holds
        self._owners: OrderedDict[str, int] = OrderedDict()  # session -> slot, least recently used first
        self._free = list(range(count))[::-1]  # the lowest first: slots in use lie close together

    def find(self, session: str, used: Collection[int]) -> int | None:
        """The slot of the session, or else one that it can have; None while that is in use, or all are."""
        slot = self._owners.get(session)
        if slot is not None:
            return None if slot in used else slot
        if self._free:
            return self._free[-1]
        return next((s for s in self._owners.values() if s not in used), None)

    def donor(self, wanted: Sequence[int], slot: int) -> tuple[int, int]:
        """The slot that holds the longest beginning of `wanted`, and how long; another one than `slot` only where that pays.

        >>> slots = SlotTable(2)
        >>> slots.open("a", 0, list(range(20)))
        >>> slots.donor([*range(15), 7, 7], slot=1)
        (0, 15)
        """
        donor, kept = slot, common_length(self.held.get(slot, []), wanted)
        least = kept + SHARING_PAYS
        if least <= len(wanted):
            for other, tokens in self.held.items():
                # Most are told apart by one token; a call of `begins` for each would cost more than that.
                if len(tokens) >= least and tokens[least - 1] == wanted[least - 1] and begins(tokens, wanted, least):
                    donor, kept = other, common_length(tokens, wanted)
                    least = kept + 1
                    if least > len(wanted):
                        break
        return donor, kept

    def open(self, session: str, slot: int, tokens: list[int]) -> None:
        """Give the slot, which holds `tokens` now, to the session, and make it the last that is taken away."""
        if slot in self._free:
            self._free.remove(slot)
        for owner in [name for name, held in self._owners.items() if held == slot]:
            del self._owners[owner]
        self._owners[session] = slot
        self.held[slot] = tokens
