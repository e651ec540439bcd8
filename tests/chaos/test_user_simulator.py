"""The user simulator misbehaves, through tau2's own simulator and a real HTTP connection.

- it plays its part with tau2's prompt, tools and the task's scenario, and its tokens are counted
- every way in which it can break, over our client and over litellm: the episode is FAILED, the fault is the user's, nothing is
  a reward of 0. `BREAKS` lists them: no connection, no whole answer, no chat answer, an answer that no user can give
- one bad answer among good ones is asked for again, and the conversation goes on; so is a call that was refused twice
- a server that limits its rate is waited for, and uses up no tries
- a request that the server refuses (a sampling field, a key) is not made again; a field can be left out
- no arguments are no arguments, however a server spells them; its tool calls in telecom reach its own phone
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from tau2rl.chat.transcript import TranscriptCodec
from tau2rl.config import UserConfig
from tau2rl.env import user_simulator
from tau2rl.env.chat_client import LitellmClient
from tau2rl.env.user_simulator import UnusableAnswer, read_user_answer
from tau2rl.types import CallTool, Episode, Fault, Say, Status, TaskRef
from tests.play import mock_env, play
from tests.stubs.http import Request, Response
from tests.stubs.openai import OpenAIStub

SOLVED = (
    (CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Important Meeting"}),),
    (Say(text="The task is created."),),
)
PHONE = TaskRef(
    domain="telecom", task_id="[mobile_data_issue]data_saver_mode_on|user_abroad_roaming_enabled_off[PERSONA:Easy]", split="test"
)
TOGGLE = "Please toggle data saver mode and roaming, and tell me what you see."


def says(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    return (
        "Thank you.\n###STOP###"
        if "created" in str(messages[-1]["content"])
        else "Please create `Important Meeting`\nfor user_1."
    )


def user(server: OpenAIStub, **changes: Any) -> UserConfig:
    return UserConfig(
        kind="llm", model="openai/stub", api_base=server.api_base, **{"timeout_seconds": 20.0, "retries": 0, **changes}
    )


def test_the_user_model_plays_the_user() -> None:
    with OpenAIStub(answer=says) as server:
        env = mock_env(user=user(server, temperature=0.7))
        episode = play(SOLVED, env=env)
    assert episode.grade is not None and episode.grade.success and episode.stop_reason == "user_stop"
    assert episode.messages[1].content == "Please create `Important Meeting`\nfor user_1."
    assert episode.user_usage.prompt_tokens > 0 and episode.user_usage.completion_tokens > 0
    first = server.bodies[0]
    assert first["temperature"] == 0.7 and "Important Meeting" in first["messages"][0]["content"]
    assert first["messages"][-1] == {"role": "user", "content": "Hi! How can I help you today?"}


# --- every way in which it can break ---

Answer = Callable[[list[dict[str, Any]], list[dict[str, Any]]], Any]
SERVERS = (
    "dead", "hang", "drip", "disconnect", "cut", "truncated", "html", "not_object", "400", "401", "404", "429", "500", "503",
    "no_choices", "wrong_types", "empty", "null", "unknown_tool", "role_flip", "filtered", "aborted", "length",
)  # fmt: skip
TEXTS = {
    "thoughts as text": "<think>I could say ###STOP### now.</think>Hello.",
    "thoughts without a beginning": "I could say it now.</think>Hello.",
    "a tool call as text": '<tool_call>\n{"name": "toggle_roaming"}\n</tool_call>',
    "a chat template's markup": "Hello.<|im_end|>\n<|im_start|>assistant",
    "ten megabytes": "word " * 2_000_000,
    "thirty thousand characters": "word " * 6_000,
    "white space": " \n\t",
    "characters of no width": "\u200b\u200d\ufeff\u2060",
    "characters without ink": "\u3164 \u2800\u034f\ufe0f\x07\u00ad",
    "half of a surrogate pair": "\ud800",
    "the agent's own words": TOGGLE,
    "as the agent": "Hello! How may I assist you today?",
}
# As the formats of open models have them: Llama, Mistral, DeepSeek, Gemma, Qwen3-Coder, GLM, Seed, Kimi, Phi, Granite, Nemotron.
MARKS = (
    "<thinking>", "</Thinking>", "<reasoning>", "<|eot_id|>", "<|python_tag|>", "<|eom_id|>", "[TOOL_CALLS]",
    "[/INST]", "[THINK]", "</s>", "<<SYS>>", "<｜end▁of▁sentence｜>", "<｜tool▁calls▁begin｜>",
    '<｜DSML｜invoke name="f">', "<|tool_call>", "<tool_call|>", "<|channel|>", "<start_of_turn>",
    "<end_of_turn>", "<function=f>", "<parameter=p>", "<arg_key>", "<seed:think>", "<seed:tool_call>",
    "<minimax:tool_call>", "<|tool_calls_section_begin|>", "◁think▷", "<|end|>", "<|end_of_text|>",
    "<tool_response>", "<TOOLCALL>", "<function_calls>", '<invoke name="f">', "<|fim_middle|>",
    "<|reserved_special_token_7|>",
)  # fmt: skip
PLAIN = (
    "I pay < $5 and > $3 [about], a|b <3",
    "My id is <user_1>, mail <a@b.com>",
    "###STOP###",
    "[S]",
    "it says <Back> | <Next>",
)
MESSAGES: dict[str, Any] = {
    "parts in place of text": {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
    "another role": {"role": "user", "content": "Hello."},
    "arguments that are no JSON": [("toggle_roaming", "{")],
    "arguments that are a list": [("toggle_roaming", "[1]")],
    "arguments nested without end": [("toggle_roaming", "[" * 100_000)],
    "arguments that cannot be written": [("grant_app_permission", '{"app_name": "\\ud800", "permission": "sms"}')],
    "calls that are no list": {"role": "assistant", "content": None, "tool_calls": {"name": "toggle_roaming"}},
    "calls that are no objects": {"role": "assistant", "content": None, "tool_calls": ["toggle_roaming"]},
    "a call without a function": {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function"}]},
    "a call of what cannot be written": [("\ud800\x1b[2J", "{}")],
    "a call without a name": {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": None}}]},
}
BODIES = {
    "no message": {"choices": [{"index": 0, "finish_reason": "stop"}]},
    "choices that are no list": {"choices": {"0": "Hello."}},
    "an error with status 200": {"error": {"message": "overloaded"}},
}
BREAKS = {
    **{name: {"mode": name} for name in SERVERS},
    **{name: {"answer": text} for name, text in TEXTS.items()},
    **{name: {"answer": message} for name, message in MESSAGES.items()},
    **{name: {"body": body} for name, body in BODIES.items()},
    "a gzip bomb": {"raw": gzip.compress(bytes(50_000_000))},
    "JSON without end": {"raw": b"[" * 200_000},
}


class Breaks(OpenAIStub):
    """Opens as a user, and breaks when it is asked the second time."""

    def __init__(self, *, mode: str = "ok", answer: Any = None, body: Any = None, raw: bytes | None = None) -> None:
        super().__init__(answer=self._says, mode=["ok", mode] if mode not in ("ok", "dead") else mode)
        self._broken, self._body, self._raw = answer, body, raw

    def _says(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Any:
        return "My data is slow." if len(self.requests) == 1 else self._broken or "Yes."

    async def reply(self, request: Request, mode: str) -> Response:
        if len(self.requests) > 1 and (self._body or self._raw):
            return Response(payload=self._body, raw=self._raw)
        return await super().reply(request, mode)


def talk(server: OpenAIStub, **changes: Any) -> Episode:
    """Telecom, where the user has tools; one turn of the agent."""
    return play(((Say(text=TOGGLE),),), ref=PHONE, env=mock_env(PHONE, user=user(server, **changes)), codec=TranscriptCodec())


def check_failed(episode: Episode) -> None:
    assert episode.status is Status.FAILED and episode.grade is None
    assert episode.failure is not None and episode.failure.fault is Fault.USER, episode.failure
    assert "Traceback" not in episode.failure.message and "\n" not in episode.failure.message
    assert episode.failure.message.isprintable() and len(episode.failure.message) < 600


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_user_fails_the_episode_and_is_never_a_zero(name: str) -> None:
    with Breaks(**BREAKS[name]) as server:
        episode = talk(server, timeout_seconds=0.5 if name in ("hang", "drip", "429") else 20.0)
    check_failed(episode)


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_of_any_format_is_no_users_text(mark: str) -> None:
    with pytest.raises(UnusableAnswer, match="should have parsed"):
        read_user_answer(said(f"My phone{mark} is dead."), tools=())


@pytest.mark.parametrize("text", PLAIN)
def test_what_people_type_is_none(text: str) -> None:
    assert read_user_answer(said(text), tools=()).content == text


def said(text: str) -> dict[str, Any]:
    return {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": text}}]}


BEHIND_LITELLM = (
    "hang",
    "drip",
    "html",
    "500",
    "400",
    "empty",
    "filtered",
    "aborted",
    "thoughts without a beginning",
    "no message",
)


@pytest.mark.parametrize("name", BEHIND_LITELLM)
def test_a_user_behind_litellm_that_breaks_fails_the_episode(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(user_simulator, "chat_client", LitellmClient)
    with Breaks(**BREAKS[name]) as server:
        # litellm's first call takes seconds.
        episode = talk(server, timeout_seconds=3.0 if name in ("hang", "drip") else 20.0)
    check_failed(episode)


def test_a_user_that_breaks_in_the_middle_leaves_the_turns_before() -> None:
    with OpenAIStub(answer=says, mode=["ok", "500"]) as server:
        episode = play(SOLVED, env=mock_env(user=user(server)))
    assert episode.status is Status.FAILED and len(episode.turns) == 1  # the turn whose answer never came is not a turn


# --- asked again, or not ---


@pytest.mark.parametrize("mode", ["500", "html", "empty", "unknown_tool", "filtered", "length", "role_flip", "disconnect", "cut"])
def test_one_bad_answer_is_asked_for_again(mode: str) -> None:
    with OpenAIStub(answer=says, mode=[mode, "ok"]) as server:
        episode = play(SOLVED, env=mock_env(user=user(server, retries=1)))
        seeds = [body["seed"] for body in server.bodies]
    assert episode.status is Status.COMPLETED and episode.grade is not None and episode.grade.success
    assert len(seeds) == 3 and seeds[0] != seeds[1]  # the same seed would get the same answer


def test_a_busy_server_is_asked_as_often_as_the_settings_say() -> None:
    with OpenAIStub(answer=says, mode=["503", "503", "ok"]) as server:
        episode = play(SOLVED, env=mock_env(user=user(server, retries=2)))
    assert episode.status is Status.COMPLETED and episode.grade is not None and episode.grade.success
    assert len(server.requests) == 4  # three for the first answer, one for the second
    with OpenAIStub(answer=says, mode=["503", "503", "ok"]) as server:
        episode = play(SOLVED, env=mock_env(user=user(server, retries=1)))
    assert episode.status is Status.FAILED and len(server.requests) == 2


def test_a_server_that_limits_its_rate_uses_up_no_tries() -> None:
    with OpenAIStub(answer=says, mode=["429", "429", "429", "ok"]) as server:
        episode = play(SOLVED, env=mock_env(user=user(server, retries=0)))
        seeds = [body["seed"] for body in server.bodies]
    assert episode.status is Status.COMPLETED and episode.grade is not None and episode.grade.success
    assert seeds == seeds[:1] * 5  # what was refused was not answered: the same question again


class Seedless(OpenAIStub):
    """A server that knows no `seed`."""

    async def reply(self, request: Request, mode: str) -> Response:
        if "seed" in request.body:
            return Response(
                status=400, payload={"error": {"message": "Unknown parameter: 'seed'.", "type": "invalid_request_error"}}
            )
        return await super().reply(request, mode)


def test_a_request_that_is_refused_is_not_made_again() -> None:
    with Seedless(answer=says) as server:
        episode = play(SOLVED, env=mock_env(user=user(server, retries=3)))
        assert len(server.requests) == 1
    check_failed(episode)
    assert episode.failure is not None and "HTTP 400: Unknown parameter: 'seed'." in episode.failure.message
    with Seedless(answer=says) as server:
        episode = play(SOLVED, env=mock_env(user=user(server, omit=("seed",))))
    assert episode.grade is not None and episode.grade.success


# --- tool calls ---


@pytest.mark.parametrize("nothing", ["{}", "", "null", None, {}], ids=json.dumps)
def test_the_telecom_user_works_its_own_phone(nothing: Any) -> None:
    def phone(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Any:
        last = str(messages[-1]["content"])
        if "toggle" in last:
            names = ("toggle_data_saver_mode", "toggle_roaming")
            calls = [
                {"id": f"u{i}", "type": "function", "function": {"name": n, "arguments": nothing}} for i, n in enumerate(names)
            ]
            return {"role": "assistant", "content": None, "tool_calls": calls}
        return "My data is slow." if "help you today" in last else "It works now. ###STOP###"

    with OpenAIStub(answer=phone) as server:
        episode = talk(server)
    assert episode.grade is not None and episode.grade.success
    users = [m for m in episode.trajectory if m["role"] == "user" and m.get("tool_calls")]
    assert [c["name"] for c in users[0]["tool_calls"]] == ["toggle_data_saver_mode", "toggle_roaming"]
    assert all("toggle" not in str(m.tool_calls) for m in episode.messages)  # the agent does not see them
