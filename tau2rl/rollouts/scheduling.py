"""Scheduling: longest processing time first, where it matters, so that no long episode runs alone at the end.

Whoever begins the longest of what is left whenever there is room ends within 4/3 of the best possible time (Graham 1969,
"Bounds on Multiprocessing Timing Anomalies"); in the order of a plan a long episode may begin last, and everything
waits for it. But a run is also looked at before it ends, and stopped. So:

- the first attempts of all tasks come first: then every task has a result, and its length is known for the later attempts;
- the rounds after it stay rounds, so that a run that stops has about as many attempts of each task;
- the last rounds, as many as hold `TAIL` attempts for each that can be in flight, are one, the longest first.

Only the end decides how long a run takes, so the first two cost next to nothing: what any order could still gain is in
`scripts/benchmarks/scheduling.py`. Who is played, and with which seed, is the plan's; here is only when.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean

from tau2rl.types import Attempt, Episode, Status, TaskRef

TAIL = 8  # attempts for each that can be in flight; fewer leave too little that is short to fill up the end with
PATH_WEIGHT = 0.5  # of the reference path beside the episodes of a task, each of which is also chance
SORTS = 16  # of what waits, sorted again with what was learned since whenever so small a part of it has begun


class DurationEstimate:
    """How long an episode of a task will take, from what is known so far.

    The mean of the episodes that the task had and, as half an episode, of its reference path at the seconds that a reference
    action takes in its domain. A task that was begun and has not ended for longer than that takes at least so long: the longest
    episodes are known last. FAILED ones say nothing.

        >>> a, b = (TaskRef(domain="mock", task_id=name, split="base") for name in "ab")
        >>> estimate = DurationEstimate([a, b], lambda task: 2 if task is a else 6)
        >>> estimate.seconds(a) < estimate.seconds(b)
        True
    """

    def __init__(
        self, tasks: Sequence[TaskRef], length: Callable[[TaskRef], float], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`length`, in any unit, of a task's reference path; 0 where there is none: then that of its domain in the mean."""
        self._clock = clock
        self._length = {task.key: length(task) for task in tasks}
        known: defaultdict[str, list[float]] = defaultdict(list)
        for task in tasks:
            known[task.domain] += [self._length[task.key]] if self._length[task.key] else []
        for task in tasks:
            self._length[task.key] = self._length[task.key] or (fmean(known[task.domain]) if known[task.domain] else 1.0)
        self._ended: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0])  # task -> episodes, seconds
        self._per_length: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # domain, "" for all -> length, seconds
        self._running: defaultdict[str, dict[str, float]] = defaultdict(dict)  # task -> attempt -> since

    def began(self, attempt: Attempt) -> None:
        """An attempt begins now."""
        self._running[attempt.task.key][attempt.key] = self._clock()

    def ended(self, attempt: Attempt, episode: Episode) -> None:
        """Learn from an episode, of this start of the run or of an earlier one."""
        task = attempt.task
        self._running[task.key].pop(attempt.key, None)
        if episode.status is Status.FAILED:
            return
        for totals, amount in (
            (self._ended[task.key], 1),
            (self._per_length[task.domain], self._length.get(task.key, 1.0)),
            (self._per_length[""], self._length.get(task.key, 1.0)),
        ):
            totals[0] += amount
            totals[1] += episode.seconds

    def seconds(self, task: TaskRef) -> float:
        """The estimate: seconds once an episode has ended, and lengths before."""
        count, total = self._ended[task.key]
        began = min(self._running[task.key].values(), default=None)
        so_far = 0.0 if began is None else self._clock() - began
        by_path = self._length[task.key] * self._seconds_per_length(task.domain)
        return max(so_far, (PATH_WEIGHT * by_path + total) / (PATH_WEIGHT + count))

    def _seconds_per_length(self, domain: str) -> float:
        for name in (domain, ""):
            length, seconds = self._per_length[name]
            if length:
                return seconds / length
        return 1.0


def longest_first(attempts: Iterable[Attempt], estimate: DurationEstimate, *, concurrency: int) -> Iterator[Attempt]:
    """Each of `attempts`, which are in the order of their plan, once; the next one is decided when it is asked for.

    `concurrency`: how many can be in flight. Attempts that take the same time keep their order.
    """
    for block in blocks(list(attempts), concurrency=concurrency):
        waiting, sort_at = block[::-1], len(block)
        while waiting:
            if len(waiting) <= sort_at:
                waiting = _longest_last(waiting, estimate)
                sort_at = len(waiting) - max(1, len(waiting) // SORTS)
            attempt = waiting.pop()
            estimate.began(attempt)
            yield attempt


def blocks(attempts: Sequence[Attempt], *, concurrency: int) -> list[list[Attempt]]:
    """What begins before what: the rounds of the plan, the last ones together."""
    rounds = [list(group) for _, group in itertools.groupby(attempts, key=lambda attempt: (attempt.greedy, attempt.index))]
    last: list[Attempt] = []
    while len(rounds) > 1 and len(last) < TAIL * concurrency:
        last = rounds.pop() + last
    return [*rounds, *([last] if last else [])]


def _longest_last(waiting: list[Attempt], estimate: DurationEstimate) -> list[Attempt]:
    seconds = {task: estimate.seconds(task) for task in {attempt.task for attempt in waiting}}
    return sorted(waiting, key=lambda attempt: seconds[attempt.task])
