"""When to give up: nothing but failures comes back, and from more than one task that cannot be played."""

from __future__ import annotations

from collections.abc import Iterable

from tau2rl.rollouts.collect import Outcome
from tau2rl.types import Status, TaskRef


class Outage:
    """Counts FAILED episodes in a row, as signs that the world broke for all tasks.

        outage = Outage(after=20)
        if outage.shown_by(outcome): ...  # stop

    Attempts at one task follow each other (a group of GRPO, `rollouts/order.py`). So a task that has never ended well says
    nothing new when it fails again, once another one has ended well.
    """

    def __init__(self, *, after: int, ended_well: Iterable[TaskRef] = ()) -> None:
        self.failed = 0  # signs in a row
        self._after = after
        self._well, self._ill = set(ended_well), set[TaskRef]()

    def shown_by(self, outcome: Outcome) -> bool:
        """Take in an outcome; whether there are enough signs now."""
        task = outcome.attempt.task
        if outcome.episode.status is not Status.FAILED:
            self._well.add(task)
            self.failed = 0
        elif not self._well or task in self._well or task not in self._ill:
            self.failed += 1
            self._ill.add(task)
        return self.failed >= self._after
