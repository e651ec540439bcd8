"""Names for token sequences and seeds for attempts, the same on every machine and in every resume."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence


def prefix_hash(token_ids: Sequence[int]) -> str:
    """16 hex digits that name a token sequence, the same on every machine.

    >>> prefix_hash([1, 2]) == prefix_hash((1, 2)) != prefix_hash([1, 2, 3])
    True
    """
    data = array("q", token_ids)
    return hashlib.sha256(data.tobytes()).hexdigest()[:16]


class PrefixHash:
    """`prefix_hash` of a sequence that grows from turn to turn, at the cost of what is new.

    >>> growing = PrefixHash()
    >>> growing.of([1, 2]) == prefix_hash([1, 2]), growing.of([1, 2, 3]) == prefix_hash([1, 2, 3])
    (True, True)
    """

    def __init__(self) -> None:
        self._state = hashlib.sha256()
        self._length = 0

    def of(self, token_ids: Sequence[int]) -> str:
        """Of `token_ids`, which begin with those of the last call.

        Only the new ones are read: where the old ones were changed, no `prefix_hash` of the sequence is what this returns.
        """
        self._state.update(array("q", token_ids[self._length :]).tobytes())
        self._length = len(token_ids)
        return self._state.hexdigest()[:16]


def derive_seed(*parts: int | str) -> int:
    """A 31-bit seed from its parts, the same in every process and resume.

    >>> derive_seed(300, "retail/17", 2) == derive_seed(300, "retail/17", 2) != derive_seed(300, "retail/17", 3)
    True
    """
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:4], "big") >> 1
