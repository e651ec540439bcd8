"""What rows to train on share with the benchmark's test tasks: the guard of made tasks, for conversations from anywhere."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping

from tau2rl.data.layouts import Facts
from tau2rl.env.domain import known_domains
from tau2rl.env.task_replay import Replayer
from tau2rl.env.tasks import is_test
from tau2rl.synth.database_tasks import AFFORDANCES
from tau2rl.synth.guard import Guard, Overlap, as_text
from tau2rl.types import TaskRef

KINDS = ("test tasks", "users", "entities", "gold arguments", "runs of words")


class RowGuard:
    """Compares rows with the test tasks of their domains, each loaded when a row needs it.

    Airline and retail: all of `KINDS`. Other domains: whether a row was played on a test task; telecom's tasks are all about the
    same few people, lines and sentences, so that what its training tasks share with them says nothing.
    """

    def __init__(self) -> None:
        self._guard = functools.cache(_guard)

    def compared(self, name: str) -> tuple[str, ...]:
        """What is compared for a domain; nothing where nobody knows it."""
        return KINDS if name in AFFORDANCES else KINDS[:1] if name in known_domains() else ()

    def of_row(self, said: Facts) -> dict[str, tuple[str, ...]]:
        """Kind of overlap -> what is shared; only the kinds with something in them."""
        found: dict[str, tuple[str, ...]] = {}
        played = TaskRef(domain=said.domain, task_id=said.task, split=said.split or "base")
        if said.domain in known_domains() and is_test(played):
            found[KINDS[0]] = (said.task,)
        if said.domain not in AFFORDANCES:
            return found
        guard = self._guard(said.domain)
        text = "\n".join([said.said, *(json.dumps(call.arguments) for call in said.calls)])
        writes = [as_text(call.name, call.arguments) for call in said.calls if call.name in guard.writes]
        return found | _by_kind(guard.shared(text, writes, said.said))


def in_words(found: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """The overlaps as faults of a row: `it shares users with the test tasks: mei_li_1`."""
    for kind, values in found.items():
        shown = ", ".join(values[:3]) + (f" and {len(values) - 3} more" if len(values) > 3 else "")
        yield f"it shares {kind} with the test tasks: {shown}"


def _by_kind(overlap: Overlap) -> dict[str, tuple[str, ...]]:
    values = (overlap.users, overlap.entities, overlap.arguments, overlap.words)
    return {kind: shared for kind, shared in zip(KINDS[1:], values, strict=True) if shared}


def _guard(name: str) -> Guard:
    replayer = Replayer(name)
    return Guard(domain=AFFORDANCES[name](replayer.rows()), tests=replayer.test_tasks(), writes=replayer.writes)
