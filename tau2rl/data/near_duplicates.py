"""Near duplicates among texts: exactly those pairs whose sets of word 3-grams have a Jaccard similarity of a threshold or more.

No pair is missed and none is guessed. With a threshold t a set of n grams can only be as similar to an earlier one if the two
share one of their n - ceil(t n) + 1 rarest grams (prefix filtering; Bayardo, Ma and Srikant 2007), so only those are looked up,
and each candidate is then compared whole. A row costs 8 bytes a gram.
"""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from collections import Counter
from collections.abc import Sequence

GRAM = 3  # words


def grams(text: str) -> array[int]:
    """The hashes (64 bits) of a text's runs of `GRAM` words, each once, sorted; a shorter text is one of its own.

    >>> len(grams("cancel my order, please")), len(grams("Cancel my order")), len(grams(" ?"))
    (2, 1, 0)
    """
    words = re.findall(r"\w+", text.lower())
    runs = {" ".join(words[i : i + GRAM]) for i in range(max(1, len(words) - GRAM + 1))} if words else set[str]()
    return array("Q", sorted(int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest()) for run in runs))


def near_duplicates(sets: Sequence[array[int]], threshold: float) -> dict[int, int]:
    """Position of each set that is as similar to an earlier one that is kept -> that one; the others are kept.

    An empty set is like no other. `threshold`: 0 < t <= 1.

    >>> near_duplicates([grams("a b c d e f"), grams("a b c d e g"), grams("x y z")], 0.6)
    {1: 0}
    """
    often = Counter(gram for one in sets for gram in one)
    index: dict[int, list[int]] = {}  # gram -> kept sets that have it among their rarest
    found: dict[int, int] = {}
    for place, one in enumerate(sets):
        if not one:
            continue
        rarest = sorted(one, key=lambda gram: (often[gram], gram))[: len(one) - math.ceil(threshold * len(one) - 1e-9) + 1]
        candidates = sorted({other for gram in rarest for other in index.get(gram, ())})
        mine = set(one)
        like = next((other for other in candidates if _similar(mine, sets[other], threshold)), None)
        if like is not None:
            found[place] = like
            continue
        for gram in rarest:
            index.setdefault(gram, []).append(place)
    return found


def _similar(mine: set[int], other: array[int], threshold: float) -> bool:
    if min(len(mine), len(other)) < threshold * max(len(mine), len(other)) - 1e-9:
        return False
    both = sum(gram in mine for gram in other)
    return both >= threshold * (len(mine) + len(other) - both) - 1e-9
