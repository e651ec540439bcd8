"""In which order attempts begin, pinned here:

- the longest first, by reference paths until an episode of the task has ended, and by episodes after that;
- what has been running for longer than anybody thought counts as that long; FAILED episodes teach nothing;
- the first attempts of all tasks come before all others, and rounds stay rounds until the last ones;
- each attempt comes once, whatever is estimated; the same estimates give the same order;
- on tasks of which a few are long a run ends sooner than in the order of its plan.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from tau2rl.rollouts.runner import plan_attempts
from tau2rl.rollouts.scheduling import DurationEstimate, blocks, longest_first
from tau2rl.types import Attempt, Episode, TaskRef
from tests.unit.rollout.endings import FAILED, GOOD


class Clock:
    """A clock that stands until somebody moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def tasks(count: int) -> list[TaskRef]:
    return [TaskRef(domain=f"d{i % 3}", task_id=str(i), split="test") for i in range(count)]


def lasting(task: TaskRef, seconds: float, episode: Episode = GOOD) -> Episode:
    return replace(episode, task=task, seconds=seconds)


def first(ref: TaskRef, index: int = 0) -> Attempt:
    return Attempt(task=ref, index=index, seed=1)


def play(
    order: Iterable[Attempt], seconds: Mapping[str, float], estimate: DurationEstimate, clock: Clock, *, places: int
) -> float:
    """When the last attempt ends, with so many at a time, each as long as `seconds` says."""
    running: list[tuple[float, str, Attempt]] = []
    for attempt in order:
        heapq.heappush(running, (clock.now + seconds[attempt.key], attempt.key, attempt))
        if len(running) == places:
            clock.now, _, over = heapq.heappop(running)
            estimate.ended(over, lasting(over.task, seconds[over.key]))
    return max(end for end, _, _ in running) if running else clock.now


def test_the_longest_begins_first() -> None:
    a, b, c, d = refs = tasks(4)
    estimate = DurationEstimate(refs, {a: 1, b: 1, c: 1, d: 4}.__getitem__)
    attempts = plan_attempts(refs, num_samples=1, seed=0)
    assert [x.task for x in longest_first(attempts, estimate, concurrency=2)] == [d, a, b, c]
    # Two at a time: d beside a, b, c ends after 4; as planned it would begin at 1 and end after 5.


def test_what_an_episode_took_counts_more_than_its_reference_path() -> None:
    a, b = (TaskRef(domain="d", task_id=name, split="test") for name in "ab")
    estimate = DurationEstimate([a, b], {a: 1, b: 9}.__getitem__)
    assert estimate.seconds(a) < estimate.seconds(b)
    estimate.ended(first(a), lasting(a, 30.0))
    assert (estimate.seconds(a), estimate.seconds(b)) == (30.0, 270.0)  # 30 seconds an action
    estimate.ended(first(a, 1), lasting(a, 10.0))
    assert (estimate.seconds(a), estimate.seconds(b)) == (20.0, 180.0)  # 20 seconds an action
    for index in range(3):
        estimate.ended(first(b, index), lasting(b, 10.0))
    assert estimate.seconds(a) > estimate.seconds(b)


def test_a_task_without_a_reference_path_is_like_those_of_its_domain() -> None:
    a, b, c = (TaskRef(domain="d", task_id=name, split="test") for name in "abc")
    estimate = DurationEstimate([a, b, c], {a: 2, b: 4, c: 0}.__getitem__)
    assert estimate.seconds(c) == 3.0


def test_another_domain_says_how_long_an_action_takes_until_ones_own_does() -> None:
    a, b = (TaskRef(domain=name, task_id=name, split="test") for name in "ab")
    estimate = DurationEstimate([a, b], lambda _: 2)
    estimate.ended(first(a), lasting(a, 10.0))
    assert estimate.seconds(b) == 10.0


def test_what_has_not_ended_for_long_is_long() -> None:
    (a,), clock = tasks(1), Clock()
    estimate = DurationEstimate([a], lambda _: 1, clock=clock)
    estimate.began(first(a))
    clock.now = 500.0
    assert estimate.seconds(a) == 500.0
    estimate.ended(first(a), lasting(a, 4.0, FAILED))
    assert estimate.seconds(a) == 1.0


