"""What every stage that plays episodes has in common: who plays, against whom, where it is cut, what is kept."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from tau2rl.bench.domain import domain
from tau2rl.bench.env import EnvLimits, Tau2Env
from tau2rl.bench.floors import POLICIES, solved_by
from tau2rl.bench.gold import gold_script
from tau2rl.bench.identity import bench_identity
from tau2rl.bench.tasks import select
from tau2rl.bench.users import check_key, make_user
from tau2rl.chat import fingerprint, make_codec
from tau2rl.config import EvalConfig, GrpoConfig, RftConfig, SeedConfig
from tau2rl.policies import make_policy
from tau2rl.policies.scripted import ScriptedPolicy, always_transfer_script, do_nothing_script
from tau2rl.rewards.presets import RewardSpec, spec_from
from tau2rl.rewards.scoring import score_episode
from tau2rl.rollouts.collect import Outcome, collect, plan
from tau2rl.rollouts.episode import Limits
from tau2rl.stages.lineage import checkpoint_hash
from tau2rl.store.progress import Progress, ProgressEvent
from tau2rl.store.provenance import environment
from tau2rl.store.records import SCHEMA
from tau2rl.store.run import RunFolder
from tau2rl.types import Attempt, ChatCodec, EpisodeRecord, Policy, Status, TaskRef

log = logging.getLogger(__name__)
NO_CONTEXT_LIMIT = 10**9  # the `transcript` protocol counts bytes, not tokens: a context budget means nothing there


Plays = EvalConfig | SeedConfig | RftConfig  # what has tasks, policy, user, chat, limits, rollout and reward
Talks = Plays | GrpoConfig  # what has user, chat and limits
PolicyFor = Callable[[Attempt], Policy]


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


def prepare(config: Plays, progress: Progress) -> Prepared:
    """Load what the episodes need. Raises UserError for what cannot be run as asked."""
    progress(ProgressEvent(done=0, total=None, note="loading tasks"))
    spec = spec_from(config.reward, max_turns=config.limits.max_turns, domains=config.tasks.domains)
    tasks = select(config.tasks)
    for name in dict.fromkeys(config.tasks.domains):
        domain(name)  # seconds of parsing, before the clock of any episode runs
    if config.user.kind == "llm":  # a missing key is said now, and not by a hundred failed episodes
        check_key(config.user)
    codec = make_codec(config.chat)
    return Prepared(
        tasks=tasks,
        planned=plan(tasks, num_samples=config.rollout.num_samples, seed=config.seed, greedy=config.rollout.greedy),
        spec=spec,
        codec=codec,
        chat=fingerprint(codec),
        agent=describe_agent(config, codec),
        identity=bench_identity(config.tasks.domains, config.user),
    )


def write_environment(config: Plays, folder: RunFolder, prepared: Prepared) -> str:
    """Keep what the run stands on; its digest. Raises UserError when a resumed run stood on something else."""
    stands_on = environment(config, prepared.identity, {"chat": prepared.chat, "agent": prepared.agent})
    folder.write_environment(stands_on)
    return str(stands_on["digest"])


async def play(
    config: Plays, folder: RunFolder, prepared: Prepared, progress: Progress, *, policies: PolicyFor | None = None
) -> None:
    """Play what is planned and not yet done, and keep each episode as it ends; stop early when nothing but failures comes back.

    `policies` replaces those of the config's `policy`.
    """
    counter = Counter(progress, total=len(prepared.planned))
    counter.resume(folder)
    attempts = [a for a in prepared.planned if a.key not in counter.keys]
    log.info("%d tasks, %d attempts, %d of them already done", len(prepared.tasks), len(prepared.planned), len(counter.keys))
    if not attempts:
        return
    failed_in_a_row = 0
    async with nullcontext(policies) if policies else open_agent(config, prepared.codec) as policy_for:
        episodes = collect(
            attempts,
            make_env=lambda attempt: make_env(config, attempt),
            make_policy=policy_for,
            codec=prepared.codec,
            limits=episode_limits(config),
            concurrency=config.rollout.concurrency,
            retries=config.rollout.retries,
        )
        async with aclosing(episodes):
            async for outcome in episodes:
                for each in outcome.every_try():
                    folder.append(record_of(each, config, prepared.spec))
                    if each.episode.failure is not None:
                        log.warning("%s failed in try %d: %s", each.attempt.key, each.tries, each.episode.failure.message)
                counter.add(outcome)
                failed_in_a_row = failed_in_a_row + 1 if outcome.episode.status is Status.FAILED else 0
                if failed_in_a_row >= config.rollout.give_up_after:
                    log.error("%d episodes in a row failed, giving up: %s", failed_in_a_row, outcome.episode.failure)
                    return


def make_env(config: Talks, attempt: Attempt) -> Tau2Env:
    """The environment of one attempt, with its user."""
    limits = EnvLimits(
        max_steps=config.limits.max_steps,
        step_timeout_seconds=config.limits.step_timeout_seconds,
        grade_timeout_seconds=config.limits.grade_timeout_seconds,
    )
    return Tau2Env(attempt.task, make_user=make_user(config.user, seed=attempt.seed), limits=limits)


def episode_limits(config: Talks) -> Limits:
    """The loop's part of the limits."""
    return Limits(
        max_turns=config.limits.max_turns,
        context_tokens=NO_CONTEXT_LIMIT if config.chat.protocol == "transcript" else config.limits.context_tokens,
        repairs=config.limits.repairs,
        episode_timeout_seconds=config.limits.episode_timeout_seconds,
    )


