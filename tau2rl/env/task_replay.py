"""What the making of tasks needs of tau2: the rows of a domain's database, calls replayed on a fresh one, and the test tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tau2rl.env.domain import domain
from tau2rl.env.factory import copies_of
from tau2rl.env.grading import replay_task
from tau2rl.env.package import installed
from tau2rl.types import CallTool

from tau2.data_model.tasks import Action, Task
from tau2.environment.environment import Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOutcome:
    """Where calls leave a fresh database: `ReplayOutcome(hash="9f2c...", errors=("", "Error: Order not found"))`."""

    hash: str
    errors: tuple[str, ...]  # one a call; "" where it succeeded


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayEnded:
    """Where actions of both sides leave a task: `ReplayEnded(hash="9f2c...", errors=("", ""), holds=True)`."""

    hash: str  # of both databases
    errors: tuple[str, ...]  # one an action; "" where it succeeded
    holds: bool  # whether everything holds that the task asks of the environment at the end


class Replayer:
    """Replays calls of one domain, each time on a database in its initial state."""

    def __init__(self, name: str) -> None:
        """Raises UserError for an unknown domain or missing data."""
        self._domain = domain(name)
        self.policy = self._domain.policy
        self.writes = frozenset(tool for tool, kind in self._domain.tool_types.items() if kind == "write")

    def rows(self) -> dict[str, Any]:
        """Table -> id -> row (telecom: a list of rows) as JSON values, in the initial state."""
        environment: Any = self._domain.environment()
        return environment.tools.db.model_dump(mode="json")

    def run(self, calls: Sequence[CallTool]) -> ReplayOutcome:
        """Carry out the agent's calls in order; a refused call changes nothing and the next one follows."""
        environment = self._domain.environment()
        errors = tuple(_error(environment, call) for call in calls)
        return ReplayOutcome(hash=environment.get_db_hash() or "", errors=errors)

    def identity(self) -> dict[str, Any]:
        """What pins the domain: tau2's distribution and version, hashes of its data."""
        package = installed()
        return {"tau2": {"distribution": package.distribution, "version": package.version}, "data": self._domain.hashes()}

    def tasks(self, split: str) -> list[dict[str, Any]]:
        """The domain's own tasks of a split, as JSON values."""
        return [task.model_dump(mode="json") for task in self._domain.tasks(split).values()]

    def reward(self, task: dict[str, Any], calls: Sequence[CallTool], said: Sequence[str] = ()) -> float:
        """tau2's own reward when exactly these calls are made and these messages said. Raises EnvironmentFailure."""
        actions = [Action(action_id=str(i), name=call.name, arguments=dict(call.arguments)) for i, call in enumerate(calls)]
        return float(replay_task(self._domain, Task.model_validate(task), actions, said)["reward"])


def _error(environment: Environment, call: CallTool, requestor: Literal["user", "assistant"] = "assistant") -> str:
    """Carry out a call; what tau2's `get_response` would report of a refusal, whose text of an answer nobody reads here."""
    try:
        environment.make_tool_call(call.name, requestor=requestor, **call.arguments)
        environment.sync_tools()
    except Exception as failure:  # noqa: BLE001 - as tau2: whatever a tool raises is its answer
        return f"Error: {failure}"
    return ""


class TaskReplayer:
    """Replays actions of both sides on one task, each time in the initial state that the task gives its domain."""

    def __init__(self, name: str, task: dict[str, Any]) -> None:
        """`task`: tau2's Task as JSON values."""
        self._domain, self._task = domain(name), Task.model_validate(task)
        environment = self._domain.environment()
        initial = self._task.initial_state
        environment.set_state(
            initialization_data=initial.initialization_data if initial else None,
            initialization_actions=initial.initialization_actions if initial else None,
            message_history=[],
        )
        self._fresh = copies_of(environment, name)
        self._asserts = list((self._task.evaluation_criteria.env_assertions if self._task.evaluation_criteria else None) or ())

    def run(self, actions: Sequence[Mapping[str, Any]]) -> ReplayEnded:
        """Carry out reference actions as JSON values; one that is refused changes nothing, and the next one follows."""
        environment = self._fresh()
        errors = tuple(_error(environment, CallTool(name=a["name"], arguments=a["arguments"]), a["requestor"]) for a in actions)
        hashes = f"{environment.get_db_hash()} {environment.get_user_db_hash()}"
        holds = all(environment.run_env_assertion(each, raise_assertion_error=False) for each in self._asserts)
        return ReplayEnded(hash=hashlib.sha256(hashes.encode()).hexdigest(), errors=errors, holds=holds)

    def reward(self, actions: Sequence[Mapping[str, Any]], said: Sequence[str] = ()) -> float:
        """tau2's own reward when exactly these actions are taken and these messages said. Raises EnvironmentFailure."""
        taken = [Action.model_validate({**action, "action_id": str(i)}) for i, action in enumerate(actions)]
        return float(replay_task(self._domain, self._task, taken, said)["reward"])
