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
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tau2rl.config import GrpoConfig, SamplingConfig, SlimeConfig, UserConfig
from tau2rl.data.encoding import pack
from tau2rl.env.gold import episode_turn_rewards
from tau2rl.errors import EnvironmentFailure, EpisodeFailure, RunIncomplete
from tau2rl.hashing import derive_seed
from tau2rl.reward.advantages import TURN_ESTIMATORS
from tau2rl.reward.presets import spec_from
from tau2rl.reward.score import score_episode
from tau2rl.reward.tiers import TABLES
from tau2rl.rollout.runner import Outcome, PlayAttempt, never_began, outcomes, plan
from tau2rl.rollout.workers import Workers
from tau2rl.runs.records import SCHEMA
from tau2rl.slime.argv import HEALTH_INTERVAL
from tau2rl.slime.job import received
from tau2rl.slime.metadata import Marks, mark
from tau2rl.slime.player import Player, Rules, World, open_in_worker
from tau2rl.slime.rollout_log import Journal
from tau2rl.types import Attempt, Episode, EpisodeRecord, Failure, Fault, Status, TaskRef, TrainingSample

T = TypeVar("T")
LOOK_SECONDS = 0.25


async def unless(stopped: Callable[[], bool], work: Coroutine[Any, Any, T], *, look_seconds: float = LOOK_SECONDS) -> T | None:
    """The result of `work`; None when `stopped` came true first: the work is then cancelled, and has ended on return.

    Looks by the clock and not between turns, because a turn can wait minutes for a user whom nobody needs any more.
    """
    task = asyncio.ensure_future(work)
    try:
        while not stopped():
            done, _ = await asyncio.wait({task}, timeout=look_seconds)
            if done:
                # What was cut off in the middle may look like a failure.
                return None if stopped() else task.result()
        return None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif not task.cancelled():
            task.exception()  # seen: nobody else asks for it


log = logging.getLogger(__name__)
POLL_SECONDS = 0.25  # between two looks of someone who waits


class Outage:
    """Counts episodes that FAILED, and says who may begin one.

        async with outage.seat() as trial:  # waits while the world is broken; `trial` = this one tries whether it is back
            ...
            outage.failed(failure, attempt="mock/a#0")  # or outage.well(trial=trial)

    One event loop uses it.
    """

    def __init__(
        self, *, after: int, deadline_seconds: float, pause_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`after`: tries that FAILED, with no success between, that make an outage; `pause_seconds`: between trials."""
        self._after = after
        self._deadline = deadline_seconds
        self._pause = pause_seconds
        self._clock = clock
        self._failing: dict[str, int] = {}  # attempt -> its tries, of those that FAILED since the last success
        self._since: float | None = None
        self._trying = False
        self._next_trial = 0.0
        self._last = ""

    @property
    def on(self) -> bool:
        """Whether the world is taken to be broken."""
        return self._since is not None

    @asynccontextmanager
    async def seat(self) -> AsyncGenerator[bool]:
        """Leave to begin an episode; True for one that is a trial. Raises RunIncomplete when the deadline is over."""
        trial = await self._wait()
        try:
            yield trial
        finally:
            if trial:
                self._trying = False
                self._next_trial = self._clock() + self._pause

    def well(self, *, trial: bool) -> None:
        """An episode ran; during an outage only a trial, which began in it, shows that it is over."""
        if self._since is None:
            self._failing.clear()
        elif trial:
            log.warning("the world is back after %.0f s", self._clock() - self._since)
            self._since = None
            self._failing.clear()

    def failed(self, failure: Failure, *, attempt: str, tries: int = 1) -> None:
        """So many tries of an attempt FAILED, one behind the other. Told of it again, it counts no more than before."""
        self._failing[attempt] = max(tries, self._failing.get(attempt, 0))
        self._last = f"{failure.kind}: {failure.message}"
        if self._since is None and self._in_a_row >= self._after:
            self._since = self._clock()
            self._next_trial = self._since + self._pause
            log.error("%d episodes in a row failed, rollouts wait (%s)", self._in_a_row, self._last)

    @property
    def _in_a_row(self) -> int:
        return sum(self._failing.values())

    async def _wait(self) -> bool:
        while self._since is not None:
            now = self._clock()
            if now - self._since >= self._deadline:
                raise RunIncomplete(
                    f"{self._in_a_row} episodes in a row failed and nothing has worked for {self._deadline:g} s: {self._last}\n\n"
                    "hint: start the user simulator or the server that is down, then continue the run with `--resume`"
                )
            if not self._trying and now >= self._next_trial:
                self._trying = True
                return True
            await asyncio.sleep(POLL_SECONDS)
        return False


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
            deadline_seconds=config.slime.circuit_breaker_seconds,
            pause_seconds=min(TRIAL_PAUSE_SECONDS, config.slime.circuit_breaker_seconds / 20),
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
            number = self.config.val.num_samples
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

    def _once(self, rules: Rules, workers: Workers | None, *, trial: bool) -> PlayAttempt:
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

    async def _try(self, attempt: Attempt, play: PlayAttempt, *, retries: int) -> Outcome:
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
