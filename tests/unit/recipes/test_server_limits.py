"""An evaluation against servers with limits, pinned here:

- a server that takes few requests a second loses no episode, with 32 in flight and no retries: behind `/generate`, behind an API,
  and through litellm; Retry-After is heeded; fewer are in flight while it lasts
- a server that refuses everything for a while, as one that restarts does, loses none either, with 429 or 503, also when it asks
  for a wait that no call would live to see the end of
- an account without money, or whose quota is used up, ends the command at its first refusal, with the server's words
- a user model with such limits loses none either; one that refuses a field is told before the first episode, with the way out
- an agent whose context is full ends its episode as truncated, and the report is complete
- a server of this machine is never asked through a proxy, by whichever of its names
- who sends answers without an end costs its episodes and not the run
"""

from __future__ import annotations

import logging
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tau2rl.chat import make_codec
from tau2rl.config import ChatConfig, EvalConfig, build
from tau2rl.errors import UserError
from tau2rl.recipes.eval import run as evaluate
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import RunFolder
from tau2rl.types import EpisodeRecord, Fault, Say, Status, StopReason
from tests.stubs.http import Request, Response, StubServer
from tests.stubs.openai import OpenAIStub
from tests.stubs.sglang import SGLangStub

TASKS = ("create_task_1", "update_task_1", "update_task_with_message_history")
GOOD_BYE = make_codec(ChatConfig(protocol="native", tokenizer="bytes")).write((Say(text="Good bye."),))


class Limit:
    """One request every `period` seconds; others get `status` and a wait (`date`: a second). None while `closed_for`."""

    def __init__(
        self,
        period: float = 0.0,
        *,
        closed_for: float = 0.0,
        asks: str | None = None,
        status: int = 429,
        said: str = "Rate limit reached",
    ) -> None:
        self.period, self.closed_for, self.asks, self.status, self.said = period, closed_for, asks, status, said
        self.free_at: float | None = None
        self.refused = 0

    def refusal(self, request: Request) -> Response | None:
        """What a request gets that comes too early; None for one that is taken."""
        now = time.monotonic()
        if self.free_at is None:
            self.free_at = now + self.closed_for
        if now >= self.free_at:
            self.free_at = now + self.period
            return None
        self.refused += 1
        asks = formatdate(time.time() + 1, usegmt=True) if self.asks == "date" else self.asks
        headers = {} if asks is None else {"Retry-After": asks}
        return Response(status=self.status, payload={"error": {"message": self.said}}, headers=headers)


class LimitedSGLang(SGLangStub):
    def __init__(self, limit: Limit) -> None:
        super().__init__(answer=lambda ids, params: GOOD_BYE, context=10**7)
        self.limit = limit

    async def reply(self, request: Request, mode: str) -> Response:
        refusal = self.limit.refusal(request) if request.path == "/generate" else None
        return refusal or await super().reply(request, mode)


class LimitedAPI(OpenAIStub):
    def __init__(self, limit: Limit) -> None:
        super().__init__(answer=lambda messages, tools: "Good bye.")
        self.limit = limit

    async def reply(self, request: Request, mode: str) -> Response:
        return self.limit.refusal(request) or await super().reply(request, mode)


def evaluation(server: StubServer, *, model: str = "", num_samples: int = 20, **policy: Any) -> EvalConfig:
    if isinstance(server, OpenAIStub):
        agent = {"kind": "api", "model": model or "openai/stub", "api_base": server.api_base}
        chat: dict[str, Any] = {"protocol": "transcript"}
    else:
        agent, chat = {"kind": "sglang", "url": server.url}, {"protocol": "native", "tokenizer": "bytes"}
    return build(
        EvalConfig,
        {
            "tasks": {"domains": ["mock"], "split": "base", "ids": list(TASKS)},
            "policy": {**agent, "retries": 0, **policy},
            "chat": chat,
            "user": {"kind": "scripted", "max_stalled_turns": 2},
            "limits": {"context_tokens": 1_000_000},
            "rollout": {"num_samples": num_samples, "retries": 0, "concurrency": 32},
        },
    )


