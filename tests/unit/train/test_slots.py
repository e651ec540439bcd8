"""Pins which conversation gets which KV-cache slot:

- a conversation keeps its slot; the one that was used longest ago goes first; nobody in use is turned out
- a beginning is taken from whoever holds most of it, and only where that pays
"""

from __future__ import annotations

from tau2rl.train.engine.forward import begins
from tau2rl.train.engine.kv_cache import SHARING_PAYS, SlotTable


def opened(*sessions: str, count: int) -> SlotTable:
    slots = SlotTable(count)
    for name in sessions:
        slot = slots.find(name, ())
        assert slot is not None
        slots.open(name, slot, [ord(name)] * 20)
    return slots


def test_slots_in_use_lie_close_together() -> None:
    slots = opened("a", "b", "c", count=8)
    assert [slots.find(name, ()) for name in "abc"] == [0, 1, 2]
    assert slots.find("new", {0, 1, 2}) == 3


def test_the_slot_that_was_used_longest_ago_is_given_away() -> None:
    slots = opened("a", "b", count=2)
    slots.open("a", 0, [1])
    assert slots.find("c", ()) == 1
    assert slots.find("c", {1}) == 0
    assert slots.find("c", {0, 1}) is None


def test_who_lost_its_slot_finds_another() -> None:
    slots = opened("a", "b", count=2)
    slots.open("c", 0, [3])
    assert slots.find("a", ()) == 1
    assert slots.held[0] == [3]


def test_a_conversation_that_is_being_sampled_waits_for_its_slot() -> None:
    assert opened("a", count=4).find("a", {0}) is None


def test_the_longest_beginning_is_the_donor() -> None:
    slots, wanted = SlotTable(4), list(range(100, 150))
    for slot, length in enumerate((20, 40, 30)):
        slots.open(str(slot), slot, [*wanted[:length], 7])
    assert slots.donor(wanted, slot=3) == (1, 40)
    assert slots.donor(wanted, slot=1) == (1, 40)


def test_a_few_tokens_more_are_not_worth_a_copy() -> None:
    slots, wanted = SlotTable(2), list(range(50))
    slots.open("own", 0, wanted[:20])
    slots.open("other", 1, wanted[: 20 + SHARING_PAYS - 1])
    assert slots.donor(wanted, slot=0) == (0, 20)
    slots.open("other", 1, wanted[: 20 + SHARING_PAYS])
    assert slots.donor(wanted, slot=0) == (1, 20 + SHARING_PAYS)


def test_what_a_slot_held_for_another_is_kept_as_far_as_it_goes() -> None:
    slots = opened("a", count=1)
    assert slots.donor([ord("a")] * 12 + [3], slot=0) == (0, 12)


def test_beginnings_are_compared_to_the_last_token() -> None:
    assert begins([1, 2, 3], [1, 2, 3], 3)
    assert not begins([1, 9, 3], [1, 2, 3], 3)
    assert not begins([1, 2], [1, 2, 3], 3)
