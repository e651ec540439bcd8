"""The pace of a run: the servers of the settings are asked for their load every second, beside the episodes."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from tau2rl.config import EvalConfig, RftConfig, SeedConfig
from tau2rl.policy.load import LoadReader, was_overloaded
from tau2rl.types import Episode, Status

log = logging.getLogger(__name__)

START = 32  # of each engine, to begin with: what one GPU with a small model carries, and the default of `rollout.concurrency`
SHRINK = 0.75  # what a fall leaves; a half would leave a third of the server idle for a while
LEAP = 1.25  # at a look that finds the server half empty, before it was ever full
STEPS = 8  # from nothing to the most that there ever was, in so many times of an episode
PATIENCE = 3  # looks in a row that see too much: one alone may fall into the prefill of a long prompt


class Load(Protocol):
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


def is_pressed(load: Load) -> bool:
    """Whether more would only wait, or push the contexts of conversations out of the cache between their turns."""
    return load.waiting > max(2.0, 0.75 * load.running) or load.memory > 0.95


def is_half_empty(load: Load) -> bool:
    """Whether there is room for many more, even when the contexts of those in flight have grown."""
    return load.waiting == 0 and load.memory < 0.5


def is_fine(load: Load) -> bool:
    """Whether there is room: a short queue is what keeps a server busy. Between this and `is_pressed` the number stays."""
    return load.waiting <= 0.25 * load.running and load.memory < 0.85


class Pace:
    """The number of episodes that may be in flight.

        pace = Pace(512, start=64)
        async for outcome in outcomes(attempts, play=play, concurrency=512, retries=2, pace=pace): ...

    `outcomes` asks it for `limit`, and tells it what is in flight and what ended; somebody else lets it `look` at the server.
    Where nobody does, failures alone make it fall.
    """

    def __init__(self, ceiling: int, *, start: int = START, overloaded: Callable[[Episode], bool] = lambda _: False) -> None:
        """`overloaded`: whether a FAILED episode failed because its server had too much to do, or was gone."""
        self.ceiling = ceiling
        self.in_flight = 0
        self.falls = 0
        self.most = self._start = min(start, ceiling)
        self._limit = float(self._start)
        self._overloaded = overloaded
        self._room = True  # at the last look
        self._pressed = 0  # looks in a row
        self._hold = 0  # episodes that have yet to end until what is in flight shows what the last fall has done
        self._said = self._start

    @property
    def limit(self) -> int:
        """From 1 to the ceiling.

        >>> Pace(8).limit, Pace(512).limit
        (8, 32)
        """
        return int(self._limit)

    def look(self, load: Load | None) -> None:
        """Take in what the server says now; None when it does not answer: then nothing grows."""
        self._room = load is not None and is_fine(load)
        self._pressed = self._pressed + 1 if load is not None and is_pressed(load) else 0
        if load is not None and is_half_empty(load) and not self.falls and self.in_flight >= self.limit:
            self._grow(self._limit * (LEAP - 1))
        if load is not None and self._pressed >= PATIENCE:
            self._fall(
                f"the server works on {load.running} requests, {load.waiting} wait, {load.memory:.0%} of its memory is used"
            )

    def ended(self, episode: Episode) -> None:
        """Take in a try that ended, and is still counted in `in_flight`."""
        self._hold = max(0, self._hold - 1)
        if self._overloaded(episode):
            self._fall("an episode failed, because the server was too slow or not there")
        elif episode.status is not Status.FAILED and self._room and not self._hold and self.in_flight >= self.limit:
            # Only a limit that was reached has been tried.
            self._grow(1.0 if not self.falls else max(1.0, self.most / STEPS) / self._limit)

    def _grow(self, step: float) -> None:
        self._limit = min(float(self.ceiling), self._limit + step)
        self.most = max(self.most, self.limit)
        if self.limit >= min(2 * self._said, self.ceiling) and self.limit > self._said:
            self._say("the server keeps up")

    def _fall(self, why: str) -> None:
        if self._hold or self.limit == 1 or not self.in_flight:
            return
        self._limit = max(1.0, SHRINK * min(self._limit, self.in_flight))
        self._hold = self.in_flight
        self.falls += 1
        self._say(why)

    def _say(self, why: str) -> None:
        self._said = self.limit
        log.info("at most %d episodes in flight from now on: %s", self.limit, why)

    def __str__(self) -> str:
        """How far it went.

        >>> str(Pace(512))
        'episodes in flight: 32 allowed to begin with, 32 at most, 32 at the end; lowered 0 times, ceiling 512'
        """
        return (
            f"episodes in flight: {self._start} allowed to begin with, {self.most} at most, {self.limit} at the end; "
            f"lowered {self.falls} times, ceiling {self.ceiling}"
        )


LOOK_SECONDS = 1.0


@asynccontextmanager
async def open_pace(config: EvalConfig | SeedConfig | RftConfig) -> AsyncGenerator[Pace | None]:
    """How many episodes may be in flight, up to `rollout.concurrency`; None where that is all that there is to say.

    It looks at the servers from the process that starts the episodes, wherever they are played. Says at the end how far it went.
    """
    policy, ceiling = config.policy, config.rollout.concurrency
    if not config.adaptive:
        yield None
        return
    overloaded = functools.partial(was_overloaded, timeout_seconds=policy.timeout_seconds)
    async with LoadReader(policy.urls if policy.kind == "sglang" else ()) as reader:
        first = await reader.read()
        # Whoever is not told what a server has to do must not hold back from it: the ceiling is somebody's word.
        pace = Pace(ceiling, start=START * first.engines if first else ceiling, overloaded=overloaded)
        if first is None:
            log.info("nobody tells the load of the server: only episodes that it fails lower the number in flight")
            yield pace
        else:
            log.info("the load of %d engines is known: at most %d episodes in flight to begin with", first.engines, pace.limit)
            watching = asyncio.create_task(watch(pace, reader))
            try:
                yield pace
            finally:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
        log.info("%s", pace)


async def watch(pace: Pace, reader: LoadReader) -> None:
    """Let `pace` look, again and again, until cancelled."""
    while True:
        pace.look(await reader.read())
        await asyncio.sleep(LOOK_SECONDS)
