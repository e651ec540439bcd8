"""Rows to train on and rows to validate on, and where every row of the data went."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from tau2rl.data.encoding import Encoded
from tau2rl.types import TrainingSample

DROPPED_SHOWN = 20  # rows that the report names; it counts all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What is trained on and what is only validated on."""

    train: list[TrainingSample]
    val: list[TrainingSample]


def split_rows(encoded: Encoded, *, val_fraction: float) -> Split:
    """Hold out a share of the rows, by a hash of their ids: attempts at one task (`mock/a#0`, `mock/a#1`) stay together."""
    held_out = [val_fraction > 0 and _fraction(name.rpartition("#")[0] or name) < val_fraction for name in encoded.ids]
    pairs = list(zip(encoded.samples, held_out, strict=True))
    return Split(train=[sample for sample, out in pairs if not out], val=[sample for sample, out in pairs if out])


def account_of(encoded: Encoded, rows: Split) -> dict[str, Any]:
    """Where every row went, for the report."""
    return {
        "used": len(rows.train),
        "held_out": len(rows.val),
        "dropped": len(encoded.dropped),
        "exact": encoded.exact,  # of used and held out: trained on as they were sampled
        "rendered": len(encoded.samples) - encoded.exact,  # written anew from their messages
        "reasons": dict(Counter(d.reason for d in encoded.dropped).most_common()),
        "dropped_rows": [asdict(d) for d in encoded.dropped[:DROPPED_SHOWN]],
        "tokens": sum(len(s.token_ids) for s in rows.train),
        "assistant_tokens": sum(sum(s.loss_mask) for s in rows.train),
        "longest": max((len(s.token_ids) for s in encoded.samples), default=0),
    }


def _fraction(name: str) -> float:
    """A number in [0, 1) that only the name decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
