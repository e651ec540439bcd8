"""What the making of tasks needs of tau2: the rows of a domain's database, calls replayed on a fresh one, and the test tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tau2rl.env.domain import domain
from tau2rl.env.grading import replay_task
from tau2rl.env.package import installed
from tau2rl.types import CallTool

from tau2.data_model.tasks import Action, Task
from tau2.environment.environment import Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Where a sequence of calls leaves a fresh database: `Outcome(hash="9f2c...", errors=("", "Error: Order not found"))`."""

    hash: str
    errors: tuple[str, ...]  # one a call; "" where it succeeded


class Replayer:
    """Replays calls of one domain, each time on a database in its initial state."""

    def __init__(self, name: str) -> None:
        """Raises UserError for an unknown domain or missing data."""
        self._domain = domain(name)
        self.policy = self._domain.policy
        self.writes = frozenset(tool for tool, kind in self._domain.tool_types.items() if kind == "write")

    def rows(self) -> dict[str, dict[str, Any]]:
        """Table -> id -> row as JSON values, in the initial state."""
        environment: Any = self._domain.environment()
        return environment.tools.db.model_dump(mode="json")

    def run(self, calls: Sequence[CallTool]) -> Outcome:
        """Carry out the agent's calls in order; a refused call changes nothing and the next one follows."""
        environment = self._domain.environment()
        errors = tuple(_error(environment, call) for call in calls)
        return Outcome(hash=environment.get_db_hash() or "", errors=errors)

    def identity(self) -> dict[str, Any]:
        """What pins the domain: tau2's distribution and version, hashes of its data."""
        package = installed()
        return {"tau2": {"distribution": package.distribution, "version": package.version}, "data": self._domain.hashes()}

    def test_tasks(self) -> list[dict[str, Any]]:
        """The domain's own test tasks, as JSON values."""
        return [task.model_dump(mode="json") for task in self._domain.tasks("test").values()]

    def reward(self, task: dict[str, Any], calls: Sequence[CallTool], said: Sequence[str] = ()) -> float:
        """tau2's own reward when exactly these calls are made and these messages said. Raises EnvironmentFailure."""
        actions = [Action(action_id=str(i), name=call.name, arguments=dict(call.arguments)) for i, call in enumerate(calls)]
        return float(replay_task(self._domain, Task.model_validate(task), actions, said)["reward"])


def _error(environment: Environment, call: CallTool) -> str:
    """Carry out a call; what tau2's `get_response` would report of a refusal, whose text of an answer nobody reads here."""
    try:
        environment.make_tool_call(call.name, requestor="assistant", **call.arguments)
        environment.sync_tools()
    except Exception as failure:  # noqa: BLE001 - as tau2: whatever a tool raises is its answer
        return f"Error: {failure}"
    return ""
