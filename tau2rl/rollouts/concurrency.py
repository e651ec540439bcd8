"""Adaptive concurrency: how many episodes may be in flight, which follows the load of the policy's server (AIMD).

The server is asked once a second, beside the episodes. The number grows while there is room, and is cut when requests wait too
long, memory is short, an episode failed because its server was too slow or not there, or a server limits its rate.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from tau2rl.config import EvalConfig, RftConfig, SeedConfig
from tau2rl.config.kinds import POLICIES
from tau2rl.errors import PolicyFailure
from tau2rl.policy.retry import Unavailable
from tau2rl.policy.sglang_load import LoadReader
from tau2rl.runs.budget import Meter
from tau2rl.types import Episode, Status

log = logging.getLogger(__name__)

START = 32  # of each engine, to begin with: what one GPU with a small model carries, and the default of `rollout.concurrency`
CUT = 0.75  # what a cut leaves; a half would leave a third of the server idle for a while
FAST_GROWTH = 1.25  # at a poll that finds the server half empty, before the first cut
RECOVERY_STEPS = 8  # after a cut: from nothing to the peak, in so many times of an episode
PRESSED_POLLS = 3  # in a row: one alone may fall into the prefill of a long prompt
POLL_SECONDS = 1.0
NEARLY = 0.99  # of a deadline: clocks have a grain


class ServerLoad(Protocol):
    """What a server, or several together, have to do."""

    @property
    def running(self) -> int:
        """Requests that it works on."""
        ...

    @property
    def waiting(self) -> int:
        """Requests in its queue."""
        ...

    @property
    def memory(self) -> float:
        """Share of its KV memory that the running ones hold, 0 to 1."""
        ...


def is_pressed(load: ServerLoad) -> bool:
    """Whether more would only wait, or push the contexts of conversations out of the cache between their turns."""
    return load.waiting > max(2.0, 0.75 * load.running) or load.memory > 0.95


def is_half_empty(load: ServerLoad) -> bool:
    """Whether there is room for many more, even when the contexts of those in flight have grown."""
    return load.waiting == 0 and load.memory < 0.5


def is_fine(load: ServerLoad) -> bool:
    """Whether there is room: a short queue is what keeps a server busy. Between this and `is_pressed` the number stays."""
    return load.waiting <= 0.25 * load.running and load.memory < 0.85


class Permits(Protocol):
    """How many episodes may be in flight, now and as they end."""

    on_growth: Callable[[], None]  # called when there are new permits

    @property
    def in_flight(self) -> int:
        """Episodes that have begun and not ended; whoever begins them says so."""
        ...

    @in_flight.setter
    def in_flight(self, count: int) -> None: ...

    @property
    def limit(self) -> int:
        """As many as that."""
        ...

    def ended(self, episode: Episode) -> None:
        """Take in a try that ended, and is still counted in `in_flight`."""
        ...

    def allows_retry(self) -> bool:
        """Whether an episode whose try FAILED, and which is still counted in `in_flight`, may be played again."""
        ...


class FixedConcurrency:
    """A number of episodes in flight that stays: `FixedConcurrency(32)`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self.on_growth: Callable[[], None] = lambda: None

    def ended(self, episode: Episode) -> None:
        """Nothing follows from it."""

    def allows_retry(self) -> bool:
        """Always."""
        return True


class CappedConcurrency:
    """The permits of another one, as far as a budget has room: `CappedConcurrency(FixedConcurrency(32), meter)`.

    With no room nothing begins: what is in flight ends, and may leave room again.
    """

    def __init__(self, inner: Permits, meter: Meter) -> None:
        self._inner = inner
        self._meter = meter
        self._in_flight = 0
        self.on_growth: Callable[[], None] = lambda: None
        inner.on_growth = lambda: self.on_growth()

    @property
    def in_flight(self) -> int:
        """Episodes that have begun and not ended."""
        return self._in_flight

    @in_flight.setter
    def in_flight(self, count: int) -> None:
        self._in_flight = self._inner.in_flight = count

    @property
    def limit(self) -> int:
        """Those of the other one, and no more than the budget has room for."""
        return int(min(self._inner.limit, self._in_flight + self._meter.room(self._in_flight)))

    def ended(self, episode: Episode) -> None:
        """Count what it took."""
        self._meter.ended(episode)
        self._inner.ended(episode)

    def allows_retry(self) -> bool:
        """Whether the budget has room for one more try beside the other episodes in flight."""
        return self._meter.room(self._in_flight - 1) >= 1


