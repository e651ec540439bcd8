"""Two stub servers behind one policy, for the tests of several servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.types import Completion
from tests.stubs.sglang import SGLangStub

T = TypeVar("T")
Pair = tuple[SGLangStub, SGLangStub]
PROMPT = [1, 2, 3]
GUARD_SECONDS = 60.0  # a test that hangs fails instead


def alone(use: Coroutine[Any, Any, T]) -> T:
    """What `use` brings; nothing of it goes on."""

    async def inside() -> T:
        result = await asyncio.wait_for(use, GUARD_SECONDS)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(inside())


async def turn(policy: SGLangPolicy, session: str = "retail/17#0@5") -> Completion:
    """One turn of a conversation."""
    return await policy.complete(PROMPT, seed=11, session=session, max_tokens=32)


async def home_of(policy: SGLangPolicy, servers: Pair) -> Pair:
    """The server of a conversation's first turn, which is played here, then the other."""
    await turn(policy)
    a, b = servers
    return (a, b) if a.requests else (b, a)


async def until(there: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    while not there():
        await asyncio.sleep(0.01)


async def cancelled(call: Awaitable[Completion], when: Callable[[], bool]) -> bool:
    """Cancel a call at a moment; whether that is how it ended."""
    task = asyncio.ensure_future(call)
    await until(when)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()
