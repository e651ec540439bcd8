"""A real OpenAI-compatible server (llama.cpp, SmolLM2-135M), pinned here:

- a tool call that its grammar writes is read as one;
- as the agent, asked by our own client and through litellm, with tools: whole episodes on `mock` end without a failure;
- as the simulated user on `mock`: tau2's own calls are answered;
- ready() says what answers; a prompt that is longer than its context is said to be so.

135M weights talk nonsense and never end a conversation: what is looked at is that everything that they say has its way.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tau2rl.chat.transcript import TranscriptCodec
from tau2rl.config import EvalConfig, PolicyConfig, SamplingConfig, build
from tau2rl.errors import ContextExceeded
from tau2rl.policy.api import ApiPolicy, OpenAIServer
from tau2rl.policy.openai_format import read_answer
from tau2rl.recipes.eval import run as evaluate
from tau2rl.runs.folder import RunFolder
from tau2rl.types import CallTool, Completion, EpisodeRecord, Message, Opening, Status

pytestmark = pytest.mark.real
CODEC = TranscriptCodec()
CLIENTS = ["openai/smollm2", "deepseek/smollm2"]  # our own; litellm, by a provider whose protocol is OpenAI's
TOOL = {
    "type": "function",
    "function": {
        "name": "create_task",
        "description": "Create a task.",
        "parameters": {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
    },
}


def ask(base: str, model: str, text: str, tools: tuple[Any, ...] = ()) -> Completion:
    async def inside() -> Completion:
        sampling = SamplingConfig(temperature=0.0, max_tokens=32)
        config = PolicyConfig(kind="api", model=model, api_base=base, sampling=sampling, timeout_seconds=120.0)
        async with ApiPolicy(config) as policy:
            opening = Opening(domain_policy="Be kind.", messages=(Message(role="user", content=text),), tools=tools)
            return await policy.complete(tuple(CODEC.open(opening)), seed=1, session="s", max_tokens=4000)

    return asyncio.run(inside())


@pytest.mark.parametrize("model", CLIENTS)
def test_a_turn_is_text_or_a_call(llama: str, model: str) -> None:
    plain = ask(llama, model, "Say hello.")
    assert plain.usage.completion_tokens > 0 and plain.logprobs is None
    assert ask(llama, model, "Create a task with the title Milk.", (TOOL,)).usage.prompt_tokens > plain.usage.prompt_tokens


def test_a_call_that_it_is_made_to_write_is_read(llama: str) -> None:
    """`tool_choice` makes the server's grammar write the call; its title is whatever 135M weights say."""

    async def inside() -> Any:
        server = OpenAIServer(PolicyConfig(kind="api", model="openai/smollm2", api_base=llama), "smollm2", None)
        request = {"messages": [{"role": "user", "content": "Create a task with the title Milk."}], "tools": [TOOL]}
        choice = {"type": "function", "function": {"name": "create_task"}}
        try:
            return await server.ask({**request, "temperature": 0.0, "max_tokens": 64, "tool_choice": choice})
        finally:
            await server.aclose()

    line = read_answer(asyncio.run(inside()), max_tokens=4000).completion.token_ids
    (call,) = CODEC.parse(line, (TOOL,))
    assert isinstance(call, CallTool) and call.name == "create_task" and isinstance(call.arguments["title"], str)


@pytest.mark.parametrize("model", CLIENTS)
def test_a_prompt_beyond_its_context_says_so(llama: str, model: str) -> None:
    with pytest.raises(ContextExceeded):
        ask(llama, model, "milk " * 9000)


def records(folder: Path, **values: Any) -> list[EpisodeRecord]:
    config = build(
        EvalConfig,
        {
            "tasks": {"domains": ["mock"], "split": "base", "ids": ["create_task_1", "update_task_1"]},
            "chat": {"protocol": "transcript"},
            "user": {"kind": "scripted", "max_stalled_turns": 2},
            "limits": {"max_turns": 3, "context_tokens": 200_000},
            "rollout": {"num_samples": 1, "retries": 0, "concurrency": 2},
            **values,
        },
    )
    with RunFolder.open(RunFolder.create(folder / "run", config, resume=False)) as opened:
        evaluate(config, opened, lambda event: None)
        return list(opened.records())


@pytest.mark.parametrize("model", CLIENTS)
def test_as_the_agent_it_plays_whole_episodes(llama: str, model: str, tmp_path: Path) -> None:
    agent = {"kind": "api", "model": model, "api_base": llama, "sampling": {"max_tokens": 64}, "timeout_seconds": 300}
    played = records(tmp_path, policy=agent)
    assert [record.episode.failure for record in played if record.episode.status is Status.FAILED] == []
    assert len(played) == 2 and all(turn.usage.completion_tokens > 0 for record in played for turn in record.episode.turns)


def test_as_the_simulated_user_it_answers_tau2(llama: str, tmp_path: Path) -> None:
    tasks = {"domains": ["mock"], "split": "base", "limit": 1}
    user = {"kind": "llm", "model": "openai/smollm2", "api_base": llama, "timeout_seconds": 300}
    played = records(
        tmp_path, tasks=tasks, user=user, policy={"kind": "do-nothing"}, limits={"max_turns": 2, "context_tokens": 200_000}
    )
    assert len(played) == 1
    assert [record.episode.failure for record in played if record.episode.status is Status.FAILED] == []
    assert all(record.episode.user_usage.completion_tokens > 0 for record in played)
