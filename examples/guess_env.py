"""An environment of your own, without tau2: a number to find, and a tool to ask for it. `python examples/guess_env.py`."""

from __future__ import annotations

import asyncio
from typing import Any

import tau2rl
from tau2rl import Actions, CallTool, EnvTime, Grade, Message, Opening, Reply, ScriptedPolicy, StopReason, TaskRef, Usage

PARAMETERS = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
ASK = {"type": "function", "function": {"name": "ask", "description": "Is it this one?", "parameters": PARAMETERS}}


class GuessEnv:
    """One conversation: `open`, then `step` for each turn of the agent, then `close`."""

    user_usage, time, db_hashes = Usage(), EnvTime(), (None, None)

    def __init__(self, number: int) -> None:
        self._number = number
        self.trajectory: list[dict[str, Any]] = []

    async def open(self) -> Opening:
        """What the agent has before its first turn."""
        first = Message(role="user", content="I think of a number from 1 to 9.")
        return Opening(domain_policy="Find the number.", messages=(first,), tools=(ASK,))

    async def step(self, actions: Actions) -> Reply:
        """What one turn brings: a message for each call, and the end with a grade."""
        asked = [action for action in actions if isinstance(action, CallTool)]
        right = any(call.arguments.get("number") == self._number for call in asked)
        answers = tuple(Message(role="tool", content="yes" if right else "no") for _ in asked)
        grade = Grade(reward=1.0, checks=None, reward_basis=("DB",)) if right else None
        messages = answers or (Message(role="user", content="Ask."),)
        return Reply(messages=messages, done=right, grade=grade, stop_reason=StopReason.USER_STOP if right else None)

    async def close(self, *, grade: bool) -> Grade | None:
        """The grade of a conversation that the environment did not end."""
        return Grade(reward=0.0, checks=None, reward_basis=("DB",)) if grade else None


async def main() -> None:
    """Two guesses, the second of them right."""
    codec = tau2rl.make_codec("transcript")
    policy = ScriptedPolicy([(CallTool(name="ask", arguments={"number": n}),) for n in (3, 7)], codec)
    task = TaskRef(domain="guess", task_id="7", split="base")
    episode = await tau2rl.rollout(task, env=GuessEnv(7), policy=policy, codec=codec)
    print(episode.status, len(episode.turns), "turns, reward", episode.grade and episode.grade.reward)


if __name__ == "__main__":
    asyncio.run(main())
