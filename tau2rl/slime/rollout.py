"""What the rollout process has, made once: who plays, the reward's settings, the log; and one attempt with all its tries.

slime calls its hooks with nothing but `args`; everything here is found by them. With `rollout.workers` the episodes are played
in processes of their own; they are scored, kept and handed to slime here.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tau2rl import plugins, settings
from tau2rl.chat import make_codec
from tau2rl.config import GrpoConfig, PolicyConfig, SamplingConfig
from tau2rl.config.kinds import TURN_ESTIMATORS
from tau2rl.data.encoding import pack
from tau2rl.env.tau2_env import warm_up
from tau2rl.env.turn_rewards import episode_turn_rewards
from tau2rl.env.user_simulator import check_key
from tau2rl.errors import EpisodeFailure, RunIncomplete, UserError
from tau2rl.hashing import derive_seed
from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.reward.calibration import turn_table
from tau2rl.reward.presets import spec_from
from tau2rl.rollouts.circuit_breaker import RolloutBreaker
from tau2rl.rollouts.runner import Outcome, episode_runner, never_began, outcomes, plan_attempts, record_of
from tau2rl.rollouts.workers import PlayWith, Workers
from tau2rl.slime.argv import HEALTH_INTERVAL
from tau2rl.slime.rollout_log import RolloutLog
from tau2rl.slime.run_context import run_context
from tau2rl.slime.samples import Played, SampleMetadata
from tau2rl.types import Attempt, Episode, EpisodeRecord, Fault, Status, TaskRef

log = logging.getLogger(__name__)
T = TypeVar("T")
COOLDOWN_SECONDS = 10.0  # before an attempt is played again after an infrastructure failure
WORKERS_START_SECONDS = 300.0
POLL_SECONDS = 0.25


async def run_until_aborted(aborted: Callable[[], bool], work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None when `aborted` came true first: the work is then cancelled, and has ended on return.

    Polls by the clock and not between turns, because a turn can wait minutes for a user whom nobody needs any more.
    """
    task = asyncio.ensure_future(work)
    try:
        while not aborted():
            done, _ = await asyncio.wait({task}, timeout=POLL_SECONDS)
            if done:
                # What was cut off in the middle may look like a failure.
                return None if aborted() else task.result()
        return None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif not task.cancelled():
            task.exception()  # seen: nobody else asks for it


class Player:
    """Plays attempts in this process, on one event loop. To make one takes seconds: domains, tokenizer."""

    def __init__(self, config: GrpoConfig, router: str) -> None:
        """`router`: URL of the policy's engines. Raises UserError for a missing key, a domain or template that cannot be used."""
        plugins.import_all(config.plugins)
        if config.user.kind == "llm":
            check_key(config.user)
        self._config = config
        self._router = router
        self._codec = make_codec(config.chat)
        self._policies: dict[SamplingConfig, SGLangPolicy] = {}
        warm_up((*config.tasks.domains, *(config.val.domains if config.train.val_every else ())), self._codec)

    async def play(self, attempt: Attempt, sampling: SamplingConfig) -> Episode:
        """Play an attempt once."""
        if sampling not in self._policies:
            self._policies[sampling] = SGLangPolicy(
                PolicyConfig(url=self._router, sampling=sampling),
                stop=self._codec.stop,
                stop_token_ids=self._codec.stop_token_ids,
                concurrency=self._config.rollout.concurrency,
            )
        policy = self._policies[sampling]
        return await episode_runner(self._config, self._codec, lambda _: policy)(attempt)

    async def aclose(self) -> None:
        """Close the connections to the policy."""
        for policy in self._policies.values():
            await policy.aclose()


@asynccontextmanager
async def open_in_worker(config: GrpoConfig, router: str, path: Sequence[str]) -> AsyncGenerator[PlayWith]:
    """What a worker does before its first episode: it is another process, perhaps on another machine, and reads keys itself.

    `path` is where the rollout process looks for modules.
    """
    plugins.search(path)
    settings.load_secrets()
    settings.quiet_libraries()
    made = Player(config, router)
    try:
        yield made.play
    finally:
        await made.aclose()


