"""A checkpoint as the agent of a recipe: loaded in this process and sampled in batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from tau2rl.config import EvalConfig, RftConfig, SeedConfig
from tau2rl.protocols import ChatCodec
from tau2rl.recipes.training import refuse_long_episodes
from tau2rl.train.engine.proof import record_engine
from tau2rl.train.model import open_model
from tau2rl.train.policy import LocalPolicy, local_policy


@asynccontextmanager
async def open_checkpoint(
    config: EvalConfig | SeedConfig | RftConfig, codec: ChatCodec, record: Callable[..., None]
) -> AsyncGenerator[LocalPolicy]:
    """The policy of `policy.checkpoint`, until the end of the block; `record` is told how its model is computed.

    Raises UserError when there is no such checkpoint, or an episode may outgrow its positions.
    """
    assert config.policy.checkpoint is not None  # the config refuses the kind `local` without one
    refuse_long_episodes(config.limits.context_tokens, config.policy.checkpoint)
    model = open_model(config.policy.checkpoint, config.local)
    record_engine(model, record)
    async with local_policy(model, config.policy.sampling, config.local, config.chat, codec) as policy:
        yield policy
