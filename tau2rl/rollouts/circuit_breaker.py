"""When rollouts end or wait because user simulator, engines or environment are broken for all tasks.

The two rules differ because what follows does. A run in this process ends, and a resume plays again what failed: so only whole
attempts count, and no task that is broken by itself. Under slime GPUs are held: every failed try counts, so that rollouts
soon wait, any success lets them go on, and only a wait that lasts ends the job.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from tau2rl.errors import RunIncomplete
from tau2rl.rollouts.runner import Outcome
from tau2rl.types import Failure, Status, TaskRef

log = logging.getLogger(__name__)
POLL_SECONDS = 0.25


class CircuitBreaker:
    """Counts FAILED episodes in a row, as signs that the infrastructure broke for all tasks.

        breaker = CircuitBreaker(after=20)
        if breaker.opens_at(outcome): ...  # stop

    Attempts at one task follow each other (a group of GRPO, `rollouts/scheduling.py`). So a task that has never ended well says
    nothing new when it fails again, once another one has ended well.
    """

    def __init__(self, *, after: int, ended_well: Iterable[TaskRef] = ()) -> None:
        self.failures = 0  # in a row
        self._after = after
        self._ended_well, self._failed = set(ended_well), set[TaskRef]()

    def opens_at(self, outcome: Outcome) -> bool:
        """Take in an outcome; whether there are enough failures now."""
        task = outcome.attempt.task
        if outcome.episode.status is not Status.FAILED:
            self._ended_well.add(task)
            self.failures = 0
        elif not self._ended_well or task in self._ended_well or task not in self._failed:
            self.failures += 1
            self._failed.add(task)
        return self.failures >= self._after


class RolloutBreaker:
    """Opens at `failures` failed tries since the last success; any success closes it. On one event loop.

    Closed, `admit` lets every episode begin at once. Open, it lets one begin every `cooldown_seconds`, and ends the run after
    `deadline_seconds`.
    """

    def __init__(
        self, *, failures: int, cooldown_seconds: float, deadline_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = failures
        self._cooldown = cooldown_seconds
        self._deadline = deadline_seconds
        self._clock = clock
        self._failed: dict[str, int] = {}  # attempt -> its tries, since the last success; one that is played again counts once
        self._opened_at: float | None = None
        self._next_probe = 0.0
        self._last = ""

    @property
    def open(self) -> bool:
        """Whether nothing works, as far as is known."""
        return self._opened_at is not None

    async def admit(self) -> None:
        """Wait until an episode may begin. Raises RunIncomplete once the deadline is over."""
        while self._opened_at is not None:
            now = self._clock()
            if now - self._opened_at >= self._deadline:
                raise RunIncomplete(
                    f"{sum(self._failed.values())} episodes in a row failed and nothing has worked for {self._deadline:g} s: "
                    f"{self._last}\n\n"
                    "hint: start the user simulator or the server that is down, then continue the run with `--resume`"
                )
            if now >= self._next_probe:
                self._next_probe = now + self._cooldown
                return
            await asyncio.sleep(POLL_SECONDS)

    def succeeded(self) -> None:
        """An episode ran to an end of its own."""
        self._failed.clear()
        if self._opened_at is not None:
            log.warning("episodes work again after %.0f s", self._clock() - self._opened_at)
            self._opened_at = None

    def failed(self, failure: Failure, *, attempt: str, tries: int) -> None:
        """So many tries of an attempt FAILED, one behind the other."""
        self._failed[attempt] = tries
        self._last = f"{failure.kind}: {failure.message}"
        if self._opened_at is None and sum(self._failed.values()) >= self._most:
            self._opened_at = self._clock()
            self._next_probe = self._opened_at + self._cooldown
            log.error("%d episodes in a row failed, rollouts wait (%s)", sum(self._failed.values()), self._last)
