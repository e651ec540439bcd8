"""Several SGLang servers behind one policy, against stub servers.

Pinned here:

- a conversation stays on the server where it began; those that begin at once are shared out evenly, and a lone process does
  not send everything to the first server
- a server that dies, is busy or says nothing for a whole deadline loses its conversations to the others, within the same
  deadline; what refuses three times in a row gets no more of them
- it is left alone for a while, then asked what it serves, and used again only when that is the same model
- ready() says of several what it says of one, names two that differ, and bears with one that is away
- settings: `policy.url` is one URL, several with commas, or a list; `doctor` looks at each
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from tau2rl.config import EvalConfig, PolicyConfig, build, dump, load
from tau2rl.doctor.services import check_policy
from tau2rl.errors import PolicyFailure, UserError
from tau2rl.policy import endpoints
from tau2rl.policy.server import Described
from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.types import Completion
from tests.stubs.sglang import SGLangStub
from tests.unit.policy.pair import PROMPT, Pair, alone, cancelled, home_of, turn, until

T = TypeVar("T")


@pytest.fixture
def pair() -> Iterator[Pair]:
    with SGLangStub() as a, SGLangStub() as b:
        yield a, b


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "REST_SECONDS", 0.0)


def run(servers: Pair, use: Callable[[SGLangPolicy], Awaitable[T]], **config: Any) -> T:
    """Use a policy over the stubs, and close it; nothing of it goes on."""

    async def inside() -> T:
        async with SGLangPolicy(PolicyConfig(url=",".join(s.url for s in servers), **config)) as policy:
            return await use(policy)

    return alone(inside())


def keys(server: SGLangStub) -> Counter[str]:
    """How many turns of each conversation the server has had."""
    return Counter(request.headers["x-smg-routing-key"] for request in server.requests)


# --- where a conversation is ---


def test_conversations_stay_where_they_began_and_are_shared_out(pair: Pair) -> None:
    async def eight(policy: SGLangPolicy) -> None:
        for _ in range(3):
            await asyncio.gather(*(turn(policy, f"task#{i}") for i in range(8)))

    run(pair, eight)
    a, b = map(keys, pair)
    assert set(a.values()) == set(b.values()) == {3}
    assert (len(a), len(b)) == (4, 4)
    assert not a.keys() & b.keys()


def test_where_nobody_is_busy_the_conversation_itself_decides(pair: Pair) -> None:
    async def one_by_one(policy: SGLangPolicy) -> None:
        for i in range(40):
            await turn(policy, f"task#{i}")

    run(pair, one_by_one)
    first = [set(keys(server)) for server in pair]
    run(pair, one_by_one)  # another process
    assert [set(keys(server)) for server in pair] == first
    assert all(first)


def test_one_that_was_forgotten_finds_a_place_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "SESSIONS_A_SEAT", 0)
    assert run(pair, turn).token_ids == run(pair, turn).token_ids == (5, 6, 7)


# --- a server that fails ---


def test_a_killed_server_loses_its_conversations_and_none_is_lost(pair: Pair) -> None:
    async def use(policy: SGLangPolicy) -> list[Completion]:
        await asyncio.gather(*(turn(policy, f"task#{i}") for i in range(8)))
        await asyncio.to_thread(pair[0].die)
        return await asyncio.gather(*(turn(policy, f"task#{i}") for i in range(8)))

    assert [c.token_ids for c in run(pair, use, retries=1)] == [(5, 6, 7)] * 8
    assert sorted(keys(pair[1]).values()) == [1] * 4 + [2] * 4
    assert all(body["input_ids"] == PROMPT for body in pair[1].bodies)


def test_a_server_killed_under_a_call_loses_it_to_the_other(pair: Pair) -> None:
    async def use(policy: SGLangPolicy) -> Completion:
        home, _ = await home_of(policy, pair)
        home.set_mode("hang")
        call = asyncio.create_task(turn(policy))
        await until(lambda: len(home.requests) == 2)
        await asyncio.to_thread(home.die)
        return await call

    assert run(pair, use, retries=0).token_ids == (5, 6, 7)


@pytest.mark.parametrize("mode", ["503", "429", "disconnect"])
def test_each_server_is_tried_as_often_as_retries_say(pair: Pair, mode: str) -> None:
    for server in pair:
        server.set_mode(mode)
    with pytest.raises(PolicyFailure, match="reach" if mode == "disconnect" else f"overloaded: HTTP {mode}"):
        run(pair, turn, retries=1)
    assert [len(server.requests) for server in pair] == [2, 2]


def test_what_fails_for_the_requests_sake_is_sent_once(pair: Pair) -> None:
    for server in pair:
        server.set_mode("400")
    with pytest.raises(PolicyFailure, match="HTTP 400"):
        run(pair, turn, retries=3)
    assert sum(len(server.requests) for server in pair) == 1


def test_a_server_that_failed_is_left_alone_even_when_it_is_well_again(pair: Pair) -> None:
    async def use(policy: SGLangPolicy) -> None:
        home, other = await home_of(policy, pair)
        home.set_mode("503")
        await turn(policy)
        home.set_mode("ok")
        await asyncio.gather(*(turn(policy, f"task#{i}") for i in range(8)), turn(policy))
        assert (len(home.requests), len(other.requests)) == (2, 10)

    run(pair, use, retries=0)


@pytest.mark.usefixtures("no_rest")
def test_a_server_that_has_rested_gets_conversations_again(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async def use(policy: SGLangPolicy) -> None:
        await policy.ready()
        home, _ = await home_of(policy, pair)
        home.set_mode("503")
        await turn(policy)
        home.set_mode("ok")
        await asyncio.gather(*(turn(policy, f"task#{i}") for i in range(8)))
        assert len(keys(home)) == 5  # the one that it had, and half of the eight
        assert f"`{home.url}` serves again" in caplog.messages

    caplog.set_level(logging.INFO)
    run(pair, use, retries=0)


def test_one_call_finds_out_whether_a_server_is_back(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(policy: SGLangPolicy) -> None:
        home, other = await home_of(policy, pair)
        home.set_mode("503")
        await turn(policy)
        await asyncio.sleep(0.5)
        monkeypatch.setattr(endpoints, "REST_SECONDS", 30.0)
        await asyncio.gather(*(turn(policy, f"task#{i}") for i in range(8)))
        assert (len(home.requests), len(other.requests)) == (3, 9)

    monkeypatch.setattr(endpoints, "REST_SECONDS", 0.3)
    run(pair, use, retries=0)


@pytest.mark.usefixtures("no_rest")
def test_a_server_that_comes_back_with_another_model_gets_nothing(pair: Pair) -> None:
    async def use(policy: SGLangPolicy) -> None:
        await policy.ready()
        home, other = await home_of(policy, pair)
        home.set_mode("503")
        await turn(policy)
        home.set_mode("ok")
        home.model = "stub/other"
        for i in range(8):
            await turn(policy, f"task#{i}")
        assert (len(home.requests), len(other.requests)) == (2, 9)

    run(pair, use, retries=0)


def test_a_server_that_says_nothing_loses_the_conversation_at_the_deadline(pair: Pair) -> None:
    async def use(policy: SGLangPolicy) -> None:
        home, other = await home_of(policy, pair)
        home.set_mode("hang")
        with pytest.raises(PolicyFailure, match=r"no completion from .* and 1 more` within 0\.5 s"):
            await turn(policy)
        await turn(policy)
        assert (len(home.requests), len(other.requests)) == (2, 1)
        await until(lambda: home.aborted == [home.bodies[1]["rid"]])

    run(pair, use, timeout_seconds=0.5)


def test_the_deadline_covers_all_servers(pair: Pair) -> None:
    for server in pair:
        server.set_mode("503")
        server.latency = 0.1
    with pytest.raises(PolicyFailure, match=r"within 0\.3 s"):
        run(pair, turn, retries=1000, timeout_seconds=0.3)
    assert sum(len(server.requests) for server in pair) <= 4  # 0.1 s each


def test_a_cancelled_call_is_aborted_where_it_is(pair: Pair) -> None:
    async def use(policy: SGLangPolicy) -> SGLangStub:
        home, _ = await home_of(policy, pair)
        home.set_mode("hang")
        assert await cancelled(turn(policy), lambda: len(home.requests) == 2)
        return home

    home = run(pair, use)
    assert home.aborted == [home.bodies[1]["rid"]]


def test_three_refusals_in_a_row_are_enough(pair: Pair) -> None:
    pair[0].set_mode("500")

    async def use(policy: SGLangPolicy) -> int:
        results = await asyncio.gather(*(turn(policy, f"task#{i}") for i in range(6)), return_exceptions=True)
        for i in range(12):
            await turn(policy, f"later#{i}")
        return sum(isinstance(result, PolicyFailure) for result in results)

    assert run(pair, use) == 3  # half of the six
    assert len(pair[0].requests) == 3


def test_concurrency_bounds_the_calls_of_all_servers(pair: Pair) -> None:
    async def inside() -> None:
        config = PolicyConfig(url=",".join(server.url for server in pair))
        async with SGLangPolicy(config, concurrency=1) as policy:
            await asyncio.gather(*(turn(policy, f"task#{i}") for i in range(6)))

    for server in pair:
        server.latency = 0.01
    alone(inside())
    assert max(server.max_in_flight for server in pair) == 1


# --- ready ---


def test_several_are_described_as_one_is(pair: Pair) -> None:
    words = run(pair, lambda policy: policy.ready(context_tokens=32768))
    assert words == run((pair[0], pair[0]), lambda policy: policy.ready()) == "stub/tiny, 32768 tokens of context"


@pytest.mark.parametrize("other", [{"model": "stub/other"}, {"context": 4096}])
def test_servers_that_differ_are_refused_by_name(other: dict[str, Any]) -> None:
    with SGLangStub() as a, SGLangStub(**other) as b, pytest.raises(UserError) as refused:
        run((a, b), lambda policy: policy.ready())
    had = f"{b.model}, {b.context} tokens of context"
    assert refused.value.message == (
        f"the servers of `policy.url` differ: `{a.url}` has stub/tiny, 32768 tokens of context; `{b.url}` has {had}"
    )


def test_a_router_that_tells_no_length_agrees_with_a_server_that_does() -> None:
    router, server = Described(model="m", context=None), Described(model="m", context=4096)
    assert router.agrees(server)
    assert not server.agrees(Described(model="m", context=8192))


def test_a_context_too_short_is_refused_wherever_it_is() -> None:
    words = "4096 tokens of context, fewer than `limits.context_tokens` = 8192"
    with SGLangStub() as a, SGLangStub(context=4096) as b, pytest.raises(UserError, match=words):
        run((a, b), lambda policy: policy.ready(context_tokens=8192))


def test_a_run_begins_without_a_server_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    async def use(policy: SGLangPolicy) -> str:
        words = await policy.ready()
        await asyncio.gather(*(turn(policy, f"task#{i}") for i in range(4)))
        return words

    with SGLangStub(mode="dead") as away, SGLangStub() as server:
        assert run((away, server), use) == "stub/tiny, 32768 tokens of context"
        assert len(server.requests) == 4
    assert f"no SGLang server answers at `{away.url}`" in caplog.text


def test_without_any_server_all_are_named() -> None:
    with SGLangStub(mode="dead") as a, SGLangStub(mode="dead") as b, pytest.raises(UserError) as refused:
        run((a, b), lambda policy: policy.ready())
    assert refused.value.message == "\n".join(f"no SGLang server answers at `{s.url}`" for s in (a, b))
    assert "sglang.launch_server" in refused.value.hint


# --- settings ---


@pytest.mark.parametrize(
    ("written", "urls"),
    [
        ("http://a:1", ("http://a:1",)),
        ("http://a:1, http://b:2", ("http://a:1", "http://b:2")),
        (["http://a:1", "http://b:2"], ("http://a:1", "http://b:2")),  # as in a file
        ("http://a:1,http://a:1/", ("http://a:1",)),
    ],
)
def test_a_url_is_one_or_several(written: object, urls: tuple[str, ...]) -> None:
    config = build(EvalConfig, {"chat": {"tokenizer": "bytes"}, "policy": {"url": written}})
    assert config.policy.urls == urls
    assert EvalConfig.model_validate(dump(config)) == config


def test_a_list_of_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"`policy\.url`: no server is named"):
        build(EvalConfig, {"chat": {"tokenizer": "bytes"}, "policy": {"url": []}})


def test_a_password_is_found_in_any_of_them() -> None:
    with pytest.raises(UserError, match=r"`policy\.url`: a URL is stored and shown") as refused:
        load(EvalConfig, None, ["chat.tokenizer=bytes", "policy.url=http://a:1,http://me:PLANTED@b:1"])
    assert "PLANTED" not in str(refused.value)


def test_an_empty_part_is_no_address() -> None:
    with pytest.raises(UserError, match=r"`policy\.url` = `` is not the address of a server"):
        SGLangPolicy(PolicyConfig(url="http://a:1,"))


def test_doctor_looks_at_each() -> None:
    with SGLangStub() as server, SGLangStub(mode="dead") as away:
        check = check_policy(PolicyConfig(url=f"{server.url},{away.url}"))
    assert (check.state, check.detail) == ("missing", f"{server.url} answers; {away.url} does not answer")
