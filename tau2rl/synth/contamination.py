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
from tau2rl.synth.telecom_problems import composition
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


PLAYED = "test tasks"
MARKS = ("users", "entities", "gold arguments", "runs of words")
WRONG, PATH = "problems", "reference paths"  # of telecom
Found = dict[str, tuple[str, ...]]


class RowGuard:
    """Compares rows with the test tasks of their domains, each loaded when a row needs it.

    Airline and retail: `PLAYED` and `MARKS`; telecom: also `WRONG` and `PATH`; other domains: whether a row was played on a test
    task.
    """

    def __init__(self) -> None:
        self._guard = functools.cache(_guard)

    def compared(self, name: str) -> tuple[str, ...]:
        """What is compared for a domain; nothing where nobody knows it."""
        if name == "telecom":
            return (PLAYED, WRONG, PATH, *MARKS)
        return (PLAYED, *MARKS) if name in AFFORDANCES else (PLAYED,) if name in known_domains() else ()

    def of_row(self, said: Facts) -> Found:
        """Kind of overlap -> what is shared; only the kinds with something in them."""
        found: Found = {}
        played = TaskRef(domain=said.domain, task_id=said.task, split=said.split or "base")
        if said.domain in known_domains() and is_test(played):
            found[PLAYED] = (said.task,)
        if said.domain in AFFORDANCES or said.domain == "telecom":
            found |= self._guard(said.domain).of_row(said)
        return found


class _DatabaseRows:
    """Of airline and retail, whose test tasks are about some of the users, and their orders and reservations."""

    def __init__(self, guard: ContaminationGuard) -> None:
        self._guard = guard

    def of_row(self, said: Facts) -> Found:
        shared = self._guard.shared(_named_in(said), _writes(said, self._guard.writes), said.said)
        values = (shared.users, shared.entities, shared.arguments, shared.words)
        return {kind: value for kind, value in zip(MARKS, values, strict=True) if value}


class TelecomRows:
    """Of telecom, all of whose tasks, to learn from and for tests, are about one customer and told in a handful of texts.

    So a user, an entity, a call or a run of words is an overlap only where a test task has it and no training task: what both
    have, everybody who trains on tau2's training tasks has seen. Of tau2 26.3 that leaves nothing of any of the four kinds.
    What no training task shares is what is wrong. It is known by the id of a row's task, whatever its persona, and by what was
    done: for a customer of a test task all reference actions of that task, and none that another task has. That tells 26 of the
    40 test tasks; 12 are handed over without an action, and 2 have those of a training task.
    """

    def __init__(
        self,
        *,
        rows: Mapping[str, Any],
        tests: Sequence[Mapping[str, Any]],
        training: Sequence[Mapping[str, Any]],
        writes: frozenset[str],
    ) -> None:
        """`rows`: tau2's own database; `tests`, `training`: tau2 tasks as JSON values; `writes`: the tools that change it."""
        self._writes = writes
        self._guard = TelecomGuard(rows=rows, tests=tests)
        self._entities = {row[key] for table, key in (("lines", "line_id"), ("bills", "bill_id")) for row in rows[table]}
        marks, known = _together(map(self._of_task, tests)), _together(map(self._of_task, training))
        self._marks = {kind: marks[kind] - known[kind] for kind in MARKS}
        self._users = marks["users"]
        paths = {self._path(task): task["id"] for task in tests}
        self._paths = {path: paths[path] for path in paths.keys() - set(map(self._path, training)) if path}
        phone = {action["name"] for task in (*tests, *training) for action in actions_of(task) if action["requestor"] == "user"}
        self._phone = {_plain(name): name for name in sorted(phone, key=len, reverse=True)}  # "toggle data" begins another one

    def of_row(self, said: Facts) -> Found:
        """What a row shares with the test tasks, by kind."""
        writes = _writes(said, self._writes)
        mine = self._of(_named_in(said), writes, said.said)
        found: Found = {kind: tuple(sorted(shared)) for kind in MARKS if (shared := mine[kind] & self._marks[kind])}
        named = named_problems(said.task)
        if named is not None and self._guard.has(named.intent, named.names):
            found[WRONG] = (composition(named.intent, sorted(named.names)),)
        path = frozenset([*writes, *self._asked_for(said.told)])
        if mine["users"] & self._users and path in self._paths:
            found[PATH] = (self._paths[path],)
        return found

    def _of(self, text: str, writes: Iterable[str], said: str) -> dict[str, set[str]]:
        entities = {id for id in self._entities if id in text}
        return dict(zip(MARKS, (set(self._guard.named(text)), entities, set(writes), runs(said)), strict=True))

    def _of_task(self, task: Mapping[str, Any]) -> dict[str, set[str]]:
        writes = (as_text(a["name"], a["arguments"]) for a in actions_of(task) if a["name"] in self._writes)
        return self._of(json.dumps(task), writes, spoken(task))

    def _path(self, task: Mapping[str, Any]) -> frozenset[str]:
        """What is done in a task: the agent's writes with their arguments, the user's actions by name."""
        mine = {action["name"] for action in actions_of(task) if action["requestor"] == "user"}
        return frozenset(mine | self._of_task(task)["gold arguments"])

    def _asked_for(self, told: str) -> set[str]:
        """What of the phone the agent names: `toggle_data()`, "toggle data"."""
        return {self._phone[name] for name in re.findall(rf"\b(?:{'|'.join(self._phone)})\b", _plain(told))}


def overlap_words(found: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """The overlaps as faults of a row: `it shares users with the test tasks: mei_li_1`."""
    for kind, values in found.items():
        shown = ", ".join(values[:3]) + (f" and {len(values) - 3} more" if len(values) > 3 else "")
        yield f"it shares {kind} with the test tasks: {shown}"


def _guard(name: str) -> _DatabaseRows | TelecomRows:
    replayer = Replayer(name)
    rows, tests, writes = replayer.rows(), replayer.tasks("test"), replayer.writes
    if name == "telecom":
        return TelecomRows(rows=rows, tests=tests, training=replayer.tasks("train"), writes=writes)
    return _DatabaseRows(ContaminationGuard(domain=AFFORDANCES[name](rows), tests=tests, writes=writes))


def _named_in(said: Facts) -> str:
    return "\n".join([said.said, *(json.dumps(call.arguments) for call in said.calls)])


def _writes(said: Facts, tools: frozenset[str]) -> list[str]:
    return [as_text(call.name, call.arguments) for call in said.calls if call.name in tools]


def _together(marks: Iterable[Mapping[str, set[str]]]) -> dict[str, set[str]]:
    listed = list(marks)
    return {kind: set[str]().union(*(each[kind] for each in listed)) for kind in MARKS}


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
