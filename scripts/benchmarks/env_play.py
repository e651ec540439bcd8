"""One side of `env_cost.py`, in a process of its own: `python env_play.py SIDE`, episodes as JSON on stdin, figures on stdout.

`tau2` is the untouched package: its AgentGymEnv, its registry, its loaders, its thread; nothing of this project is imported. Its
log has no sink, which is the cheapest that it can be run. `ours` is `Tau2Env`. `tools` calls only the tool functions of the
episodes, on databases that the untouched package loaded. Both environments have the same user, who answers at once.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

PHASES = ("construct", "steps", "grade")
DONE = json.dumps({"id": "cut_off", "name": "done", "arguments": {}})


def user(spec: dict[str, Any]) -> Any:
    """tau2's user for an episode: a word in answer to all, or the next of the user's own tool calls."""
    from tau2.data_model.message import MultiToolMessage, ToolCall, ToolMessage, UserMessage
    from tau2.user.user_simulator import DummyUser

    class User(DummyUser):
        usage = None

        def generate_next_message(self, message: Any, state: Any) -> tuple[UserMessage, Any]:
            if isinstance(message, ToolMessage | MultiToolMessage) or not calls:
                return UserMessage(role="user", content="Please go on.", cost=0.0), state
            name, arguments = calls.pop(0)
            number = len(spec["user_calls"]) - len(calls)
            call = ToolCall(id=f"user_{number}", name=name, arguments=arguments, requestor="user")
            return UserMessage(role="user", content=None, tool_calls=[call], cost=0.0), state

    calls = list(spec["user_calls"])
    return User()


class Official:
    """An episode in the untouched package."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from tau2.gym.gym_agent import AgentGymEnv

        class Gym(AgentGymEnv):
            def _get_user(self) -> Any:
                super()._get_user()  # what tau2 does to have one
                return user(spec)

        self.spec, self.env, self.info = spec, Gym(domain=spec["domain"], task_id=spec["task_id"]), {}

    async def construct(self) -> None:
        """Reset: up to the agent's first turn."""
        self.env.reset()

    async def step(self, number: int) -> None:
        """One turn of the agent."""
        turn = self.spec["turns"][number]
        text = turn if isinstance(turn, str) else json.dumps({"id": f"call_{number}", "name": turn[0], "arguments": turn[1]})
        _, _, terminated, _, _ = self.env.step(text)
        assert not terminated, f"ended at turn {number}"

    async def grade(self) -> None:
        """End it, and have it graded."""
        _, _, terminated, _, self.info = self.env.step(DONE)
        assert terminated

    def outcome(self) -> Any:
        """Messages of both sides, verdicts, hashes of the databases."""
        orchestrator = self.env._orchestrator
        messages = [message.model_dump(mode="json", exclude_none=True) for message in orchestrator.trajectory]
        environment = orchestrator.environment
        return messages, json.loads(self.info["reward_info"]), (environment.get_db_hash(), environment.get_user_db_hash())


class Ours:
    """An episode in this project's environment."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from tau2rl.env.tau2_env import Tau2Env
        from tau2rl.types import TaskRef

        ref = TaskRef(domain=spec["domain"], task_id=spec["task_id"], split="base")
        self.spec, self.env = spec, Tau2Env(ref, make_user=lambda simulation: user(spec))

    async def construct(self) -> None:
        """Reset: up to the agent's first turn."""
        await self.env.open()

    async def step(self, number: int) -> None:
        """One turn of the agent."""
        from tau2rl.types import CallTool, Say

        turn = self.spec["turns"][number]
        action = Say(text=turn) if isinstance(turn, str) else CallTool(name=turn[0], arguments=turn[1])
        reply = await self.env.step((action,))
        assert not reply.done, f"ended at turn {number}"

    async def grade(self) -> None:
        """End it, and have it graded."""
        assert await self.env.close(grade=True) is not None

    def outcome(self) -> Any:
        """Messages of both sides, verdicts, hashes of the databases."""
        return self.env.trajectory, self.env._ended.reward_info, self.env.db_hashes


def digest(outcome: Any) -> str:
    """A hash of messages, verdicts and database hashes: equal where two episodes went the same way."""
    messages, info, hashes = outcome
    hidden = ("timestamp", "raw_data", "turn_idx")
    messages = [{k: v for k, v in m.items() if k not in hidden} for m in messages]
    for message in messages:
        for call in message.get("tool_calls") or ():
            call.pop("id")  # we number an episode's calls, the other side its turns
        message.pop("id", None)
    text = json.dumps([messages, info, hashes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


async def cost(kind: type, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """CPU seconds of each phase of each episode, and what came of it; the first episode only warms up."""
    rows: list[dict[str, Any]] = []
    for spec in (specs[0], *specs):
        marks = [time.process_time()]
        episode = kind(spec)
        await episode.construct()
        marks.append(time.process_time())
        for number in range(len(spec["turns"])):
            await episode.step(number)
        marks.append(time.process_time())
        await episode.grade()
        marks.append(time.process_time())
        spent = dict(zip(PHASES, (b - a for a, b in itertools.pairwise(marks)), strict=True))
        rows.append({**spent, "outcome": digest(episode.outcome())})
    return rows[1:]


async def memory(kind: type, specs: list[dict[str, Any]], turns: int) -> float:
    """Resident KiB of each of as many live episodes as there are specs, after so many turns."""

    async def live(spec: dict[str, Any]) -> Any:
        episode = kind(spec)
        await episode.construct()
        for number in range(turns):
            await episode.step(number)
        return episode

    warm = await live(specs[0])
    await warm.grade()
    del warm
    gc.collect()
    before = resident()
    episodes = [await live(spec) for spec in specs]
    gc.collect()
    return (resident() - before) / len(episodes)


def resident() -> float:
    """This process's resident memory in KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def tools(specs: list[dict[str, Any]]) -> list[float]:
    """CPU seconds of the tool functions of each episode, the agent's and the user's, and nothing else."""
    from tau2rl.env.domain import domain

    spent: list[float] = []
    for spec in specs:
        environment = domain(spec["domain"]).environment()
        calls = [(environment.tools, turn) for turn in spec["turns"] if not isinstance(turn, str)]
        calls += [(environment.user_tools, call) for call in spec["user_calls"]]
        before = time.process_time()
        for toolkit, (name, arguments) in calls:
            try:
                getattr(toolkit, name)(**arguments)
            except Exception as error:  # noqa: BLE001 - a tool that refuses has answered
                logging.debug("%s", error)
        spent.append(time.process_time() - before)
    return spent


def main(side: str) -> None:
    """Read the job, do it, print its figures."""
    from loguru import logger

    logger.remove()
    job = json.load(sys.stdin)
    specs, live = job["specs"], job["live"]
    if side == "tools":
        print(json.dumps({"tools": tools(specs)}))
    elif live:
        print(
            json.dumps({"memory": asyncio.run(memory(SIDES[side], [specs[i % len(specs)] for i in range(live)], job["turns"]))})
        )
    else:
        print(json.dumps({"rows": asyncio.run(cost(SIDES[side], specs))}))


SIDES = {"tau2": Official, "ours": Ours}

if __name__ == "__main__":
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit()
    main(sys.argv[1])
