"""Servers whose messages have their content in parts, as agent and as simulated user, in whole evaluations; pinned here:

- parts of text are one text, for both sides: the task is solved, nothing FAILED
- a part that is no text is the fault of who sent it, and is named: a malformed turn of the agent, a FAILED episode of the user
- what a model refuses in `refusal` is what the agent says, and no user's answer
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tau2rl.config import EvalConfig, build
from tau2rl.recipes.eval import run as evaluate
from tau2rl.runs.folder import RunFolder
from tau2rl.types import Episode, Fault, Status
from tests.stubs.openai import OpenAIStub

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CREATE = '{"user_id": "user_1", "title": "Important Meeting"}'


def parts(text: str) -> dict[str, Any]:
    """The text, cut in the middle."""
    middle = len(text) // 2
    return {
        "role": "assistant",
        "content": [{"type": "text", "text": text[:middle]}, {"type": "output_text", "text": text[middle:], "annotations": []}],
    }


def agent(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Any:
    said = str(messages[-1]["content"])
    if "Please create" in said:
        return [("create_task", CREATE)]
    return parts("The task is created." if messages[-1]["role"] == "tool" else "Which task?")


def user(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Any:
    return parts("Thank you. ###STOP###" if "is created" in str(messages[-1]["content"]) else "Please create it.")


def episode(folder: Path, agent: Any, user: Any, *, model: str = "openai/agent") -> Episode:
    with OpenAIStub(answer=agent) as agents, OpenAIStub(answer=user) as users:
        config = build(
            EvalConfig,
            {
                "tasks": {"domains": ["mock"], "split": "base", "ids": ["create_task_1"]},
                "policy": {"kind": "api", "model": model, "api_base": agents.api_base},
                "user": {"kind": "llm", "model": "openai/user", "api_base": users.api_base, "retries": 0},
                "chat": {"protocol": "transcript"},
                "limits": {"max_turns": 4, "context_tokens": 200_000},
                "rollout": {"num_samples": 1, "retries": 0},
            },
        )
        with RunFolder.open(RunFolder.create(folder / "run", config, resume=False)) as opened:
            evaluate(config, opened, lambda event: None)
            (record,) = [*opened.records(), *opened.failed_records()]
    return record.episode


def test_parts_of_text_are_one_text(tmp_path: Path) -> None:
    played = episode(tmp_path, agent, user)
    assert played.status is Status.COMPLETED and played.grade is not None and played.grade.success
    assert [m.content for m in played.messages if m.role != "tool"][1:-1] == ["Please create it.", "", "The task is created."]


def test_a_part_that_is_no_text_is_the_agents_malformed_turn(tmp_path: Path) -> None:
    played = episode(tmp_path, lambda messages, tools: {"role": "assistant", "content": [IMAGE]}, user)
    assert played.status is Status.MALFORMED
    repair = next(m.content for m in played.messages if m.content.startswith("FORMAT ERROR"))
    assert "(no_content)" in repair and "a part that is no text: `image_url`" in repair


def test_a_part_that_is_no_text_is_the_users_fault(tmp_path: Path) -> None:
    opens = iter([parts("Hello?")])  # to the question before the run
    played = episode(tmp_path, agent, lambda messages, tools: next(opens, {"role": "assistant", "content": [IMAGE]}))
    assert played.status is Status.FAILED and played.failure is not None and played.failure.fault is Fault.USER
    assert "its answer has content with a part that is no text: `image_url`" in played.failure.message


@pytest.mark.parametrize("model", ["openai/agent", "deepseek/agent"])
def test_a_refusal_is_what_the_agent_says(tmp_path: Path, model: str) -> None:
    refusal = {"role": "assistant", "content": None, "refusal": "I cannot do that."}
    played = episode(tmp_path, lambda messages, tools: refusal, user, model=model)
    assert played.status in (Status.TRUNCATED, Status.COMPLETED)
    assert "I cannot do that." in [m.content for m in played.messages]
