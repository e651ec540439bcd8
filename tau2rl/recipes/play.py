"""What every stage that plays episodes has in common: who plays, against whom, where it is cut, what is kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from tau2rl.chat import codec_fingerprint, make_codec
from tau2rl.env.audit import POLICIES, solved_by
from tau2rl.env.domain import domain, env_identity
from tau2rl.env.tasks import gold_actions, select
from tau2rl.env.tau2_env import warm_up
from tau2rl.env.user_simulator import check_answers, check_key
from tau2rl.protocols import ChatCodec
from tau2rl.recipes.agents import describe_agent, open_episode_runner
from tau2rl.reward.presets import RewardSpec, spec_from
from tau2rl.rollouts.circuit_breaker import CircuitBreaker
from tau2rl.rollouts.concurrency import CappedConcurrency, FixedConcurrency, adaptive_concurrency
from tau2rl.rollouts.runner import Outcome, PlayAttempt, PolicyFor, SamplingStage, outcomes, planned_attempts, record_of
from tau2rl.rollouts.scheduling import DurationEstimate, longest_first
from tau2rl.runs.budget import Meter
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.prices import refuse_unpriced
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.provenance import environment
from tau2rl.runs.timing import timed
from tau2rl.types import Attempt, Episode, EpisodeRecord, Status, TaskRef

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is known before the first episode begins."""

    tasks: list[TaskRef]
    planned: list[Attempt]
    spec: RewardSpec
    codec: ChatCodec
    chat: str  # the codec's fingerprint
    agent: str  # who plays, in its own words
    identity: dict[str, Any]  # of the benchmark, for `environment.json`
    meter: Meter  # of what it spends


def prepare(config: SamplingStage, progress: Progress, *, codec: ChatCodec | None = None) -> Prepared:
    """Load what the episodes need; `codec` stands in for that of the settings. Raises UserError."""
    progress(ProgressEvent(done=0, total=None, note="loading tasks"))
    spec = spec_from(config.reward, max_turns=config.limits.max_turns, domains=config.tasks.domains)
    tasks = select(config.tasks)
    refuse_unpriced(config)
    if config.user.kind == "llm":  # a missing key is said now, and not by a hundred failed episodes
        check_key(config.user)
    codec = codec or make_codec(config.chat)
    warm_up(config.tasks.domains, codec)
    if config.user.kind == "llm":
        check_answers(config.user, config.tasks.domains)
    planned = planned_attempts(config, tasks)
    return Prepared(
        tasks=tasks,
        planned=planned,
        spec=spec,
        codec=codec,
        chat=codec_fingerprint(codec),
        agent=describe_agent(config, codec),
        identity=env_identity(config.tasks, config.user),
        meter=Meter(config=config, unit="episodes", total=len(planned), at_once=config.rollout.concurrency),
    )


def write_environment(
    config: SamplingStage, folder: RunFolder, prepared: Prepared, *, recorded: Mapping[str, Any] | None = None
) -> str:
    """Keep what the run stands on; its digest. Raises UserError when a resumed run stood on something else."""
    named = {"chat": prepared.chat, "agent": prepared.agent}
    stands_on = environment(config, prepared.identity, named, recorded=recorded)
    folder.write_environment(stands_on)
    return str(stands_on["digest"])


