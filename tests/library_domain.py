"""A tau2 domain of one's own, for tests: a library that lends books. Importing it registers it with tau2's registry."""

from __future__ import annotations

from typing import Any

import tau2rl.env.quiet_tau2  # noqa: F401 - before tau2

from tau2.data_model.tasks import Task
from tau2.environment.db import DB
from tau2.environment.environment import Environment
from tau2.environment.toolkit import ToolKitBase, ToolType, is_tool
from tau2.registry import registry


class Library(DB):
    """Title -> who has it, "" for nobody."""

    books: dict[str, str]


class Desk(ToolKitBase):
    """The tools of the agent."""

    db: Library

    @is_tool(ToolType.READ)
    def find_book(self, title: str) -> str:
        """Find out who has a book.

        Args:
            title: The title of the book.
        """
        return self.db.books[title] or "nobody"

    @is_tool(ToolType.WRITE)
    def lend_book(self, title: str, reader: str) -> str:
        """Lend a book to a reader.

        Args:
            title: The title of the book.
            reader: Who gets it.
        """
        if self.db.books[title]:
            raise ValueError(f"{title} is out")
        self.db.books[title] = reader
        return "lent"


def get_environment(solo_mode: bool = False) -> Environment:
    """Emma is out, Dune is not."""
    db = Library(books={"Emma": "Ada", "Dune": ""})
    return Environment(domain_name="library", policy="Lend a book only to who asks for it.", tools=Desk(db))


def _task(id: str, wish: str, actions: list[dict[str, Any]], said: list[str]) -> Task:
    scenario = {"domain": "library", "reason_for_call": wish, "task_instructions": "Be brief.", "known_info": "You are Ben."}
    criteria = {"actions": actions, "communicate_info": said, "reward_basis": ["DB", "COMMUNICATE"]}
    return Task.model_validate({"id": id, "user_scenario": {"instructions": scenario}, "evaluation_criteria": criteria})


LEND = {"action_id": "lend/0", "name": "lend_book", "arguments": {"title": "Dune", "reader": "Ben"}}
FIND = {"action_id": "ask/0", "name": "find_book", "arguments": {"title": "Emma"}}
TASKS = {"lend": _task("lend", "I want to read Dune.", [LEND], []), "ask": _task("ask", "Who has Emma?", [FIND], ["Ada"])}
SPLITS = {"train": ["lend"], "test": ["ask"]}


def get_tasks(task_split_name: str | None = None) -> list[Task]:
    """The tasks of a split, or all of them."""
    return [TASKS[id] for id in (SPLITS[task_split_name] if task_split_name else TASKS)]


if "library" not in registry.get_domains():
    registry.register_domain(get_environment, "library")
    registry.register_tasks(get_tasks, "library", get_task_splits=lambda: SPLITS)
