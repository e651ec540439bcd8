"""What made tasks, and rows to train on from anywhere, share with the benchmark's test tasks.

Users, entities, gold arguments and runs of words; of telecom, whose tasks are all about the same few people, what is wrong.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tau2rl.data.layouts import Facts
from tau2rl.env.domain import known_domains
from tau2rl.env.task_cells import named_problems
from tau2rl.env.task_replay import Replayer
from tau2rl.env.tasks import is_test
from tau2rl.synth.compose import AFFORDANCES
from tau2rl.synth.request import Affordances
from tau2rl.types import TaskRef

WORDS = 8  # a run of so many words that a test task has too is an overlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What a task shares with the test tasks: `Overlap(users=("mei_li_1",), entities=(), arguments=(), words=())`."""

    users: tuple[str, ...]
    entities: tuple[str, ...]  # orders, reservations
    arguments: tuple[str, ...]  # gold calls that change the database, with all their arguments
    words: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.users or self.entities or self.arguments or self.words)


class ContaminationGuard:
    """Knows what the test tasks of a domain are about."""

    def __init__(self, *, domain: Affordances, tests: Sequence[Mapping[str, Any]], writes: frozenset[str]) -> None:
        """`tests`: tau2 tasks as JSON values; `writes`: the tools that change the database."""
        self.domain, self.tests, self.writes = domain, tests, writes
        texts = [json.dumps(task) for task in self.tests]
        self.users = frozenset(id for text in texts for id in self._users_of(text, domain.rows["users"]))
        self.entities = frozenset[str]().union(
            *map(self._entities, texts), *(domain.rows["users"][id][domain.table] for id in self.users)
        )
        self._arguments = frozenset(call for task in self.tests for call in self._writes(task))
        self._words = frozenset(run for task in self.tests for run in runs(spoken(task)))

    def overlap(self, task: Mapping[str, Any]) -> Overlap:
        """What this task shares with them."""
        return self.shared(json.dumps(task), self._writes(task), spoken(task))

    def shared(self, text: str, writes: Iterable[str], said: str) -> Overlap:
        """What a text shares with them that names people and entities, the writes in it (`as_text`), and what a user said."""
        return Overlap(
            users=tuple(sorted(self._users_of(text, self.users))),
            entities=tuple(sorted(self._entities(text) & self.entities)),
            arguments=tuple(sorted(set(writes) & self._arguments)),
            words=tuple(sorted(runs(said) & self._words)),
        )

    def _users_of(self, text: str, among: Iterable[str]) -> set[str]:
        """Whom a task is about: named by id, by email, by an order or reservation of theirs, or by name and zip code."""
        found: set[str] = set()
        entities = self._entities(text)
        for id in among:
            user = self.domain.rows["users"][id]
            name = user["name"]
            by_name = name["last_name"] in text and name["first_name"] in text and user["address"]["zip"] in text
            if id in text or user["email"] in text or by_name or entities & set(user[self.domain.table]):
                found.add(id)
        return found

    def _entities(self, text: str) -> set[str]:
        return set(re.findall(self.domain.entity_pattern, text)) & self.domain.rows[self.domain.table].keys()

    def _writes(self, task: Mapping[str, Any]) -> list[str]:
        actions = (task.get("evaluation_criteria") or {}).get("actions") or []
        return [as_text(a["name"], a["arguments"]) for a in actions if a["name"] in self.writes]


@dataclass(frozen=True, slots=True, kw_only=True)
class TelecomOverlap:
    """What a telecom task shares with the test tasks: `TelecomOverlap(people=("C1001",), composition="mms_issue: ...")`."""

    people: tuple[str, ...]  # by name, phone number, or id of theirs
    composition: str  # the same things wrong with what the same users want; "" where no test task has them
    words: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.people or self.composition or self.words)


class TelecomGuard:
    """Knows what telecom's test tasks are about: a few people, and what is wrong, which their ids name."""

    def __init__(self, *, rows: Mapping[str, Any], tests: Sequence[Mapping[str, Any]]) -> None:
        """`rows`: tau2's own database, whose users are those of the test tasks; `tests`: tau2 tasks as JSON values."""
        self.tests = tests
        lines = {line["line_id"]: line["phone_number"] for line in rows["lines"]}
        self.people = {
            customer["customer_id"]: {
                customer["full_name"], customer["email"], customer["phone_number"], customer["customer_id"],
                *customer["line_ids"], *customer["bill_ids"], *(lines[id] for id in customer["line_ids"]),
            }
            for customer in rows["customers"]
        }  # fmt: skip
        self.compositions = frozenset(_composition_of(task["id"]) for task in tests)
        self._words = frozenset(run for task in tests for run in runs(spoken(task)))

    def overlap(self, task: Mapping[str, Any], intent: str, problems: Iterable[str]) -> TelecomOverlap:
        """What this task shares with them; `problems` by tau2's names."""
        text, composition = json.dumps(task), (intent, frozenset(problems))
        return TelecomOverlap(
            people=tuple(id for id, named in self.people.items() if any(name in text for name in named)),
            composition=f"{composition[0]}: {'|'.join(sorted(problems))}" if composition in self.compositions else "",
            words=tuple(sorted(runs(spoken(task)) & self._words)),
        )


def _composition_of(task_id: str) -> tuple[str, frozenset[str]]:
    """The intent and the problems that the id of one of tau2's telecom tasks names. Raises ValueError where it names none."""
    named = named_problems(task_id)
    if named is None:
        raise ValueError(f"`{task_id}` is not named as tau2 names its telecom tasks")
    return named.intent, frozenset(named.names)


def as_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call with all its arguments, as it is compared."""
    return json.dumps([name, arguments], sort_keys=True)


def spoken(task: Mapping[str, Any]) -> str:
    """What a task tells its user."""
    instructions = task["user_scenario"]["instructions"]
    if isinstance(instructions, str):
        return instructions
    parts = ("reason_for_call", "known_info", "unknown_info", "task_instructions")
    return "\n".join(instructions.get(part) or "" for part in parts)


def runs(text: str) -> set[str]:
    """Every run of `WORDS` words.

    >>> sorted(runs("You want to cancel the order of last week, please"))[0]
    'to cancel the order of last week please'
    """
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {" ".join(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


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


def overlap_words(found: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """The overlaps as faults of a row: `it shares users with the test tasks: mei_li_1`."""
    for kind, values in found.items():
        shown = ", ".join(values[:3]) + (f" and {len(values) - 3} more" if len(values) > 3 else "")
        yield f"it shares {kind} with the test tasks: {shown}"


def _by_kind(overlap: Overlap) -> dict[str, tuple[str, ...]]:
    values = (overlap.users, overlap.entities, overlap.arguments, overlap.words)
    return {kind: shared for kind, shared in zip(KINDS[1:], values, strict=True) if shared}


def _guard(name: str) -> ContaminationGuard:
    replayer = Replayer(name)
    return ContaminationGuard(domain=AFFORDANCES[name](replayer.rows()), tests=replayer.test_tasks(), writes=replayer.writes)
