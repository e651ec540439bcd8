"""When rollouts wait, and when they end the run. Pinned here:

- so many failed tries since the last success open the breaker; an attempt that is played again counts once
- open, it admits one probe after each cooldown, and any success closes it for all
- open for too long, it ends the run with the reason
- work that slime aborts has ended when its caller goes on
"""

from __future__ import annotations

import asyncio

import pytest

from tau2rl.errors import RunIncomplete
from tau2rl.rollouts.circuit_breaker import RolloutBreaker
from tau2rl.slime.rollout import run_until_aborted
from tau2rl.types import Failure, Fault

FAILED = Failure(fault=Fault.USER, kind="UserSimulatorFailure", message="connection refused")


class Clock:
    """Time that passes when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock, *, failures: int = 3) -> RolloutBreaker:
    return RolloutBreaker(failures=failures, cooldown_seconds=10.0, deadline_seconds=100.0, clock=clock)


def test_failures_in_a_row_open_it_and_a_success_between_does_not() -> None:
    made = breaker(Clock())
    made.failed(FAILED, attempt="a", tries=2)
    made.succeeded()
    made.failed(FAILED, attempt="a", tries=2)
    assert not made.open
    made.failed(FAILED, attempt="b", tries=1)
    assert made.open


def test_an_attempt_that_is_played_again_and_again_does_not_open_it_by_itself() -> None:
    made = breaker(Clock())
    for _ in range(10):
        made.failed(FAILED, attempt="a", tries=2)
    assert not made.open


def test_one_probe_after_each_cooldown_and_a_success_admits_all() -> None:
    clock = Clock()
    made = breaker(clock, failures=1)

    async def main() -> None:
        made.failed(FAILED, attempt="a", tries=1)
        waiting = [asyncio.create_task(made.admit()) for _ in range(3)]

        async def admitted_at(now: float) -> int:
            clock.now = now
            await asyncio.sleep(0.6)  # two polls
            return sum(task.done() for task in waiting)

        assert [await admitted_at(now) for now in (9.0, 10.0, 19.0, 20.0)] == [0, 1, 1, 2]
        made.succeeded()
        assert not made.open and await admitted_at(21.0) == 3

    asyncio.run(main())


def test_open_for_too_long_it_ends_the_run_with_the_reason() -> None:
    clock = Clock()
    made = breaker(clock, failures=1)
    made.failed(FAILED, attempt="a", tries=1)
    clock.now = 100.0
    for _ in range(2):  # and says so to everyone who comes later
        with pytest.raises(RunIncomplete, match="nothing has worked for 100 s: UserSimulatorFailure: connection refused"):
            asyncio.run(made.admit())


def test_work_that_is_aborted_has_ended_when_the_caller_goes_on() -> None:
    steps: list[str] = []

    async def work() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            steps.append("closed")
        return "never"

    async def main() -> None:
        stop = False

        async def caller() -> str | None:
            found = await run_until_aborted(lambda: stop, work())
            steps.append("caller")
            return found

        task = asyncio.create_task(caller())
        await asyncio.sleep(0.05)
        stop = True
        assert await task is None

    asyncio.run(main())
    assert steps == ["closed", "caller"]


def test_the_result_and_the_exception_of_the_work_come_through() -> None:
    async def works() -> int:
        return 5

    async def breaks() -> int:
        raise RunIncomplete("over")

    assert asyncio.run(run_until_aborted(lambda: False, works())) == 5
    assert asyncio.run(run_until_aborted(lambda: True, works())) is None
    with pytest.raises(RunIncomplete, match="over"):
        asyncio.run(run_until_aborted(lambda: False, breaks()))


def test_who_is_cancelled_cancels_the_work() -> None:
    ended: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def main() -> None:
        task = asyncio.create_task(run_until_aborted(lambda: False, work()))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended == [True]
