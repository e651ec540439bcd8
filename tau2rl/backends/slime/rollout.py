"""What the rollout process has, made once: who plays, the reward's settings, the records; and one attempt with all its tries.

slime calls its hooks with nothing but `args`; everything here is found by them. With `rollout.workers` the episodes are played
in processes of their own; what is judged, kept and handed to slime is so here.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tau2rl.backends.slime.argv import HEALTH_INTERVAL
from tau2rl.backends.slime.handover import received
from tau2rl.backends.slime.journal import Journal
from tau2rl.backends.slime.marks import Marks, mark
from tau2rl.backends.slime.outage import Outage
from tau2rl.backends.slime.player import Player, Rules, World, open_in_worker
from tau2rl.bench.turn_credit import episode_turn_rewards
from tau2rl.chat.pack import pack
from tau2rl.config import GrpoConfig, SamplingConfig, SlimeConfig, UserConfig
from tau2rl.errors import EnvironmentFailure, EpisodeFailure
from tau2rl.rewards.advantages import TURN_ESTIMATORS
from tau2rl.rewards.presets import spec_from
from tau2rl.rewards.scoring import score_episode
from tau2rl.rewards.tiers import TABLES
from tau2rl.rollouts.collect import Outcome, Play, never_began, outcomes, plan
from tau2rl.rollouts.workers import Workers
from tau2rl.store.records import SCHEMA
from tau2rl.types import Attempt, Episode, EpisodeRecord, Fault, Status, TaskRef, TrainingSample, derive_seed

log = logging.getLogger(__name__)
TRIAL_PAUSE_SECONDS = 10.0  # between two looks whether a broken world is back
WORKERS_START_SECONDS = 300.0
REPLAYS = 20  # at most so many while an engine that died is still in its router


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """An attempt as slime's sample needs it: `Played(marks=..., episode=..., packed=...)`."""

    marks: Marks
    episode: Episode
    packed: TrainingSample | None  # None: nothing to learn from


