"""When a run stops playing: nothing but failures comes back, and from more than one task that cannot be played."""

from __future__ import annotations

from collections.abc import Iterable

from tau2rl.rollouts.runner import Outcome
from tau2rl.types import Status, TaskRef


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
