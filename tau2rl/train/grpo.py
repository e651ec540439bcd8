"""GRPO, the whole loop: sample tasks, roll out groups, score, advantages, update, sync the sampler, validate, log, save.

`GRPO.train` is the algorithm; what it calls follows in that order. Beside it: scores and advantages are `group.py`, the gradient
step `trainer.py`, its loss `losses.py`, the sampler `policy.py`, the numbers of a step `metrics.py`. Episodes are played by the
one loop, `rollouts/`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tau2rl.config import GrpoConfig, dump
from tau2rl.data.task_sampling import TaskSampler, outcome
from tau2rl.errors import RunIncomplete
from tau2rl.hashing import derive_seed
from tau2rl.protocols import ChatCodec, Policy
from tau2rl.report.cost import Costs
from tau2rl.reward.presets import RewardSpec
from tau2rl.rollouts.circuit_breaker import CircuitBreaker
from tau2rl.rollouts.monitors import ConversationSample, Monitor
from tau2rl.rollouts.runner import Outcome, episode_runner, outcomes, plan_attempts, record_of
from tau2rl.runs.budget import step_meter
from tau2rl.runs.checkpoints import STATE, begins_anew, exports
from tau2rl.runs.files import json_lines
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.records import first_index, rewind_logprobs, write_logprobs, write_validation
from tau2rl.runs.secrets import Redactor, key_variables
from tau2rl.runs.timing import PhaseTimer
from tau2rl.runs.trackers import Curves, rewind_episodes
from tau2rl.train.group import ScoredGroup, score_group
from tau2rl.train.metrics import mean, rollout_metrics, speed_metrics, update_metrics
from tau2rl.train.model import write_checkpoint
from tau2rl.train.policy import LocalPolicy, TimedPolicy, local_policy
from tau2rl.train.state import rng_state, understood
from tau2rl.train.trainer import GRPOTrainer
from tau2rl.types import Attempt, Episode, Status, TaskRef

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """The end of a step, from which an interrupted training can go on until weights move again."""

    step: int
    optimizer_steps: int
    tasks: dict[str, Any]
    rng: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class GRPO:
    """The loop over steps, and what it needs to go on after an interruption."""

    config: GrpoConfig
    folder: RunFolder
    progress: Progress
    trainer: GRPOTrainer
    rollouts: Rollouts
    val_tasks: Sequence[TaskRef]
    timer: PhaseTimer
    marked: _Mark | None = None
    began: float = field(default_factory=time.monotonic)
    event: ProgressEvent = field(init=False)  # behind the last whole step

    async def train(self) -> None:
        """From the saved state, or the start, to the last step. Raises RunIncomplete when nothing but failures comes back."""
        config, timer = self.config, self.timer
        timer.played = self.rollouts.costs
        with timer.phase("loading"):
            done = self._restore()
        self._mark(done)
        monitor = self._monitor(done)
        total = config.train.steps
        meter = step_meter(config, self.folder, total=total, now=self.rollouts.costs)
        meter.count_done(done)
        meter.over(done)
        meter.stop(done)
        self.event = ProgressEvent(done=done, total=total, unit="steps")
        self.rollouts.on_play = self._tell
        self._tell()
        with Curves(config, self.folder) as curves:
            async with local_policy(
                self.trainer.model, config.sampling, config.local, config.chat, self.rollouts.codec
            ) as policy:
                for step in range(done + 1, config.train.steps + 1):
                    with meter.step():
                        metrics = await self._step(step, policy)
                    marks, alarms = monitor.check(metrics) if monitor else ({}, {})
                    curves.write(step, {**metrics, **marks}, self.rollouts.sample.take())
                    self._mark(step)
                    self._report_progress(step, metrics)
                    with timer.phase("saving"):
                        alarmed = bool(alarms) and config.monitors.action == "stop"
                        self._save(step, stops=alarmed or meter.over(step))
                    timer.largest_step = meter.largest
                    timer.write()
                    self._raise_alarms(step, alarms)
                    meter.stop(step)

    async def _step(self, step: int, policy: LocalPolicy) -> dict[str, float | None]:
        """Roll out, update, sync; the numbers of the step."""
        train, began, cpu = self.config.train, time.monotonic(), time.process_time()
        timed = TimedPolicy(policy)
        groups = await self.rollouts.groups(step, timed)
        rolled = time.monotonic()
        self.timer.add("sampling", timed.seconds)
        self.timer.add("playing", rolled - began - timed.seconds)

        batch = [group for group in groups if group.has_signal][: train.tasks_per_step]
        with self.timer.phase("update"):
            update = self.trainer.update([trajectory for group in batch for trajectory in group.trajectories()])
            self.trainer.model.eval()  # sampling is without dropout
            await policy.sync_weights()
        self.timer.trained += update.tokens if update else 0
        if self.config.rollout.keep and update:
            write_logprobs(self.folder.path, step, update.old_logprobs)

        metrics = {**rollout_metrics(groups), "groups/trained": len(batch), **update_metrics(update)}
        metrics |= speed_metrics(metrics, update, rollout=rolled - began, train=time.monotonic() - rolled)
        if train.val_every and step % train.val_every == 0:
            with self.timer.phase("validation"):
                metrics["val/pass@1"] = await self.validate(step, policy)
        return {**metrics, "seconds/cpu": time.process_time() - cpu}

    async def validate(self, step: int, policy: LocalPolicy) -> float | None:
        """The share of the validation tasks that is solved: the same attempts every time. Its episodes are kept in `val/`."""
        config = self.config
        attempts = plan_attempts(self.val_tasks, num_samples=config.val.num_samples, seed=derive_seed(config.seed, "select"))
        async with aclosing(self.rollouts.play(attempts, validation_policy(policy, config))) as played:
            records = [record_of(one, config, self.rollouts.spec) async for one in played]
        for record in records:
            self.rollouts.sample.add(record)
        write_validation(self.folder.path, step, records, redactor=Redactor(key_variables(dump(config))))
        return mean([float(won) for record in records if (won := outcome(record.episode)) is not None])

    def _report_progress(self, step: int, metrics: Mapping[str, float | None]) -> None:
        reward = metrics["reward/mean"]
        shown = "-" if reward is None else f"{reward:.3f}"
        useful, tried = metrics["groups/useful"], metrics["groups/tried"]
        log.info("step %d: reward %s, %s of %s groups have a signal", step, shown, useful, tried)
        self.event = replace(self.event, done=step, seconds=time.monotonic() - self.began, note=f"reward {shown}")
        self._tell()

    def _tell(self) -> None:
        """Say how far it is, and how many episodes are played at the time."""
        self.progress(replace(self.event, in_flight=self.rollouts.in_flight))

    def save_interrupted(self) -> None:
        """Write the state as it was behind the last whole step; nothing where the step that was cut off has moved weights."""
        mark = self.marked
        if mark is not None and mark.optimizer_steps == self.trainer.optimizer.steps:
            self.trainer.save(self.folder.checkpoints / STATE, rng=mark.rng, step=mark.step, tasks=mark.tasks)

    def _mark(self, step: int) -> None:
        self.marked = _Mark(
            step=step, optimizer_steps=self.trainer.optimizer.steps, tasks=self.rollouts.sampler.state(), rng=rng_state()
        )

    def _monitor(self, done: int) -> Monitor | None:
        """Who watches the curves, with those of the steps that are done; None where nobody does."""
        if self.config.monitors.action == "off":
            return None
        metrics = self.folder.metrics
        lines = [values for _, values in json_lines(metrics)] if metrics.exists() else []
        return Monitor(self.config.monitors, (line for line in lines if line["step"] <= done))

    def _raise_alarms(self, step: int, alarms: Mapping[str, str]) -> None:
        """Say what is wrong. Raises RunIncomplete where an alarm stops the run, which is saved."""
        for name, words in alarms.items():
            log.warning("step %d, alarm `%s`: %s", step, name, words)
        if alarms and self.config.monitors.action == "stop" and step < self.config.train.steps:
            said = "; ".join(f"`{name}`: {words}" for name, words in alarms.items())
            raise RunIncomplete(
                f"stopped behind step {step} by an alarm (`monitors.action`), {said}. Look at the episodes; "
                "to go on all the same, resume: an alarm is raised once"
            )

    def _save(self, step: int, *, stops: bool) -> None:
        """The state to go on from, and the whole checkpoint, at the steps that leave one, or behind which the run stops."""
        train = self.config.train
        if step % train.save_every == 0 or step == train.steps or stops:
            self.trainer.save(self.folder.checkpoints / STATE, step=step, tasks=self.rollouts.sampler.state())
        if exports(step, train.export_every):
            start = Path(self.config.model.init).expanduser()
            write_checkpoint(self.trainer.model, self.folder.checkpoints / f"step_{step:05}", tokenizer=start)

    def _restore(self) -> int:
        """The steps that are done."""
        place, done = self.folder.checkpoints / STATE, 0
        state = self.trainer.restore(place)
        if state is not None:
            with understood(place):
                self.rollouts.sampler.restore(state["tasks"])
                done = int(state["step"])
            log.info("goes on behind step %d", done)
        else:
            begins_anew(self.folder, save_every=self.config.train.save_every)
        rewind_episodes(self.folder.episodes, before=first_index(self.config, done + 1))
        rewind_logprobs(self.folder.path, before=done + 1)
        return done


def validation_policy(policy: LocalPolicy, config: GrpoConfig) -> LocalPolicy:
    """The policy as the validation tasks are played with it."""
    return policy if config.val.temperature is None else policy.at(config.val.temperature)


@dataclass(slots=True, kw_only=True)
class Rollouts:
    """Samples tasks, rolls out their groups through the one episode loop, and scores them."""

    config: GrpoConfig
    codec: ChatCodec
    spec: RewardSpec
    folder: RunFolder
    tasks: Sequence[TaskRef]
    costs: Costs = field(default_factory=Costs)
    sampler: TaskSampler = field(init=False)
    circuit_breaker: CircuitBreaker = field(init=False)
    sample: ConversationSample = field(init=False)  # for trackers
    in_flight: int = 0
    on_play: Callable[[], None] = field(default=lambda: None)  # called when an episode begins or ends

    def __post_init__(self) -> None:
        config = self.config
        keys = [task.key for task in self.tasks]
        self.sampler = TaskSampler(keys, config.algo.curriculum, group_size=config.rollout.num_samples, seed=config.seed)
        self.circuit_breaker = CircuitBreaker(after=config.rollout.give_up_after)
        self.sample = ConversationSample(config)

    async def groups(self, step: int, policy: Policy) -> list[ScoredGroup]:
        """All groups of a step: `tasks_per_step` of them, and as many again while too few have a signal, up to the cap.

        Raises RunIncomplete.
        """
        wanted, by_key = self.config.train.tasks_per_step, {task.key: task for task in self.tasks}
        groups: list[ScoredGroup] = []
        for resample in range(self.config.algo.max_resample_rounds + 1):
            tasks = [by_key[key] for key in self.sampler.sample(wanted)]
            groups += await self._roll_out(tasks, policy, first=first_index(self.config, step, resample))
            if sum(group.has_signal for group in groups) >= wanted:
                break
        solved: dict[str, list[bool | None]] = {}
        for group in groups:
            solved.setdefault(group.task.key, []).extend(outcome(episode) for episode in group.episodes)
        self.sampler.observe(solved)
        return groups

    async def _roll_out(self, tasks: Sequence[TaskRef], policy: Policy, *, first: int) -> list[ScoredGroup]:
        """One group a task; their attempts are numbered from `first`, whoever ends first."""
        size = self.config.rollout.num_samples
        attempts = [
            Attempt(task=task, index=index, seed=derive_seed(self.config.seed, "grpo", index))
            for i, task in enumerate(tasks)
            for index in range(first + i * size, first + (i + 1) * size)
        ]
        found: dict[int, Episode] = {}
        async with aclosing(self.play(attempts, policy)) as played:
            async for one in played:
                found[one.attempt.index] = one.episode
                keep = one.episode.status is Status.FAILED or self.config.rollout.keep
                if keep or self.sample.wanted:
                    record = record_of(one, self.config, self.spec)
                    self.sample.add(record)
                    if keep:
                        self.folder.append(record)
        episodes = [found[attempt.index] for attempt in attempts]
        return [
            score_group(task, episodes[i : i + size], self.config, self.spec, first=first + i)
            for task, i in zip(tasks, range(0, len(episodes), size), strict=True)
        ]

    async def play(self, attempts: Sequence[Attempt], policy: Policy) -> AsyncGenerator[Outcome]:
        """The attempts' episodes as they end. Raises RunIncomplete when nothing but failures comes back."""
        rollout = self.config.rollout
        play = episode_runner(self.config, self.codec, lambda _: policy)

        async def once(attempt: Attempt) -> Episode:
            self._fly(1)
            try:
                return await play(attempt)
            finally:
                self._fly(-1)

        async with aclosing(outcomes(attempts, play=once, concurrency=rollout.concurrency, retries=rollout.retries)) as episodes:
            async for one in episodes:
                for episode in (*one.failed, one.episode):
                    self.costs.add(episode)
                yield one
                if self.circuit_breaker.opens_at(one):
                    raise RunIncomplete(f"{self.circuit_breaker.failures} episodes in a row failed: {one.episode.failure}")

    def _fly(self, by: int) -> None:
        self.in_flight += by
        self.on_play()
