"""The agent that the settings name, and what plays its episodes: this process, or processes of their own."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from tau2rl import plugins, settings
from tau2rl.chat import make_codec
from tau2rl.config.kinds import SERVED
from tau2rl.env.tasks import gold_script
from tau2rl.env.tau2_env import warm_up
from tau2rl.errors import UserError
from tau2rl.policy import make_policy
from tau2rl.policy.scripted import ScriptedPolicy, always_transfer_script, do_nothing_script
from tau2rl.protocols import ChatCodec, Policy
from tau2rl.recipes.training import refuse_long_episodes
from tau2rl.rollouts.runner import PlayAttempt, PolicyFor, SamplingStage, episode_runner
from tau2rl.rollouts.workers import Workers
from tau2rl.runs.provenance import checkpoint_hash

if TYPE_CHECKING:
    from tau2rl.train.policy import LocalPolicy

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_episode_runner(
    config: SamplingStage, codec: ChatCodec, policies: PolicyFor | None, record: Callable[..., None]
) -> AsyncGenerator[PlayAttempt]:
    """What plays an attempt once: here, or in `rollout.workers` processes. `policies` replaces those of `policy`.

    `record` is told what is known of the agent only once it is there.

    Raises UserError when no server answers, or there is no cluster for the workers.
    """
    workers = config.rollout.workers
    if workers and (policies is not None or config.policy.kind == "local"):
        who = "`policy.kind: local`" if policies is None else "a teacher that slips"
        raise UserError(f"{who} plays in this process: it has no use for `rollout.workers`", hint="set `rollout.workers` to 0")
    if policies is not None:
        yield episode_runner(config, codec, policies)
    elif not workers:
        async with open_agent(config, codec, record) as mine:
            yield episode_runner(config, codec, mine)
    else:
        opening = functools.partial(open_in_worker, config, tuple(sys.path))
        async with Workers(
            opening, count=workers, concurrency=config.rollout.concurrency, memory_gb=config.rollout.worker_memory_gb
        ) as others:
            yield others.play


@asynccontextmanager
async def open_in_worker(config: SamplingStage, path: Sequence[str]) -> AsyncGenerator[PlayAttempt]:
    """What a worker does before its first episode; it is another process, perhaps on another machine.

    `path` is where the run's own process looks for modules.
    """
    plugins.search(path)
    plugins.import_all(config.plugins)
    settings.load_secrets()
    settings.quiet_libraries()
    codec = make_codec(config.chat)
    warm_up(config.tasks.domains, codec)
    async with open_agent(config, codec) as policies:
        yield episode_runner(config, codec, policies)


def describe_agent(config: SamplingStage, codec: ChatCodec) -> str:
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


def _unrecorded(**facts: Any) -> None:
    """For who keeps no run folder."""


@asynccontextmanager
async def open_agent(
    config: SamplingStage, codec: ChatCodec, record: Callable[..., None] = _unrecorded
) -> AsyncGenerator[PolicyFor]:
    """Attempt -> its policy: a script an episode, or one served policy for all. Raises UserError when no server answers."""
    match config.policy.kind:
        case "gold":
            yield lambda attempt: ScriptedPolicy(gold_script(attempt.task), codec)
        case "do-nothing":
            yield lambda attempt: ScriptedPolicy(do_nothing_script(), codec)
        case "always-transfer":
            yield lambda attempt: ScriptedPolicy(always_transfer_script(), codec)
        case "local":
            async with open_checkpoint(config, codec, record) as local:
                greedy_local = local.greedy()
                yield lambda attempt: greedy_local if attempt.greedy else local
        case served if served in SERVED:
            async with make_policy(config.policy, codec, concurrency=config.rollout.concurrency) as policy:
                log.info("the agent is %s", await policy.ready(context_tokens=config.limits.context_tokens))
                greedy = policy.greedy()
                yield lambda attempt: greedy if attempt.greedy else policy
        case reference:
            policy = plugins.make_plugin(reference, codec, kind="policy", options=config.policy.options)
            async with open_given(policy) as policies:
                yield policies


@asynccontextmanager
async def open_checkpoint(config: SamplingStage, codec: ChatCodec, record: Callable[..., None]) -> AsyncGenerator[LocalPolicy]:
    """The policy of `policy.checkpoint`, until the end of the block; `record` is told how its model is computed.

    Raises UserError when there is no such checkpoint, or an episode may outgrow its positions.
    """
    from tau2rl.train.engine.proof import record_engine  # torch: seconds, and only here
    from tau2rl.train.model import open_model
    from tau2rl.train.policy import local_policy

    assert config.policy.checkpoint is not None  # the config refuses the kind `local` without one
    refuse_long_episodes(config.limits.context_tokens, config.policy.checkpoint)
    model = open_model(config.policy.checkpoint, config.local)
    record_engine(model, record)
    async with local_policy(model, config.policy.sampling, config.local, config.chat, codec) as policy:
        yield policy


@asynccontextmanager
async def open_given(policy: Policy | PolicyFor) -> AsyncGenerator[PolicyFor]:
    """Attempt -> policy, for a policy of the user's that serves all attempts, or a function that gives one to each.

    It is entered and closed where it is an async context manager, and `greedy()`, where it has that, plays at temperature 0.
    """
    async with AsyncExitStack() as stack:
        if hasattr(policy, "__aenter__"):
            policy = await stack.enter_async_context(cast("Any", policy))
        if not hasattr(policy, "complete"):
            if not callable(policy):
                raise UserError(f"{type(policy).__name__} is no policy: it has no `complete`, and gives none to an attempt")
            yield policy
            return
        served = cast("Policy", policy)
        greedy: Policy = cast("Any", served).greedy() if hasattr(served, "greedy") else served
        yield lambda attempt: greedy if attempt.greedy else served