def played(config: EvalConfig, folder: Path) -> tuple[Any, list[EpisodeRecord]]:
    """The result of a run, and its records."""
    with RunFolder.open(RunFolder.create(folder / "run", config, resume=False)) as run:
        result = evaluate(config, run, lambda event: None)
        return result, list(run.records())


@pytest.mark.parametrize("kind", ["sglang", "api", "litellm"])
@pytest.mark.parametrize("asks", [None, "0.05"])
def test_a_server_that_takes_few_requests_a_second_loses_no_episode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, asks: str | None
) -> None:
    caplog.set_level(logging.INFO)
    limit = Limit(0.01, asks=asks)
    with LimitedSGLang(limit) if kind == "sglang" else LimitedAPI(limit) as server:
        _, records = played(evaluation(server, model="deepseek/stub" if kind == "litellm" else ""), tmp_path)
    assert len(records) == 60 and all(record.tries == 1 for record in records)
    assert all(record.episode.status is not Status.FAILED for record in records)
    assert limit.refused > 0
    assert caplog.text.count("limits its rate: calls wait") + caplog.text.count("limits its rate and asks for 0.05 s") >= 1
    assert "the server limits its rate, and calls wait for each other" in caplog.text  # fewer in flight
    assert any(turn.throttled_seconds > 0 for record in records for turn in record.episode.turns)


@pytest.mark.slow
@pytest.mark.parametrize("asks", ["0.5", "date"])
def test_two_requests_a_second_with_thirty_two_in_flight_lose_no_episode(tmp_path: Path, asks: str) -> None:
    with LimitedAPI(limit := Limit(0.5, asks=asks)) as server:
        _, records = played(evaluation(server, num_samples=11), tmp_path)
    assert len(records) == 33 and all(record.tries == 1 for record in records)
    assert all(record.episode.status is not Status.FAILED for record in records)
    requests = sum(len(record.episode.turns) for record in records)
    assert 0 < limit.refused < requests  # most calls wait here and are not refused there


GEMINI = "You exceeded your current quota, please check your plan and billing details. limit: 15. Please retry in 34.07s."


@pytest.mark.parametrize("kind", ["sglang", "api", "litellm"])
@pytest.mark.parametrize(
    "limit",
    [{}, {"asks": "1000000000"}, {"asks": "0.05", "status": 503}, {"asks": "-5"}, {"said": GEMINI}],
    ids=["429", "a wait without end", "503", "a wait before now", "a quota that fills up"],
)
def test_a_server_that_refuses_everything_for_a_while_loses_none(tmp_path: Path, kind: str, limit: dict[str, Any]) -> None:
    limited = Limit(closed_for=1.0, **limit)
    with LimitedSGLang(limited) if kind == "sglang" else LimitedAPI(limited) as server:
        config = evaluation(server, num_samples=3, model="deepseek/stub" if kind == "litellm" else "")
        _, records = played(config, tmp_path)
    assert len(records) == 9 and all(record.tries == 1 for record in records)
    assert limited.refused > 1  # no retries: what limits the rate uses none up


@pytest.mark.parametrize("model", ["openai/stub", "deepseek/stub"])
@pytest.mark.parametrize("said", ["Quota exceeded", "insufficient_quota", "Your credit balance is too low"])
def test_an_account_that_no_waiting_mends_ends_the_command_at_once(tmp_path: Path, model: str, said: str) -> None:
    with LimitedAPI(limit := Limit(closed_for=3600.0, said=said)) as server, pytest.raises(UserError, match=said):
        played(evaluation(server, model=model), tmp_path)
    assert limit.refused == 1


