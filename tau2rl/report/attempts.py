"""Which record of an attempt counts, for everybody who reads records: report, dataset, checkpoint selection.

An attempt can have several records: a resumed run tries again what had FAILED, and files can be joined by hand. The rule is
that a valid episode (completed, truncated or malformed) stands once it is there: a run takes the attempt for done, and the
report of that moment was made of it. Until then the last FAILED record says why the attempt has none.
"""

from __future__ import annotations

from collections.abc import Iterable

from tau2rl.types import EpisodeRecord, Status


def replaces(*, earlier_failed: bool) -> bool:
    """Whether the next record of an attempt, whatever it is, takes the place of the one that counts so far.

    >>> replaces(earlier_failed=True), replaces(earlier_failed=False)
    (True, False)
    """
    return earlier_failed


def counted(records: Iterable[EpisodeRecord]) -> list[EpisodeRecord]:
    """The record that counts of each attempt, in the order in which the attempts first appear; it keeps them all in memory."""
    found: dict[str, EpisodeRecord] = {}
    for record in records:
        before = found.get(record.attempt.key)
        if before is None or replaces(earlier_failed=before.episode.status is Status.FAILED):
            found[record.attempt.key] = record
    return list(found.values())
