"""How long a policy waits for its server: retries with a pause that grows and varies, all under one deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from tau2rl.config import PolicyConfig
from tau2rl.errors import PolicyFailure

T = TypeVar("T")


class Unavailable(PolicyFailure):
    """The server is overloaded or unreachable: the same request may go better in a moment."""


async def patiently(call: Callable[[], Awaitable[T]], config: PolicyConfig, *, server: str) -> T:
    """The result of `call`, which is tried again while it raises Unavailable.

    Raises PolicyFailure: the last one after `config.retries` retries, or one that says that `config.timeout_seconds` are over.
    `call` is cancelled when they are.
    """
    retrying = AsyncRetrying(
        stop=stop_after_attempt(config.retries + 1),
        wait=wait_random_exponential(multiplier=0.25, max=10.0),  # varied, so that clients that failed together come apart
        retry=retry_if_exception_type(Unavailable),
        reraise=True,
    )
    try:
        return await asyncio.wait_for(retrying(call), config.timeout_seconds)
    except asyncio.TimeoutError:
        raise PolicyFailure(f"no completion from `{server}` within {config.timeout_seconds:g} s") from None
