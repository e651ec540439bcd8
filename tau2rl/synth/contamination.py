"""What made tasks share with the benchmark's test tasks.

Users, entities, gold arguments and runs of words; of telecom, whose tasks are all about the same few people, what is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tau2rl.env.task_cells import named_problems
from tau2rl.synth.request import Affordances

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
        return [as_text(a["name"], a["arguments"]) for a in actions_of(task) if a["name"] in self.writes]


@dataclass(frozen=True, slots=True, kw_only=True)
class TelecomOverlap:
    """What a telecom task shares with the test tasks: `TelecomOverlap(people=("C1001",), composition=True, words=())`."""

    people: tuple[str, ...]  # by name, phone number, or id of theirs
    composition: bool  # a test task has the same things wrong with what the same users want
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
        return TelecomOverlap(
            people=tuple(self.named(json.dumps(task))),
            composition=self.has(intent, problems),
            words=tuple(sorted(runs(spoken(task)) & self._words)),
        )

    def has(self, intent: str, problems: Iterable[str]) -> bool:
        """Whether a test task has just these problems, by tau2's names, with this intent."""
        return (intent, frozenset(problems)) in self.compositions

    def named(self, text: str) -> list[str]:
        """Whom of tau2's customers a text names."""
        return [id for id, names in self.people.items() if any(name in text for name in names)]


def actions_of(task: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The reference actions of a tau2 task."""
    return (task.get("evaluation_criteria") or {}).get("actions") or ()


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
