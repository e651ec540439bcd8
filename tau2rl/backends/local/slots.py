"""Which conversation has which slot of the cache, what each slot holds, and who can spare whom a prefill. No tensors here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from tau2rl.backends.local.data import common

SHARING_PAYS = 8  # tokens that are worth waiting for another conversation, or copying from it


class Slots:
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

        >>> slots = Slots(2)
        >>> slots.open("a", 0, list(range(20)))
        >>> slots.donor([*range(15), 7, 7], slot=1)
        (0, 15)
        """
        donor, kept = slot, common(self.held.get(slot, []), wanted)
        least = kept + SHARING_PAYS
        if least <= len(wanted):
            for other, tokens in self.held.items():
                # Most are told apart by one token; a call of `begins` for each would cost more than that.
                if len(tokens) >= least and tokens[least - 1] == wanted[least - 1] and begins(tokens, wanted, least):
                    donor, kept = other, common(tokens, wanted)
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


def begins(tokens: Sequence[int], wanted: Sequence[int], least: int) -> bool:
    """Whether both begin with the same `least` tokens; most pairs are told apart by one of them.

    >>> begins([1, 2, 3], [1, 2, 4], 2), begins([1, 2, 3], [1, 2, 4], 3)
    (True, False)
    """
    long_enough = min(len(tokens), len(wanted)) >= least
    return long_enough and tokens[least - 1] == wanted[least - 1] and tokens[:least] == wanted[:least]
