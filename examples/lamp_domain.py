"""A tau2 domain of your own: one lamp, one tool, two tasks, registered with tau2's registry when the module is imported.

plugins: [examples.lamp_domain]
tasks: {domains: [lamp], split: test}
"""

from __future__ import annotations

from typing import Any

from tau2.data_model.tasks import Task
from tau2.environment.db import DB
from tau2.environment.environment import Environment
from tau2.environment.toolkit import ToolKitBase, ToolType, is_tool
from tau2.registry import registry

NAME = "lamp"
POLICY = "You switch the lamp on or off, as the user asks, with `switch`. Say `done` when it is done."
SPLITS = {"base": ["on", "off"], "train": ["off"], "test": ["on"]}


class LampDB(DB):
    """The database: one lamp."""

    on: bool | None = None  # every environment has its own


class LampTools(ToolKitBase):
    """The agent's tools."""

    db: LampDB

    @is_tool(ToolType.WRITE)
    def switch(self, on: bool) -> str:
        """Switch the lamp, so that it is lit or not."""
        self.db.on = on
        return "the lamp is on" if on else "the lamp is off"


def environment(solo_mode: bool = False) -> Environment:
    """A fresh environment; tau2 asks for one for every conversation, and to replay the reference actions."""
    return Environment(domain_name=NAME, policy=POLICY, tools=LampTools(LampDB()))


def tasks(split: str | None = None) -> list[Task]:
    """All tasks, or those of a split."""
    return [Task.model_validate(task(word)) for word in SPLITS[split or "base"]]


def task(word: str) -> dict[str, Any]:
    """What the user wants, and the action that tau2 compares the database with."""
    action = {"action_id": "1", "name": "switch", "arguments": {"on": word == "on"}, "info": f"Switch the lamp {word}."}
    criteria = {"actions": [action], "reward_basis": ["DB"]}
    return {"id": word, "user_scenario": {"instructions": f"Switch the lamp {word}."}, "evaluation_criteria": criteria}


registry.register_domain(environment, NAME)
registry.register_tasks(tasks, NAME, get_task_splits=lambda: SPLITS)
