"""Work that somebody else may call off: slime, once it has episodes enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
LOOK_SECONDS = 0.25


async def unless(stopped: Callable[[], bool], work: Coroutine[Any, Any, T], *, look_seconds: float = LOOK_SECONDS) -> T | None:
    """The result of `work`; None when `stopped` came true first: the work is then cancelled, and has ended on return.

    Looks by the clock and not between turns, because a turn can wait minutes for a user whom nobody needs any more.
    """
    task = asyncio.ensure_future(work)
    try:
        while not stopped():
            done, _ = await asyncio.wait({task}, timeout=look_seconds)
            if done:
                # What was cut off in the middle may look like a failure.
                return None if stopped() else task.result()
        return None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif not task.cancelled():
            task.exception()  # seen: nobody else asks for it
