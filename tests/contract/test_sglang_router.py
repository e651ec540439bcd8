"""SGLangPolicy behind the real `sglang-router`, over two stub engines; pinned here:

- all turns of a conversation reach one engine, by our routing key, and the conversations are spread over both;
- an engine that dies between two turns: the turn is asked of the other one, and the conversation stays there;
- ready() says what the engines say, logs one that does not answer, and tells a person when none does;
- a call that is cut off reaches the engine as a connection that closes: the router has no `/abort_request`;
- the load of the engines is read, though the router tells none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from pathlib import Path

import pytest

from tau2rl.config import PolicyConfig
from tau2rl.errors import UserError
from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.policy.sglang_load import LoadReader
from tests.stubs.router import PACKAGE, Router
from tests.stubs.sglang import SGLangStub

pytest.importorskip(PACKAGE)
PROMPT = [1, 2, 3]
NOTICES = ("--health-check-interval-secs", "1", "--health-failure-threshold", "1")  # else a dead engine is in use for minutes


@pytest.fixture
def router(tmp_path: Path) -> Generator[Router, None, None]:
    """Its own retries are off: ours are under test."""
    with Router(tmp_path / "router.log", "--disable-retries", *NOTICES) as process:
        yield process


def policy_of(router: Router, **config: float) -> SGLangPolicy:
    return SGLangPolicy(PolicyConfig(kind="sglang", url=router.url, **config))


def sessions(engine: SGLangStub) -> set[str]:
    return {request.headers["x-smg-routing-key"] for request in engine.requests}


def test_a_conversation_stays_on_its_engine(router: Router) -> None:
    async def play() -> None:
        async with policy_of(router) as policy:
            for turn in range(5):  # of 20 conversations side by side
                await asyncio.gather(
                    *(policy.complete(PROMPT * (turn + 1), seed=1, session=f"retail/{n}#0", max_tokens=8) for n in range(20))
                )

    with SGLangStub() as a, SGLangStub() as b, router.over(a.url, b.url):
        asyncio.run(play())
    assert len(sessions(a) | sessions(b)) == 20
    assert not sessions(a) & sessions(b)
    assert sessions(a) and sessions(b)
    assert len(a.requests) + len(b.requests) == 100


def test_an_engine_that_dies_between_two_turns_is_replaced_by_the_other(router: Router) -> None:
    async def play(engines: list[SGLangStub]) -> SGLangStub:
        async with policy_of(router, retries=8) as policy:
            await policy.complete(PROMPT, seed=1, session="retail/1#0", max_tokens=8)
            (first,) = (engine for engine in engines if engine.requests)
            await asyncio.to_thread(first.die)
            for turn in (2, 3):
                assert (await policy.complete(PROMPT * turn, seed=1, session="retail/1#0", max_tokens=8)).token_ids == (5, 6, 7)
            return first

    with SGLangStub() as a, SGLangStub() as b, router.over(a.url, b.url):
        died = asyncio.run(play([a, b]))
        other = b if died is a else a
        assert [len(body["input_ids"]) for body in other.bodies] == [6, 9]


def test_a_call_that_is_cut_off_closes_the_connection_to_the_engine(router: Router) -> None:
    async def cut_off(engine: SGLangStub) -> None:
        async with policy_of(router) as policy:
            call = asyncio.create_task(policy.complete(PROMPT, seed=1, session="s", max_tokens=8))
            while not engine.traffic.in_flight:
                await asyncio.sleep(0.01)
            call.cancel()
            async with asyncio.timeout(10):
                while engine.traffic.in_flight:  # until the stub reads the end of the connection
                    await asyncio.sleep(0.01)

    with SGLangStub(mode="hang") as engine, router.over(engine.url):
        asyncio.run(cut_off(engine))
    assert engine.aborted == []


def test_ready_names_an_engine_that_does_not_answer(router: Router, caplog: pytest.LogCaptureFixture) -> None:
    async def ready() -> str:
        async with policy_of(router) as policy:
            return await policy.ready(context_tokens=4096)

    with SGLangStub(context=4096) as a, SGLangStub(context=4096) as b, router.over(a.url, b.url):
        assert asyncio.run(ready()) == "stub/tiny, 4096 tokens of context"
        assert not caplog.records
        b.die()
        with caplog.at_level(logging.WARNING):
            assert asyncio.run(ready()) == "stub/tiny, 4096 tokens of context"
        assert caplog.messages == [f"behind the router at `{router.url}` the engine `{b.url}` does not answer"]
        a.die()
        with pytest.raises(UserError, match="no engine answers behind the router"):
            asyncio.run(ready())


def test_ready_refuses_engines_with_a_context_that_is_too_short(router: Router) -> None:
    async def ready() -> str:
        async with policy_of(router) as policy:
            return await policy.ready(context_tokens=8192)

    with SGLangStub(context=4096) as engine, router.over(engine.url), pytest.raises(UserError, match="4096 tokens of context"):
        asyncio.run(ready())


def test_the_load_is_that_of_the_engines(router: Router) -> None:
    async def read() -> int:
        async with LoadReader(router.url) as reader:
            load = await reader.read()
            return 0 if load is None else load.engines

    with SGLangStub() as a, SGLangStub() as b, router.over(a.url, b.url):
        assert asyncio.run(read()) == 2
