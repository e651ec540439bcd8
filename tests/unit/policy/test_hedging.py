"""`policy.hedge_seconds`, against stub servers: a question that is put twice.

Pinned here:

- a call that is answered in time is sent once
- a slow one is sent once more, the same but for its id, to another server, or to the router under another key; the first
  answer is taken and alone counted, the other call is aborted; the conversation goes on where the answer came from
- one that fails leaves the other its chance; a bug is raised at once
- deadline and cancellation end and abort both, and nothing goes on afterwards
- only `eval` with `sglang` has it: what other stages sample is trained on, and `rft-filter` takes no run that had it
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tau2rl.config import STAGES, PolicyConfig, dump, load
from tau2rl.errors import PolicyFailure, UserError
from tau2rl.policy.hedging import first_answer
from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.recipes.rft import source_of
from tau2rl.runs.files import write_json
from tests.stubs.sglang import SGLangStub
from tests.unit.policy.pair import Pair, alone, cancelled, home_of, turn, until

T = TypeVar("T")
Use = Callable[[SGLangPolicy, SGLangStub, SGLangStub], Awaitable[T]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with SGLangStub(answer=lambda ids, params: [5]) as a, SGLangStub(answer=lambda ids, params: [6, 6]) as b:
        yield a, b


def run(servers: Pair, use: Use[T], **config: Any) -> T:
    """`use` a policy over the stubs, with the server of its conversation and the other; nothing of it goes on."""

    async def inside() -> T:
        urls = [server.url for server in servers]
        async with SGLangPolicy(PolicyConfig(**{"url": urls, "hedge_seconds": 0.2, "retries": 0} | config)) as policy:
            return await use(policy, *await home_of(policy, servers))

    return alone(inside())


def test_an_answer_in_time_is_asked_for_once(pair: Pair) -> None:
    async def use(policy: SGLangPolicy, home: SGLangStub, other: SGLangStub) -> None:
        await turn(policy)
        assert (len(home.requests), len(other.requests)) == (2, 0)
        assert (home.aborted, other.aborted) == ([], [])

    run(pair, use, hedge_seconds=30.0)


def test_a_slow_server_loses_to_another_and_is_told_to_stop(pair: Pair) -> None:
    async def use(policy: SGLangPolicy, home: SGLangStub, other: SGLangStub) -> None:
        home.set_mode("hang")
        completion = await turn(policy)
        assert completion.token_ids == tuple(other.answer([], {}))
        assert completion.usage.prompt_tokens == 3  # of the one that was taken
        assert completion.usage.completion_tokens == len(completion.token_ids)
        mine, twin = dict(home.bodies[-1]), dict(other.bodies[-1])
        assert mine.pop("rid") != twin.pop("rid")
        assert mine == twin
        await until(lambda: home.aborted == [home.bodies[-1]["rid"]])
        assert other.aborted == []
        await turn(policy)  # the conversation is there now
        assert (len(home.requests), len(other.requests)) == (2, 2)

    run(pair, use)


def test_the_first_call_may_still_win(pair: Pair) -> None:
    async def use(policy: SGLangPolicy, home: SGLangStub, other: SGLangStub) -> None:
        home.latency = 0.6
        other.set_mode("hang")
        assert (await turn(policy)).token_ids == tuple(home.answer([], {}))
        await until(lambda: other.aborted == [other.bodies[0]["rid"]])
        assert home.aborted == []
        home.latency = 0.0
        await turn(policy)
        assert (len(home.requests), len(other.requests)) == (3, 1)

    run(pair, use)


def test_a_router_is_asked_again_under_another_key() -> None:
    async def use(policy: SGLangPolicy, home: SGLangStub, other: SGLangStub) -> None:
        home.set_mode(["hang", "ok"])
        assert (await turn(policy)).token_ids == (5, 6, 7)
        assert [request.headers["x-smg-routing-key"] for request in home.requests] == [
            "retail/17#0@5",
            "retail/17#0@5",
            "retail/17#0@5~2",
        ]
        await until(lambda: home.aborted == [home.bodies[1]["rid"]])

    with SGLangStub() as router:
        run((router, router), use)


@pytest.mark.parametrize("fails", ["500", "disconnect", "html"])
def test_one_that_fails_leaves_the_other_its_chance(pair: Pair, fails: str) -> None:
    async def use(policy: SGLangPolicy, home: SGLangStub, other: SGLangStub) -> None:
        home.latency = 0.6
        other.set_mode(fails)
        assert (await turn(policy)).token_ids == tuple(home.answer([], {}))

    run(pair, use)


def test_when_both_fail_it_is_as_if_there_had_been_one(pair: Pair) -> None:
    async def use(policy: SGLangPolicy, home: SGLangStub, other: SGLangStub) -> None:
        home.latency = 0.6
        home.set_mode("400")
        other.set_mode("413")
        with pytest.raises(PolicyFailure, match="HTTP 400"):
            await turn(policy)

    run(pair, use)


def test_the_deadline_ends_and_aborts_both(pair: Pair) -> None:
    async def use(policy: SGLangPolicy, home: SGLangStub, other: SGLangStub) -> None:
        home.set_mode("hang")
        other.set_mode("hang")
        with pytest.raises(PolicyFailure, match=r"within 1 s"):
            await turn(policy)
        await until(lambda: home.aborted == [home.bodies[-1]["rid"]] and other.aborted == [other.bodies[-1]["rid"]])

    run(pair, use, timeout_seconds=1.0)


def test_a_cancelled_call_ends_and_aborts_both(pair: Pair) -> None:
    async def use(policy: SGLangPolicy, home: SGLangStub, other: SGLangStub) -> None:
        home.set_mode("hang")
        other.set_mode("hang")
        assert await cancelled(turn(policy), lambda: bool(other.requests))
        await until(lambda: home.aborted == [home.bodies[-1]["rid"]] and other.aborted == [other.bodies[-1]["rid"]])

    run(pair, use)


def test_a_bug_is_raised_at_once_and_ends_the_other() -> None:
    async def broken() -> bool:
        raise TypeError("a bug")

    async def inside() -> None:
        never = asyncio.Event()
        with pytest.raises(TypeError, match="a bug"):
            await first_answer(never.wait(), broken, after=0.0)

    alone(inside())


def test_only_an_evaluation_with_sglang_has_it() -> None:
    wants = ["chat.tokenizer=bytes", "policy.hedge_seconds=5"]
    assert load(STAGES["eval"], None, wants).model_dump()["policy"]["hedge_seconds"] == 5
    for stage in ("seed", "rft-filter"):
        with pytest.raises(UserError, match="these are trained on"):
            load(STAGES[stage], None, [*wants, "policy.kind=sglang", "chat.protocol=native"])
    for backend in ("local", "slime"):
        with pytest.raises(UserError, match="no such setting `policy"):
            load(STAGES["grpo"], None, [f"backend={backend}", "policy.hedge_seconds=5"])
    with pytest.raises(UserError, match=r"no effect under policy\.kind `gold`"):
        load(STAGES["eval"], None, ["policy.kind=gold", "policy.hedge_seconds=5"])


def test_what_was_sampled_with_it_is_no_source_of_training_data(tmp_path: Path) -> None:
    (tmp_path / "episodes.jsonl").touch()
    write_json(tmp_path / "environment.json", {"digest": "d", "identity": {"chat": "c"}})
    for hedge, refused in (("5", True), ("null", False)):
        config = load(STAGES["eval"], None, ["chat.tokenizer=bytes", f"policy.hedge_seconds={hedge}"])
        write_json(tmp_path / "config.json", dump(config))
        with pytest.raises(UserError, match=r"was played with `policy\.hedge_seconds`") if refused else nullcontext():
            assert source_of(tmp_path).digest == "d"
