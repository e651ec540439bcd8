"""How often a server may be asked that limits its rate: what its refusals say, and a throttle that all calls to it share.

Such a refusal says that the server is well, and how often it may be asked. So it is waited for, and uses up no retries.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 10.0
FIRST_INTERVAL_SECONDS = 0.05  # between two calls, after the first refusal
BACKOFF, RECOVERY = 1.5, 0.98  # of the interval: at each later refusal, and at each answer
UNLIMITED_SECONDS = 0.01  # an interval below this is none
OVERLOADED = 529  # Anthropic's, and of servers that follow it
NO_MONEY = ("insufficientquota", "insufficientbalance", "creditbalance", "outofcredits", "spendinglimit", "spendlimit")
FOR_GOOD = (*NO_MONEY, "quotaexceeded", "exceededyourcurrentquota", "exceededyourquota", "billing")  # no waiting mends them
PASSES = (  # of a quota that fills up, as Gemini and Vertex AI say
    *("retryin", "retryafter", "retrydelay", "tryagain"),
    *("persecond", "perminute", "perhour", "quotaincreaserequest"),
)

log = logging.getLogger(__name__)


def limits_rate(status: int | None, said: str, *, busy: bool = False, retry_after: float | None = None) -> bool:
    """Whether a refusal is one of a server that takes no more for now; `busy`: whether its status may pass.

    >>> limits_rate(429, "slow down"), limits_rate(429, "insufficient_quota"), limits_rate(503, "", busy=True, retry_after=2.0)
    (True, False, True)
    >>> limits_rate(429, "Quota exceeded"), limits_rate(429, "Quota exceeded: 15 requests_per_minute")
    (False, True)
    """
    said = re.sub(r"[\W_]+", "", said.lower())  # `Quota exceeded` and `quota_exceeded` are one
    limited = status in (429, OVERLOADED) or (busy and retry_after is not None)
    passes = retry_after is not None or any(words in said for words in PASSES)
    return limited and not any(words in said for words in (NO_MONEY if passes else FOR_GOOD))


def retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header, which has a number or a date; None where it has neither.

    >>> retry_after("2"), retry_after("Thu, 01 Jan 1970 00:00:00 GMT"), retry_after("soon")
    (2.0, 0.0, None)
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def pause_seconds(tries: int) -> float:
    """Any time up to a bound that doubles, so that clients that failed together come apart ("full jitter").

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    >>> 0 <= pause_seconds(0) <= 0.25 and 0 <= pause_seconds(1000) <= 10
    True
    """
    # No float is large enough for a power of hundreds.
    return random.uniform(0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(tries, 30)))


class _Throttle:
    """The interval between two calls: it grows with the server's refusals, and shrinks with its answers.

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

    @property
    def _free(self) -> bool:
        return not self._interval and self._next <= self._clock()

    def _left(self) -> float:
        """Seconds until the next call may begin; 0 or less: it may."""
        return self._next - self._clock()

    def _begin(self) -> None:
        self._next = self._clock() + self._interval

    def answered(self) -> None:
        """A call was taken."""
        if self._interval and self._interval * RECOVERY < UNLIMITED_SECONDS:
            log.info("`%s` does not limit its rate any more", self._server)
        self._pauses = 0
        self._interval = self._interval * RECOVERY if self._interval * RECOVERY >= UNLIMITED_SECONDS else 0.0

    def refused(self, sent_at: float, retry_after: float | None, *, longest: float = math.inf) -> None:
        """A call that was sent at this time was refused: all wait as long as the server asks, and a pause that grows besides.

        `longest`: seconds beyond which what it asks is not heeded, for no call would live to see its end. The refusals of calls
        that were in flight together are one. Without an answer since the last one the server is not slow but closed: then the
        pause grows and not the interval.
        """
        now = self._clock()
        heeded = retry_after if retry_after is not None and retry_after <= longest else 0.0
        if sent_at < self._cut_at:
            self._next = max(self._next, now + heeded)
            return
        if not self._interval:
            asks = f" and asks for {retry_after:g} s" if retry_after else ""
            log.warning("`%s` limits its rate%s: calls wait for each other", self._server, asks)
        if not self._interval or not self._pauses:
            self._interval = max(BACKOFF * self._interval, FIRST_INTERVAL_SECONDS)
        self._next = now + heeded + pause_seconds(self._pauses)
        self._pauses += 1
        self._cut_at = now


class Throttle(_Throttle):
    """For the calls of one event loop.

    waited = await throttle.wait()
    sent_at = time.monotonic()
    ...  # then `answered()`, or `refused(sent_at, retry_after)`
    """

    def __init__(self, server: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(server, clock=clock)
        self._line = asyncio.Lock()

    async def wait(self) -> float:
        """Wait until the next call may begin; the seconds that it took."""
        began = self._clock()
        if self._free and not self._line.locked():
            return 0.0
        async with self._line:  # which is fair: one waits for the clock, and the others for it
            while (left := self._left()) > 0:  # noqa: ASYNC110 - a refusal meanwhile makes it longer
                await asyncio.sleep(left)
            self._begin()
        return self._clock() - began


class ThreadThrottle(_Throttle):
    """For calls from many threads, each until a deadline of its own."""

    def __init__(self, server: str) -> None:
        super().__init__(server)
        self._line = threading.Lock()
        self._change = threading.Lock()

    def wait(self, deadline: float) -> None:
        """Wait until the next call may begin. Raises TimeoutError: that is not before `deadline`."""
        if self._free and not self._line.locked():
            return
        left = deadline - self._clock()
        if left <= 0 or not self._line.acquire(timeout=left):
            raise TimeoutError
        try:
            while (left := self._left()) > 0:
                time.sleep(max(0.0, min(left, deadline - self._clock())))
                if self._clock() >= deadline:
                    raise TimeoutError
            self._begin()
        finally:
            self._line.release()

    def answered(self) -> None:
        """A call was taken."""
        with self._change:
            super().answered()

    def refused(self, sent_at: float, retry_after: float | None, *, longest: float = math.inf) -> None:
        """See `_Throttle`."""
        with self._change:
            super().refused(sent_at, retry_after, longest=longest)
