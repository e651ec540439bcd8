"""Many episodes at once.

- never more in flight than asked for, or than adaptive concurrency permits, and each attempt exactly once
- new permits begin episodes at once: none has to end for that
- whoever takes outcomes slowly stops new episodes: no more than were asked for have begun and are not taken
- a FAILED episode is played again in a fresh environment, so often and not more; a task that cannot be played is not retried
- leaving the iteration cancels what is in flight
- the plan is the same in every resume, and every attempt has its own seed
- the event loop stays responsive while users block their threads
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from tau2rl.chat.transcript import TranscriptCodec
from tau2rl.env.scripted_user import ScriptedUser
from tau2rl.errors import PolicyFailure, TaskFailure
from tau2rl.policy.scripted import ScriptedPolicy
from tau2rl.policy.sglang_load import ServerLoad
from tau2rl.protocols import Env, Policy
from tau2rl.rollouts.concurrency import AdaptiveConcurrency
from tau2rl.rollouts.runner import Outcome, never_began, outcomes, plan_attempts, play_with
from tau2rl.types import Attempt, CallTool, Completion, Episode, Fault, Say, Status
from tests.play import CREATE, UPDATE, WIDE, mock_env

CODEC = TranscriptCodec()
SOLVED = ((CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Important Meeting"}),), (Say(text="Done."),))


def collect(attempts: Sequence[Attempt], *, concurrency: int, retries: int, **how: Any) -> AsyncGenerator[Outcome]:
    """The outcomes of attempts that are played in this process."""
    return outcomes(attempts, play=play_with(**how), concurrency=concurrency, retries=retries, retry_pause_seconds=0.0)


def gather(attempts: Sequence[Attempt], **changes: Any) -> list[Outcome]:
    settings: dict[str, Any] = {
        "make_env": lambda a: mock_env(a.task),
        "make_policy": lambda a: ScriptedPolicy(SOLVED, CODEC),
        "codec": CODEC,
        "limits": WIDE,
        "concurrency": 4,
        "retries": 0,
        **changes,
    }

    async def main() -> list[Outcome]:
        return [outcome async for outcome in collect(attempts, **settings)]

    return asyncio.run(main())


def test_each_attempt_is_played_exactly_once() -> None:
    attempts = plan_attempts([CREATE, UPDATE], num_samples=5, seed=3)
    played = gather(attempts)
    assert sorted(o.attempt.key for o in played) == sorted(a.key for a in attempts)
    assert {o.attempt.task: o.episode.grade.success for o in played if o.episode.grade} == {CREATE: True, UPDATE: False}


def test_never_more_in_flight_than_asked_for() -> None:
    now = most = 0
    three = asyncio.Event()

    class Counts(ScriptedPolicy):
        async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
            nonlocal now, most
            now += 1
            most = max(most, now)
            if now == 3:
                three.set()
            await three.wait()
            now -= 1
            return await super().complete(prompt_ids, seed=seed, session=session, max_tokens=max_tokens)

    gather(plan_attempts([CREATE], num_samples=12, seed=3), make_policy=lambda a: Counts(SOLVED, CODEC), concurrency=3)
    assert most == 3


def test_who_takes_outcomes_slowly_stops_new_episodes() -> None:
    begun: list[str] = []
    asked: list[str] = []
    taken: list[str] = []
    most = 0

    async def at_once(attempt: Attempt) -> Episode:
        begun.append(attempt.key)
        return never_began(attempt, TaskFailure("it ends as soon as it begins"))

    def attempts() -> Iterator[Attempt]:
        for attempt in plan_attempts([CREATE], num_samples=40, seed=3):
            asked.append(attempt.key)
            yield attempt

    async def main() -> None:
        nonlocal most
        async with aclosing(outcomes(attempts(), play=at_once, concurrency=5, retries=0)) as episodes:
            async for outcome in episodes:
                await asyncio.sleep(0.005)  # a slow writer: whatever could begin meanwhile, has
                most = max(most, len(begun) - len(taken))
                taken.append(outcome.attempt.key)

    asyncio.run(main())
    assert sorted(taken) == sorted(begun) == sorted(asked)
    assert len(set(taken)) == 40
    assert most == 5  # four that wait, and the one in the writer's hands


def test_no_more_in_flight_than_are_permitted() -> None:
    now, seen = 0, list[tuple[int, int]]()
    control = AdaptiveConcurrency(
        8, overloaded=lambda episode: episode.failure is not None and "overloaded" in episode.failure.message
    )

    all_eight, cut, six = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def busy(attempt: Attempt) -> Episode:
        nonlocal now
        now += 1
        seen.append((attempt.index, now))
        if now == 8:
            all_eight.set()
        if now == 6 and attempt.index >= 8:
            six.set()
        await (all_eight if attempt.index == 0 else cut if attempt.index < 8 else six).wait()
        now -= 1
        if attempt.index == 0:
            asyncio.get_running_loop().call_later(0, cut.set)  # behind the cut that this failure brings
        return never_began(attempt, PolicyFailure("something else" if attempt.index else "the server is overloaded"))

    async def main() -> None:
        attempts = plan_attempts([CREATE], num_samples=40, seed=3)
        async with aclosing(outcomes(attempts, play=busy, concurrency=100, retries=0, control=control)) as episodes:
            assert len([o async for o in episodes]) == 40

    asyncio.run(asyncio.wait_for(main(), 60))
    assert max(count for index, count in seen if index < 8) == 8
    assert (control.limit, control.cuts) == (6, 1)  # three quarters of 8
    assert max(count for index, count in seen if index >= 8) == 6


def test_new_permits_begin_episodes_at_once() -> None:
    control, most = AdaptiveConcurrency(40, start=8), 0
    enough = asyncio.Event()

    async def until_there_are_twenty(attempt: Attempt) -> Episode:
        nonlocal most
        most = max(most, control.in_flight)
        if control.in_flight >= 20:
            enough.set()
        await enough.wait()
        return never_began(attempt, TaskFailure("it has seen enough"))

    async def poll() -> None:
        while not enough.is_set():
            control.poll(ServerLoad(engines=1, running=control.in_flight, waiting=0, memory=0.05))
            await asyncio.sleep(0.001)

    async def main() -> None:
        polling = asyncio.create_task(poll())
        attempts = plan_attempts([CREATE], num_samples=60, seed=3)
        async with aclosing(
            outcomes(attempts, play=until_there_are_twenty, concurrency=40, retries=0, control=control)
        ) as episodes:
            assert len([o async for o in episodes]) == 60
        await polling

    asyncio.run(asyncio.wait_for(main(), 60))  # no episode ends before twenty are in flight
    assert 20 <= most <= 40


def test_a_failed_episode_is_played_again_in_a_fresh_environment() -> None:
    environments: list[Env] = []

    def make_env(attempt: Attempt) -> Env:
        environments.append(mock_env(attempt.task))
        return environments[-1]

    class FailsTwice(ScriptedPolicy):
        async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
            if len(environments) < 3:
                raise PolicyFailure("the server is restarting")
            return await super().complete(prompt_ids, seed=seed, session=session, max_tokens=max_tokens)

    (outcome,) = gather(
        plan_attempts([CREATE], num_samples=1, seed=3),
        make_env=make_env,
        make_policy=lambda a: FailsTwice(SOLVED, CODEC),
        retries=2,
    )
    assert (outcome.tries, outcome.episode.status, len(set(map(id, environments)))) == (3, Status.COMPLETED, 3)
    assert [(o.tries, o.episode.status) for o in outcome.every_try()] == [
        (1, Status.FAILED),
        (2, Status.FAILED),
        (3, Status.COMPLETED),
    ]


def test_retries_end() -> None:
    class Down:
        async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
            raise PolicyFailure("no server")

    def down(attempt: Attempt) -> Policy:
        return Down()

    (outcome,) = gather(plan_attempts([CREATE], num_samples=1, seed=3), make_policy=down, retries=2)
    assert (outcome.tries, outcome.episode.status) == (3, Status.FAILED)
    assert outcome.episode.failure is not None and outcome.episode.failure.message == "no server"


def test_a_task_that_cannot_be_played_is_not_retried() -> None:
    def make_env(attempt: Attempt) -> Env:
        raise TaskFailure("graded by an LLM judge, which is not configured")

    (outcome,) = gather(plan_attempts([CREATE], num_samples=1, seed=3), make_env=make_env, retries=5)
    assert outcome.tries == 1 and outcome.episode.failure is not None and outcome.episode.failure.fault is Fault.TASK


def test_leaving_the_iteration_cancels_what_is_in_flight() -> None:
    cancelled = 0

    class Slow(ScriptedPolicy):
        async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
            nonlocal cancelled
            try:
                await asyncio.sleep(0 if seed % 2 else 3600)
            except asyncio.CancelledError:
                cancelled += 1
                raise
            return await super().complete(prompt_ids, seed=seed, session=session, max_tokens=max_tokens)

    async def main() -> None:
        attempts = plan_attempts([CREATE], num_samples=24, seed=3)
        episodes = collect(
            attempts,
            make_env=lambda a: mock_env(a.task),
            make_policy=lambda a: Slow(SOLVED, CODEC),
            codec=CODEC,
            limits=WIDE,
            concurrency=24,
            retries=0,
        )
        async with aclosing(episodes):
            async for _ in episodes:
                break

    asyncio.run(main())  # the sleepers would take an hour
    assert cancelled > 0


def test_the_plan_is_the_same_again_and_seeds_differ() -> None:
    first, again = (plan_attempts([CREATE, UPDATE], num_samples=3, seed=9, greedy=True) for _ in range(2))
    assert first == again
    assert len({a.seed for a in first}) == len({a.key for a in first}) == 8
    assert {a.seed for a in plan_attempts([CREATE], num_samples=3, seed=10)}.isdisjoint(a.seed for a in first)


def test_a_longer_series_begins_with_the_shorter_one() -> None:
    short, long = (plan_attempts([CREATE, UPDATE], num_samples=n, seed=9) for n in (2, 4))
    assert long[: len(short)] == short


def test_the_loop_answers_while_users_block_their_threads() -> None:
    answered = list[bool]()
    loops = list[asyncio.AbstractEventLoop]()

    class Blocks(ScriptedUser):
        """Holds its thread until the event loop has done something else."""

        def generate_next_message(self, message: Any, state: Any) -> Any:
            alive = threading.Event()
            loops[0].call_soon_threadsafe(alive.set)
            answered.append(alive.wait(30.0))
            return super().generate_next_message(message, state)

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        episodes = collect(
            plan_attempts([CREATE], num_samples=16, seed=3),
            make_env=lambda a: mock_env(a.task, make=lambda session: Blocks(session, max_stalled_turns=3)),
            make_policy=lambda a: ScriptedPolicy(SOLVED, CODEC),
            codec=CODEC,
            limits=WIDE,
            concurrency=16,
            retries=0,
        )
        assert len([o async for o in episodes]) == 16

    asyncio.run(main())
    assert len(answered) >= 32 and all(answered)
