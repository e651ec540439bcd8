"""Retry with backoff and the throttle, pinned here:

- without a refusal nothing waits; after one, calls come one after the other, in the order in which they asked;
- a refusal makes all wait as long as the server asks, unless that is longer than a call lives, and a pause besides that grows
  while nothing is taken;
- the interval grows by half once for all calls that were in flight together, and shrinks with answers until it is none;
- refusals of a server that limits its rate do not use up retries; its deadline ends them, and says why;
- from threads it is the same, each until its own deadline;
- a server that takes few requests a second, or none for a while, loses no completion, and learns to be asked no more often.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, strategies as st

from tau2rl import rate_limit
from tau2rl.config import PolicyConfig
from tau2rl.errors import PolicyFailure
from tau2rl.policy import retry
from tau2rl.policy.retry import RateLimited, Unavailable, complete_with_retries
from tau2rl.rate_limit import ThreadThrottle, Throttle
from tau2rl.types import Completion, FinishReason

DONE = Completion(token_ids=(1,), logprobs=None, finish_reason=FinishReason.STOP)


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(rate_limit.asyncio, "sleep", self.sleep)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(rate_limit, "pause_seconds", lambda tries: 0.25 * 2**tries)  # without chance
    return Clock(monkeypatch)


def test_without_a_refusal_nothing_waits(clock: Clock) -> None:
    throttle = Throttle("s", clock=clock)
    assert [asyncio.run(throttle.wait()) for _ in range(3)] == [0.0] * 3
    throttle.answered()
    assert clock.now == 100.0


def test_a_refusal_makes_all_wait_as_long_as_the_server_asks(clock: Clock) -> None:
    async def two() -> list[float]:
        throttle.refused(100.0, 7.0)
        return [await throttle.wait(), await throttle.wait()]

    throttle = Throttle("s", clock=clock)
    assert asyncio.run(two()) == pytest.approx([7.25, 0.05])  # what it asks and the first pause; then the interval


def test_a_wait_that_is_longer_than_a_call_lives_is_not_heeded(clock: Clock) -> None:
    async def waits(asks: float) -> float:
        throttle.refused(clock.now, asks, longest=60.0)
        throttle.refused(clock.now - 1, asks, longest=60.0)  # of the same burst
        return await throttle.wait()

    throttle = Throttle("s", clock=clock)
    assert asyncio.run(waits(60.0)) == pytest.approx(60.25)
    throttle.answered()
    clock.now += 1
    assert asyncio.run(waits(60.1)) == pytest.approx(0.25)


def test_the_pause_grows_while_nothing_is_taken_and_the_interval_does_not(clock: Clock) -> None:
    async def refused(times: int) -> list[float]:
        waited = list[float]()
        for _ in range(times):
            throttle.refused(clock.now, None)
            waited.append(await throttle.wait())
        throttle.answered()
        return [*waited, await throttle.wait()]

    throttle = Throttle("s", clock=clock)
    assert asyncio.run(refused(4)) == pytest.approx([0.25, 0.5, 1.0, 2.0, 0.05])


def test_the_refusals_of_calls_that_were_in_flight_together_are_one(clock: Clock) -> None:
    async def burst() -> float:
        for _ in range(32):
            throttle.refused(100.0, None)
            clock.now += 0.001
        await throttle.wait()
        throttle.answered()
        return await throttle.wait()

    throttle = Throttle("s", clock=clock)
    assert asyncio.run(burst()) == pytest.approx(0.05)


def test_each_refusal_between_answers_widens_the_interval_and_answers_end_it(clock: Clock) -> None:
    async def use() -> tuple[list[float], int]:
        intervals, answers = list[float](), 0
        for _ in range(3):
            clock.now += 1.0
            throttle.refused(clock.now, None)
            await throttle.wait()
            throttle.answered()
            intervals.append(await throttle.wait())
        while await throttle.wait():
            throttle.answered()
            answers += 1
        return intervals, answers

    throttle = Throttle("s", clock=clock)
    intervals, answers = asyncio.run(use())
    assert intervals == pytest.approx([0.05, 0.075 * 0.98, 0.1125 * 0.98**2])
    assert 100 < answers < 200


@given(st.lists(st.one_of(st.just("answered"), st.floats(0, 100), st.none()), max_size=60))
def test_whatever_a_server_says_a_call_waits_a_bounded_time(said: list[object]) -> None:
    now = [0.0]
    throttle = Throttle("s", clock=lambda: now[0])
    for word in said:
        now[0] += 0.5
        if word == "answered":
            throttle.answered()
        else:
            throttle.refused(now[0], word if isinstance(word, float) else None)
    assert throttle._next - now[0] <= 100 + rate_limit.LONGEST_PAUSE_SECONDS


def asked(call: Callable[[], Awaitable[Completion]], throttle: Throttle | None = None, **config: float) -> Completion:
    settings = PolicyConfig(**config)  # pyright: ignore[reportArgumentType]
    return asyncio.run(complete_with_retries(call, settings, throttle=throttle or Throttle("s"), server="s"))


def test_refusals_of_a_limited_server_use_up_no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (retry, rate_limit):
        monkeypatch.setattr(module, "pause_seconds", lambda tries: 0.0)
    answers: list[Exception | None] = [RateLimited("HTTP 429")] * 5 + [Unavailable("HTTP 503"), None]

    async def call() -> Completion:
        error = answers.pop(0)
        if error is not None:
            raise error
        return DONE

    done = asked(call, retries=1)
    assert (done.token_ids, answers) == ((1,), [])
    assert done.throttled_seconds > 0


def test_a_call_that_was_not_held_back_says_so() -> None:
    async def call() -> Completion:
        return DONE

    assert asked(call).throttled_seconds == 0.0


def test_the_deadline_ends_the_waiting_and_says_what_for() -> None:
    async def call() -> Completion:
        raise RateLimited("`s` is overloaded: HTTP 429: `come back tomorrow`", retry_after=86400.0)

    with pytest.raises(PolicyFailure) as caught:
        asked(call, timeout_seconds=0.2)
    assert str(caught.value) == "no completion from `s` within 0.2 s; `s` is overloaded: HTTP 429: `come back tomorrow`"


class Limited:
    """Takes one call every `period` seconds and refuses the others, asking them to wait."""

    def __init__(self, period: float, asks: float | None) -> None:
        self.period, self.asks, self.free_at, self.refused = period, asks, 0.0, 0

    async def __call__(self) -> Completion:
        now = time.monotonic()
        if now < self.free_at:
            self.refused += 1
            raise RateLimited("HTTP 429", retry_after=self.asks)
        self.free_at = now + self.period
        return DONE


@pytest.mark.parametrize("asks", [None, 0.0, 0.1])
def test_thirty_two_at_once_all_come_through_a_narrow_server(asks: float | None) -> None:
    server, throttle = Limited(0.02, asks), Throttle("s")

    async def everybody() -> list[Completion]:
        calls = (complete_with_retries(server, PolicyConfig(), throttle=throttle, server="s") for _ in range(64))
        return await asyncio.gather(*calls)

    assert len(asyncio.run(asyncio.wait_for(everybody(), 60))) == 64
    assert server.refused < 100  # the first burst, and a few while it learns


def test_from_threads_calls_wait_for_each_other_too() -> None:
    throttle = ThreadThrottle("s")
    throttle.wait(time.monotonic() - 1)  # nothing limits it: no deadline counts
    throttle.refused(time.monotonic(), 0.2)
    starts = list[float]()

    def call() -> None:
        throttle.wait(time.monotonic() + 60)
        starts.append(time.monotonic())

    began = time.monotonic()
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert starts[0] - began >= 0.2
    assert all(later - earlier >= 0.04 for earlier, later in itertools.pairwise(sorted(starts)))  # the interval is 0.05


@pytest.mark.parametrize("line", ["free", "taken"])
def test_a_thread_waits_no_longer_than_its_deadline(line: str) -> None:
    def wait(seconds: float) -> None:
        with pytest.raises(TimeoutError):
            throttle.wait(time.monotonic() + seconds)

    throttle = ThreadThrottle("s")
    throttle.refused(time.monotonic(), 3600.0)
    other = threading.Thread(target=wait, args=(0.5 if line == "taken" else 0.0,))
    other.start()
    wait(0.1)
    other.join()
