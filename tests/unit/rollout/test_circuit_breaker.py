"""When a run gives up, pinned here:

- after so many failures in a row, of one task or of many, while nothing has ended well;
- a task that has never ended well counts once, however often it fails, once another one has ended well;
- tasks that have ended well count each time they fail, and any good end begins the count anew.
"""

from __future__ import annotations

from tau2rl.rollouts.circuit_breaker import CircuitBreaker
from tau2rl.rollouts.runner import Outcome
from tau2rl.types import Attempt, TaskRef
from tests.unit.rollout.endings import FAILED, GOOD


def of(name: str, *, failed: bool) -> Outcome:
    task = TaskRef(domain="mock", task_id=name, split="base")
    return Outcome(attempt=Attempt(task=task, index=0, seed=0), episode=FAILED if failed else GOOD)


def shown(breaker: CircuitBreaker, *names: str, failed: bool = True) -> list[bool]:
    return [breaker.opens_at(of(name, failed=failed)) for name in names]


def test_infrastructure_that_was_never_there_is_given_up_whoever_asks() -> None:
    assert shown(CircuitBreaker(after=3), "a", "a", "a") == [False, False, True]
    assert shown(CircuitBreaker(after=3), "a", "b", "c") == [False, False, True]


def test_one_task_that_cannot_be_played_does_not_end_the_others() -> None:
    breaker = CircuitBreaker(after=3)
    shown(breaker, "good", failed=False)
    assert not any(shown(breaker, *["broken"] * 100))
    assert breaker.failures == 1


def test_what_earlier_starts_have_counts() -> None:
    breaker = CircuitBreaker(after=3, ended_well=[of("good", failed=False).attempt.task])
    assert not any(shown(breaker, *["broken"] * 100))


def test_infrastructure_that_goes_away_is_given_up() -> None:
    breaker = CircuitBreaker(after=3)
    shown(breaker, "a", failed=False)
    assert shown(breaker, "a", "a", "a") == [False, False, True]
    assert not any(shown(breaker, "b", failed=False))
    assert breaker.failures == 0
    assert shown(breaker, "c", "a", "b") == [False, False, True]
