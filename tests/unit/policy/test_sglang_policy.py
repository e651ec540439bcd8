"""SGLangPolicy against a stub server that speaks /generate.

Pinned here:

- every turn of an episode carries the same routing key, so the server finds its prefix in the cache
- an overloaded or unreachable server is tried again, at most `retries` times, with a new request id; other errors are not
- the deadline covers the retries; a call that is cut off tells the server to abort exactly its own request
- greedy() changes the temperature and nothing else; 64 calls run at once
- ready() tells a missing, a loading, a foreign and a too short server apart
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from tau2rl.config import PolicyConfig, SamplingConfig
from tau2rl.errors import ContextExceeded, PolicyFailure, UserError
from tau2rl.http_client import MAX_BODY
from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.types import Completion, FinishReason
from tests.stubs.http import HTML, Request, Response
from tests.stubs.sglang import SGLangStub, logprob_of

T = TypeVar("T")
PROMPT = [1, 2, 3]


def run(server: SGLangStub, use: Callable[[SGLangPolicy], Awaitable[T]], **config: Any) -> T:
    """Use a policy over the stub, and close it."""

    async def inside() -> T:
        async with SGLangPolicy(PolicyConfig(url=server.url, **config), stop=("</x>",), stop_token_ids=(7,)) as policy:
            return await use(policy)

    return asyncio.run(inside())


async def once(policy: SGLangPolicy) -> Completion:
    return await policy.complete(PROMPT, seed=11, session="retail/17#0", max_tokens=32)


def test_ids_and_logprobs_come_back_as_sampled() -> None:
    with SGLangStub(answer=lambda ids, params: [5, 6, 7]) as server:
        completion = run(server, once)
    assert completion.token_ids == (5, 6, 7)
    assert completion.logprobs == (logprob_of(5), logprob_of(6), logprob_of(7))
    assert completion.finish_reason is FinishReason.STOP


def test_the_server_gets_the_ids_the_seed_and_the_stops() -> None:
    with SGLangStub() as server:
        run(server, once)
    (body,) = server.bodies
    assert body["input_ids"] == PROMPT
    assert body["sampling_params"]["sampling_seed"] == 11
    assert body["sampling_params"]["stop"] == ["</x>"]
    assert body["sampling_params"]["stop_token_ids"] == [7]
    assert body["sampling_params"]["max_new_tokens"] == 32


def test_one_episode_keeps_one_routing_key_and_its_prefix() -> None:
    async def two_turns(policy: SGLangPolicy) -> Completion:
        first = await once(policy)
        return await policy.complete([*PROMPT, *first.token_ids, 4, 4], seed=12, session="retail/17#0", max_tokens=32)

    with SGLangStub() as server:
        second = run(server, two_turns)
    assert [request.headers["x-smg-routing-key"] for request in server.requests] == ["retail/17#0"] * 2
    assert second.usage.cached_tokens == 5  # the first prompt's 3 and 2 sampled ones: the last was never fed


def test_a_session_name_beyond_ascii_still_makes_a_header() -> None:
    async def use(policy: SGLangPolicy) -> Completion:
        return await policy.complete(PROMPT, seed=1, session="retail/É\r\nX: y", max_tokens=8)

    with SGLangStub() as server:
        run(server, use)
    assert server.requests[0].headers["x-smg-routing-key"] == "retail/%C3%89%0D%0AX:%20y"


def test_a_limit_reached_is_reported_as_length() -> None:
    async def use(policy: SGLangPolicy) -> Completion:
        return await policy.complete(PROMPT, seed=1, session="s", max_tokens=2)

    with SGLangStub(answer=lambda ids, params: [5] * 100) as server:
        completion = run(server, use)
    assert (completion.token_ids, completion.finish_reason) == ((5, 5), FinishReason.LENGTH)


@pytest.mark.parametrize("status", ["429", "502", "503", "504"])
def test_an_overloaded_server_is_tried_again_with_a_new_request_id(status: str) -> None:
    with SGLangStub(mode=[status, "ok"]) as server:
        assert run(server, once).token_ids == (5, 6, 7)
    assert len({body["rid"] for body in server.bodies}) == 2


def test_a_dropped_connection_is_tried_again() -> None:
    with SGLangStub(mode=["disconnect", "ok"]) as server:
        assert run(server, once).token_ids == (5, 6, 7)


def test_retries_end() -> None:
    with SGLangStub(mode="503") as server, pytest.raises(PolicyFailure, match="overloaded: HTTP 503"):
        run(server, once, retries=2)
    assert len(server.requests) == 3


@pytest.mark.parametrize("mode", ["500", "400", "context", "abort", "html", "mismatch"])
def test_what_would_fail_again_is_sent_once(mode: str) -> None:
    with SGLangStub(mode=mode) as server, pytest.raises(PolicyFailure):
        run(server, once, retries=3)
    assert len(server.requests) == 1


def test_a_prompt_beyond_the_context_says_so() -> None:
    words = r"HTTP 400: `The input \(3 tokens\) is longer than the model's context"
    with SGLangStub(context=3) as server, pytest.raises(PolicyFailure, match=words):
        run(server, once)


def test_the_deadline_covers_all_retries() -> None:
    words = r"no completion from .* within 0\.3 s"
    with SGLangStub(mode="503", latency=0.1) as server, pytest.raises(PolicyFailure, match=words):
        run(server, once, retries=1000, timeout_seconds=0.3)
    assert len(server.requests) <= 4  # 0.1 s each


def test_a_call_that_runs_out_of_time_is_aborted_on_the_server() -> None:
    with SGLangStub(mode="hang") as server, pytest.raises(PolicyFailure):
        run(server, once, timeout_seconds=1.0)
    assert server.aborted == [server.bodies[0]["rid"]]


def test_a_cancelled_call_is_aborted_on_the_server_and_stays_cancelled() -> None:
    async def use(policy: SGLangPolicy) -> None:
        task = asyncio.create_task(once(policy))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with SGLangStub(mode="hang") as server:
        run(server, use)
    assert server.aborted == [server.bodies[0]["rid"]]


def test_a_call_that_ends_is_not_aborted() -> None:
    with SGLangStub() as server:
        run(server, once)
    assert server.aborted == []


def test_greedy_changes_the_temperature_and_nothing_else() -> None:
    async def both(policy: SGLangPolicy) -> None:
        await once(policy)
        await once(policy.greedy())
        await once(policy)

    with SGLangStub() as server:
        run(server, both, sampling=SamplingConfig(temperature=0.9, max_tokens=10))
    params = [body["sampling_params"] for body in server.bodies]
    assert [p.pop("temperature") for p in params] == [0.9, 0.0, 0.9]
    assert params[0] == params[1] == params[2]


class Gate(SGLangStub):
    """Answers nobody before `width` calls are there at one moment."""

    width = 1

    async def reply(self, request: Request, mode: str) -> Response:
        while self.max_in_flight < self.width:
            await asyncio.sleep(0.005)
        return await super().reply(request, mode)


def test_sixty_four_calls_run_at_once() -> None:
    async def many(policy: SGLangPolicy) -> list[Completion]:
        return await asyncio.gather(*(once(policy) for _ in range(64)))

    with Gate() as server:
        server.width = 64
        assert len(run(server, many, timeout_seconds=60.0)) == 64


def test_concurrency_bounds_the_calls_in_flight() -> None:
    async def inside() -> None:
        async with SGLangPolicy(PolicyConfig(url=server.url), concurrency=4) as policy:
            await asyncio.gather(*(once(policy) for _ in range(12)))

    with Gate() as server:
        server.width = 4
        asyncio.run(inside())
    assert server.max_in_flight == 4


def test_ready_names_the_model_and_its_context() -> None:
    with SGLangStub(model="Qwen/Qwen3-4B", context=4096) as server:
        assert run(server, lambda policy: policy.ready(context_tokens=4096)) == "Qwen/Qwen3-4B, 4096 tokens of context"


def test_ready_without_a_server_says_how_to_start_one() -> None:
    with SGLangStub(mode="dead") as server, pytest.raises(UserError) as caught:
        run(server, lambda policy: policy.ready())
    assert caught.value.message == f"no SGLang server answers at `{server.url}`"
    assert "sglang.launch_server" in caught.value.hint


class Hollow(SGLangStub):
    """Every path answers with one status and an HTML page, /health with 200 unless said otherwise."""

    health = 200

    async def reply(self, request: Request, mode: str) -> Response:
        status = self.health if request.path == "/health" else 200
        return Response(status=status, raw=HTML, content_type="text/html")


def test_ready_refuses_a_server_that_is_not_sglang() -> None:
    with Hollow() as server, pytest.raises(UserError, match="is not an SGLang server"):
        run(server, lambda policy: policy.ready())


@pytest.mark.parametrize("status", [200, 500])
def test_ready_refuses_a_server_whose_answer_is_too_large(status: int) -> None:
    class Huge(Hollow):
        async def reply(self, request: Request, mode: str) -> Response:
            return Response(status=status, raw=b" " * (MAX_BODY + 1))

    with (
        Huge() as server,
        pytest.raises(UserError, match="is not an SGLang server: the server sent an answer of more than 8 MiB") as caught,
    ):
        run(server, lambda policy: policy.ready())
    assert "policy.url" in caught.value.hint


def test_ready_says_that_a_server_is_still_loading() -> None:
    loading = Hollow()
    loading.health = 503
    with loading as server, pytest.raises(UserError, match="is not ready: HTTP 503"):
        run(server, lambda policy: policy.ready())


def test_ready_refuses_a_context_shorter_than_the_limit() -> None:
    words = "4096 tokens of context, fewer than `limits.context_tokens` = 8192"
    with SGLangStub(context=4096) as server, pytest.raises(UserError, match=words):
        run(server, lambda policy: policy.ready(context_tokens=8192))


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "", "ftp://x", "http://", "http://[::1"])
def test_an_address_that_is_none_is_the_persons_mistake(url: str) -> None:
    with pytest.raises(UserError, match="is not the address of a server"):
        SGLangPolicy(PolicyConfig(url=url))


@pytest.mark.parametrize("prompt", [100, 4000, 4085])
def test_no_more_is_asked_for_than_the_context_has_room_for(prompt: int) -> None:
    async def use(policy: SGLangPolicy) -> Completion:
        await policy.ready()
        return await policy.greedy().complete([5] * prompt, seed=1, session="s", max_tokens=8000)

    with SGLangStub(context=4096) as server:
        assert run(server, use, sampling=SamplingConfig(max_tokens=1024)).token_ids
    assert server.bodies[0]["sampling_params"]["max_new_tokens"] == min(1024, 4096 - prompt)


def test_a_prompt_that_fills_the_context_is_not_sent() -> None:
    async def use(policy: SGLangPolicy) -> Completion:
        await policy.ready()
        return await policy.complete([5] * 4096, seed=1, session="s", max_tokens=8)

    with SGLangStub(context=4096) as server, pytest.raises(ContextExceeded, match="fills the 4096 tokens"):
        run(server, use)
    assert not server.requests
