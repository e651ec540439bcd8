"""A domain that somebody else registered, played in a Ray worker: whoever opens the player there imports the module."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tau2rl.rollouts.runner import outcomes, plan_attempts
from tau2rl.rollouts.workers import Workers
from tau2rl.types import TaskRef

pytestmark = pytest.mark.e2e
TASKS = [TaskRef(domain="library", task_id=id, split="base") for id in ("lend", "ask")]


@asynccontextmanager
async def librarian() -> AsyncGenerator[Any]:
    """Plays the reference path of each task."""
    from tau2rl.chat.transcript import TranscriptCodec
    from tau2rl.env.tasks import gold_script
    from tau2rl.policy.scripted import ScriptedPolicy
    from tau2rl.rollouts.episode import run_episode
    from tests import library_domain  # noqa: F401 - registers it
    from tests.play import WIDE, mock_env

    async def play(attempt: Any, *_: Any) -> Any:
        codec = TranscriptCodec()
        policy = ScriptedPolicy(gold_script(attempt.task), codec)
        return await run_episode(attempt, env=mock_env(attempt.task), policy=policy, codec=codec, limits=WIDE)

    yield play


def test_it_is_played_and_graded_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    async def main() -> list[Any]:
        async with Workers(librarian, count=1, concurrency=2) as workers:
            attempts = plan_attempts(TASKS, num_samples=2, seed=1)
            return [outcome async for outcome in outcomes(attempts, play=workers.play, concurrency=2, retries=0)]

    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        played = asyncio.run(main())
    finally:
        ray.shutdown()
    assert [outcome.episode.failure for outcome in played] == [None] * 4
    assert [outcome.episode.grade.reward for outcome in played] == [1.0] * 4