async def play(
    config: SamplingStage,
    folder: RunFolder,
    prepared: Prepared,
    progress: Progress,
    *,
    policies: PolicyFor | None = None,
    on_episode: Callable[[EpisodeRecord], object] = lambda record: None,
) -> None:
    """Play what is planned and not yet done, and keep each episode as it ends.

    It stops early when nothing but failures comes back, and before a cap of the budget is passed.

    `policies` replaces those of the config's `policy`; `on_episode` is given the record of each attempt's last try. Which begin
    first: `rollouts/scheduling.py`; how many play at once: `rollouts/concurrency.py`.
    """
    counter, meter = Counter(progress, total=len(prepared.planned)), prepared.meter
    estimate = DurationEstimate(prepared.tasks, reference_length)
    meter.begin_in(folder)
    for record in folder.records():
        counter.had(record)
        meter.had(record.episode)
        estimate.ended(record.attempt, record.episode)
    for record in folder.failed_records():
        meter.had(record.episode)
    counter.show()
    attempts = [a for a in prepared.planned if a.key not in counter.keys]
    log.info("%d tasks, %d attempts, %d of them already done", len(prepared.tasks), len(prepared.planned), len(counter.keys))
    if not attempts:
        return
    rollout = config.rollout
    breaker = CircuitBreaker(after=rollout.give_up_after, ended_well=counter.tasks)
    agent = open_episode_runner(config, prepared.codec, policies, folder.record)
    async with agent as play_once, adaptive_concurrency(config) as control:
        order = longest_first(attempts, estimate, concurrency=control.limit if control else rollout.concurrency)
        permits = CappedConcurrency(control or FixedConcurrency(rollout.concurrency), meter)
        play_one = counter.counting(play_once)
        episodes = outcomes(order, play=play_one, concurrency=rollout.concurrency, retries=rollout.retries, control=permits)
        with timed(folder):
            async with aclosing(episodes):
                async for outcome in episodes:
                    estimate.ended(outcome.attempt, outcome.episode)
                    tries = [(each, record_of(each, config, prepared.spec)) for each in outcome.every_try()]
                    for each, record in tries:
                        folder.append(record)
                        if each.episode.failure is not None:
                            log.warning("%s failed in try %d: %s", each.attempt.key, each.tries, each.episode.failure.message)
                    counter.add(outcome)
                    on_episode(tries[-1][1])
                    if breaker.opens_at(outcome):
                        log.error("%d episodes in a row failed, giving up: %s", breaker.failures, outcome.episode.failure)
                        return
    meter.over(counter.event.valid)  # a FAILED attempt is one that a resume plays again


def reference_length(task: TaskRef) -> int:
    """Actions of both sides in the task's reference path; 0 where it has none."""
    return len(gold_actions(domain(task.domain).task(task)))


def floors(tasks: Iterable[TaskRef]) -> dict[str, dict[str, float | None]]:
    """Domain -> floor policy -> its success rate over these very tasks."""
    by_domain: dict[str, list[TaskRef]] = {}
    for task in tasks:
        by_domain.setdefault(task.domain, []).append(task)
    return {name: {policy: len(solved_by(policy, mine)) / len(mine) for policy in POLICIES} for name, mine in by_domain.items()}


class Counter:
    """How far the run is, for whoever watches."""

    def __init__(self, progress: Progress, *, total: int) -> None:
        self._progress = progress
        self._started = time.monotonic()
        self.keys: set[str] = set()
        self.tasks: set[TaskRef] = set()  # with an episode of an earlier start
        self.event = ProgressEvent(done=0, total=total, before=0, in_flight=0)

    def had(self, record: EpisodeRecord) -> None:
        """Take over an episode of an earlier start of the run."""
        self.keys.add(record.attempt.key)
        self.tasks.add(record.attempt.task)
        solved = record.episode.solved
        event, done = self.event, self.event.done + 1
        self.event = replace(event, done=done, before=done, valid=event.valid + 1, successes=event.successes + solved)

    def show(self) -> None:
        """Say how far it is."""
        self._progress(self.event)

    def counting(self, play: PlayAttempt) -> PlayAttempt:
        """Plays as `play` does, and says how many are played at the time."""

        async def counted(attempt: Attempt) -> Episode:
            self._fly(1)
            try:
                self.show()
                return await play(attempt)
            finally:
                self._fly(-1)

        return counted

    def _fly(self, by: int) -> None:
        self.event = replace(self.event, in_flight=(self.event.in_flight or 0) + by)

    def add(self, outcome: Outcome) -> None:
        """Count an episode and say so."""
        episode, event = outcome.episode, self.event
        failed = episode.status is Status.FAILED
        self.event = replace(
            event,
            done=event.done + 1,
            valid=event.valid + (not failed),
            failed=event.failed + failed,
            successes=event.successes + episode.solved,
            tokens=event.tokens + sum(turn.usage.completion_tokens for turn in episode.turns),
            seconds=time.monotonic() - self._started,
        )
        self._progress(self.event)
