"""What an environment and a process that plays say of their time; pinned here, on real conversations of the mock domain:

- the user's time is part of the waiting for the environment, and the CPU time is that of the episode's own thread;
- a user that hangs is where the time went;
- a user that answers in another thread, as one behind a model does, has its CPU time counted;
- an environment that never began took nothing;
- the CPU time of a process that plays is that of its episodes together;
- a policy is watched from the first turn that is asked of it to the last that is answered, however many overlap.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tau2rl.env.scripted_user import ScriptedUser
from tau2rl.env.simulation import Simulation
from tau2rl.rollouts.workers import with_cpu_time
from tau2rl.train.policy import TimedPolicy
from tau2rl.types import CallTool, Completion, EnvTime, Episode, FinishReason, Say, Status
from tests.play import attempt, mock_env, play

SOLVED = (
    (CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Important Meeting"}),),
    (Say(text="That is done."),),
)
PAUSE = 0.05


def burn(seconds: float) -> None:
    """Keep a core busy for so many seconds of CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Slow(ScriptedUser):
    """A user who thinks before each answer, and has a model in another thread to think with."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation, max_stalled_turns=3)
        self.simulation = simulation

    def generate_next_message(self, message: Any, state: Any) -> Any:
        time.sleep(PAUSE)
        thread = threading.Thread(target=lambda: self.simulation.aside(lambda: burn(PAUSE)))
        thread.start()
        thread.join()
        return super().generate_next_message(message, state)


def test_the_users_time_is_part_of_the_environments() -> None:
    episode = play(SOLVED, env=mock_env(make=Slow))
    assert episode.env_time is not None
    answers = sum(message.role == "user" for message in episode.messages)
    assert answers == 2
    assert answers * 2 * PAUSE <= episode.env_time.user_seconds < episode.env_time.seconds < episode.seconds
    assert episode.env_time.cpu_seconds >= answers * PAUSE


def test_the_environments_cpu_time_is_that_of_its_thread() -> None:
    class Busy(ScriptedUser):
        def generate_next_message(self, message: Any, state: Any) -> Any:
            burn(PAUSE)
            return super().generate_next_message(message, state)

    episode = play(SOLVED, env=mock_env(make=lambda simulation: Busy(simulation, max_stalled_turns=3)))
    assert episode.env_time is not None and episode.env_time.cpu_seconds >= 2 * PAUSE


def test_a_user_that_hangs_is_where_the_time_went() -> None:
    release = threading.Event()

    class Hangs(ScriptedUser):
        def generate_next_message(self, message: Any, state: Any) -> Any:
            release.wait(30)
            return super().generate_next_message(message, state)

    try:
        env = mock_env(make=lambda simulation: Hangs(simulation, max_stalled_turns=3), step_timeout_seconds=1.0)
        episode = play(SOLVED, env=env)
    finally:
        release.set()
    assert episode.status is Status.FAILED and episode.env_time is not None
    assert 0 < episode.env_time.user_seconds <= episode.env_time.seconds


def test_a_user_counts_for_as_long_as_it_was_waited_for() -> None:
    release = threading.Event()

    class Hangs(ScriptedUser):
        def generate_next_message(self, message: Any, state: Any) -> Any:
            release.wait(30)
            return super().generate_next_message(message, state)

    env = mock_env(make=lambda simulation: Hangs(simulation, max_stalled_turns=3), step_timeout_seconds=0.2)
    try:
        play(SOLVED, env=env)
        time.sleep(0.3)  # it still hangs
        assert 0 < env.time.user_seconds <= env.time.seconds
    finally:
        release.set()


def test_an_environment_that_never_began_took_nothing() -> None:
    assert mock_env().time == EnvTime(seconds=0.0, user_seconds=0.0, cpu_seconds=0.0)


def test_the_cpu_time_of_a_process_is_that_of_its_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    played, clock = play(SOLVED), iter([10.0, 10.5, 12.5])
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    asked: list[tuple[Any, ...]] = []

    async def again(*how: Any) -> Episode:
        asked.append(how)
        return played

    async def main() -> list[float]:
        mine = with_cpu_time(again)
        return [(await mine(attempt(), rules)).worker_cpu_seconds for rules in ("a", "b")]

    assert asyncio.run(main()) == [0.5, 2.0]
    assert asked == [(attempt(), "a"), (attempt(), "b")]


class Gate:
    """A policy that answers when it is told to."""

    def __init__(self) -> None:
        self.open = [asyncio.Event(), asyncio.Event()]

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        await self.open[seed].wait()
        return Completion(token_ids=(1,), logprobs=None, finish_reason=FinishReason.STOP)


def test_a_policy_is_watched_while_anybody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> float:
        gate = Gate()
        watched, now = TimedPolicy(gate), 100.0
        monkeypatch.setattr("tau2rl.train.policy.time", type("Clock", (), {"monotonic": staticmethod(lambda: now)}))

        async def ask(number: int) -> asyncio.Task[Completion]:
            task = asyncio.create_task(watched.complete([], seed=number, session="", max_tokens=1))
            await asyncio.sleep(0)
            return task

        first = await ask(0)
        now = 101.0
        second = await ask(1)
        now = 103.0
        gate.open[0].set()
        await first
        now = 104.0
        gate.open[1].set()
        await second
        now = 150.0  # nobody waits
        await (await ask(0))  # answered at once
        now = 152.0
        return watched.seconds

    assert asyncio.run(main()) == 4.0  # from 100 to 104
