"""How many episodes may be in flight, pinned here:

- it begins small, doubles in the time of an episode while the server has room, and never passes the ceiling; while the server is
  half empty and was never full, every poll adds a quarter; whoever waits for permits hears of them;
- nothing grows that was not tried, nor while the server is full, does not answer or limits its rate;
- it is cut by a quarter at pressure that lasts, at an episode that the server failed, and at one whose calls were held back for
  most of their time, to 1 at the least, and once for everything that was in flight;
- an episode counts as the server's failure when it was unavailable or let a call wait for its whole deadline, and else not;
- after a cut it grows by an eighth of the most that there was, in the time of an episode;
- beside a server that carries forty it stays near forty, whatever the ceiling.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from tau2rl.chat.transcript import TranscriptCodec
from tau2rl.config import PolicyConfig
from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.policy.sglang_load import ServerLoad
from tau2rl.rollouts.concurrency import AdaptiveConcurrency, was_overloaded
from tau2rl.types import EnvTime, Episode, FinishReason, Status, Turn
from tests.play import play
from tests.stubs.sglang import SGLangStub
from tests.unit.rollout.endings import FAILED, GOOD

IDLE = ServerLoad(engines=1, running=4, waiting=0, memory=0.1)
ROOM = ServerLoad(engines=1, running=40, waiting=1, memory=0.6)
FULL = ServerLoad(engines=1, running=40, waiting=20, memory=0.5)  # keeps up, with nothing to spare
QUEUE = ServerLoad(engines=1, running=40, waiting=40, memory=0.5)
NO_MEMORY = ServerLoad(engines=1, running=40, waiting=0, memory=0.99)


def adaptive(ceiling: int = 1000, *, start: int = 32) -> AdaptiveConcurrency:
    made = AdaptiveConcurrency(ceiling, start=start, overloaded=lambda episode: episode.status is Status.FAILED)
    made.in_flight = made.limit
    return made


def end(control: AdaptiveConcurrency, count: int, episode: Episode = GOOD) -> None:
    """So many end, while as many are in flight as may be."""
    for _ in range(count):
        control.in_flight = max(control.in_flight - 1, control.limit)
        control.ended(episode)


def press(control: AdaptiveConcurrency, load: ServerLoad = QUEUE) -> None:
    for _ in range(3):
        control.poll(load)


def test_it_doubles_in_the_time_of_an_episode_up_to_the_ceiling() -> None:
    control = adaptive(100)
    control.poll(ROOM)
    end(control, 32)
    assert control.limit == 64
    end(control, 64)
    assert (control.limit, control.peak, control.cuts) == (100, 100, 0)


def test_a_half_empty_server_gets_a_quarter_more_at_every_poll_until_the_first_cut() -> None:
    control = adaptive(60)
    control.poll(IDLE)
    assert control.limit == 40
    control.poll(IDLE)  # 32 are in flight: 40 were not tried
    assert control.limit == 40
    for limit in (50, 60, 60):
        control.in_flight = control.limit
        control.poll(IDLE)
        assert control.limit == limit
    press(control)
    assert control.limit == 45
    end(control, 60)
    control.in_flight = control.limit
    before = control.limit
    control.poll(IDLE)
    assert control.limit == before


def test_where_nobody_polls_it_grows_too() -> None:
    control = adaptive()
    end(control, 32)
    assert control.limit == 64


def test_a_limit_that_was_not_reached_does_not_grow() -> None:
    control = adaptive()
    for _ in range(100):
        control.in_flight = 31
        control.ended(GOOD)
    assert control.limit == 32


def test_beside_a_server_that_is_full_or_silent_it_stays() -> None:
    for load in (FULL, None):
        control = adaptive()
        for _ in range(100):
            control.poll(load)
        end(control, 100)
        assert (control.limit, control.cuts) == (32, 0)


def test_it_is_cut_at_the_third_poll_that_sees_too_much() -> None:
    for load in (QUEUE, NO_MEMORY):
        control = adaptive(start=10)
        for _ in range(10):
            control.poll(load)
            control.poll(load)
            control.poll(ROOM)
        assert control.limit == 10
        press(control, load)
        assert (control.limit, control.cuts) == (7, 1)


def test_it_is_cut_once_for_everything_that_is_in_flight() -> None:
    control = adaptive(start=10)
    press(control)
    for _ in range(100):
        control.poll(QUEUE)
    end(control, 9)
    control.poll(QUEUE)
    assert control.limit == 7  # one of the ten has yet to end
    end(control, 1)
    control.poll(QUEUE)
    assert control.limit == 5  # three quarters of 7


def test_an_episode_that_the_server_failed_cuts_it_and_others_do_not() -> None:
    control = adaptive(start=10)
    control.ended(FAILED)
    assert control.limit == 7
    other = AdaptiveConcurrency(1000, start=10)
    other.in_flight = 10
    other.ended(FAILED)
    assert (other.limit, other.cuts) == (10, 0)


def test_one_is_the_least() -> None:
    control = adaptive(start=3)
    for _ in range(50):
        press(control)
        end(control, 1, FAILED)
    assert control.limit == 1


def test_after_a_cut_it_waits_for_what_is_in_flight_and_then_adds_an_eighth() -> None:
    control = adaptive()
    end(control, 32)
    assert control.limit == 64
    control.in_flight = 64
    press(control)
    assert control.limit == 48
    control.poll(IDLE)
    end(control, 63)
    assert control.limit == 48
    end(control, 53)
    assert control.limit == 56  # and 8, an eighth of 64


def test_it_stays_near_what_the_server_carries() -> None:
    for ceiling in (64, 256, 4096):
        control, now, seen = adaptive(ceiling), 32, list[int]()
        for step in range(2000):
            running = min(now, 40)
            control.poll(ServerLoad(engines=1, running=running, waiting=now - running, memory=0.5))
            for _ in range(max(1, running // 10)):  # an episode lasts ten polls
                control.in_flight = now
                control.ended(GOOD)
                now = max(now - 1, min(control.limit, now + 1))
            seen += [now] if step >= 200 else []
        assert 40 <= sum(seen) / len(seen) <= 60, ceiling
        assert min(seen) >= 30


def throttled(share: float) -> Episode:
    """An episode of ten seconds of calls, of which they were held back for this share."""
    turn = Turn(
        start=0, end=1, prompt_hash="", logprobs=None, finish_reason=FinishReason.STOP, actions=(), seconds=10.0,
        throttled_seconds=10.0 * share,
    )  # fmt: skip
    return replace(GOOD, turns=(turn,))


def test_a_server_that_limits_its_rate_gets_fewer_and_no_more_until_it_does_not() -> None:
    control = adaptive(start=32)
    end(control, 40, throttled(0.2))
    assert (control.limit, control.cuts) == (32, 0)
    end(control, 1, throttled(0.9))
    assert (control.limit, control.cuts) == (24, 1)
    end(control, 31, throttled(0.9))
    assert control.limit == 24  # those that were in flight
    end(control, 1, throttled(0.9))
    assert (control.limit, control.cuts) == (18, 2)


def test_whoever_waits_for_permits_hears_of_them_and_of_nothing_else() -> None:
    control, heard = adaptive(60), list[int]()
    control.on_growth = lambda: heard.append(control.limit)
    control.poll(IDLE)
    control.in_flight = control.limit
    control.poll(IDLE)
    press(control)
    assert heard == [40, 50]


@pytest.mark.parametrize(
    ("mode", "counts"),
    [("503", True), ("429", True), ("dead", True), ("hang", True), ("disconnect", True), ("400", False), ("abort", False)],
)
def test_which_failures_are_those_of_a_server_with_too_much_to_do(mode: str, counts: bool) -> None:
    with SGLangStub(mode=mode) as server:
        policy = SGLangPolicy(PolicyConfig(url=server.url, timeout_seconds=0.5, retries=0))
        episode = play(policy=policy, codec=TranscriptCodec())
    assert episode.failure is not None
    assert was_overloaded(episode, timeout_seconds=0.5) is counts


def test_what_the_user_took_before_the_first_turn_is_no_wait_for_the_server() -> None:
    refused = replace(FAILED, seconds=41.0, env_time=EnvTime(seconds=40.0, user_seconds=40.0))
    assert not was_overloaded(refused, timeout_seconds=30.0)
    assert was_overloaded(replace(refused, seconds=71.0), timeout_seconds=30.0)


def test_an_episode_that_did_not_fail_counts_for_nothing() -> None:
    assert not was_overloaded(play(), timeout_seconds=1e-9)


@given(
    st.integers(1, 300),
    st.lists(
        st.one_of(st.sampled_from([IDLE, ROOM, FULL, QUEUE, NO_MEMORY, None, GOOD, FAILED]), st.integers(0, 300)), max_size=300
    ),
)
def test_it_is_always_between_one_and_the_ceiling(ceiling: int, events: list[ServerLoad | Episode | int | None]) -> None:
    control = adaptive(ceiling)
    for event in events:
        if isinstance(event, Episode):
            control.ended(event)
        elif isinstance(event, int):
            control.in_flight = min(event, ceiling)
        else:
            control.poll(event)
        assert 1 <= control.limit <= control.peak <= ceiling
