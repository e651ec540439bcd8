"""tau2's own grading, spared what it does again.

To grade a conversation tau2 makes two environments: in one it carries out every tool call of the conversation again, in the other
the reference path, and then it compares their databases and asks the first one the task's questions. Here the first is the
environment in which the conversation took place, and the second is asked once for each reference path, known by its content.
Where a repetition could end elsewhere than the conversation did, tau2 repeats it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

from tau2rl.bench.domain import Domain, Hashes
from tau2rl.bench.package import NVIDIA, installed

from tau2.data_model.message import ToolMessage  # isort: skip
from tau2.data_model.simulation import SimulationRun
from tau2.data_model.tasks import Task
from tau2.environment.environment import Environment
from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation

DRAWS_LOTS = frozenset({"refuel_data"})  # its bill has a random id


def grade(domain: Domain, task: Task, simulation: SimulationRun, live: Environment, hashes: Hashes) -> dict[str, Any]:
    """tau2's RewardInfo of a conversation as JSON values; `live` is its environment, `hashes` those of its databases now."""
    stands_in = (_Played(live, hashes) if is_repeatable(simulation.messages, live) else domain.environment(), _Gold(domain, task))
    with domain.handing_out(*(stands_in if _known_evaluator() else ())):
        info = evaluate_simulation(
            simulation=simulation, task=task, evaluation_type=EvaluationType.ALL, solo_mode=False, domain=domain.registered
        )
    return info.model_dump(mode="json")


class _Played:
    """Stands in the place of a repetition: the environment in which the conversation took place."""

    def __init__(self, live: Environment, hashes: Hashes) -> None:
        self._hashes = hashes
        self.run_env_assertion = live.run_env_assertion

    def set_state(self, *_: Any, **__: Any) -> None:
        """Nothing is done again."""

    def get_db_hash(self) -> str | None:
        return self._hashes[0]

    def get_user_db_hash(self) -> str | None:
        return self._hashes[1]


class _Gold:
    """Stands in the place of the environment in which the reference path is carried out: that one, or what is known of it."""

    def __init__(self, domain: Domain, task: Task) -> None:
        self._domain = domain
        self._name = reference(domain, task)
        self._hashes = domain.gold_end(self._name)
        self._environment = None if self._hashes else domain.environment()

    def set_state(self, *arguments: Any, **named: Any) -> None:
        if self._environment:
            self._environment.set_state(*arguments, **named)

    def make_tool_call(self, *arguments: Any, **named: Any) -> None:
        if self._environment:
            self._environment.make_tool_call(*arguments, **named)

    def get_db_hash(self) -> str | None:
        return self._end()[0]

    def get_user_db_hash(self) -> str | None:
        return self._end()[1]

    def _end(self) -> Hashes:
        if self._hashes is None:
            assert self._environment is not None
            self._hashes = self._environment.get_db_hash(), self._environment.get_user_db_hash()
            self._domain.keep_gold_end(self._name, self._hashes)
        return self._hashes


def reference(domain: Domain, task: Task) -> str:
    """What decides the end of a reference path: the databases, the task's initial state, the actions."""
    actions = task.evaluation_criteria.actions if task.evaluation_criteria else None
    parts = [domain.content, *(part.model_dump_json() for part in (task.initial_state, *(actions or ())) if part)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _known_evaluator() -> bool:
    return installed().distribution == NVIDIA


def is_repeatable(messages: Sequence[Any], live: Environment) -> bool:
    """Whether the tool calls, carried out again, are certain to give the same answers and the same databases."""
    for message in messages:
        if isinstance(message, ToolMessage):
            # tau2 compares answers as JSON, in which NaN is not NaN; and after a refused call the phone is told of the
            # line's state at once in a conversation, later in a repetition.
            if "NaN" in (message.content or "") or (message.error and live.user_tools is not None):
                return False
        elif any(call.name in DRAWS_LOTS for call in message.tool_calls or ()):
            return False
    return True