class AdaptiveConcurrency:
    """The number of episodes that may be in flight: `limit`, from 1 to the ceiling.

        control = AdaptiveConcurrency(512, start=64)
        async for outcome in outcomes(attempts, play=play, concurrency=512, retries=2, control=control): ...

    `outcomes` begins as many episodes as there are permits, and tells it what is in flight and what ended; somebody else lets it
    `poll` the server. Where nobody does, episodes alone make it grow and cut it.
    """

    def __init__(self, ceiling: int, *, start: int = START, overloaded: Callable[[Episode], bool] = lambda _: False) -> None:
        """`overloaded`: whether a FAILED episode failed because its server had too much to do, or was gone."""
        self.ceiling = ceiling
        self.in_flight = 0
        self.cuts = 0
        self.peak = self._start = min(start, ceiling)
        self.on_growth: Callable[[], None] = lambda: None  # called when there are new permits
        self._limit = float(self._start)
        self._overloaded = overloaded
        self._room = True  # at the last poll
        self._pressed = 0  # polls in a row
        self._hold = 0  # episodes that have yet to end until what is in flight shows what the last cut has done
        self._logged = self._start

    @property
    def limit(self) -> int:
        """From 1 to the ceiling.

        >>> AdaptiveConcurrency(8).limit, AdaptiveConcurrency(512).limit
        (8, 32)
        """
        return int(self._limit)

    def poll(self, load: ServerLoad | None) -> None:
        """Take in what the server says now; None when it does not answer: then nothing grows."""
        self._room = load is not None and is_fine(load)
        self._pressed = self._pressed + 1 if load is not None and is_pressed(load) else 0
        if load is not None and is_half_empty(load) and not self.cuts and self._was_tried:
            self._grow(self._limit * (FAST_GROWTH - 1))
        if load is not None and self._pressed >= PRESSED_POLLS:
            self._cut(
                f"the server works on {load.running} requests, {load.waiting} wait, {load.memory:.0%} of its memory is used"
            )

    def ended(self, episode: Episode) -> None:
        """Take in a try that ended, and is still counted in `in_flight`."""
        self._hold = max(0, self._hold - 1)
        throttled = throttled_share(episode)
        if self._overloaded(episode):
            self._cut("an episode failed, because the server was too slow or not there")
        elif throttled > 0.5:
            self._cut("the server limits its rate, and calls wait for each other")
        elif episode.status is not Status.FAILED and self._room and not throttled and not self._hold and self._was_tried:
            self._grow(1.0 if not self.cuts else max(1.0, self.peak / RECOVERY_STEPS) / self._limit)

    def allows_retry(self) -> bool:
        """Always: a try again takes no further permit."""
        return True

    @property
    def _was_tried(self) -> bool:
        return self.in_flight >= self.limit

    def _grow(self, step: float) -> None:
        before = self.limit
        self._limit = min(float(self.ceiling), self._limit + step)
        self.peak = max(self.peak, self.limit)
        if self.limit >= min(2 * self._logged, self.ceiling) and self.limit > self._logged:
            self._log("the server keeps up")
        if self.limit > before:
            self.on_growth()

    def _cut(self, why: str) -> None:
        if self._hold or self.limit == 1 or not self.in_flight:
            return
        self._limit = max(1.0, CUT * min(self._limit, self.in_flight))
        self._hold = self.in_flight
        self.cuts += 1
        self._log(why)

    def _log(self, why: str) -> None:
        self._logged = self.limit
        log.info("at most %d episodes in flight from now on: %s", self.limit, why)

    def __str__(self) -> str:
        """How far it went.

        >>> str(AdaptiveConcurrency(512))
        'episodes in flight: 32 allowed to begin with, 32 at most, 32 at the end; cut 0 times, ceiling 512'
        """
        return (
            f"episodes in flight: {self._start} allowed to begin with, {self.peak} at most, {self.limit} at the end; "
            f"cut {self.cuts} times, ceiling {self.ceiling}"
        )


@asynccontextmanager
async def adaptive_concurrency(config: EvalConfig | SeedConfig | RftConfig) -> AsyncGenerator[AdaptiveConcurrency | None]:
    """How many episodes may be in flight, up to `rollout.concurrency`; None where that is all that there is to say.

    The server is polled from the process that starts the episodes, wherever they are played. Logs at the end how far it went.
    """
    policy, ceiling = config.policy, config.rollout.concurrency
    if not config.adaptive:
        yield None
        return
    overloaded = functools.partial(was_overloaded, timeout_seconds=policy.timeout_seconds)
    async with LoadReader(policy.url if POLICIES[policy.kind].tells_load else None) as reader:
        first = await reader.read()
        # Whoever is not told what a server has to do must not hold back from it: the ceiling is somebody's word.
        control = AdaptiveConcurrency(ceiling, start=START * first.engines if first else ceiling, overloaded=overloaded)
        if first is None:
            log.info("nobody tells the load of the server: only episodes that it fails or holds back lower the number in flight")
            yield control
        else:
            log.info("the load of %d engines is known: at most %d episodes in flight to begin with", first.engines, control.limit)
            polling = asyncio.create_task(_poll(control, reader))
            try:
                yield control
            finally:
                polling.cancel()
                with suppress(asyncio.CancelledError):
                    await polling
        log.info("%s", control)


async def _poll(control: AdaptiveConcurrency, reader: LoadReader) -> None:
    """Poll the server again and again, until cancelled."""
    while True:
        control.poll(await reader.read())
        await asyncio.sleep(POLL_SECONDS)


def throttled_share(episode: Episode) -> float:
    """How much of the time of its calls they were held back, because the server limits its rate."""
    seconds = sum(turn.seconds for turn in episode.turns)
    return sum(turn.throttled_seconds for turn in episode.turns) / seconds if seconds else 0.0


def was_overloaded(episode: Episode, *, timeout_seconds: float) -> bool:
    """Whether an episode failed because the policy's server was unavailable, or let a call wait for its whole deadline.

    A call that failed is no turn: it is what is left of the episode's time.
    """
    failure = episode.failure
    if failure is None or failure.kind not in (Unavailable.__name__, PolicyFailure.__name__):
        return False
    waited = episode.env_time.seconds if episode.env_time else sum(turn.env_seconds for turn in episode.turns)  # the opening too
    left = episode.seconds - sum(turn.seconds for turn in episode.turns) - waited
    return failure.kind == Unavailable.__name__ or left >= NEARLY * timeout_seconds
