"""A process that plays episodes for another one: an actor of Ray with its own environments, connections and chat codec.

An attempt goes in, an episode comes out. Its caller is `workers.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

from tau2rl.errors import UserError
from tau2rl.rollout.timing import with_cpu_time
from tau2rl.types import Attempt, Episode

PlayWith = Callable[..., Awaitable[Episode]]  # plays an attempt once; what follows the attempt says how, where calls differ in it
OpenRunner = Callable[[], AbstractAsyncContextManager[PlayWith]]  # pickled, and called once in each worker

GB = 10**9
TOO_MUCH = 2  # times the limit: then a worker does not wait for the end of what it plays
POLL_SECONDS = 1.0
LEAVE_SECONDS = 10.0

log = logging.getLogger(__name__)


class Worker:
    """An async actor of Ray. Its caller sends it no more than it should, and ends it when it has grown too large."""

    def __init__(self, open_runner: OpenRunner, *, memory_gb: float) -> None:
        """`memory_gb`: at twice as much the process ends at once, before its machine has none left."""
        self._open_runner = open_runner
        self._most = memory_gb * TOO_MUCH * GB
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._play: PlayWith | None = None
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> str:
        """Get ready to play; the id of the node that this is on. Raises UserError: it has grown too large before it plays."""
        import ray

        await self._runner()
        if (has := own_bytes()) * TOO_MUCH > self._most:
            raise UserError(
                f"a worker has {has / GB:.2f} GB before it plays, more than `rollout.worker_memory_gb`",
                hint="what is loaded and a few conversations need about 0.5",
            )
        return ray.get_runtime_context().get_node_id()

    async def play(self, attempt: Attempt, *how: Any) -> tuple[Episode, int]:
        """Play an attempt once; the episode, and the bytes that this process has now."""
        episode = await (await self._runner())(attempt, *how)
        return episode, own_bytes()

    async def leave(self) -> None:
        """End the process, which plays nothing any more; Ray starts another in its place."""
        with contextlib.suppress(Exception):  # it leaves in any case
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._stack.aclose()
        os._exit(0)  # an orderly exit of an actor is one that Ray does not make good

    async def _runner(self) -> PlayWith:
        """The episode runner, opened at the first call: of this process, or of the one that Ray put in its place."""
        async with self._opening:
            if self._play is None:
                self._play = with_cpu_time(await self._stack.enter_async_context(self._open_runner()))
                self._watching = asyncio.create_task(self._watch())
            return self._play

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if (has := own_bytes()) > self._most:
                log.error("this worker has %.1f GB, twice what it may have, and ends", has / GB)
                os._exit(1)


def own_bytes() -> int:
    """Memory that is this process's alone, in bytes; 0 where the system does not say.

    Not all that it maps: Ray's object store is mapped into every worker, and each thread reserves a stack that it hardly uses,
    which is also why no limit of the kernel (RLIMIT_AS, RLIMIT_DATA) would mean anything here.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            resident, shared = map(int, file.read().split()[1:3])
    except OSError:
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
