"""What playing takes: wall time in which a policy is asked, and CPU time of a process that plays for another one."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from tau2rl.types import Completion, Episode, Policy


def with_cpu_time(play: Callable[..., Awaitable[Episode]]) -> Callable[..., Awaitable[Episode]]:
    """Plays as `play` does; each episode says what CPU time this process used since the one before, so that the sum is all.

    For a process that plays for another one: the run cannot see the CPU time of a worker, perhaps on another machine, but it gets
    the episodes. What was used before this call, for loading, is not counted.
    """
    told = time.process_time()

    async def timed(*how: Any) -> Episode:
        nonlocal told
        episode = await play(*how)
        before, told = told, time.process_time()
        return replace(episode, worker_cpu_seconds=told - before)

    return timed


class TimedPolicy:
    """A policy, and in `seconds` the wall time in which at least one turn was asked of it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._waiting = 0
        self._since = 0.0
        self.seconds = 0.0

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """Sample one turn; see `types.Policy`."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting += 1
        try:
            return await self._policy.complete(prompt_ids, seed=seed, session=session, max_tokens=max_tokens)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.seconds += time.monotonic() - self._since
