"""Helpers of several test folders: real tau2 conversations on the mock domain, played by the one loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from tau2rl.chat.transcript import TranscriptCodec
from tau2rl.config import LimitsConfig, UserConfig
from tau2rl.env.tau2_env import Tau2Env
from tau2rl.env.user_simulator import make_user
from tau2rl.policy.scripted import ScriptedPolicy
from tau2rl.protocols import ChatCodec, Policy
from tau2rl.rollouts.episode import run_episode
from tau2rl.types import Actions, Attempt, Episode, TaskRef

CREATE = TaskRef(domain="mock", task_id="create_task_1", split="base")
UPDATE = TaskRef(domain="mock", task_id="update_task_1", split="base")
WIDE = LimitsConfig(context_tokens=1_000_000)  # transcript prompts are bytes


def attempt(ref: TaskRef = CREATE, *, seed: int = 7, index: int = 0) -> Attempt:
    return Attempt(task=ref, index=index, seed=seed)


def mock_env(
    ref: TaskRef = CREATE, *, user: UserConfig | None = None, make: Callable[..., Any] | None = None, **limits: Any
) -> Tau2Env:
    return Tau2Env(ref, make_user=make or make_user(user or UserConfig(kind="scripted"), seed=7), limits=LimitsConfig(**limits))


def play(
    script: Sequence[Actions] = (),
    *,
    ref: TaskRef = CREATE,
    env: Tau2Env | None = None,
    policy: Policy | None = None,
    codec: ChatCodec | None = None,
    limits: LimitsConfig = WIDE,
) -> Episode:
    """One episode on its own event loop."""
    codec = codec or TranscriptCodec()

    async def main() -> Episode:
        return await run_episode(
            attempt(ref), env=env or mock_env(ref), policy=policy or ScriptedPolicy(script, codec), codec=codec, limits=limits
        )

    return asyncio.run(main())