def test_rounds_stay_rounds_until_the_last_ones() -> None:
    attempts = plan_attempts(tasks(20), num_samples=6, seed=0, greedy=True)
    sizes = [len(block) for block in blocks(attempts, concurrency=5)]
    assert sizes == [20, 20, 20, 20, 20, 40]  # two rounds of 20 hold eight attempts for each of the five places
    assert [len(block) for block in blocks(attempts, concurrency=1000)] == [20, 120]
    assert blocks([], concurrency=5) == []


def test_what_the_first_round_taught_orders_the_last_one() -> None:
    refs, clock = tasks(6), Clock()
    estimate = DurationEstimate(refs, lambda _: 1, clock=clock)
    attempts = plan_attempts(refs, num_samples=2, seed=0)
    hidden = {ref: float(1 + (5 * i) % 6) for i, ref in enumerate(refs)}
    order = longest_first(attempts, estimate, concurrency=6)
    began = [next(order) for _ in range(6)]
    assert {a.index for a in began} == {0}
    for attempt in began:
        estimate.ended(attempt, lasting(attempt.task, hidden[attempt.task]))
    assert [hidden[a.task] for a in order] == [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]


@given(
    count=st.integers(0, 12),
    samples=st.integers(1, 5),
    greedy=st.booleans(),
    concurrency=st.integers(1, 40),
    lengths=st.lists(st.integers(0, 9), min_size=12, max_size=12),
    done=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_each_attempt_comes_once_and_first_attempts_come_first(
    count: int, samples: int, greedy: bool, concurrency: int, lengths: list[int], done: int, seed: int
) -> None:
    refs = tasks(count)
    attempts = plan_attempts(refs, num_samples=samples, seed=seed, greedy=greedy)
    attempts = random.Random(seed).sample(attempts, max(0, len(attempts) - done))  # as in a run that goes on
    attempts.sort(key=plan_attempts(refs, num_samples=samples, seed=seed, greedy=greedy).index)

    def order() -> list[Attempt]:
        clock = Clock()
        estimate = DurationEstimate(refs, lambda ref: lengths[int(ref.task_id)], clock=clock)
        begun: list[Attempt] = []
        for attempt in longest_first(attempts, estimate, concurrency=concurrency):
            clock.now += 0.5
            begun.append(attempt)
            if len(begun) > concurrency:
                over = begun[-concurrency - 1]
                estimate.ended(over, lasting(over.task, (over.seed % 7) / 2))
        return begun

    begun = order()
    assert len(begun) == len(attempts)
    assert set(begun) == set(attempts)
    assert order() == begun
    rounds = [(not a.greedy, a.index) for a in begun]
    opening = [a_round for a_round in rounds if a_round == min(rounds)]
    assert rounds[: len(opening)] == opening


@pytest.mark.parametrize(("places", "share"), [(8, 0.95), (32, 0.85)])
def test_a_run_with_a_few_long_tasks_ends_sooner(places: int, share: float) -> None:
    took = dict[str, list[float]](plan=[], longest=[])
    for seed in range(20):
        rng = random.Random(seed)
        refs = tasks(60)
        length = {ref: 1 + min(20, int(rng.paretovariate(1.2))) for ref in refs}
        attempts = plan_attempts(refs, num_samples=4, seed=seed)
        seconds = {a.key: length[a.task] * rng.lognormvariate(0, 0.4) for a in attempts}
        for name in took:
            clock = Clock()
            estimate = DurationEstimate(refs, length.__getitem__, clock=clock)
            order = attempts if name == "plan" else longest_first(attempts, estimate, concurrency=places)
            took[name].append(play(order, seconds, estimate, clock, places=places))
    assert sum(took["longest"]) < share * sum(took["plan"])
    # Never much later than as planned: no order can know how long an episode will be this time.
    assert all(new <= 1.1 * old for new, old in zip(took["longest"], took["plan"], strict=True))
