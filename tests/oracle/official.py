"""The untouched package as the reference: tau2's own AgentGymEnv, registry, loaders and thread, driven by fixed actions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from tau2rl.config import UserConfig
from tau2rl.env.domain import domain  # prepares tau2 (quiet, offline) before it is imported
from tau2rl.env.scripted_user import ScriptedUser
from tau2rl.env.tau2_env import Tau2Env
from tau2rl.env.user_simulator import make_user
from tau2rl.errors import EpisodeFailure
from tau2rl.types import Actions, CallTool, Say, TaskRef

from tau2.domains.telecom.user_tools import TelecomUserTools  # isort: skip
from tau2.gym.gym_agent import AgentGymEnv
from tau2.registry import registry

VPN = TelecomUserTools.default_vpn_details.model_copy(deep=True)
MakeUser = Callable[[Any], Any]
SCRIPTED = UserConfig(kind="scripted")


class OfficialEnv(AgentGymEnv):
    """tau2's gym as it is, but the user is one of ours and the task file is parsed once, not at every step."""

    def __init__(self, ref: TaskRef, make: MakeUser) -> None:
        super().__init__(domain=ref.domain, task_id=ref.task_id)
        self.make = make

    def _get_task(self) -> Any:
        if not hasattr(self, "_parsed_task"):
            self._parsed_task = super()._get_task()
        return self._parsed_task

    def _get_user(self) -> Any:
        env = self

        class View:
            task = env._get_task()
            loaded = domain(env.domain)
            environment = None
            doing = ""

            @property
            def trajectory(self) -> list[Any]:
                return env._orchestrator.trajectory if env._orchestrator else []

        return self.make(View())


def play_official(
    ref: TaskRef, script: Sequence[Actions], make: MakeUser | None = None, *, broken_before: bool = False
) -> SimpleNamespace:
    """(messages of both sides, reward info, hashes) of tau2's own run of the script. Raises what tau2's grader raises.

    `broken_before`: an earlier episode of this process had a broken VPN.
    """
    # What an earlier episode did to tau2's class is the one thing in which we want to differ.
    TelecomUserTools.default_vpn_details = VPN.model_copy(deep=True)
    if broken_before:
        registry.get_env_constructor("telecom")().user_tools.break_vpn()
    env = OfficialEnv(ref, make or (lambda view: ScriptedUser(view, max_stalled_turns=3)))
    env.reset()
    calls, terminated, info = 0, False, {}
    for actions in script:
        (action,) = actions
        text = (
            action.text
            if isinstance(action, Say)
            else json.dumps({"id": f"call_{calls}", "name": action.name, "arguments": action.arguments})
        )
        calls += isinstance(action, CallTool)
        _, _, terminated, _, info = env.step(text)
        if terminated:
            break
    if not terminated:
        _, _, _, _, info = env.step(json.dumps({"id": "cut_off", "name": "done", "arguments": {}}))
    assert env._orchestrator is not None
    environment = env._orchestrator.environment
    return SimpleNamespace(
        messages=[comparable(m.model_dump(mode="json", exclude_none=True)) for m in env._orchestrator.trajectory],
        reward_info=json.loads(info["reward_info"]),
        hashes=(environment.get_db_hash(), environment.get_user_db_hash()),
        cut=False,
    )


async def play_ours(ref: TaskRef, script: Sequence[Actions], make: MakeUser | None = None) -> SimpleNamespace:
    """The same through `Tau2Env`. Raises EpisodeFailure."""
    env = Tau2Env(ref, make_user=make or make_user(SCRIPTED, seed=0))
    await env.open()
    reply = None
    for actions in script:
        reply = await env.step(actions)
        if reply.done:
            break
    grade = await env.close(grade=True)
    assert env._ended is not None
    assert grade is not None
    return SimpleNamespace(
        messages=[comparable(m) for m in env.trajectory],
        reward_info=env._ended.reward_info,
        grade=grade,
        hashes=env.db_hashes,
        done=bool(reply and reply.done),
        cut=env._ended.termination not in ("agent_stop", "user_stop"),
    )


def outcome(play: Callable[[], SimpleNamespace]) -> tuple[Any, ...]:
    """What a conversation came to: its messages, verdicts and database hashes, or that it could not be graded.

    A conversation that tau2 ended for its errors is not graded by tau2, and has its checks in our environment.
    """
    try:
        played = play()
    except (EpisodeFailure, ValueError):
        return ("not graded",)
    ended = played.reward_info.get("info") or {}
    if "terminated prematurely" in str(ended.get("note", "")) or played.cut:
        return (played.messages, "cut off", played.hashes)
    return (played.messages, played.reward_info, played.hashes)


def comparable(message: dict[str, Any]) -> dict[str, Any]:
    """A message without its clock and without the gym's copy of the action string."""
    return {k: v for k, v in message.items() if k not in ("timestamp", "raw_data", "turn_idx")}


def perturbed(script: Sequence[Actions], ref: TaskRef) -> dict[str, tuple[Actions, ...]]:
    """Named variations of a gold script: one action dropped, one argument changed, a tool that does not exist, an early end."""
    script = tuple(script)
    writes = [
        i for i, (a, *_) in enumerate(script) if isinstance(a, CallTool) and domain(ref.domain).tool_types.get(a.name) == "write"
    ]
    calls = writes or [i for i, (a, *_) in enumerate(script) if isinstance(a, CallTool)]
    variants: dict[str, tuple[Actions, ...]] = {
        "early end": script[:1],
        "unknown tool": ((CallTool(name="no_such_tool", arguments={"x": 1}),), *script),
    }
    if calls:
        at = calls[-1]
        variants["one action dropped"] = script[:at] + script[at + 1 :]
        call = script[at][0]
        assert isinstance(call, CallTool)
        if call.arguments:
            name = sorted(call.arguments)[0]
            changed = CallTool(name=call.name, arguments={**call.arguments, name: "changed"})
            variants["one argument changed"] = (*script[:at], (changed,), *script[at + 1 :])
    return variants
