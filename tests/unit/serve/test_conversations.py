"""`tau2rl serve --domain`, through the openai client, on tau2's `mock` domain, pinned here:

- an answer is the best of k attempts, whose calls were carried out on copies; the database gets the chosen one's writes alone;
- the next turn knows what was called behind the answer, and its attempts see what was committed;
- the same request again, at once or later, is the same answer, and nothing is carried out twice; what the journal cannot keep is
  not carried out at all;
- two conversations that touch the same rows are as if one had come after the other;
- an attempt that calls without an end is dropped; refused calls are no writes;
- the client sends neither tools nor a policy; conversations of different users are apart;
- white space does not matter to it; answers that are not known, or left out, are refused, and nothing is written twice;
- what goes on without a client counts towards the limit, is not forgotten, and is given up at the end of the server;
- usage and attempts count what was dropped too;
- with a policy that is right with chance p, the database ends right more often than with the policy alone.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tau2rl import console
from tau2rl.env.sandbox import Sandbox
from tau2rl.report.estimators import wilson
from tau2rl.serve.conversations import Conversations
from tau2rl.serve.requests import ChatRequest, Reply
from tau2rl.types import CallTool
from tests.serving import KEY, Served, conversations, wait_until
from tests.stubs.openai import OpenAIStub

USER: list[Any] = [{"role": "user", "content": "Create the task Alpha for user_1."}]


def create(title: str) -> list[tuple[str, Any]]:
    return [("create_task", {"user_id": "user_1", "title": title})]


@functools.cache
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)


def ask(served: Served, messages: list[Any] = USER, *, retries: int = 0, **more: Any) -> Any:
    return client(served.url).with_options(max_retries=retries).chat.completions.create(model="tau2rl", messages=messages, **more)


def acts_first(titles: Callable[[], str]) -> Any:
    """A policy that creates a task with the next of these titles, then says so."""

    def answer(messages: list[dict[str, Any]], tools: list[Any]) -> Any:
        return f"Created: {messages[-1]['content']}" if messages[-1]["role"] == "tool" else create(titles())

    return answer


def cycle(*titles: str) -> Callable[[], str]:
    left = itertools.cycle(titles)
    return lambda: next(left)


def titles_in(sandbox: Sandbox) -> list[str]:
    return [call.arguments["title"] for call in sandbox.committed()]


def test_only_the_chosen_attempts_writes_are_carried_out() -> None:
    answer = acts_first(cycle("Beta", "Alpha", "Alpha"))
    with OpenAIStub(answer=answer) as stub, conversations(stub) as (served, sandbox):
        before = sandbox.copy().hash()
        found = ask(served)
        assert '"title": "Alpha"' in found.choices[0].message.content
        assert (found.tau2rl["mode"], found.tau2rl["attempts"], found.tau2rl["writes"]) == ("conversation", 3, ["create_task"])
        assert titles_in(sandbox) == ["Alpha"]
        alone = Sandbox("mock").copy()
        alone.act(CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Alpha"}))
        assert sandbox.copy().hash() == alone.hash() != before
        assert stub.bodies[0]["messages"][0]["content"].count("Mock Domain Policy") == 1
        assert found.usage.total_tokens > 0 and len(stub.bodies) == 6


def test_the_next_turn_knows_what_was_done() -> None:
    def answer(messages: list[dict[str, Any]], tools: list[Any]) -> Any:
        last = messages[-1]
        if last["role"] == "tool":
            return f"I see: {last['content']}"
        return [("get_users", {})] if "list" in last["content"] else create("Alpha")

    with OpenAIStub(answer=answer) as stub, conversations(stub, k=2) as (served, sandbox):
        first = ask(served).choices[0].message.content
        talk = [*USER, {"role": "assistant", "content": first}, {"role": "user", "content": "Now list them."}]
        second = ask(served, talk).choices[0].message.content
        assert "task_2" in second  # which exists since the first turn
        roles = [message["role"] for message in stub.bodies[-1]["messages"]]
        assert roles == ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool"]
        assert titles_in(sandbox) == ["Alpha"]


def test_the_same_request_again_is_carried_out_once() -> None:
    with OpenAIStub(answer=acts_first(cycle("Alpha")), latency=0.05) as stub, conversations(stub, k=2) as (served, sandbox):
        with ThreadPoolExecutor(4) as pool:
            found = [one.choices[0].message.content for one in pool.map(lambda _: ask(served), range(4))]
        assert len(set(found)) == 1
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(served, stream=True))
        assert streamed == found[0]
        assert (titles_in(sandbox), len(stub.bodies)) == (["Alpha"], 4)
        ask(served, user="somebody else")
        assert titles_in(sandbox) == ["Alpha", "Alpha"]


def test_what_cannot_be_kept_is_not_carried_out_and_can_be_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    sandbox = Sandbox("mock", journal=tmp_path / "writes.jsonl")
    with OpenAIStub(answer=acts_first(lambda: "Alpha")) as stub, conversations(stub, sandbox) as (served, _):
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(openai.InternalServerError) as caught:
                ask(served)
        assert (caught.value.status_code, caught.value.code) == (500, "journal_error")
        assert sandbox.committed() == () and not (tmp_path / "writes.jsonl").read_bytes()
        assert ask(served).tau2rl["writes"] == ["create_task"] == ask(served).tau2rl["writes"]
        assert len((tmp_path / "writes.jsonl").read_text().splitlines()) == len(sandbox.committed()) == 1


def test_what_was_begun_is_ended_although_the_client_has_gone() -> None:
    with (
        OpenAIStub(answer=acts_first(cycle("Alpha")), mode="held") as stub,
        conversations(stub, k=1, seconds=2.0) as (served, sandbox),
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            ask(served)
        assert caught.value.status_code == 504
        stub.release()
        assert "task_2" in ask(served).choices[0].message.content
        assert titles_in(sandbox) == ["Alpha"]


def said(*texts: str) -> list[Any]:
    """What a user and the agent said in turn."""
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def writes_until_it_knows(messages: list[dict[str, Any]], tools: list[Any]) -> Any:
    """A policy that creates a task if it does not see that it has."""
    done = any(message["role"] == "tool" for message in messages)
    return "Created the task.\n\nAnything  else?" if done else create("Alpha")


@pytest.mark.parametrize(
    "echo",
    ["Created the task.\n\nAnything  else?", " Created the task. Anything else?\n", "Created the\ttask.\r\nAnything else?"],
)
def test_other_white_space_is_the_same_conversation(echo: str) -> None:
    with OpenAIStub(answer=writes_until_it_knows) as stub, conversations(stub, k=1) as (served, sandbox):
        ask(served, said("Create it."))
        ask(served, said("Create it.", echo, "Thanks."))
        ask(served, said(" Create  it.", echo, "Thanks."))
        assert (titles_in(sandbox), len(stub.bodies)) == (["Alpha"], 3)


def test_answers_that_are_not_known_are_refused_and_nothing_is_written_twice() -> None:
    def code(messages: list[Any], **more: Any) -> Any:
        with pytest.raises(openai.ConflictError) as caught:
            ask(served, messages, **more)
        assert caught.value.response.headers["x-should-retry"] == "false"
        return caught.value.code

    with OpenAIStub(answer=writes_until_it_knows) as stub, conversations(stub, k=1) as (served, sandbox):
        answer = ask(served, said("Create it.")).choices[0].message.content
        assert code(said("Create it.", "Created another.", "Thanks.")) == "unknown_conversation"
        assert code(said("Create it.", answer, "Thanks."), user="somebody else") == "unknown_conversation"
        assert code([*said("Create it."), *said("Hello?")]) == "answer_left_out"  # its answer was lost on the way
        assert titles_in(sandbox) == ["Alpha"]
        ask(served, [*said("Create it.", answer, "Thanks."), *said("Bye.")])  # two messages of the user
        assert titles_in(sandbox) == ["Alpha"]
        ask(served, [{"role": "assistant", "content": "Welcome!"}, *said("Create one more.")])  # a greeting
        assert titles_in(sandbox) == ["Alpha", "Alpha"]
        with conversations(stub, sandbox, k=1) as (served, _):  # after a restart
            assert code(said("Create it.", answer, "Thanks.")) == "unknown_conversation"
        assert titles_in(sandbox) == ["Alpha", "Alpha"]


def test_the_same_request_is_another_one_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    with OpenAIStub(answer=acts_first(cycle("Alpha"))) as stub, conversations(stub, k=1) as (served, sandbox):
        ask(served)
        ask(served)
        assert titles_in(sandbox) == ["Alpha"]
        monkeypatch.setattr("tau2rl.serve.conversations.GIVEN_SECONDS", 0.0)
        ask(served, user="other")
        ask(served, user="other")
        assert titles_in(sandbox) == ["Alpha"] * 3


def test_what_goes_on_without_a_client_counts_towards_the_limit() -> None:
    with (
        OpenAIStub(answer=lambda m, t: "Hello.", mode="held") as stub,
        conversations(stub, k=1, seconds=2.0, at_once=2) as (served, _),
    ):
        for user in "ab":
            with pytest.raises(openai.InternalServerError):
                ask(served, user=user)
        with pytest.raises(openai.RateLimitError):
            ask(served, user="c")
        stub.release()
        assert [ask(served, user=user, retries=20).choices[0].message.content for user in "ab"] == ["Hello."] * 2
        assert len(stub.bodies) == 2


def test_what_is_worked_on_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def counted(answers: Conversations, request: ChatRequest) -> Reply:
        arrived.append(request.user)
        return await answer(answers, request)

    arrived, answer = list[str](), Conversations.answer
    monkeypatch.setattr(Conversations, "answer", counted)
    monkeypatch.setattr("tau2rl.serve.conversations.KEPT", 1)
    with OpenAIStub(answer=lambda m, t: "Hello.", mode="held") as stub, conversations(stub, k=1) as (served, _):
        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(ask, served, user=str(at % 6)) for at in range(12)]
            wait_until(lambda: len(arrived) == 12)
            stub.release()
            assert [one.result().choices[0].message.content for one in asked] == ["Hello."] * 12
        assert len(stub.bodies) == 6


def test_at_the_end_of_the_server_what_is_worked_on_is_given_up() -> None:
    with OpenAIStub(answer=acts_first(cycle("Alpha")), mode="held") as stub:  # it would be waited for without an end
        with conversations(stub, k=1, seconds=0.5) as (served, sandbox):
            with pytest.raises(openai.InternalServerError):
                ask(served)
            wait_until(lambda: bool(stub.requests))
        assert (sandbox.committed(), len(stub.bodies)) == ((), 1)


def test_conversations_on_the_same_rows_are_one_after_the_other() -> None:
    seen: list[str] = []
    attempts: list[int] = []

    def answer(messages: list[dict[str, Any]], tools: list[Any]) -> Any:
        asked = messages[1]["content"]
        return f"Done {messages[-1]['content']}" if messages[-1]["role"] == "tool" else create(asked)

    with OpenAIStub(answer=answer, mode="held") as stub, conversations(stub, k=1) as (served, sandbox):

        def one(title: str) -> None:
            found = ask(served, [{"role": "user", "content": title}])
            seen.append(found.choices[0].message.content)
            attempts.append(found.tau2rl["attempts"])

        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(one, title) for title in ("Alpha", "Beta")]
            wait_until(lambda: len(stub.requests) == 2)
            stub.release()
            for asked in both:
                asked.result()
        assert sorted(titles_in(sandbox)) == ["Alpha", "Beta"]
        # Both attempts saw `task_2` on their copies. The second was played again on what the first had left.
        assert sorted("task_2" in text for text in seen) == [False, True]
        assert len(stub.bodies) == 6
        assert sorted(attempts) == [1, 2]  # both rounds of the second


def test_attempts_without_an_end_are_dropped_and_refused_calls_write_nothing() -> None:
    def answer(messages: list[dict[str, Any]], tools: list[Any]) -> Any:
        return "No such user." if messages[-1]["role"] == "tool" else [("create_task", {"user_id": "nobody", "title": "x"})]

    with OpenAIStub(answer=answer) as stub, conversations(stub) as (served, sandbox):
        found = ask(served)
        assert (found.choices[0].message.content, found.tau2rl["writes"], sandbox.committed()) == ("No such user.", [], ())
    with OpenAIStub(answer=lambda m, t: [("get_users", {})]) as stub, conversations(stub, k=2, max_calls=3) as (served, sandbox):
        with pytest.raises(openai.InternalServerError) as caught:
            ask(served)
        assert (caught.value.status_code, len(stub.bodies)) == (502, 8)
        stub.answer = lambda m, t: "Now."
        assert ask(served).choices[0].message.content == "Now."  # a failure is not remembered


def test_usage_counts_attempts_that_were_dropped() -> None:
    left = itertools.count()

    def answer(messages: list[dict[str, Any]], tools: list[Any]) -> Any:
        first = len(messages) == 2
        return "Done." if first and not next(left) else [("get_users", {})]

    with OpenAIStub(answer=answer) as stub, conversations(stub, k=2, max_calls=2) as (served, _):
        found = ask(served)
        assert (found.tau2rl["attempts"], found.tau2rl["usable"], len(stub.bodies)) == (2, 1, 4)
        assert found.usage.prompt_tokens == sum(len(json.dumps(body["messages"]).split()) for body in stub.bodies)


def test_the_client_sends_what_was_said_and_nothing_else() -> None:
    tool: Any = {"type": "function", "function": {"name": "create_task", "parameters": {}}}
    wrong: list[tuple[list[Any], dict[str, Any]]] = [
        (USER, {"tools": [tool]}),
        ([{"role": "system", "content": "You are free."}, *USER], {}),
        ([*USER, {"role": "assistant", "content": "Hi"}], {}),
        ([*USER, {"role": "tool", "tool_call_id": "1", "content": "{}"}, *USER], {}),
    ]
    with OpenAIStub() as stub, conversations(stub) as (served, _):
        for messages, more in wrong:
            with pytest.raises(openai.BadRequestError):
                ask(served, messages, **more)
        assert stub.bodies == []


def test_a_transfer_is_told_to_the_client() -> None:
    def answer(messages: list[dict[str, Any]], tools: list[Any]) -> Any:
        return "Please hold." if messages[-1]["role"] == "tool" else [("transfer_to_human_agents", {"summary": "s"})]

    with OpenAIStub(answer=answer) as stub, conversations(stub) as (served, _):
        assert ask(served).tau2rl["transferred"] is True


@pytest.mark.parametrize(("k", "chance", "requests"), [(9, 0.5, 50), pytest.param(5, 0.55, 500, marks=pytest.mark.slow)])
def test_the_database_ends_right_more_often_than_with_the_policy_alone(k: int, chance: float, requests: int) -> None:
    draws = random.Random(0)
    shares: dict[int, float] = {}
    for attempts in (1, k):
        answer = acts_first(lambda: "Alpha" if draws.random() < chance else draws.choice("BCDEFGHI"))
        with OpenAIStub(answer=answer) as stub, conversations(stub, k=attempts, verifiers=("consistency",)) as (served, sandbox):
            for number in range(requests):
                ask(served, user=str(number))
            assert len(sandbox.committed()) == requests
            shares[attempts] = titles_in(sandbox).count("Alpha") / requests
    alone, best = (wilson(shares[n] * requests, requests) for n in (1, k))
    console.emit(f"pass@1 {shares[1]:.3f} {alone}, selected@{k} {shares[k]:.3f} {best}")
    assert abs(shares[1] - chance) < 4 * math.sqrt(0.25 / requests)
    assert best[0] > alone[1]
