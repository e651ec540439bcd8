"""A worker's process before it plays, pinned here:

- one that has more memory than it may have says so, in place of ending and beginning again for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from tau2rl.errors import UserError
from tau2rl.rollouts.workers import EpisodeWorker, PlayWith
from tau2rl.types import Attempt, Episode
from tests.unit.rollout.endings import GOOD

pytest.importorskip("ray")


@asynccontextmanager
async def opened() -> AsyncGenerator[PlayWith]:
    async def play(attempt: Attempt) -> Episode:
        return GOOD

    yield play


def test_a_worker_that_is_too_large_from_the_beginning_is_refused() -> None:
    with pytest.raises(UserError, match=r"GB before it plays, more than `rollout\.worker_memory_gb`"):
        asyncio.run(EpisodeWorker(opened, memory_gb=0.01).open())
