"""How many episodes may be in flight, pinned here:

- it begins small, doubles in the time of an episode while the server has room, and never passes the ceiling; while the server is
  half empty and was never full, every look adds a quarter;
- nothing grows that was not tried, nor while the server is full or does not answer;
- it falls by a quarter at pressure that lasts, or at an episode that the server failed, to 1 at the least, and once for
  everything that was in flight;
- after a fall it grows by an eighth of the most that there was, in the time of an episode;
- beside a server that carries forty it stays near forty, whatever the ceiling.
"""

from __future__ import annotations

from hypothesis import given, strategies as st

from tau2rl.policy.load import ServerLoad
from tau2rl.rollout.concurrency import Pace
from tau2rl.types import Episode, Status
from tests.unit.rollout.endings import FAILED, GOOD

IDLE = ServerLoad(engines=1, running=4, waiting=0, memory=0.1)
ROOM = ServerLoad(engines=1, running=40, waiting=1, memory=0.6)
FULL = ServerLoad(engines=1, running=40, waiting=20, memory=0.5)  # keeps up, with nothing to spare
QUEUE = ServerLoad(engines=1, running=40, waiting=40, memory=0.5)
NO_MEMORY = ServerLoad(engines=1, running=40, waiting=0, memory=0.99)


def pace(ceiling: int = 1000, *, start: int = 32) -> Pace:
    made = Pace(ceiling, start=start, overloaded=lambda episode: episode.status is Status.FAILED)
    made.in_flight = made.limit
    return made


def end(paced: Pace, count: int, episode: Episode = GOOD) -> None:
    """So many end, while as many are in flight as may be."""
    for _ in range(count):
        paced.in_flight = max(paced.in_flight - 1, paced.limit)
        paced.ended(episode)


def press(paced: Pace, load: ServerLoad = QUEUE) -> None:
    for _ in range(3):
        paced.look(load)


def test_it_doubles_in_the_time_of_an_episode_up_to_the_ceiling() -> None:
    paced = pace(100)
    paced.look(ROOM)
    end(paced, 32)
    assert paced.limit == 64
    end(paced, 64)
    assert (paced.limit, paced.most, paced.falls) == (100, 100, 0)


def test_a_half_empty_server_gets_a_quarter_more_at_every_look_until_it_was_full() -> None:
    paced = pace(60)
    paced.look(IDLE)
    assert paced.limit == 40
    paced.look(IDLE)  # 32 are in flight: 40 were not tried
    assert paced.limit == 40
    for limit in (50, 60, 60):
        paced.in_flight = paced.limit
        paced.look(IDLE)
        assert paced.limit == limit
    press(paced)
    assert paced.limit == 45
    end(paced, 60)
    paced.in_flight = paced.limit
    before = paced.limit
    paced.look(IDLE)
    assert paced.limit == before


def test_where_nobody_looks_it_grows_too() -> None:
    paced = pace()
    end(paced, 32)
    assert paced.limit == 64


def test_a_limit_that_was_not_reached_does_not_grow() -> None:
    paced = pace()
    for _ in range(100):
        paced.in_flight = 31
        paced.ended(GOOD)
    assert paced.limit == 32


def test_beside_a_server_that_is_full_or_silent_it_stays() -> None:
    for load in (FULL, None):
        paced = pace()
        for _ in range(100):
            paced.look(load)
        end(paced, 100)
        assert (paced.limit, paced.falls) == (32, 0)


def test_it_falls_at_the_third_look_that_sees_too_much() -> None:
    for load in (QUEUE, NO_MEMORY):
        paced = pace(start=10)
        for _ in range(10):
            paced.look(load)
            paced.look(load)
            paced.look(ROOM)
        assert paced.limit == 10
        press(paced, load)
        assert (paced.limit, paced.falls) == (7, 1)


def test_it_falls_once_for_everything_that_is_in_flight() -> None:
    paced = pace(start=10)
    press(paced)
    for _ in range(100):
        paced.look(QUEUE)
    end(paced, 9)
    paced.look(QUEUE)
    assert paced.limit == 7  # one of the ten has yet to end
    end(paced, 1)
    paced.look(QUEUE)
    assert paced.limit == 5  # three quarters of 7


def test_an_episode_that_the_server_failed_makes_it_fall_and_others_do_not() -> None:
    paced = pace(start=10)
    paced.ended(FAILED)
    assert paced.limit == 7
    other = Pace(1000, start=10)
    other.in_flight = 10
    other.ended(FAILED)
    assert (other.limit, other.falls) == (10, 0)


def test_one_is_the_least() -> None:
    paced = pace(start=3)
    for _ in range(50):
        press(paced)
        end(paced, 1, FAILED)
    assert paced.limit == 1


def test_after_a_fall_it_waits_for_what_is_in_flight_and_then_adds_an_eighth() -> None:
    paced = pace()
    end(paced, 32)
    assert paced.limit == 64
    paced.in_flight = 64
    press(paced)
    assert paced.limit == 48
    paced.look(IDLE)
    end(paced, 63)
    assert paced.limit == 48
    end(paced, 53)
    assert paced.limit == 56  # and 8, an eighth of 64


def test_it_stays_near_what_the_server_carries() -> None:
    for ceiling in (64, 256, 4096):
        paced, now, seen = pace(ceiling), 32, list[int]()
        for step in range(2000):
            running = min(now, 40)
            paced.look(ServerLoad(engines=1, running=running, waiting=now - running, memory=0.5))
            for _ in range(max(1, running // 10)):  # an episode lasts ten looks
                paced.in_flight = now
                paced.ended(GOOD)
                now = max(now - 1, min(paced.limit, now + 1))
            seen += [now] if step >= 200 else []
        assert 40 <= sum(seen) / len(seen) <= 60, ceiling
        assert min(seen) >= 30


@given(
    st.integers(1, 300),
    st.lists(
        st.one_of(st.sampled_from([IDLE, ROOM, FULL, QUEUE, NO_MEMORY, None, GOOD, FAILED]), st.integers(0, 300)), max_size=300
    ),
)
def test_it_is_always_between_one_and_the_ceiling(ceiling: int, events: list[ServerLoad | Episode | int | None]) -> None:
    paced = pace(ceiling)
    for event in events:
        if isinstance(event, Episode):
            paced.ended(event)
        elif isinstance(event, int):
            paced.in_flight = min(event, ceiling)
        else:
            paced.look(event)
        assert 1 <= paced.limit <= paced.most <= ceiling
