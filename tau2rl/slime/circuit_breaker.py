"""When rollouts wait because user simulator, engines or environment are broken, and when they end the run. On one event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from tau2rl.errors import RunIncomplete
from tau2rl.types import Failure

log = logging.getLogger(__name__)
POLL_SECONDS = 0.25


class RolloutBreaker:
    """It opens at `failures` failed tries since the last success; any success closes it.

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
