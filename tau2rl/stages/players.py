"""Who plays the episodes of a run: the agent that the settings name, in this process or in processes of their own."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from tau2rl import settings
from tau2rl.bench.attempts import make_env, warm_up
from tau2rl.bench.gold import gold_script
from tau2rl.chat import make_codec
from tau2rl.config import EvalConfig, GrpoConfig, RftConfig, SeedConfig
from tau2rl.errors import UserError
from tau2rl.policies import make_policy
from tau2rl.policies.scripted import ScriptedPolicy, always_transfer_script, do_nothing_script
from tau2rl.rollouts.collect import Play, player
from tau2rl.rollouts.episode import Limits
from tau2rl.rollouts.workers import Workers
from tau2rl.stages.lineage import checkpoint_hash
from tau2rl.types import Attempt, ChatCodec, Policy

log = logging.getLogger(__name__)
NO_CONTEXT_LIMIT = 10**9  # the `transcript` protocol counts bytes, not tokens: a context budget means nothing there

Plays = EvalConfig | SeedConfig | RftConfig  # what has tasks, policy, user, chat, limits, rollout and reward
Talks = Plays | GrpoConfig  # what has user, chat and limits
PolicyFor = Callable[[Attempt], Policy]


@asynccontextmanager
async def open_players(config: Plays, codec: ChatCodec, policies: PolicyFor | None) -> AsyncGenerator[Play]:
    """What plays an attempt once: here, or in `rollout.workers` processes. `policies` replaces those of `policy`.

    Raises UserError when no server answers, or there is no cluster for the workers.
    """
    workers = config.rollout.workers
    if workers and (policies is not None or config.policy.kind == "local"):
        who = "`policy.kind: local`" if policies is None else "a teacher that slips"
        raise UserError(f"{who} plays in this process: it has no use for `rollout.workers`", hint="set `rollout.workers` to 0")
    if policies is not None:
        yield player_of(config, codec, policies)
    elif not workers:
        async with open_agent(config, codec) as mine:
            yield player_of(config, codec, mine)
    else:
        opening = functools.partial(open_in_worker, config)
        async with Workers(
            opening, count=workers, concurrency=config.rollout.concurrency, memory_gb=config.rollout.worker_memory_gb
        ) as others:
            yield others.play


@asynccontextmanager
async def open_in_worker(config: Plays) -> AsyncGenerator[Play]:
    """What a worker does before its first episode; it is another process, perhaps on another machine."""
    settings.load_secrets()
    settings.quiet_libraries()
    codec = make_codec(config.chat)
    warm_up(config.tasks.domains, codec)
    async with open_agent(config, codec) as policies:
        yield player_of(config, codec, policies)


def player_of(config: Talks, codec: ChatCodec, policies: PolicyFor) -> Play:
    """Plays attempts in this process, in tau2's environments."""
    return player(
        make_env=lambda attempt: make_env(attempt, user=config.user, limits=config.limits),
        make_policy=policies,
        codec=codec,
        limits=episode_limits(config),
    )


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
