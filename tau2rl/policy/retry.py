"""Retry with backoff: how long a call waits for a server that is overloaded, limits its rate, or is not there.

Everything is under one deadline, `policy.timeout_seconds`. A server that is unavailable is tried again `policy.retries` times.
Refusals of one that limits its rate are not counted: they say that it is well, and how often it may be asked.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from tau2rl.config import PolicyConfig
from tau2rl.errors import PolicyFailure
from tau2rl.policy.errors import RateLimited, Unavailable
from tau2rl.types import Completion

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 10.0
FIRST_INTERVAL_SECONDS = 0.05  # between two calls, after the first refusal
BACKOFF, RECOVERY = 1.5, 0.98  # of the interval: at each later refusal, and at each answer
UNLIMITED_SECONDS = 0.01  # an interval below this is none

log = logging.getLogger(__name__)


class Throttle:
    """How often a server may be asked: the interval between two calls grows with its refusals, and shrinks with its answers.

        waited = await throttle.wait()
        sent_at = time.monotonic()
        ...  # then `answered()`, or `refused(sent_at, retry_after)`

    One for all calls of a process to a server, whichever conversation they belong to: they come one after the other, in the
    order in which they asked. Without a refusal it costs nothing. A process of its own learns for itself.
    """

    def __init__(self, server: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._clock = clock
        self._interval = 0.0
        self._next = -math.inf  # when the next call may begin
        self._cut_at = -math.inf  # the last time that the interval grew, or a pause began
        self._pauses = 0  # in a row, without an answer between
        self._line = asyncio.Lock()

    async def wait(self) -> float:
        """Wait until the next call may begin; the seconds that it took."""
        began = self._clock()
        if not self._interval and self._next <= began and not self._line.locked():
            return 0.0
        async with self._line:  # which is fair: one waits for the clock, and the others for it
            while (left := self._next - self._clock()) > 0:  # noqa: ASYNC110 - a refusal meanwhile makes it longer
                await asyncio.sleep(left)
            self._next = self._clock() + self._interval
        return self._clock() - began

    def answered(self) -> None:
        """A call was taken."""
        if self._interval and self._interval * RECOVERY < UNLIMITED_SECONDS:
            log.info("`%s` does not limit its rate any more", self._server)
        self._pauses = 0
        self._interval = self._interval * RECOVERY if self._interval * RECOVERY >= UNLIMITED_SECONDS else 0.0

    def refused(self, sent_at: float, retry_after: float | None) -> None:
        """A call that was sent at this time was refused: all wait as long as the server asks, and a pause that grows besides.

        The refusals of calls that were in flight together are one. Without an answer since the last one the server is not
        slow but closed: then the pause grows and not the interval.
        """
        now = self._clock()
        if sent_at < self._cut_at:
            self._next = max(self._next, now + (retry_after or 0.0))
            return
        if not self._interval:
            asks = f" and asks for {retry_after:g} s" if retry_after else ""
            log.warning("`%s` limits its rate%s: calls wait for each other", self._server, asks)
        if not self._interval or not self._pauses:
            self._interval = max(BACKOFF * self._interval, FIRST_INTERVAL_SECONDS)
        self._next = now + (retry_after or 0.0) + pause_seconds(self._pauses)
        self._pauses += 1
        self._cut_at = now


async def complete_with_retries(
    call: Callable[[], Awaitable[Completion]], config: PolicyConfig, *, throttle: Throttle, server: str
) -> Completion:
    """The completion that `call` brings, which is tried again while it raises Unavailable or RateLimited.

    Raises PolicyFailure: the last one after `config.retries` retries, or one that says that `config.timeout_seconds` are over.
    `call` is cancelled when they are.
    """
    tries, waited, why = 0, 0.0, ""
    try:
        # No task and no retrying object for a call that goes well at once, which is nearly every one of thousands.
        async with asyncio.timeout(config.timeout_seconds):
            while True:
                waited += await throttle.wait()
                sent_at = time.monotonic()
                try:
                    completion = await call()
                except RateLimited as failure:
                    throttle.refused(sent_at, failure.retry_after)
                    waited += time.monotonic() - sent_at
                    why = f"; {failure}"
                except Unavailable as failure:
                    if tries == config.retries:
                        raise
                    why = f"; {failure}"
                    await asyncio.sleep(pause_seconds(tries))
                    tries += 1
                else:
                    throttle.answered()
                    return replace(completion, throttled_seconds=waited) if waited else completion
    except TimeoutError:
        raise PolicyFailure(f"no completion from `{server}` within {config.timeout_seconds:g} s{why}") from None


def pause_seconds(tries: int) -> float:
    """Any time up to a bound that doubles, so that clients that failed together come apart ("full jitter").

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    >>> 0 <= pause_seconds(0) <= 0.25 and 0 <= pause_seconds(1000) <= 10
    True
    """
    # No float is large enough for a power of hundreds.
    return random.uniform(0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(tries, 30)))
