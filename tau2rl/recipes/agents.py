"""Who plays the episodes of a run: the agent that the settings name, in this process or in processes of their own."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from tau2rl import settings
from tau2rl.chat import make_codec
from tau2rl.env.gold import gold_script
from tau2rl.env.tau2_env import warm_up
from tau2rl.errors import UserError
from tau2rl.policy import make_policy
from tau2rl.policy.scripted import ScriptedPolicy, always_transfer_script, do_nothing_script
from tau2rl.rollout.players import Plays, PolicyFor, player_of
from tau2rl.rollout.runner import Play
from tau2rl.rollout.workers import Workers
from tau2rl.runs.hashes import checkpoint_hash
from tau2rl.types import ChatCodec

log = logging.getLogger(__name__)


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
            from tau2rl.recipes.local_agent import open_checkpoint  # torch: seconds, and only here

            async with open_checkpoint(config, codec) as local:
                greedy_local = local.greedy()
                yield lambda attempt: greedy_local if attempt.greedy else local
        case "sglang" | "api":
            async with make_policy(config.policy, codec, concurrency=config.rollout.concurrency) as policy:
                log.info("the agent is %s", await policy.ready(context_tokens=config.limits.context_tokens))
                greedy = policy.greedy()
                yield lambda attempt: greedy if attempt.greedy else policy
