"""When to give up: nothing but failures comes back, and from more than one task that cannot be played."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tau2rl.errors import EpisodeFailure, TaskFailure
from tau2rl.hashing import derive_seed
from tau2rl.rollout.concurrency import Pace
from tau2rl.rollout.episode import Limits, run_episode
from tau2rl.types import Attempt, ChatCodec, Completion, Env, Episode, Failure, Fault, Policy, Status, TaskRef

Play = Callable[[Attempt], Awaitable[Episode]]  # plays an attempt once; a broken world is a FAILED episode, never an exception
# Episodes that began in one instant would stay in step, and come to the server all at once: a pause between two starts, which
# is shorter where there are so many that the starts alone would take seconds.
START_PAUSE_SECONDS, START_SECONDS = 0.003, 0.2


def start_pause(concurrency: int) -> float:
    """Seconds between two starts.

    >>> start_pause(32), start_pause(1000)
    (0.003, 0.0002)
    """
    return min(START_PAUSE_SECONDS, START_SECONDS / concurrency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One attempt with its last episode: `Outcome(attempt=..., episode=..., failed=())`."""

    attempt: Attempt
    episode: Episode
    failed: tuple[Episode, ...] = ()  # the tries before it, every one FAILED

    @property
    def tries(self) -> int:
        """How often the attempt was played."""
        return len(self.failed) + 1

    def every_try(self) -> list[Outcome]:
        """The failed tries one by one, then this one: what a record is kept of."""
        tries = [Outcome(attempt=self.attempt, episode=e, failed=self.failed[:i]) for i, e in enumerate(self.failed)]
        return [*tries, self]


def plan(tasks: Iterable[TaskRef], *, num_samples: int, seed: int, greedy: bool = False) -> list[Attempt]:
    """Every attempt of a run, first attempts of all tasks before second ones; the same list in every resume.

    >>> [a.key for a in plan([TaskRef(domain="mock", task_id="a", split="base")], num_samples=2, seed=1, greedy=True)]
    ['mock/a#greedy', 'mock/a#0', 'mock/a#1']
    """
    tasks = list(tasks)
    rounds = ([-1] if greedy else []) + list(range(num_samples))
    return [Attempt(task=t, index=max(i, 0), seed=derive_seed(seed, t.key, i), greedy=i < 0) for i in rounds for t in tasks]


def player(
    *, make_env: Callable[[Attempt], Env], make_policy: Callable[[Attempt], Policy], codec: ChatCodec, limits: Limits
) -> Play:
    """Plays attempts in this process, each in a fresh environment."""

    async def play(attempt: Attempt) -> Episode:
        try:
            env, policy = make_env(attempt), make_policy(attempt)
        except TaskFailure as failure:
            return never_began(attempt, failure)
        return await run_episode(attempt, env=env, policy=policy, codec=codec, limits=limits)

    return play


def collect(
    attempts: Iterable[Attempt],
    *,
    make_env: Callable[[Attempt], Env],
    make_policy: Callable[[Attempt], Policy],
    codec: ChatCodec,
    limits: Limits,
    concurrency: int,
    retries: int,
    retry_pause_seconds: float = 1.0,
) -> AsyncGenerator[Outcome, None]:
    """`outcomes` of attempts that are played in this process."""
    play = player(make_env=make_env, make_policy=make_policy, codec=codec, limits=limits)
    return outcomes(attempts, play=play, concurrency=concurrency, retries=retries, retry_pause_seconds=retry_pause_seconds)