def describe_agent(config: Plays, codec: ChatCodec) -> str:
    """Who plays: the kind of policy, the hash of a checkpoint, or what an SGLang server says of its own.

    Raises UserError when there is none.
    """
    if config.policy.kind == "local" and config.policy.checkpoint:
        return f"checkpoint {checkpoint_hash(config.policy.checkpoint)}"
    if config.policy.kind != "sglang":
        return config.policy.model or config.policy.kind

    async def ask() -> str:
        async with make_policy(config.policy, codec, concurrency=1) as policy:
            return await policy.ready(context_tokens=config.limits.context_tokens)

    return asyncio.run(ask())


@asynccontextmanager
async def open_agent(config: Plays, codec: ChatCodec) -> AsyncGenerator[PolicyFor]:
    """Attempt -> its policy: a script an episode, or one served policy for all. Raises UserError when no server answers."""
    match config.policy.kind:
        case "gold":
            yield lambda attempt: ScriptedPolicy(gold_script(attempt.task), codec)
        case "do-nothing":
            yield lambda attempt: ScriptedPolicy(do_nothing_script(), codec)
        case "always-transfer":
            yield lambda attempt: ScriptedPolicy(always_transfer_script(), codec)
        case "local":
            from tau2rl.stages.local_agent import open_checkpoint  # torch: seconds, and only here

            async with open_checkpoint(config, codec) as local:
                greedy_local = local.greedy()
                yield lambda attempt: greedy_local if attempt.greedy else local
        case "sglang" | "api":
            async with make_policy(config.policy, codec, concurrency=config.rollout.concurrency) as policy:
                log.info("the agent is %s", await policy.ready(context_tokens=config.limits.context_tokens))
                greedy = policy.greedy()
                yield lambda attempt: greedy if attempt.greedy else policy


def record_of(outcome: Outcome, config: Talks, spec: RewardSpec) -> EpisodeRecord:
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
        self.event = ProgressEvent(done=0, total=total)

    def resume(self, folder: RunFolder) -> None:
        """Take over what earlier starts of the run have."""
        for record in folder.records():
            self.keys.add(record.attempt.key)
            solved = record.episode.grade is not None and record.episode.grade.success
            self.event = replace(
                self.event, done=self.event.done + 1, valid=self.event.valid + 1, successes=self.event.successes + solved
            )
        self._progress(self.event)

    def add(self, outcome: Outcome) -> None:
        """Count an episode and say so."""
        episode, event = outcome.episode, self.event
        failed = episode.status is Status.FAILED
        self.event = replace(
            event,
            done=event.done + 1,
            valid=event.valid + (not failed),
            failed=event.failed + failed,
            successes=event.successes + (episode.grade is not None and episode.grade.success),
            tokens=event.tokens + sum(turn.usage.completion_tokens for turn in episode.turns),
            seconds=time.monotonic() - self._started,
        )
        self._progress(self.event)
