"""Tasks in number for tau2's `mock` domain, made from its own tools and database: the splits `synth-train`, `-select`, `-test`.

A task is what its split and number say, on every machine. Its id tells what it is: `synth-test-0000-update+create_ask` is
number 0 of the test pool, a user who wants a task updated, then another created, and gives their user id when asked.
People, ids and titles are shared out between the splits before anything is drawn, so nothing that a test task names was ever
seen in training. Every request changes the database or demands a fact: a policy that always does the same solves none.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tau2rl.enums import TRANSFER_TOOL
from tau2rl.env import quiet_tau2  # noqa: F401 - before tau2
from tau2rl.env.synth_requests import REQUESTS, Person, World, draw_kinds, perform
from tau2rl.hashing import derive_seed
from tau2rl.types import Action, CallTool, TaskRef

from tau2.data_model.tasks import Task

PREFIX = "synth-"
SIZES = {"synth-train": 5000, "synth-select": 500, "synth-test": 1000}
SHARES = {"synth-train": (0.0, 0.6), "synth-select": (0.6, 0.8), "synth-test": (0.8, 1.0)}  # of every pool of entities
HELD_OUT = ("synth-select", "synth-test")
MIX = {1: 0.5, 2: 0.4, 3: 0.1}  # how many requests a conversation has
# Marks a task whose scripted user says its lines word for word (`scripted_user.LineUser`); an LLM user can follow it too.
SAY_YOUR_LINES = (
    "Open with the reason for the call. Each time that the agent speaks to you, say the next line of the known info, word for "
    "word. When no line is left, stop."
)

FIRST = (
    "Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Iris", "Jack", "Kira", "Liam", "Mona", "Noah",
    "Olga", "Paul",
)  # fmt: skip
LAST = (
    "Adams", "Baker", "Clark", "Davis", "Evans", "Fox", "Green", "Hill", "Irwin", "Jones", "King", "Lee", "Moore",
    "Nash", "Owen", "Price",
)  # fmt: skip
ADJECTIVE = (
    "Annual", "Budget", "Client", "Design", "Editor", "Family", "Garden", "Health", "Invoice", "Journal", "Kitchen",
    "Launch",
)  # fmt: skip
NOUN = (
    "Agenda", "Briefing", "Checklist", "Draft", "Estimate", "Forecast", "Guide", "Handbook", "Interview", "Letter",
    "Meeting", "Notes",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthTask:
    """A task with the way to solve it: `SynthTask(id="synth-test-0002-create", kinds=("create",), lines=(...,), ...)`."""

    id: str
    kinds: tuple[str, ...]
    task: dict[str, Any]  # tau2's Task as JSON values
    lines: tuple[str, ...]  # what the user says; then they stop
    demo: tuple[Action, ...]  # what an agent that solves it does, one action a turn
    entities: frozenset[str]  # every name, id and title that is said


class Pool(Mapping[str, Task]):
    """The tasks of one split, each made when it is looked at."""

    def __init__(self, split: str) -> None:
        self._split = split
        self._numbers = {task_id(split, number): number for number in range(SIZES[split])}

    def __getitem__(self, key: str) -> Task:
        return _tau2_task(self._split, self._numbers[key])

    def __contains__(self, key: object) -> bool:
        return key in self._numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def is_synth(split: str) -> bool:
    """Whether a split of `mock` is synthesised.

    >>> is_synth("synth-test"), is_synth("base")
    (True, False)
    """
    return split in SIZES


def task_id(split: str, number: int) -> str:
    """The id of a task, without making the task.

    >>> task_id("synth-train", 0)
    'synth-train-0000-update'
    """
    return f"{split}-{number:04}-{'+'.join(_kinds(split, number))}"


def kinds_of(id: str) -> tuple[str, ...]:
    """What a synthesised task asks for, from its id.

    >>> kinds_of("synth-test-0000-update+create_ask")
    ('update', 'create_ask')
    """
    return tuple(id.split("-", 3)[3].split("+"))


def of(ref: TaskRef) -> SynthTask:
    """The synthesised task that `ref` names."""
    return synthesise(ref.split, int(ref.task_id.split("-")[2]))


@functools.lru_cache(maxsize=1024)
def synthesise(split: str, number: int) -> SynthTask:
    """Task `number` of a split."""
    rng = random.Random(f"task/{split}/{number}")
    kinds = _kinds(split, number)
    people = _people(rng, split, max(2, len(kinds)))
    extra = rng.randrange(6)
    data = _database(people, extra)
    titles = rng.sample(_entities("titles", split), len(kinds))
    world = World(rng=rng, people=people, titles=titles, num_tasks=1 + len(people) + extra)  # 1: tau2's own task_1 stays
    for kind in kinds:
        perform(kind, world)
    id = task_id(split, number)
    return SynthTask(
        id=id,
        kinds=kinds,
        task=_task(id, kinds, world, data),
        lines=tuple(world.lines),
        demo=tuple(world.demo),
        entities=frozenset(world.entities),
    )


def fingerprint() -> str:
    """16 hex digits that name what this version makes, from the first tasks of every split."""
    tasks = [synthesise(split, number).task for split in SIZES for number in range(4 * len(REQUESTS))]
    return hashlib.sha256(json.dumps(tasks, sort_keys=True).encode()).hexdigest()[:16]


def slipped(task: SynthTask, *, share: float, seed: int) -> tuple[Action, ...]:
    """The demonstration of an imperfect teacher, who gets each change wrong with probability `share`.

    A slip is one of: says that it is done without acting, gives up to a human, sets the wrong status, takes somebody else's id.
    The conversation goes on as if nothing had happened. What is trained on such demonstrations has something left to gain.
    """
    rng = random.Random(derive_seed("slip", seed, task.id))
    data = task.task["initial_state"]["initialization_data"]["agent_data"]
    out: list[Action] = []
    for step in task.demo:
        if not isinstance(step, CallTool) or step.name == "get_users" or rng.random() >= share:
            out.append(step)
            continue
        match rng.choice(("no_act", "transfer", "wrong_status", "wrong_id")):
            case "transfer":
                out.append(CallTool(name=TRANSFER_TOOL, arguments={"summary": "The user needs help."}))
            case "wrong_status" if "status" in step.arguments:
                status = "pending" if step.arguments["status"] == "completed" else "completed"
                out.append(CallTool(name=step.name, arguments={**step.arguments, "status": status}))
            case "wrong_id":
                key, table = ("task_id", "tasks") if "task_id" in step.arguments else ("user_id", "users")
                others = sorted(data[table].keys() - {step.arguments[key]})
                out.append(CallTool(name=step.name, arguments={**step.arguments, key: rng.choice(others)}))
            case _:
                pass
    return tuple(out)


@functools.lru_cache(maxsize=1024)
def _tau2_task(split: str, number: int) -> Task:
    return Task.model_validate(synthesise(split, number).task)


def _kinds(split: str, number: int) -> tuple[str, ...]:
    """The first kinds come in turn, so that any run of tasks has all of them in equal numbers."""
    rng = random.Random(f"kinds/{split}/{number}")
    count = rng.choices(list(MIX), list(MIX.values()))[0]
    return draw_kinds(rng, list(REQUESTS)[number % len(REQUESTS)], count)


@functools.cache
def _entities(name: str, split: str) -> list[str]:
    """A split's own share of the names, titles or ids."""
    match name:
        case "names":
            pool = [f"{first} {last}" for first in FIRST for last in LAST]
        case "titles":
            pool = [f"{adjective} {noun}" for adjective in ADJECTIVE for noun in NOUN]
        case _:
            pool = [str(number) for number in range(1000, 10000)]
    random.Random(f"entities/{name}").shuffle(pool)
    low, high = SHARES[split]
    return pool[int(low * len(pool)) : int(high * len(pool))]


