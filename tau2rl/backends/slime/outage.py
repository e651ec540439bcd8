"""When the world is broken for good, rollouts wait for it, and end with a clear word when it does not come back.

A user simulator that has died makes every episode FAILED. None of them is evidence, but slime would go on asking for more for
ever. So after several in a row nothing new begins, except one episode at a time that tries whether the world is back.

Many places fail together when one engine of several dies, and that is an outage too, within a second. It is meant to be: a pause
costs the seconds to the next trial that works, and what failed is played again behind it; to go on would cost the attempts. What
counts is attempts: one that is played again and again counts once, and one success between begins the count anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from tau2rl.errors import RunIncomplete
from tau2rl.types import Failure

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.25  # between two looks of someone who waits


class Outage:
    """Counts episodes that FAILED, and says who may begin one.

        async with outage.seat() as trial:  # waits while the world is broken; `trial` = this one tries whether it is back
            ...
            outage.failed(failure, attempt="mock/a#0")  # or outage.well(trial=trial)

    One event loop uses it.
    """

    def __init__(
        self, *, after: int, deadline_seconds: float, pause_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`after`: tries that FAILED, with no success between, that make an outage; `pause_seconds`: between trials."""
        self._after = after
        self._deadline = deadline_seconds
        self._pause = pause_seconds
        self._clock = clock
        self._failing: dict[str, int] = {}  # attempt -> its tries, of those that FAILED since the last success
        self._since: float | None = None
        self._trying = False
        self._next_trial = 0.0
        self._last = ""

    @property
    def on(self) -> bool:
        """Whether the world is taken to be broken."""
        return self._since is not None

    @asynccontextmanager
    async def seat(self) -> AsyncGenerator[bool]:
        """Leave to begin an episode; True for one that is a trial. Raises RunIncomplete when the deadline is over."""
        trial = await self._wait()
        try:
            yield trial
        finally:
            if trial:
                self._trying = False
                self._next_trial = self._clock() + self._pause

    def well(self, *, trial: bool) -> None:
        """An episode ran; during an outage only a trial, which began in it, shows that it is over."""
        if self._since is None:
            self._failing.clear()
        elif trial:
            log.warning("the world is back after %.0f s", self._clock() - self._since)
            self._since = None
            self._failing.clear()

    def failed(self, failure: Failure, *, attempt: str, tries: int = 1) -> None:
        """So many tries of an attempt FAILED, one behind the other. Told of it again, it counts no more than before."""
        self._failing[attempt] = max(tries, self._failing.get(attempt, 0))
        self._last = f"{failure.kind}: {failure.message}"
        if self._since is None and self._in_a_row >= self._after:
            self._since = self._clock()
            self._next_trial = self._since + self._pause
            log.error("%d episodes in a row failed, rollouts wait (%s)", self._in_a_row, self._last)

    @property
    def _in_a_row(self) -> int:
        return sum(self._failing.values())

    async def _wait(self) -> bool:
        while self._since is not None:
            now = self._clock()
            if now - self._since >= self._deadline:
                raise RunIncomplete(
                    f"{self._in_a_row} episodes in a row failed and nothing has worked for {self._deadline:g} s: {self._last}\n\n"
                    "hint: start the user simulator or the server that is down, then continue the run with `--resume`"
                )
            if not self._trying and now >= self._next_trial:
                self._trying = True
                return True
            await asyncio.sleep(LOOK_SECONDS)
        return False