class Rollout:
    """One a process: made cheaply, made ready by the first attempt (`prepare`), used from one event loop."""

    def __init__(self, config: GrpoConfig, folder: Path) -> None:
        self.config = config
        self.journal = Journal(folder, config)
        self.dropped = 0  # groups that the filter has dropped in this round
        self.ready = False
        self._outage = Outage(
            after=config.rollout.give_up_after,
            deadline_seconds=config.slime.outage_seconds,
            pause_seconds=min(TRIAL_PAUSE_SECONDS, config.slime.outage_seconds / 20),
        )
        self._patience = _patience_seconds(config.slime)
        self._workers: Workers | None = None
        self._lock = threading.Lock()
        self._opening = asyncio.Lock()

    def prepare(self, *, router: str, user: UserConfig, tokenizer: str) -> None:
        """Load what takes seconds: domains, tokenizer. For any thread; safe to call twice. Raises UserError.

        `router` is the URL of the policy's servers; `tokenizer` serves where the settings name none.
        """
        config = self.config
        with self._lock:
            if self.ready:
                return
            world = World(config=config, router=router, user=user, tokenizer=tokenizer)
            self._player = Player(world)
            self._spec = spec_from(config.reward, max_turns=config.limits.max_turns, domains=config.tasks.domains)
            self._open_player = functools.partial(open_in_worker, world)
            self.ready = True

    def attempt(self, task: TaskRef, index: int, *, look: bool) -> Attempt:
        """The attempt behind slime's sample of this index: new in every round, and the same at every look at the selection."""
        seed = self.config.seed
        if look:
            number = self.config.select.num_samples
            return plan([task], num_samples=number, seed=derive_seed(seed, "select"))[index % number]
        return Attempt(task=task, index=index, seed=derive_seed(seed, "grpo", index))

    async def play(self, attempt: Attempt, sampling: SamplingConfig, *, context_tokens: int, look: bool) -> Played:
        """Play an attempt to its end and keep its record. A broken world makes it FAILED.

        Raises RunIncomplete if it stays so, UserError for workers that cannot start.
        """
        rules = Rules(sampling=sampling, context_tokens=context_tokens)
        workers = await self._open_workers()
        given_up_at: float | None = None
        while True:
            async with self._outage.seat() as trial:
                play = self._once(rules, workers, trial=trial)
                outcome = await self._try(attempt, play, retries=0 if trial else self.config.rollout.retries)
                failure = outcome.episode.failure
                world_failed = failure is not None and failure.fault is not Fault.TASK
                if failure is None:
                    self._outage.well(trial=trial)
                elif world_failed:
                    self._outage.failed(failure, attempt=attempt.key, tries=outcome.tries)
            if not world_failed:
                break
            if self._outage.on:  # what an outage has spoiled is played again behind it, whatever the retries
                given_up_at = None
                continue
            # One engine of several may have died, and its router still sends to it what belongs together by its key.
            given_up_at = given_up_at or time.monotonic() + self._patience
            if time.monotonic() >= given_up_at:
                break
            await asyncio.sleep(min(TRIAL_PAUSE_SECONDS, self._patience / REPLAYS))
        # Hashing and encoding a long episode takes tens of milliseconds: not on the event loop.
        return await asyncio.to_thread(self._finish, outcome, look=look)

    async def aclose(self) -> None:
        """End the workers, close the connections to the policy; safe to call before anything was prepared."""
        if self._workers is not None:
            await self._workers.__aexit__()
        if self.ready:
            await self._player.aclose()

    async def _open_workers(self) -> Workers | None:
        """The processes that play, started by the first attempt: slime has taken its own cores by then. Raises UserError."""
        settings = self.config.rollout
        if not settings.workers:
            return None
        async with self._opening:
            if self._workers is None:
                opened = Workers(
                    self._open_player,
                    count=settings.workers,
                    concurrency=settings.concurrency,
                    memory_gb=settings.worker_memory_gb,
                    start_timeout_seconds=WORKERS_START_SECONDS,
                )
                self._workers = await opened.__aenter__()
            return self._workers

    def _once(self, rules: Rules, workers: Workers | None, *, trial: bool) -> Play:
        """What plays an attempt once. A trial is played here, where one sees early that it lives, once a worker could play."""

        async def try_it(attempt: Attempt) -> Episode:
            try:
                if workers is not None:
                    await workers.ready()
            except EnvironmentFailure as failure:
                return never_began(attempt, failure)
            return await self._player.play(attempt, rules, alive=lambda: self._outage.well(trial=True))

        async def play(attempt: Attempt) -> Episode:
            return await (self._player if workers is None else workers).play(attempt, rules)

        return try_it if trial else play

    async def _try(self, attempt: Attempt, play: Play, *, retries: int) -> Outcome:
        tries = outcomes([attempt], play=play, concurrency=1, retries=retries)
        try:
            async with aclosing(tries):
                outcome = await anext(tries)
        # An exception out of one episode ends slime's job, and the work of all others. A bug is kept as a failure instead, and
        # ends the job as an outage when it does not go away.
        except Exception as error:  # noqa: BLE001
            outcome = _broke(attempt, error)
        failure = outcome.episode.failure
        if failure is None:
            return outcome
        clean = replace(failure, message=self.journal.clean(failure.message))
        return replace(outcome, episode=replace(outcome.episode, failure=clean))

    def _finish(self, outcome: Outcome, *, look: bool) -> Played:
        try:
            played, record = self._judge(outcome)
        except Exception as error:  # noqa: BLE001 - as in `_try`: an episode that cannot be packed or scored is a failure of ours
            played, record = self._judge(_broke(outcome.attempt, error))
        self.journal.keep(record, played.marks, look=look)
        return played

    def _judge(self, outcome: Outcome) -> tuple[Played, EpisodeRecord]:
        episode, algo = outcome.episode, self.config.algo
        alive = episode.status is not Status.FAILED and bool(episode.turns)
        score = score_episode(episode, self._spec)
        per_turn = alive and algo.estimator in TURN_ESTIMATORS
        turn_rewards = episode_turn_rewards(episode, TABLES[algo.turn_rewards]) if per_turn else ()
        marks = mark(outcome, score, turn_rewards, drop_truncated=algo.truncated == "drop")
        record = EpisodeRecord(
            schema=SCHEMA, run=self.config.name, attempt=outcome.attempt, tries=outcome.tries, episode=episode, score=score
        )
        return Played(marks=marks, episode=episode, packed=pack(episode) if alive else None), record


def _patience_seconds(slime: SlimeConfig) -> float:
    """How long an engine that died may stay in its router: slime looks every so often, and a look may take so long.

    Without its fault tolerance nobody takes it out, and there is nothing to wait for.
    """
    return 2 * HEALTH_INTERVAL + slime.health_seconds if slime.fault_tolerance else 0.0


def _broke(attempt: Attempt, error: Exception) -> Outcome:
    log.error("%s: %s: %s", attempt.key, type(error).__name__, error, exc_info=error)
    return Outcome(attempt=attempt, episode=never_began(attempt, EpisodeFailure(f"{type(error).__name__}: {error}")))


_opened: dict[int, tuple[Any, Rollout]] = {}  # by the identity of `args`, which slime hands to every hook
_opening = threading.Lock()


def rollout_of(args: Any) -> Rollout:
    """The one object behind the hooks of a process."""
    with _opening:
        if id(args) not in _opened:
            run = received(args)
            _opened[id(args)] = (args, Rollout(run.grpo, run.folder))  # `args` are held, so that their identity stays theirs
        return _opened[id(args)][1]
