"""Evaluate a policy from Python: `python examples/evaluate.py`. In a notebook: `report = await tau2rl.evaluate(...)`."""

from __future__ import annotations

import asyncio

import tau2rl
from tau2rl import Attempt, CallTool, EpisodeRecord, Policy, Say, ScriptedPolicy

CODEC = tau2rl.make_codec("transcript")  # JSON lines: for policies that read messages


def policy(attempt: Attempt) -> Policy:
    """The scripted policy, a mock of a model that needs no server: each attempt gets one of its own."""
    call = CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Important Meeting"})
    return ScriptedPolicy([(call,), (Say(text="It is done."),)], CODEC)


def show(record: EpisodeRecord) -> None:
    """A line an episode, while the others go on."""
    print(record.attempt.key, record.episode.status, record.episode.grade and record.episode.grade.reward)


async def main() -> None:
    """Twice the same policy: over many tasks, and in one conversation that is looked at closely."""
    report = await tau2rl.evaluate(
        policy=policy, codec=CODEC, domains=["mock"], split="base", ids=["create_task_1", "update_task_1"],
        num_samples=2, user="scripted", on_episode=show,
    )  # fmt: skip
    print("pass@1", report.pass_at_1, "95%", report.pass_at_1_ci95, "floors", report.floors)

    task = tau2rl.tasks(["mock"], "base")[0]
    env = tau2rl.make_env(task, user="scripted")
    episode = await tau2rl.rollout(task, env=env, policy=policy(Attempt(task=task, index=0, seed=1)), codec=CODEC)
    for message in episode.messages:
        print(f"{message.role}: {message.content or [call.name for call in message.tool_calls]}")


if __name__ == "__main__":
    asyncio.run(main())
