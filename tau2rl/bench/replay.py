"""Grade a fixed sequence of actions without a conversation: gold checks, floors and perturbations use it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tau2rl.bench.domain import domain
from tau2rl.errors import EnvironmentFailure
from tau2rl.types import TaskRef

from tau2.data_model.message import AssistantMessage, ToolCall, UserMessage  # isort: skip
from tau2.data_model.simulation import SimulationRun, TerminationReason
from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation


def replay(ref: TaskRef, actions: Sequence[Any], said: Sequence[str] = ()) -> dict[str, Any]:
    """tau2's RewardInfo (JSON values) for a conversation in which exactly these actions happened and the user then hung up.

    `actions` are tau2 `Action`s of either side, `said` the agent's messages. Tool errors are part of the history, as in a
    conversation. Raises EnvironmentFailure when tau2's grader raised.
    """
    loaded = domain(ref.domain)
    task = loaded.task(ref)
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
    messages.append(UserMessage(role="user", content="###STOP###"))
    simulation = SimulationRun(
        id="replay",
        task_id=task.id,
        start_time="",
        end_time="",
        duration=0.0,
        termination_reason=TerminationReason.USER_STOP,
        messages=messages,
    )
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
