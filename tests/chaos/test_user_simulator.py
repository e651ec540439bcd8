"""The simulated user misbehaves, through tau2's own simulator, litellm and a real HTTP connection.

- it plays its part with tau2's prompt, tools and the task's scenario, and its tokens are counted
- down, hanging, dripping, HTML, HTTP 500, broken JSON, an empty answer, a tool that it does not have: the episode is FAILED,
  the fault is the user's, nothing is a reward of 0
- one bad answer among good ones is asked for again, and the conversation goes on; so is a call that was refused twice
- its tool calls in telecom reach its own phone
"""

from __future__ import annotations

from typing import Any

import pytest

from tau2rl.chat.transcript import TranscriptCodec
from tau2rl.config import UserConfig
from tau2rl.types import CallTool, Fault, Say, Status, TaskRef
from tests.play import CREATE, mock_env, play
from tests.stubs.openai import OpenAIStub

SOLVED = (
    (CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Important Meeting"}),),
    (Say(text="The task is created."),),
)


def customer(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    return (
        "Thank you.\n###STOP###"
        if "created" in str(messages[-1]["content"])
        else "Please create `Important Meeting`\nfor user_1."
    )


def user(server: OpenAIStub, **changes: Any) -> UserConfig:
    return UserConfig(
        kind="llm", model="openai/stub", api_base=server.api_base, **{"timeout_seconds": 20.0, "retries": 0, **changes}
    )


def test_the_user_model_plays_the_customer() -> None:
    with OpenAIStub(answer=customer) as server:
        env = mock_env(user=user(server, temperature=0.7))
        episode = play(SOLVED, env=env)
    assert episode.grade is not None and episode.grade.success and episode.stop_reason == "user_stop"
    assert episode.messages[1].content == "Please create `Important Meeting`\nfor user_1."
    assert episode.user_usage.prompt_tokens > 0 and episode.user_usage.completion_tokens > 0
    first = server.bodies[0]
    assert first["temperature"] == 0.7 and "Important Meeting" in first["messages"][0]["content"]
    assert first["messages"][-1] == {"role": "user", "content": "Hi! How can I help you today?"}


@pytest.mark.parametrize(
    "mode",
    [
        "dead",
        "hang",
        "drip",
        "html",
        "500",
        "400",
        "truncated",
        "cut",
        "disconnect",
        "empty",
        "null",
        "unknown_tool",
        "wrong_types",
        "no_choices",
    ],
)
def test_a_broken_user_fails_the_episode_and_is_never_a_zero(mode: str) -> None:
    seconds = 1.5 if mode in ("hang", "drip") else 20.0
    with OpenAIStub(answer=customer, mode=mode) as server:
        episode = play(SOLVED, env=mock_env(user=user(server, timeout_seconds=seconds)))
    assert episode.status is Status.FAILED and episode.grade is None
    assert episode.failure is not None and episode.failure.fault is Fault.USER
    assert "Traceback" not in episode.failure.message and "\n" not in episode.failure.message


@pytest.mark.parametrize("mode", ["500", "html", "empty", "unknown_tool"])
def test_one_bad_answer_is_asked_for_again(mode: str) -> None:
    with OpenAIStub(answer=customer, mode=[mode, "ok"]) as server:
        episode = play(SOLVED, env=mock_env(user=user(server, retries=1)))
        seeds = [body["seed"] for body in server.bodies]
    assert episode.status is Status.COMPLETED and episode.grade is not None and episode.grade.success
    assert len(seeds) == 3 and seeds[0] != seeds[1]  # the same seed would get the same answer


def test_a_busy_server_is_asked_as_often_as_the_settings_say() -> None:
    with OpenAIStub(answer=customer, mode=["429", "429", "ok"]) as server:
        episode = play(SOLVED, env=mock_env(user=user(server, retries=2)))
    assert episode.status is Status.COMPLETED and episode.grade is not None and episode.grade.success
    assert len(server.requests) == 4  # three for the first answer, one for the second
    with OpenAIStub(answer=customer, mode=["429", "429", "ok"]) as server:
        episode = play(SOLVED, env=mock_env(user=user(server, retries=1)))
    assert episode.status is Status.FAILED and len(server.requests) == 2


def test_a_user_that_breaks_in_the_middle_fails_the_episode() -> None:
    with OpenAIStub(answer=customer, mode=["ok", "500"]) as server:
        episode = play(SOLVED, env=mock_env(user=user(server)))
    assert episode.status is Status.FAILED and len(episode.turns) == 1  # the turn whose answer never came is not a turn


def test_the_telecom_user_works_its_own_phone() -> None:
    ref = TaskRef(
        domain="telecom",
        task_id="[mobile_data_issue]data_saver_mode_on|user_abroad_roaming_enabled_off[PERSONA:Easy]",
        split="test",
    )

    def phone(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Any:
        last = str(messages[-1]["content"])
        if "toggle" in last:
            return [("toggle_data_saver_mode", {}), ("toggle_roaming", {})]
        return "My data is slow." if "help you today" in last else "It works now. ###STOP###"

    with OpenAIStub(answer=phone) as server:
        episode = play(
            ((Say(text="Please toggle data saver mode and roaming."),),),
            ref=ref,
            env=mock_env(ref, user=user(server)),
            codec=TranscriptCodec(),
        )
    assert episode.grade is not None and episode.grade.success
    users = [m for m in episode.trajectory if m["role"] == "user" and m.get("tool_calls")]
    assert [c["name"] for c in users[0]["tool_calls"]] == ["toggle_data_saver_mode", "toggle_roaming"]
    assert all("toggle" not in str(m.tool_calls) for m in episode.messages)  # the agent does not see them


def test_the_key_of_a_public_api_is_not_replaced() -> None:
    from tau2rl.env.domain import domain
    from tau2rl.env.simulation import Session
    from tau2rl.env.user_simulator import LlmUser

    session = Session(domain("mock"), domain("mock").task(CREATE), max_steps=10, user=lambda s: None, deliver=lambda e: None)
    assert "api_key" not in LlmUser(session, UserConfig(kind="llm", model="gpt-4.1-mini"), seed=1).llm_args
