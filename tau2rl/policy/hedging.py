"""The same question asked twice, and the first answer taken: against a server that is slow now and then.

Of two answers to one question the shorter one comes first. So what is taken is shorter than what the model says, unless the
servers give the same tokens for the same seed; nothing that is trained on may come this way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from tau2rl.errors import PolicyFailure

T = TypeVar("T")


async def first_answer(call: Coroutine[Any, Any, T], double: Callable[[], Coroutine[Any, Any, T]], *, after: float) -> T:
    """What `call` returns, or what `double()` returns, which begins when `call` has not ended after so many seconds.

    The other one is cancelled, and has ended when this returns. A PolicyFailure of one leaves the other its chance; when both
    fail, that of `call` is raised. Any other exception is raised at once.
    """
    tasks = [asyncio.ensure_future(call)]
    try:
        await asyncio.wait(tasks, timeout=after)
        if not tasks[0].done():
            tasks.append(asyncio.ensure_future(double()))
        pending = set(tasks)
        while pending:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and not isinstance(task.exception(), PolicyFailure):
                    return task.result()
        return tasks[0].result()
    finally:
        await _end(tasks)


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel what still works, and wait until nothing does."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: nobody else will ask for that of the one who lost
