"""Which key goes where, for the agent and for the user simulator, pinned here:

- with `api_base` no key is sent but the one that `api_key_env` names, whatever the model is called and whichever keys are set
- the named key is sent
"""

from __future__ import annotations

import asyncio

import pytest

from tau2rl.chat.transcript import TranscriptCodec
from tau2rl.config import PolicyConfig, UserConfig
from tau2rl.policy.api import ApiPolicy
from tau2rl.types import Message, Opening, Say
from tests.play import mock_env, play
from tests.stubs.openai import OpenAIStub

pytest.importorskip("litellm")
PROVIDERS = ("OPENAI", "ANTHROPIC", "GEMINI", "AZURE", "OPENROUTER", "DEEPSEEK", "MISTRAL", "GROQ", "TOGETHERAI", "XAI")
MODELS = ["gpt-4.1-mini", "openai/gpt-4.1-mini", "my-model", "deepseek/chat", "mistral/large"]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for provider in PROVIDERS:
        monkeypatch.setenv(f"{provider}_API_KEY", f"sk-PLANTED-{provider}")
    monkeypatch.setenv("MY_KEY", "sk-mine")


def sent_by_agent(server: OpenAIStub, model: str, variable: str | None) -> None:
    async def once() -> None:
        async with ApiPolicy(PolicyConfig(kind="api", model=model, api_base=server.api_base, api_key_env=variable)) as policy:
            prompt = TranscriptCodec().open(Opening(domain_policy="", messages=(Message(role="user", content="Hi"),), tools=()))
            await policy.complete(prompt, seed=1, session="s", max_tokens=1000)

    asyncio.run(once())


def sent_by_user(server: OpenAIStub, model: str, variable: str | None) -> None:
    user = UserConfig(kind="llm", model=model, api_base=server.api_base, api_key_env=variable, retries=0)
    play(((Say(text="Hello."),),), env=mock_env(user=user))


def headers(who: str, model: str, variable: str | None = None) -> list[str]:
    """The values of all headers that reached a server of one's own."""
    with OpenAIStub(answer=lambda messages, tools: "Thanks. ###STOP###") as server:
        (sent_by_agent if who == "agent" else sent_by_user)(server, model, variable)
        requests = server.requests
    return [value for request in requests for value in request.headers.values()]


# A bare name that no provider has is litellm's mistake for the user simulator: it is for the agent alone.
@pytest.mark.parametrize(("who", "model"), [("agent", m) for m in MODELS] + [("user", m) for m in MODELS if m != "my-model"])
def test_a_providers_key_goes_to_no_other_server(who: str, model: str) -> None:
    sent = headers(who, model)
    assert sent and not [value for value in sent if "PLANTED" in value]


@pytest.mark.parametrize("who", ["agent", "user"])
def test_the_named_key_is_sent(who: str) -> None:
    assert "Bearer sk-mine" in headers(who, "gpt-4.1-mini", "MY_KEY")
