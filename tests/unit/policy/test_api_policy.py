"""ApiPolicy against a stub of an OpenAI-compatible API: asked directly, and through the real litellm.

Pinned here:

- the API gets the conversation of the transcript prompt, the tools, the sampling settings and the seed
- a turn comes back as a transcript line that its codec reads; broken tool arguments arrive as the model wrote them
- a turn that called a tool which nobody offered goes back in a way that the API accepts
- what a provider wants back (thoughts, signatures, call ids of its own form) goes back as it came
- there are no logprobs; usage is what the API says
- a named key is sent and never shown; no key leaves for a server of one's own unless it is named, whatever the model is called
- fields that a server refuses can be left out, and `ready` says which
- a prompt beyond the model's context is told apart from other refusals
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import pytest

from tau2rl.chat.transcript import TranscriptCodec
from tau2rl.config import PolicyConfig, SamplingConfig
from tau2rl.errors import ContextExceeded, MalformedTurn, PolicyFailure, UserError
from tau2rl.policy.api import ApiPolicy
from tau2rl.types import CallTool, Completion, FinishReason, Message, Opening, Say, ToolSchema
from tests.stubs.http import Request, Response
from tests.stubs.openai import OpenAIStub

pytest.importorskip("litellm")

T = TypeVar("T")
LOOKUP = CallTool(name="get_user", arguments={"id": "u1"})
TOOL: ToolSchema = {
    "type": "function",
    "function": {"name": "get_user", "parameters": {"type": "object", "properties": {"id": {}}}},
}
OPENING = Opening(
    domain_policy="# Policy",
    messages=(Message(role="assistant", content="Hi! How can I help?"), Message(role="user", content="Cancel it.\nNow.")),
    tools=(TOOL,),
)
CODEC = TranscriptCodec()


def run(server: OpenAIStub, use: Callable[[ApiPolicy], Awaitable[T]], **config: Any) -> T:
    async def inside() -> T:
        values = {"model": "openai/stub-model", "api_base": server.api_base, **config}
        settings = PolicyConfig(kind="api", **values)
        async with ApiPolicy(settings) as policy:
            return await use(policy)

    return asyncio.run(inside())


async def once(policy: ApiPolicy) -> Completion:
    return await policy.complete(CODEC.open(OPENING), seed=11, session="mock/a#0", max_tokens=4000)


def test_the_api_gets_the_conversation_the_tools_and_the_settings() -> None:
    with OpenAIStub() as server:
        run(server, once, sampling=SamplingConfig(temperature=0.4, top_p=0.9, max_tokens=77))
    (body,) = server.bodies
    assert [message["role"] for message in body["messages"]] == ["system", "assistant", "user"]
    assert "# Policy" in body["messages"][0]["content"]
    assert body["messages"][2]["content"] == "Cancel it.\nNow."
    assert body["tools"] == [TOOL]
    assert {name: body[name] for name in ("temperature", "top_p", "max_tokens", "seed")} == {
        "temperature": 0.4,
        "top_p": 0.9,
        "max_tokens": 77,
        "seed": 11,
    }
    assert "top_k" not in body  # -1 is off, and OpenAI knows no such thing


def test_text_comes_back_as_a_line_of_the_transcript() -> None:
    with OpenAIStub(answer=lambda messages, tools: "Which one?") as server:
        completion = run(server, once)
    assert CODEC.parse(completion.token_ids, OPENING.tools) == (Say(text="Which one?"),)
    assert completion.finish_reason is FinishReason.STOP
    assert completion.logprobs is None
    assert (completion.usage.prompt_tokens > 0, completion.usage.completion_tokens > 0) == (True, True)


def test_a_second_turn_carries_the_call_and_its_result() -> None:
    async def two_turns(policy: ApiPolicy) -> None:
        prompt = CODEC.open(OPENING)
        first = await policy.complete(prompt, seed=1, session="s", max_tokens=4000)
        prompt = CODEC.extend(prompt, first.token_ids, [Message(role="tool", content='{"name": "Ann"}')])
        await policy.complete(prompt, seed=2, session="s", max_tokens=4000)

    with OpenAIStub(answer=lambda messages, tools: [("get_user", {"id": "u1"})]) as server:
        run(server, two_turns)
    call, result = server.bodies[1]["messages"][3:]
    assert call["tool_calls"][0]["function"] == {"name": "get_user", "arguments": '{"id": "u1"}'}
    assert result == {"role": "tool", "content": '{"name": "Ann"}', "tool_call_id": call["tool_calls"][0]["id"]}


def test_the_api_accepts_the_conversation_behind_a_turn_that_was_not_carried_out() -> None:
    async def repaired(policy: ApiPolicy) -> None:
        prompt = CODEC.open(OPENING)
        wrong = await policy.complete(prompt, seed=1, session="s", max_tokens=4000)
        prompt = CODEC.extend(prompt, wrong.token_ids, [Message(role="user", content="FORMAT ERROR")])
        call = await policy.complete(prompt, seed=2, session="s", max_tokens=4000)
        prompt = CODEC.extend(prompt, call.token_ids, [Message(role="tool", content="{}")])
        await policy.complete(prompt, seed=3, session="s", max_tokens=4000)

    with OpenAIStub(answer=lambda messages, tools: [("get_user", {"id": "u1"})], mode=["unknown_tool", "ok"]) as server:
        run(server, repaired)
    wrong, repair, call, result = server.bodies[2]["messages"][3:]
    assert "tool_calls" not in wrong and "launch_rocket" in wrong["content"]
    assert repair["content"] == "FORMAT ERROR"
    assert call["tool_calls"][0]["id"] == result["tool_call_id"]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "tool_calls": [{"id": "a"}]}, {"role": "user", "content": "?"}],
        [{"role": "assistant", "tool_calls": [{"id": "a"}, {"id": "b"}]}, {"role": "tool", "tool_call_id": "a", "content": ""}],
        [{"role": "user", "content": "?"}, {"role": "tool", "tool_call_id": "a", "content": ""}],
    ],
)
def test_the_stub_refuses_what_the_real_api_refuses(messages: list[dict[str, Any]]) -> None:
    with OpenAIStub() as server:
        response = httpx.post(f"{server.api_base}/chat/completions", json={"model": "m", "messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_broken_arguments_are_a_malformed_turn_and_no_failure() -> None:
    with OpenAIStub(answer=lambda messages, tools: [("get_user", '{"id": "u1')]) as server:
        completion = run(server, once)
    with pytest.raises(MalformedTurn, match="arguments_not_an_object"):
        CODEC.parse(completion.token_ids, OPENING.tools)
    assert '{\\"id\\": \\"u1' in bytes(completion.token_ids).decode()


@pytest.mark.parametrize("mode", ["empty", "null", "unknown_tool"])
def test_what_the_model_did_wrong_is_for_the_codec_to_say(mode: str) -> None:
    with OpenAIStub(mode=mode) as server:
        completion = run(server, once)
    with pytest.raises(MalformedTurn):
        CODEC.parse(completion.token_ids, OPENING.tools)


def test_an_answer_cut_at_the_token_limit_says_so() -> None:
    with OpenAIStub(mode="length") as server:
        assert run(server, once).finish_reason is FinishReason.LENGTH


def test_a_refused_request_is_sent_once_and_told_in_the_apis_words() -> None:
    with OpenAIStub(mode="400") as server, pytest.raises(PolicyFailure) as caught:
        run(server, once, retries=3)
    assert str(caught.value) == "the server answered HTTP 400: `stub says 400`"
    assert len(server.requests) == 1


class Leaky(OpenAIStub):
    """Refuses every key, and says it."""

    async def reply(self, request: Request, mode: str) -> Response:
        return Response(status=401, payload={"error": {"message": f"bad key {request.headers['authorization']}"}})


def test_a_named_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    with Leaky() as server, pytest.raises(PolicyFailure) as caught:
        run(server, once, api_key_env="MY_KEY")
    assert server.requests[0].headers["authorization"] == "Bearer sk-secret-123"
    assert str(caught.value) == "the server answered HTTP 401: `bad key Bearer ***`"


def test_a_named_key_is_not_shown_by_litellm_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    with Leaky() as server, pytest.raises(PolicyFailure) as caught:
        run(server, once, model="deepseek/stub", api_key_env="MY_KEY")
    assert server.requests[0].headers["authorization"] == "Bearer sk-secret-123"
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("model", ["openai/gpt-4.1-mini", "gpt-4.1-mini", "my-model", "deepseek/m", "together_ai/m", "mistral/m"])
def test_a_providers_key_does_not_go_to_another_server(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    for name in ("OPENAI", "DEEPSEEK", "TOGETHERAI", "TOGETHER", "TOGETHER_AI", "MISTRAL"):
        monkeypatch.setenv(f"{name}_API_KEY", "sk-secret-123")
    with OpenAIStub() as server:
        run(server, once, model=model)
    assert server.requests
    assert all("sk-secret" not in value for request in server.requests for value in request.headers.values())


def test_a_key_that_is_not_set_is_the_persons_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="`MY_KEY` is not set"):
        ApiPolicy(PolicyConfig(kind="api", model="openai/m", api_key_env="MY_KEY"))


def test_ready_asks_the_model_and_explains_a_refusal() -> None:
    with OpenAIStub(mode=["ok", "401"]) as server:
        said = run(server, lambda policy: policy.ready())
        assert said.startswith("openai/stub-model; an API model gives messages and no tokens")
        with pytest.raises(UserError, match=r"cannot use policy\.model `openai/stub-model`: .*stub says 401") as caught:
            run(server, lambda policy: policy.ready())
    assert "policy.api_key_env" in caught.value.hint


THOUGHT = {
    "role": "assistant",
    "content": None,
    "reasoning_content": "I look it up.",
    "tool_calls": [
        {
            "id": "Ab3dE6gH9",
            "type": "function",
            "extra_content": {"google": {"thought_signature": "abc"}},
            "function": {"name": "get_user", "arguments": '{"id": "u1"}'},
        }
    ],
}


@pytest.mark.parametrize("model", ["openai/m", "deepseek/m"])  # asked directly, and through litellm
def test_what_the_provider_sent_goes_back_as_it_came(model: str) -> None:
    async def three_turns(policy: ApiPolicy) -> None:
        prompt = CODEC.open(OPENING)
        for seed in range(3):
            turn = await policy.complete(prompt, seed=seed, session="s", max_tokens=4000)
            prompt = CODEC.extend(prompt, turn.token_ids, [Message(role="tool", content="{}")])

    with OpenAIStub(answer=lambda messages, tools: THOUGHT) as server:
        run(server, three_turns, model=model)
    for call, result in zip(server.bodies[2]["messages"][3::2], server.bodies[2]["messages"][4::2], strict=True):
        assert {"content": None} | call == THOUGHT
        assert result["tool_call_id"] == "Ab3dE6gH9"


def test_another_try_of_an_episode_begins_anew() -> None:
    async def tried_twice(policy: ApiPolicy) -> None:
        for text in ("first", "second"):
            server.answer = lambda messages, tools, text=text: {"role": "assistant", "content": text, "reasoning_content": text}
            turn = await policy.complete(CODEC.open(OPENING), seed=1, session="s", max_tokens=4000)
            prompt = CODEC.extend(CODEC.open(OPENING), turn.token_ids, [Message(role="user", content="?")])
            await policy.complete(prompt, seed=2, session="s", max_tokens=4000)

    with OpenAIStub() as server:
        run(server, tried_twice)
    assert [body["messages"][3]["reasoning_content"] for body in server.bodies[1::2]] == ["first", "second"]


class Picky(OpenAIStub):
    """Refuses what newer models refuse."""

    async def reply(self, request: Request, mode: str) -> Response:
        if wrong := {"seed", "temperature"} & set(request.body):
            error = {"message": f"Unsupported parameter: '{min(wrong)}'", "type": "invalid_request_error"}
            return Response(status=400, payload={"error": error})
        return await super().reply(request, mode)


def test_fields_that_a_server_refuses_can_be_left_out() -> None:
    with Picky() as server:
        with pytest.raises(UserError) as caught:
            run(server, lambda policy: policy.ready(), omit=("temperature",))
        assert len(server.requests) == 1
        assert caught.value.hint == "leave out what the server does not take: `policy.omit: [seed]`"
        run(server, once, omit=("seed", "temperature"))
    assert set(server.bodies[1]) == {"model", "messages", "tools", "top_p", "max_tokens"}


class Full(OpenAIStub):
    """A model with a short context."""

    async def reply(self, request: Request, mode: str) -> Response:
        words = "This model's maximum context length is 10 tokens. However, you requested 4000 tokens."
        return Response(status=400, payload={"error": {"message": words, "code": "context_length_exceeded"}})


@pytest.mark.parametrize("model", ["openai/m", "deepseek/m"])
def test_a_prompt_beyond_the_context_is_told_apart(model: str) -> None:
    with Full() as server, pytest.raises(ContextExceeded, match="maximum context length is 10 tokens"):
        run(server, once, model=model)
    assert len(server.requests) == 1