def says(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    return "Thank you. ###STOP###" if len(messages) > 2 else "Please create the task."


class LimitedUser(OpenAIStub):
    """A user model behind a limit, which refuses a request with the field `refuses`."""

    def __init__(self, limit: Limit, *, refuses: str = "") -> None:
        super().__init__(answer=says)
        self.limit, self.refuses = limit, refuses

    async def reply(self, request: Request, mode: str) -> Response:
        if self.refuses and self.refuses in request.body:
            error = {"message": f"Unsupported parameter: '{self.refuses}'.", "type": "invalid_request_error"}
            return Response(status=400, payload={"error": error})
        return self.limit.refusal(request) or await super().reply(request, mode)


def asked_by_gold(server: LimitedUser, model: str = "openai/user", **user: Any) -> EvalConfig:
    values = {
        "tasks": {"domains": ["mock"], "split": "base", "ids": list(TASKS[:2])},
        "policy": {"kind": "gold"},
        "chat": {"protocol": "transcript"},
        "user": {"model": model, "api_base": server.api_base, "retries": 0, **user},
        "rollout": {"num_samples": 8, "retries": 0, "concurrency": 32},
    }
    return build(EvalConfig, values)


@pytest.mark.parametrize("model", ["openai/user", "deepseek/user"])  # asked directly, and through litellm
@pytest.mark.parametrize("limit", [{"period": 0.02, "asks": "0.05"}, {"period": 0.02}, {"closed_for": 1.0}], ids=str)
def test_a_user_model_with_limits_loses_no_episode(tmp_path: Path, model: str, limit: dict[str, Any]) -> None:
    with LimitedUser(limited := Limit(**limit)) as server:
        _, records = played(asked_by_gold(server, model), tmp_path)
    assert len(records) == 16 and all(record.episode.status is Status.COMPLETED for record in records)
    assert all(record.tries == 1 for record in records) and limited.refused > 0


@pytest.mark.parametrize("field", ["temperature", "seed"])
def test_a_user_model_that_refuses_a_field_is_told_before_the_first_episode(tmp_path: Path, field: str) -> None:
    with LimitedUser(Limit(), refuses=field) as server:
        with pytest.raises(UserError, match=f"refused the request: HTTP 400: Unsupported parameter: '{field}'") as caught:
            played(asked_by_gold(server), tmp_path / "refused")
        assert len(server.requests) == 1
        assert caught.value.hint == f"leave out what the server does not take: `user.omit: [{field}]`"
        _, records = played(asked_by_gold(server, omit=[field]), tmp_path)
    assert len(records) == 16
    identity = read_json(tmp_path / "run" / "environment.json")["identity"]
    assert identity["bench"]["user"]["temperature"] == (None if field == "temperature" else 0.7)


class Full(OpenAIStub):
    """A model whose context holds the conversation up to its second turn."""

    async def reply(self, request: Request, mode: str) -> Response:
        if sum(message["role"] == "assistant" for message in request.body.get("messages", ())) < 2:
            return await super().reply(request, mode)
        words = "This model's maximum context length is 100 tokens. Please reduce the length of the messages."
        return Response(status=400, payload={"error": {"message": words, "type": "invalid_request_error"}})


@pytest.mark.parametrize("model", ["openai/stub", "deepseek/stub"])
def test_an_agent_whose_context_is_full_is_truncated_and_the_report_complete(tmp_path: Path, model: str) -> None:
    with Full() as server:
        result, records = played(evaluation(server, model=model, num_samples=2), tmp_path)
    ends = {(record.episode.status, record.episode.stop_reason, record.episode.fault) for record in records}
    assert (Status.TRUNCATED, StopReason.CONTEXT, Fault.AGENT) in ends
    assert all(status is not Status.FAILED for status, _, _ in ends)
    assert result.complete


@pytest.mark.parametrize("kind", ["sglang", "api"])
def test_who_sends_answers_without_an_end_costs_its_episodes_and_not_the_run(tmp_path: Path, kind: str) -> None:
    with SGLangStub(context=10**7) if kind == "sglang" else OpenAIStub() as server:
        config = evaluation(server, num_samples=1)
        server.set_mode(["ok", "endless"] if kind == "api" else "endless")  # the API's first answer is to `ready`
        _, records = played(config, tmp_path)
    assert records == []  # what FAILED is kept apart
    failures = (tmp_path / "run" / "failures.jsonl").read_text()
    assert failures.count("the server sent an answer of more than") == 3


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost", "127.0.0.1"])
def test_no_proxy_stands_before_a_server_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with LimitedAPI(Limit()) as agent:
        config = evaluation(agent, num_samples=1, api_base=agent.api_base.replace("127.0.0.1", host))
        _, records = played(config, tmp_path / "agent")
    with LimitedUser(Limit()) as user:
        _, asked = played(asked_by_gold(user, api_base=user.api_base.replace("127.0.0.1", host)), tmp_path / "user")
    assert (len(records), len(asked)) == (3, 16)
