"""What a synthesised user of the `mock` domain asks for, and how an agent answers it. Pure, knows no tau2.

A request adds to a `World`: what the user says, one line each time that the agent speaks to them, and the demonstration of
an agent that solves it: calls, and messages to the user. Every request changes the database or demands a fact.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tau2rl.types import Action, CallTool, Say

DONE = Say(text="Done. Anything else?")


@dataclass(slots=True, kw_only=True)
class Person:
    """A user in the database: `Person(user_id="user_4711", name="Ada Fox", task_id="task_2026", status="pending")`."""

    user_id: str
    name: str
    task_id: str
    status: str


@dataclass(slots=True, kw_only=True)
class World:
    """The people of one task, and what its requests have claimed so far."""

    rng: random.Random
    people: list[Person]  # whom no request has named yet
    titles: list[str]  # that no request has used yet
    num_tasks: int  # in the database; the next one that is created gets the number behind it
    lines: list[str] = field(default_factory=list[str])  # what the user says
    demo: list[Action] = field(default_factory=list[Action])
    communicate: list[str] = field(default_factory=list[str])
    entities: list[str] = field(default_factory=list[str])  # every name, id and title that is said
    created: str = ""  # the id of the task that was created last

    def someone(self) -> Person:
        """A person whom no other request names."""
        return self.people.pop(self.rng.randrange(len(self.people)))

    def say(self, *templates: str, **values: str) -> None:
        """The user says one of these."""
        self.lines.append(self.rng.choice(templates).format(**values))
        self.entities += [value for name, value in values.items() if name != "status"]

    def call(self, name: str, **arguments: Any) -> None:
        """The agent calls a tool."""
        self.demo.append(CallTool(name=name, arguments=arguments))

    def ask(self, text: str) -> None:
        """The agent speaks to the user."""
        self.demo.append(Say(text=text))

    def create(self, user_id: str, title: str) -> None:
        """The agent creates a task; tau2 names it after the number of tasks."""
        self.call("create_task", user_id=user_id, title=title)
        self.num_tasks += 1
        self.created = f"task_{self.num_tasks}"
        self.demo.append(DONE)

    def update(self, task_id: str, status: str) -> None:
        """The agent sets a status."""
        self.call("update_task_status", task_id=task_id, status=status)
        self.demo.append(DONE)


def flipped(person: Person) -> str:
    """The other status, which the person's task now has: setting it always changes the database."""
    person.status = "completed" if person.status == "pending" else "pending"
    return person.status


def _update(w: World) -> None:
    p = w.someone()
    status = flipped(p)
    w.say(
        "Please mark {task} as {status}.",
        "I want {task} to be {status}.",
        "Set {task} to {status}, please.",
        task=p.task_id,
        status=status,
    )
    w.update(p.task_id, status)


def _update_ask(w: World) -> None:
    p = w.someone()
    status = flipped(p)
    w.say(
        "I want to mark a task as {status}.",
        "One of my tasks should be {status}.",
        "Can you set a task to {status}?",
        status=status,
    )
    w.ask("Which task is it?")
    w.say("It is {task}.", "{task}, please.", "The id is {task}.", task=p.task_id)
    w.update(p.task_id, status)


def _update_named(w: World) -> None:
    p = w.someone()
    status = flipped(p)
    w.say(
        "Please mark the task of {name} as {status}.",
        "I am {name}. Set my task to {status}.",
        "The task of {name} should be {status}.",
        name=p.name,
        status=status,
    )
    w.call("get_users")
    w.update(p.task_id, status)


def _create(w: World) -> None:
    p, title = w.someone(), w.titles.pop()
    w.say(
        'Create a task called "{title}" for {user}.',
        'I am {user} and need a new task "{title}".',
        'Please add "{title}" for {user}.',
        title=title,
        user=p.user_id,
    )
    w.create(p.user_id, title)


def _create_ask(w: World) -> None:
    p, title = w.someone(), w.titles.pop()
    w.say('Create a task called "{title}".', 'I need a new task "{title}".', 'Please add "{title}" to my tasks.', title=title)
    w.ask("What is your user id?")
    w.say("It is {user}.", "{user}, please.", "I am {user}.", user=p.user_id)
    w.create(p.user_id, title)


def _create_ask_title(w: World) -> None:
    p, title = w.someone(), w.titles.pop()
    w.say("I am {user} and need a new task.", "Create a task for {user}.", "{user} needs one more task.", user=p.user_id)
    w.ask("What is its title?")
    w.say('Call it "{title}".', 'It is "{title}".', 'The title is "{title}".', title=title)
    w.create(p.user_id, title)


def _list_named(w: World) -> None:
    p = w.someone()
    w.say("Which task does {name} have?", "I am {name}. What is on my list?", "List the tasks of {name}, please.", name=p.name)
    w.call("get_users")
    w.communicate.append(p.task_id)
    w.entities.append(p.task_id)
    w.ask(f"It is {p.task_id}. Anything else?")


def _follow_up(w: World) -> None:
    w.say("Now mark the new task as completed.", "The new task is completed already.", "Set the new one to completed, please.")
    w.update(w.created, "completed")


FOLLOW_UP = "follow_up"  # only behind a request that creates a task
REQUESTS: dict[str, Callable[[World], None]] = {
    "update": _update,
    "update_ask": _update_ask,
    "create": _create,
    "create_ask": _create_ask,
    "create_ask_title": _create_ask_title,
    "update_named": _update_named,
    "list_named": _list_named,
}


def perform(kind: str, world: World) -> None:
    """Add one request of this kind to the world."""
    (_follow_up if kind == FOLLOW_UP else REQUESTS[kind])(world)


def draw_kinds(rng: random.Random, first: str, count: int) -> tuple[str, ...]:
    """`count` kinds of request, `first` in front; once a task was created, the next request is often about it.

    >>> draw_kinds(random.Random(1), "create", 3)
    ('create', 'follow_up', 'list_named')
    """
    kinds = [first]
    while len(kinds) < count:
        created = any(kind.startswith("create") for kind in kinds) and FOLLOW_UP not in kinds
        kinds.append(FOLLOW_UP if created and rng.random() < 0.4 else rng.choice(list(REQUESTS)))
    return tuple(kinds)
