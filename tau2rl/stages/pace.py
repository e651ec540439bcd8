"""The pace of a run: the servers of the settings are asked for their load every second, beside the episodes."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from tau2rl.config import EvalConfig, RftConfig, SeedConfig
from tau2rl.policies.load import LoadReader, was_overloaded
from tau2rl.rollouts.pacing import START, Pace

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0


@asynccontextmanager
async def open_pace(config: EvalConfig | SeedConfig | RftConfig) -> AsyncGenerator[Pace | None]:
    """How many episodes may be in flight, up to `rollout.concurrency`; None where that is all that there is to say.

    It looks at the servers from the process that starts the episodes, wherever they are played. Says at the end how far it went.
    """
    policy, ceiling = config.policy, config.rollout.concurrency
    if not config.adaptive:
        yield None
        return
    overloaded = functools.partial(was_overloaded, timeout_seconds=policy.timeout_seconds)
    async with LoadReader(policy.urls if policy.kind == "sglang" else ()) as reader:
        first = await reader.read()
        # Whoever is not told what a server has to do must not hold back from it: the ceiling is somebody's word.
        pace = Pace(ceiling, start=START * first.engines if first else ceiling, overloaded=overloaded)
        if first is None:
            log.info("nobody tells the load of the server: only episodes that it fails lower the number in flight")
            yield pace
        else:
            log.info("the load of %d engines is known: at most %d episodes in flight to begin with", first.engines, pace.limit)
            watching = asyncio.create_task(watch(pace, reader))
            try:
                yield pace
            finally:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
        log.info("%s", pace)


async def watch(pace: Pace, reader: LoadReader) -> None:
    """Let `pace` look, again and again, until cancelled."""
    while True:
        pace.look(await reader.read())
        await asyncio.sleep(LOOK_SECONDS)