async def outcomes(
    attempts: Iterable[Attempt],
    *,
    play: Play,
    concurrency: int,
    retries: int,
    retry_pause_seconds: float = 1.0,
    pace: Pace | None = None,
) -> AsyncGenerator[Outcome, None]:
    """Run the attempts, at most `concurrency` at a time, or as many as `pace` allows, and yield each as it ends.

    An episode that FAILED for a reason that may pass is played again in a fresh environment, at most `retries` times, after a
    pause that doubles. An attempt is asked for when it can begin. It counts as running until its outcome was taken: while nobody
    takes them, no more than so many wait in memory, and nothing new begins. Leaving the iteration (an exception, Ctrl-C,
    `aclose`) cancels what is in flight and waits for it.
    """
    pace = pace or Pace(concurrency, start=concurrency)
    waiting = iter(attempts)
    running: set[asyncio.Task[Outcome]] = set()
    ended: asyncio.Queue[asyncio.Task[Outcome]] = asyncio.Queue()  # to wait for the whole set would cost its size each time
    pause = start_pause(concurrency)

    async def once(attempt: Attempt) -> Episode:
        episode = await play(attempt)
        pace.ended(episode)
        return episode

    async def one(attempt: Attempt) -> Outcome:
        failed: list[Episode] = []
        episode = await once(attempt)
        while len(failed) < retries and episode.failure is not None and episode.failure.fault is not Fault.TASK:
            await asyncio.sleep(retry_pause_seconds * 2 ** len(failed))
            failed.append(episode)
            episode = await once(attempt)
        return Outcome(attempt=attempt, episode=episode, failed=tuple(failed))

    try:
        while True:
            while len(running) < min(concurrency, pace.limit) and (attempt := next(waiting, None)) is not None:
                task = asyncio.create_task(one(attempt), name=attempt.key)
                task.add_done_callback(ended.put_nowait)
                running.add(task)
                pace.in_flight += 1
                await asyncio.sleep(pause)
            if not running:
                return
            task = await ended.get()
            running.discard(task)
            pace.in_flight -= 1
            yield task.result()
    finally:
        for task in running:
            task.cancel()
        pace.in_flight -= len(running)
        await asyncio.gather(*running, return_exceptions=True)


def never_began(attempt: Attempt, failure: EpisodeFailure) -> Episode:
    """The FAILED episode of an attempt that nobody could begin."""
    return Episode(
        task=attempt.task,
        seed=attempt.seed,
        status=Status.FAILED,
        termination="failed",
        token_ids=(),
        turns=(),
        messages=(),
        grade=None,
        failure=Failure(fault=failure.fault, kind=type(failure).__name__, message=str(failure)),
    )


def metered(play: Callable[..., Awaitable[Episode]]) -> Callable[..., Awaitable[Episode]]:
    """Plays as `play` does; each episode says what this process used since the one before, so that the sum is all it used.

    For a process that plays for another one: the run cannot see the CPU time of a worker, perhaps on another machine, but it gets
    the episodes. What was used before this call, for loading, is not counted.
    """
    told = time.process_time()

    async def play_metered(*how: Any) -> Episode:
        nonlocal told
        episode = await play(*how)
        before, told = told, time.process_time()
        return replace(episode, worker_cpu_seconds=told - before)

    return play_metered


class Watched:
    """A policy, and in `seconds` the wall time in which at least one turn was asked of it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._waiting = 0
        self._since = 0.0
        self.seconds = 0.0

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """Sample one turn; see `types.Policy`."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting += 1
        try:
            return await self._policy.complete(prompt_ids, seed=seed, session=session, max_tokens=max_tokens)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.seconds += time.monotonic() - self._since


class Outage:
    """Counts FAILED episodes in a row, as signs that the world broke for all tasks.

        outage = Outage(after=20)
        if outage.shown_by(outcome): ...  # stop

    Attempts at one task follow each other (a group of GRPO, `rollout/scheduling.py`). So a task that has never ended well says
    nothing new when it fails again, once another one has ended well.
    """

    def __init__(self, *, after: int, ended_well: Iterable[TaskRef] = ()) -> None:
        self.failed = 0  # signs in a row
        self._after = after
        self._well, self._ill = set(ended_well), set[TaskRef]()

    def shown_by(self, outcome: Outcome) -> bool:
        """Take in an outcome; whether there are enough signs now."""
        task = outcome.attempt.task
        if outcome.episode.status is not Status.FAILED:
            self._well.add(task)
            self.failed = 0
        elif not self._well or task in self._well or task not in self._ill:
            self.failed += 1
            self._ill.add(task)
        return self.failed >= self._after
