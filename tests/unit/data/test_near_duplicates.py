"""Near duplicates: exactly the pairs that a comparison of everything with everything finds, whatever the texts."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from hypothesis import given, strategies as st

from tau2rl.data.mixing import grams, near_duplicates


def by_hand(sets: Sequence[array[int]], threshold: float) -> dict[int, int]:
    found: dict[int, int] = {}
    for place, one in enumerate(sets):
        for other in (i for i in range(place) if i not in found):
            both, all_ = len({*one} & {*sets[other]}), len({*one} | {*sets[other]})
            if one and both / all_ >= threshold - 1e-9:
                found[place] = other
                break
    return found


words = st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join)


@given(st.lists(words, max_size=25), st.sampled_from([0.1, 0.3, 0.5, 2 / 3, 0.8, 0.9, 1.0]))
def test_it_finds_what_comparing_all_pairs_finds(texts: list[str], threshold: float) -> None:
    sets = [grams(text) for text in texts]
    assert near_duplicates(sets, threshold) == by_hand(sets, threshold)