def _people(rng: random.Random, split: str, count: int) -> list[Person]:
    names, ids = rng.sample(_entities("names", split), count), rng.sample(_entities("ids", split), 2 * count)
    return [
        Person(
            user_id=f"user_{ids[2 * i]}",
            name=names[i],
            task_id=f"task_{ids[2 * i + 1]}",
            status=rng.choice(("pending", "completed")),
        )
        for i in range(count)
    ]


def _database(people: list[Person], extra: int) -> dict[str, Any]:
    """What is added to tau2's database; the `extra` tasks are nobody's, so that the number of the next one varies."""
    tasks = {p.task_id: {"task_id": p.task_id, "title": "Old", "status": p.status} for p in people}
    tasks |= {f"task_{900 + i}": {"task_id": f"task_{900 + i}", "title": "Old", "status": "pending"} for i in range(extra)}
    return {"tasks": tasks, "users": {p.user_id: {"user_id": p.user_id, "name": p.name, "tasks": [p.task_id]} for p in people}}


def _task(id: str, kinds: tuple[str, ...], world: World, data: dict[str, Any]) -> dict[str, Any]:
    calls = [step for step in world.demo if isinstance(step, CallTool)]
    return {
        "id": id,
        "description": {"purpose": " + ".join(kinds)},
        "user_scenario": {
            "instructions": {
                "domain": "mock",
                "reason_for_call": world.lines[0],
                "known_info": "\n".join(world.lines[1:]) or None,
                "task_instructions": SAY_YOUR_LINES,
            }
        },
        "initial_state": {"initialization_data": {"agent_data": data}},
        "evaluation_criteria": {
            "actions": [{"action_id": f"{id}/{i}", "name": c.name, "arguments": c.arguments} for i, c in enumerate(calls)],
            "communicate_info": world.communicate or None,
            "reward_basis": ["DB", "COMMUNICATE"],
        },
    }
