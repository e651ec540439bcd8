"""tau2's verdict: on a conversation that was played, on one that was kept, and on a fixed sequence of actions without one.

tau2 grades by doing everything again in fresh environments: the conversation in one, the reference path in another. Where that is
certain to come to what is known already, it is handed a stand-in that knows.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tau2rl.enums import UserSignal
from tau2rl.env.domain import Domain, Hashes, domain
from tau2rl.env.factory import OWN
from tau2rl.env.package import NVIDIA, installed
from tau2rl.errors import EnvironmentFailure
from tau2rl.types import Episode, StopReason, TaskRef

from tau2.data_model.message import AssistantMessage, Message, ToolCall, ToolMessage, UserMessage
from tau2.data_model.simulation import SimulationRun, TerminationReason
from tau2.data_model.tasks import Task
from tau2.environment.environment import Environment
from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation

DRAWS_LOTS = frozenset({"refuel_data"})  # its bill has a random id


def grade(domain: Domain, task: Task, simulation: SimulationRun, live: Environment, hashes: Hashes) -> dict[str, Any]:
    """tau2's RewardInfo of a conversation as JSON values; `live` is its environment, `hashes` those of its databases now."""
    stand_ins: tuple[Any, ...] = ()
    if _known_evaluator() and domain.name in OWN:  # what another domain's tools do the second time, nobody here knows
        again = _Played(live, hashes) if is_repeatable(simulation.messages, live) else domain.environment()
        stand_ins = (again, _Gold(domain, task))
    with domain.handing_out(*stand_ins):
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
        self._name = reference_grade(domain, task)
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


def grade_again(episode: Episode) -> dict[str, Any]:
    """tau2's RewardInfo (JSON values) of a kept conversation: its calls are carried out again in a fresh environment.

    By the rule of a live one: what nobody stopped has its checks and a reward of 0. Raises EnvironmentFailure where the tools
    answer otherwise than they did, or tau2's grader raised.
    """
    loaded = domain(episode.task.domain)
    task = loaded.task(episode.task)
    stopped = episode.stop_reason in (StopReason.USER_STOP, StopReason.AGENT_STOP)
    try:
        messages = _messages().validate_python(list(episode.trajectory))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise EnvironmentFailure(f"the kept trajectory is not of tau2's layout: {first['loc']}: {first['msg']}") from None
    simulation = _simulation(
        task,
        sorted(messages, key=lambda message: message.timestamp or ""),
        StopReason.USER_STOP if not stopped else episode.stop_reason,
    )
    stand_ins = (loaded.environment(), _Gold(loaded, task)) if _known_evaluator() and loaded.name in OWN else ()
    with loaded.handing_out(*stand_ins):
        info = _evaluated(simulation, task, loaded)
    return info if stopped else {**info, "reward": 0.0}


@functools.cache
def _messages() -> TypeAdapter[list[Any]]:
    return TypeAdapter(list[Message])


def reference_grade(domain: Domain, task: Task) -> str:
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


def replay(ref: TaskRef, actions: Sequence[Any], said: Sequence[str] = ()) -> dict[str, Any]:
    """tau2's RewardInfo (JSON values) for a conversation in which exactly these actions happened and the user then hung up.

    `actions` are tau2 `Action`s of either side, `said` the agent's messages. Tool errors are part of the history, as in a
    conversation. Raises EnvironmentFailure when tau2's grader raised.
    """
    loaded = domain(ref.domain)
    return replay_task(loaded, loaded.task(ref), actions, said)


def replay_task(loaded: Domain, task: Task, actions: Sequence[Any], said: Sequence[str] = ()) -> dict[str, Any]:
    """`replay` for a task that need not be in any split of its domain."""
    environment = loaded.environment()
    initial = task.initial_state
    history = list(initial.message_history or []) if initial else []
    environment.set_state(
        initialization_data=initial.initialization_data if initial else None,
        initialization_actions=initial.initialization_actions if initial else None,
        message_history=history,
    )
    messages: list[Any] = list(history)
    for index, action in enumerate(actions):
        call = ToolCall(id=f"call_{index}", name=action.name, arguments=action.arguments, requestor=action.requestor)
        said_by_user = action.requestor == "user"
        user, agent = UserMessage(role="user", tool_calls=[call]), AssistantMessage(role="assistant", tool_calls=[call])
        messages += [user if said_by_user else agent, environment.get_response(call)]
    messages += [AssistantMessage(role="assistant", content=text) for text in said]
    messages.append(UserMessage(role="user", content=UserSignal.STOP.value))
    return _evaluated(_simulation(task, messages, StopReason.USER_STOP), task, loaded)


def _simulation(task: Task, messages: list[Any], ended_by: StopReason) -> SimulationRun:
    return SimulationRun(
        id="replay",
        task_id=task.id,
        start_time="",
        end_time="",
        duration=0.0,
        termination_reason=TerminationReason(ended_by.value),
        messages=messages,
    )


def _evaluated(simulation: SimulationRun, task: Task, loaded: Domain) -> dict[str, Any]:
    """tau2's grader over a whole conversation. Raises EnvironmentFailure when it raised."""
    try:
        info = evaluate_simulation(
            simulation=simulation, task=task, evaluation_type=EvaluationType.ALL, solo_mode=False, domain=loaded.registered
        )
    except Exception as error:
        raise EnvironmentFailure(f"tau2's grader raised {type(error).__name__}: {error}") from error
    return info.model_dump(mode="json")


def why_not_one(info: dict[str, Any]) -> str:
    """The checks that failed, in words; "" for a reward of 1.

    >>> why_not_one({"reward": 0.0, "reward_breakdown": {"DB": 0.0}, "communicate_checks": [{"info": "327", "met": False}]})
    'the database differs; not communicated: 327'
    """
    if info["reward"] >= 1.0 - 1e-6:
        return ""
    parts: list[str] = []
    breakdown = info.get("reward_breakdown") or {}
    if breakdown.get("DB") == 0.0:
        parts.append("the database differs")
    failed = [c["env_assertion"]["func_name"] for c in info.get("env_assertions") or () if not c["met"]]
    parts += [f"failed assertions: {', '.join(failed)}"] if failed else []
    unmet = [c["info"] for c in info.get("communicate_checks") or () if not c["met"]]
    parts += [f"not communicated: {', '.join(unmet)}"] if unmet else []
    if breakdown.get("ACTION") == 0.0:
        missing = [c["action"]["name"] for c in info.get("action_checks") or () if not c["action_match"]]
        parts.append(f"actions not performed: {', '.join(missing)}")
    return "; ".join(parts) or f"reward {info['reward']}: {json.dumps(breakdown)}"
