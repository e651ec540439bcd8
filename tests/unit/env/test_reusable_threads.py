"""Daemon threads that run one job after another; pinned here:

- a second job runs on the thread of the first, under its own name, and both run exactly once
- while a job hangs, others get threads of their own; nothing is run on the thread that hangs
- what a job holds is let go of when it ends, though its thread waits for another
- a thread without jobs ends, and a job that comes in that moment is not lost
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

import pytest

from tau2rl.env import agent_bridge


@pytest.fixture(autouse=True)
def no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only threads of this test: those of others are put aside."""
    monkeypatch.setattr(agent_bridge, "_idle", [])
    monkeypatch.setattr(agent_bridge, "IDLE_SECONDS", 0.2)


def done(job: Callable[[], object], name: str = "job") -> None:
    """Run a job, wherever, and wait until its thread has nothing to do again."""
    before = len(agent_bridge._idle)
    handed = agent_bridge.run_on_idle(job, name=name)
    if not handed:
        agent_bridge.run_on_new(job, name=name)
    wait_for(lambda: len(agent_bridge._idle) >= (before if handed else before + 1))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_second_job_runs_on_the_same_thread_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_bridge, "IDLE_SECONDS", 60.0)
    seen: list[tuple[int, str]] = []
    for name in ("one", "two", "three"):
        ran = threading.Event()

        def job(ran: threading.Event = ran) -> None:
            seen.append((threading.get_ident(), threading.current_thread().name))
            ran.set()

        done(job, name)
        assert ran.wait(10)
    assert [name for _, name in seen] == ["one", "two", "three"]
    assert len({thread for thread, _ in seen}) == 1


def test_a_job_that_hangs_keeps_its_thread_to_itself() -> None:
    go_on, hangs, ran = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        go_on.wait(10)

    agent_bridge.run_on_new(hang, name="hangs")
    assert hangs.wait(10)
    assert not agent_bridge.run_on_idle(ran.set, name="next")
    agent_bridge.run_on_new(ran.set, name="next")
    assert ran.wait(10)
    go_on.set()


def test_what_a_job_held_is_let_go_of_while_its_thread_waits() -> None:
    class Conversation:
        def play(self) -> None: ...

    held = Conversation()
    gone = weakref.ref(held)
    done(held.play)
    del held
    wait_for(lambda: gone() is None)


def test_idle_threads_end_and_no_job_is_lost_on_the_way() -> None:
    counted = [0]
    lock = threading.Lock()

    def count() -> None:
        with lock:
            counted[0] += 1

    for _ in range(40):
        if not agent_bridge.run_on_idle(count, name="count"):
            agent_bridge.run_on_new(count, name="count")
        time.sleep(0.01)
    time.sleep(0.195)  # about when they end
    for _ in range(20):
        if not agent_bridge.run_on_idle(count, name="count"):
            agent_bridge.run_on_new(count, name="count")
    wait_for(lambda: counted[0] == 60)
    wait_for(lambda: not agent_bridge._idle)
