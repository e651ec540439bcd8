"""Many episodes at once: what a run plans, at most so many in flight, a FAILED one played again, each yielded as it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from tau2rl.config import EvalConfig, GrpoConfig, LimitsConfig, RftConfig, SeedConfig
from tau2rl.env.tau2_env import make_env
from tau2rl.errors import EpisodeFailure, TaskFailure
from tau2rl.hashing import derive_seed
from tau2rl.protocols import ChatCodec, Env, Policy
from tau2rl.reward.presets import RewardSpec
from tau2rl.reward.score import score_episode
from tau2rl.rollouts.concurrency import FixedConcurrency, Permits
from tau2rl.rollouts.episode import run_episode
from tau2rl.rollouts.thinking import ThinkingBudget
from tau2rl.runs.records import SCHEMA
from tau2rl.types import Attempt, Episode, EpisodeRecord, Failure, Fault, Status, StopReason, TaskRef

# Plays an attempt once; an infrastructure failure is a FAILED episode, never an exception.
PlayAttempt = Callable[[Attempt], Awaitable[Episode]]
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


def plan_attempts(
    tasks: Iterable[TaskRef], *, num_samples: int, seed: int, greedy: bool = False, repetitions: int = 1
) -> list[Attempt]:
    """Every attempt of a run, first attempts of all tasks before second ones; the same list in every resume.

    A repetition has the seeds of a run with another seed; its attempts are numbered behind those of the one before.

    >>> [a.key for a in plan_attempts([TaskRef(domain="mock", task_id="a", split="base")], num_samples=2, seed=1, greedy=True)]
    ['mock/a#greedy', 'mock/a#0', 'mock/a#1']
    """
    tasks = list(tasks)
    rounds = ([-1] if greedy else []) + list(range(num_samples))
    planned = [Attempt(task=t, index=max(i, 0), seed=derive_seed(seed, t.key, i), greedy=i < 0) for i in rounds for t in tasks]
    for repetition in range(1, repetitions):
        again = plan_attempts(tasks, num_samples=num_samples, seed=derive_seed(seed, "repetition", repetition))
        planned += [replace(attempt, index=repetition * num_samples + attempt.index) for attempt in again]
    return planned


def planned_attempts(config: SamplingStage, tasks: Iterable[TaskRef]) -> list[Attempt]:
    """Every attempt of a stage whose agent is not trained meanwhile."""
    repetitions = config.repetitions if isinstance(config, EvalConfig) else 1
    rollout = config.rollout
    return plan_attempts(tasks, num_samples=rollout.num_samples, seed=config.seed, greedy=rollout.greedy, repetitions=repetitions)


def play_with(
    *,
    make_env: Callable[[Attempt], Env],
    make_policy: Callable[[Attempt], Policy],
    codec: ChatCodec,
    limits: LimitsConfig,
    budget: ThinkingBudget | None = None,
) -> PlayAttempt:
    """Plays attempts in this process, each in a fresh environment."""

    async def play(attempt: Attempt) -> Episode:
        try:
            env, policy = make_env(attempt), make_policy(attempt)
        except TaskFailure as failure:
            return never_began(attempt, failure)
        return await run_episode(attempt, env=env, policy=policy, codec=codec, limits=limits, budget=budget)

    return play


async def outcomes(
    attempts: Iterable[Attempt],
    *,
    play: PlayAttempt,
    concurrency: int,
    retries: int,
    retry_pause_seconds: float = 1.0,
    control: Permits | None = None,
) -> AsyncGenerator[Outcome, None]:
    """Run the attempts, at most `concurrency` at a time, or as many as `control` permits, and yield each as it ends.

    An episode that FAILED for a reason that may pass is played again in a fresh environment, at most `retries` times and while
    the permits allow it, after a pause that doubles. An attempt is asked for when it can begin. It counts as running until its
    outcome was taken: while nobody takes them, no more than so many wait in memory, and nothing new begins. Leaving the iteration
    (an exception, Ctrl-C, `aclose`) cancels what is in flight and waits for it.
    """
    waiting = iter(attempts)
    running: set[asyncio.Task[Outcome]] = set()
    # What ended, and None where there are new permits. To wait for the whole set would cost its size each time.
    changes: asyncio.Queue[asyncio.Task[Outcome] | None] = asyncio.Queue()
    pause = start_pause(concurrency)
    permits = control or FixedConcurrency(concurrency)
    permits.on_growth = lambda: changes.put_nowait(None)

    try:
        while True:
            while len(running) < min(concurrency, permits.limit) and (attempt := next(waiting, None)) is not None:
                task = asyncio.create_task(_with_retries(play, attempt, retries, retry_pause_seconds, permits), name=attempt.key)
                task.add_done_callback(changes.put_nowait)
                running.add(task)
                permits.in_flight += 1
                await asyncio.sleep(pause)
            if not running:
                return
            task = await changes.get()
            if task is not None:
                running.discard(task)
                permits.in_flight -= 1
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        permits.in_flight -= len(running)
        await asyncio.gather(*running, return_exceptions=True)


async def _with_retries(play: PlayAttempt, attempt: Attempt, retries: int, pause_seconds: float, permits: Permits) -> Outcome:
    failed: list[Episode] = []
    while True:
        episode = await play(attempt)
        permits.ended(episode)
        outcome = Outcome(attempt=attempt, episode=episode, failed=tuple(failed))
        if len(failed) == retries or episode.failure is None or episode.failure.fault is Fault.TASK:
            return outcome
        await asyncio.sleep(pause_seconds * 2 ** len(failed))
        if not permits.allows_retry():
            return outcome
        failed.append(episode)


def never_began(attempt: Attempt, failure: EpisodeFailure) -> Episode:
    """The FAILED episode of an attempt that nobody could begin."""
    return Episode(
        task=attempt.task,
        seed=attempt.seed,
        status=Status.FAILED,
        stop_reason=StopReason.FAILED,
        token_ids=(),
        turns=(),
        messages=(),
        grade=None,
        failure=Failure(fault=failure.fault, kind=type(failure).__name__, message=str(failure)),
    )


NO_CONTEXT_LIMIT = 10**9  # the `transcript` protocol counts bytes, not tokens: a context budget means nothing there

SamplingStage = EvalConfig | SeedConfig | RftConfig  # the stages whose agent is not trained meanwhile
EpisodeConfig = SamplingStage | GrpoConfig  # whatever says how an episode is played
PolicyFor = Callable[[Attempt], Policy]


def episode_runner(config: EpisodeConfig, codec: ChatCodec, policy_for: PolicyFor) -> PlayAttempt:
    """Plays attempts as the settings say: tau2's environment with their user simulator, and their limits."""
    return play_with(
        make_env=lambda attempt: make_env(attempt, user=config.user, limits=config.limits),
        make_policy=policy_for,
        codec=codec,
        limits=episode_limits(config),
        budget=thinking_budget(config),
    )


def thinking_budget(config: EpisodeConfig) -> ThinkingBudget | None:
    """The budget of a turn's thought; None: it has none but that of the turn."""
    chat = config.chat
    if chat.thinking == "off" or chat.thinking_tokens is None or chat.protocol == "transcript":
        return None
    sampling = config.sampling if isinstance(config, GrpoConfig) else config.policy.sampling
    return ThinkingBudget(thinking_tokens=chat.thinking_tokens, turn_tokens=sampling.max_tokens)


def episode_limits(config: EpisodeConfig) -> LimitsConfig:
    """The limits of the loop."""
    if config.chat.protocol == "transcript":
        return config.limits.model_copy(update={"context_tokens": NO_CONTEXT_LIMIT})
    return config.limits


def record_of(outcome: Outcome, config: EpisodeConfig, spec: RewardSpec) -> EpisodeRecord:
    """The line that is kept. The bytes of a transcript are no tokens of any model, and are left out."""
    episode = outcome.episode
    return EpisodeRecord(
        schema=SCHEMA,
        run=config.name,
        attempt=outcome.attempt,
        tries=outcome.tries,
        episode=replace(episode, token_ids=()) if config.chat.protocol == "transcript" else episode,
        score=score_episode(episode, spec),
    )