class Rollout:
    """One a process: made cheaply, made ready by the first attempt (`prepare`), used from one event loop."""

    def __init__(self, config: GrpoConfig, folder: Path) -> None:
        slime = config.slime
        self.config = config
        self.log = RolloutLog(folder, config)
        self.dropped = 0  # groups that the filter has dropped in this rollout
        self.ready = False
        self.breaker = RolloutBreaker(
            failures=config.rollout.give_up_after,
            cooldown_seconds=min(COOLDOWN_SECONDS, slime.circuit_breaker_seconds / 20),
            deadline_seconds=slime.circuit_breaker_seconds,
        )
        # An engine that died stays in its router until two health checks have missed it, and the router sends to it what belongs
        # together by its key. Without fault tolerance nobody takes it out, and there is nothing to wait for.
        self._engine_seconds = 2 * HEALTH_INTERVAL + slime.health_seconds if slime.fault_tolerance else 0.0
        self._fatal: Exception | None = None
        self._workers: Workers | None = None
        self._lock = threading.Lock()
        self._opening = asyncio.Lock()

    def prepare(self, config: GrpoConfig, *, router: str) -> None:
        """Load what takes seconds: domains, tokenizer. For any thread; safe to call twice. Raises UserError.

        `config` is the run's with what only the job knows filled in: the user simulator's address, the tokenizer.
        """
        with self._lock:
            if self.ready:
                return
            self._player = Player(config, router)
            self._open_player = functools.partial(open_in_worker, config, router, tuple(sys.path))
            self._spec = spec_from(config.reward, max_turns=config.limits.max_turns, domains=config.tasks.domains)
            self.ready = True

    def attempt(self, task: TaskRef, index: int, *, validation: bool) -> Attempt:
        """The attempt behind slime's sample of this index: new in every rollout, and the same in every validation."""
        seed = self.config.seed
        if validation:
            number = self.config.val.num_samples
            return plan_attempts([task], num_samples=number, seed=derive_seed(seed, "select"))[index % number]
        return Attempt(task=task, index=index, seed=derive_seed(seed, "grpo", index))

    async def play(
        self, attempt: Attempt, sampling: SamplingConfig, *, validation: bool = False, aborted: Callable[[], bool] = lambda: False
    ) -> Played | None:
        """Play an attempt to its end and keep its record; FAILED for an infrastructure failure. None once slime has `aborted` it.

        Raises RunIncomplete where nothing works any more, UserError for workers that cannot start.
        """
        outcome = await run_until_aborted(aborted, self._outcome(attempt, sampling, aborted))
        # Hashing and encoding a long episode takes tens of milliseconds: not on the event loop.
        return None if outcome is None else await asyncio.to_thread(self._finish, outcome, validation=validation)

    @contextmanager
    def remember_fatal(self) -> Generator[None]:
        """Around what may end the run: it is raised on, and `raise_fatal` raises it again."""
        try:
            yield
        except (RunIncomplete, UserError) as error:
            self._fatal = error
            raise

    def raise_fatal(self) -> None:
        """Raise what has ended the run, in case slime went on: hooks that it does call then end it."""
        if self._fatal is not None:
            raise self._fatal

    async def aclose(self) -> None:
        """End the workers, close the connections to the policy; safe to call before anything was prepared."""
        if self._workers is not None:
            await self._workers.__aexit__()
        if self.ready:
            await self._player.aclose()

    async def _outcome(self, attempt: Attempt, sampling: SamplingConfig, aborted: Callable[[], bool]) -> Outcome | None:
        """The attempt's outcome. What FAILED is played again for three reasons, each of which lasts longer than the one before.

        A hiccup passes in seconds: `rollout.retries`, as everywhere (`_try`). A dead engine stays in its router for two health
        checks. While nothing works at all (`breaker`), who gave up would leave a hole in each group: all wait.
        """
        play = (await self._open_workers() or self._player).play
        failed_at: float | None = None
        while True:
            await self.breaker.admit()
            outcome = await self._try(attempt, lambda one: play(one, sampling))
            if aborted():  # its requests were cut off: no failure of anybody's
                return None
            failure = outcome.episode.failure
            if failure is None or failure.fault is Fault.TASK:
                if failure is None:
                    self.breaker.succeeded()
                return outcome
            self.breaker.failed(failure, attempt=attempt.key, tries=outcome.tries)
            if self.breaker.open:
                failed_at = None
                continue
            failed_at = failed_at or time.monotonic()
            if time.monotonic() - failed_at >= self._engine_seconds:
                return outcome
            await asyncio.sleep(min(COOLDOWN_SECONDS, self._engine_seconds / 20))

    async def _try(self, attempt: Attempt, play: Callable[[Attempt], Coroutine[Any, Any, Episode]]) -> Outcome:
        tries = outcomes([attempt], play=play, concurrency=1, retries=self.config.rollout.retries)
        try:
            async with aclosing(tries):
                outcome = await anext(tries)
        # An exception out of one episode would end slime's job and the work of all others, or be dropped where slime goes on. A
        # bug is kept as a failure instead, and ends the job by way of the circuit breaker when it does not go away.
        except Exception as error:  # noqa: BLE001
            outcome = _broken(attempt, error)
        failure = outcome.episode.failure
        if failure is None:
            return outcome
        clean = replace(failure, message=self.log.clean(failure.message))
        return replace(outcome, episode=replace(outcome.episode, failure=clean))

    async def _open_workers(self) -> Workers | None:
        """The processes that play, started by the first attempt: slime has taken its own cores by then. Raises UserError."""
        rollout = self.config.rollout
        if not rollout.workers:
            return None
        async with self._opening:
            if self._workers is None:
                opened = Workers(
                    self._open_player,
                    count=rollout.workers,
                    concurrency=rollout.concurrency,
                    memory_gb=rollout.worker_memory_gb,
                    start_timeout_seconds=WORKERS_START_SECONDS,
                )
                self._workers = await opened.__aenter__()
            return self._workers

    def _finish(self, outcome: Outcome, *, validation: bool) -> Played:
        try:
            played, record = self._score(outcome)
        except Exception as error:  # noqa: BLE001 - as in `_try`: an episode that cannot be packed or scored is a failure of ours
            played, record = self._score(_broken(outcome.attempt, error))
        self.log.add(record, played.metadata, validation=validation)
        return played

    def _score(self, outcome: Outcome) -> tuple[Played, EpisodeRecord]:
        episode, algo = outcome.episode, self.config.algo
        alive = episode.status is not Status.FAILED and bool(episode.turns)
        per_turn = alive and algo.estimator in TURN_ESTIMATORS
        turn_rewards = episode_turn_rewards(episode, turn_table(self.config.reward, algo)) if per_turn else ()
        record = record_of(outcome, self.config, self._spec)
        metadata = SampleMetadata.of(outcome, record.score, turn_rewards, algo)
        return Played(metadata=metadata, episode=episode, packed=pack(episode) if alive else ()), record


def _broken(attempt: Attempt, error: Exception) -> Outcome:
    log.error("%s: %s: %s", attempt.key, type(error).__name__, error, exc_info=error)
    return Outcome(attempt=attempt, episode=never_began(attempt, EpisodeFailure(f"{type(error).__name__}: {error}")))


_rollouts: dict[Path, Rollout] = {}  # by the folder of the run; a process of slime's has one
_making = threading.Lock()


def rollout_of(args: Any) -> Rollout:
    """The one object behind the hooks of a process."""
    run = run_context(args)
    with _making:
        if run.folder not in _rollouts:
            _rollouts[run.folder] = Rollout(run.grpo, run.folder)
        return _rollouts[run.folder]
