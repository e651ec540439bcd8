"""How long a policy waits for its server: retries with a pause that grows and varies, all under one deadline."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tau2rl.config import PolicyConfig
from tau2rl.deadlines import timeout
from tau2rl.errors import PolicyFailure

T = TypeVar("T")
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 10.0


class Unavailable(PolicyFailure):
    """The server is overloaded or unreachable: the same request may go better in a moment."""


async def patiently(call: Callable[[], Awaitable[T]], config: PolicyConfig, *, server: str) -> T:
    """The result of `call`, which is tried again while it raises Unavailable.

    Raises PolicyFailure: the last one after `config.retries` retries, or one that says that `config.timeout_seconds` are over.
    `call` is cancelled when they are.
    """
    tries = 0
    try:
        # No task and no retrying object for a call that goes well at once, which is nearly every one of thousands.
        async with timeout(config.timeout_seconds):
            while True:
                try:
                    return await call()
                except Unavailable:
                    if tries == config.retries:
                        raise
                await asyncio.sleep(pause_seconds(tries))
                tries += 1
    except asyncio.TimeoutError:
        raise PolicyFailure(f"no completion from `{server}` within {config.timeout_seconds:g} s") from None


def pause_seconds(tries: int) -> float:
    """Any time up to a bound that doubles, so that clients that failed together come apart ("full jitter").

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    >>> 0 <= pause_seconds(0) <= 0.25 and 0 <= pause_seconds(1000) <= 10
    True
    """
    # No float is large enough for a power of hundreds.
    return random.uniform(0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(tries, 30)))
