"""`tau2rl serve` without a sandbox, through the real openai and litellm clients, pinned here:

- an answer, plain and as a stream whose pieces are the answer; usage is of all proposals; `tau2rl` says how it was chosen;
- tool calls, plain and as a stream; the same call in other words of JSON is the same proposal, and the majority is taken;
- a proposal that breaks a rule of the client's policy loses against one that does not;
- before the first write k proposals are asked for, after its result one, at the client's own temperature;
- calls of tools that nobody offered and arguments that are none never reach the client;
- log-probabilities and a model that judges can choose;
- a verifier that hangs, dies or fails is left out, which the answer says; it holds up no request beyond its deadline; where no
  other is left the request fails;
- with a policy that is right with chance p, the choice is right as often as counting says, and more often than the policy alone.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import litellm
import openai
import pytest

from tau2rl import console, settings
from tau2rl.config import UserConfig
from tau2rl.env.asked_model import AskedModel
from tau2rl.report.estimators import wilson
from tau2rl.serve.choice import VerifierPool
from tau2rl.serve.turns import Turns
from tau2rl.verify.verifiers import Scorer, scorers
from tests.serving import Served, policy, serving, turns, wait_until
from tests.stubs.openai import OpenAIStub

USER = [{"role": "user", "content": "Please cancel order 7."}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"id": {"type": "string"}}}}}
    for name in ("get_order", "cancel_order")
]


def client(served: Served, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key=served.key, max_retries=0, **options)


def ask(served: Served, messages: list[Any] = USER, **more: Any) -> Any:
    return client(served).chat.completions.create(model="tau2rl", messages=messages, **more)


def in_turn(*answers: Any) -> Any:
    """A stub's answers, one after the other and from the beginning again."""
    left = itertools.cycle(answers)
    return lambda messages, tools: next(left)


def test_an_answer_of_k_proposals() -> None:
    with OpenAIStub(answer=lambda m, t: "It is cancelled  \n now.") as stub, turns(stub, k=3) as served:
        found = ask(served)
        one = len(json.dumps(USER).split())  # as the stub counts tokens
        assert (found.choices[0].message.content, found.choices[0].finish_reason) == ("It is cancelled  \n now.", "stop")
        assert found.usage.prompt_tokens == 3 * one
        assert (found.tau2rl["mode"], found.tau2rl["attempts"], found.tau2rl["usable"]) == ("turn", 3, 3)
        assert [model.id for model in client(served).models.list()] == ["tau2rl"]
        assert client(served).models.retrieve("tau2rl").owned_by == "tau2rl"
        assert len({body["seed"] for body in stub.bodies}) == 3


@pytest.mark.parametrize("text", ["One.", "a  b\n\n" * 40, "ünï 🎉 " * 9, " leading and trailing "])
def test_the_pieces_of_a_stream_are_the_answer(text: str) -> None:
    with OpenAIStub(answer=lambda m, t: text) as stub, turns(stub) as served:
        chunks = list(ask(served, stream=True, stream_options={"include_usage": True}))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert chunks[-1].usage.total_tokens > 0 and not chunks[-1].choices
        assert all("usage" in c.model_fields_set and c.usage is None for c in chunks[:-1])  # as OpenAI's own
        assert chunks[0].tau2rl["attempts"] == 3
        assert not any(getattr(c, "usage", None) for c in ask(served, stream=True))


def test_litellm_plain_and_as_a_stream() -> None:
    calls = [("get_order", {"id": "7"})]
    with OpenAIStub(answer=lambda m, t: calls if t else "Hello, what can I do?") as stub, turns(stub) as served:
        options: dict[str, Any] = {"model": "openai/tau2rl", "api_base": served.url, "api_key": served.key, "messages": USER}
        plain: Any = litellm.completion(**options)
        assert plain.choices[0].message.content == "Hello, what can I do?"
        streamed: Any = litellm.completion(**options, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "Hello, what can I do?"
        called: Any = litellm.stream_chunk_builder(
            list(litellm.completion(**options, **settings.litellm_options(), tools=TOOLS, stream=True))
        )
        function = called.choices[0].message.tool_calls[0].function
        assert (function.name, json.loads(function.arguments)) == ("get_order", {"id": "7"})


def test_the_majority_of_calls_is_taken_and_streams_whole() -> None:
    first, same, other = '{"id": "7", "why": "x"}', '{"why":"x","id":"7"}', '{"id": "8", "why": "x"}'
    answers = in_turn(*([("get_order", text)] for text in (other, first, same)))
    with OpenAIStub(answer=answers) as stub, turns(stub, verifiers=("consistency",)) as served:
        found = ask(served, tools=TOOLS)
        [call] = found.choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == {"id": "7", "why": "x"}
        assert (found.choices[0].finish_reason, found.choices[0].message.content) == ("tool_calls", None)
        chunks = list(ask(served, tools=TOOLS, stream=True))
        pieces = [piece for c in chunks for piece in c.choices[0].delta.tool_calls or ()]
        assert json.loads("".join(piece.function.arguments for piece in pieces)) == {"id": "7", "why": "x"}
        assert pieces[0].id and pieces[0].function.name == "get_order"


def test_a_proposal_that_breaks_the_clients_policy_loses() -> None:
    asked: list[Any] = [{"role": "system", "content": "Obtain explicit user confirmation before you cancel."}, *USER]
    hasty, polite = [("cancel_order", {"id": "7"})], "I would cancel order 7. Shall I?"
    with OpenAIStub(answer=in_turn(hasty, hasty, polite)) as stub, turns(stub, verifiers=("rules", "consistency")) as served:
        found = ask(served, asked, tools=TOOLS)
        assert found.choices[0].message.content == polite
        assert sorted(found.tau2rl["scores"]["rules"])[-1] == 1.0


def test_from_the_first_write_on_a_message_is_asked_for_once() -> None:
    def called(name: str) -> list[Any]:
        call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": "{}"}}
        return [*USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "ok"}]

    with OpenAIStub(answer=lambda m, t: "Done.") as stub, turns(stub, k=4) as served:
        assert ask(served, called("get_order"), tools=TOOLS, temperature=0.2).tau2rl["attempts"] == 4
        assert [body["temperature"] for body in stub.bodies] == [1.0] * 4
        assert ask(served, called("cancel_order"), tools=TOOLS, temperature=0.2).tau2rl["attempts"] == 1
        assert (len(stub.bodies), stub.bodies[-1]["temperature"]) == (5, 0.2)


@pytest.mark.parametrize(
    "bad",
    [
        [("launch_rocket", {})],
        [("get_order", "{no json")],
        [("get_order", "[1]")],
        [("get_order", '{"a":' * 65 + "1" + "}" * 65)],
        "",
        "  ",
    ],
)
def test_what_is_no_proposal_is_dropped(bad: Any) -> None:
    with OpenAIStub(answer=in_turn(bad, bad, "Which order?")) as stub, turns(stub) as served:
        found = ask(served, tools=TOOLS)
        assert (found.choices[0].message.content, found.tau2rl["usable"]) == ("Which order?", 1)
        assert found.usage.prompt_tokens == sum(len(json.dumps(body["messages"]).split()) for body in stub.bodies)
        stub.answer = in_turn(bad)
        with pytest.raises(openai.InternalServerError) as caught:
            ask(served, tools=TOOLS)
        assert caught.value.status_code == 502


class WithLogprobs(OpenAIStub):
    """Is sure of what begins with "Sure"."""

    def _completion(self, body: dict[str, Any], mode: str) -> dict[str, Any]:
        made = super()._completion(body, mode)
        text = made["choices"][0]["message"]["content"]
        value = math.log(0.9 if text.startswith("Sure") else 0.2)
        made["choices"][0]["logprobs"] = {"content": [{"token": "x", "logprob": value}] * 3} if body.get("logprobs") else None
        return made


def test_log_probabilities_choose() -> None:
    with (
        WithLogprobs(answer=in_turn("Hm, well.", "Sure thing.", "Hm, well.")) as stub,
        turns(stub, verifiers=("logprob",)) as served,
    ):
        found = ask(served)
        assert found.choices[0].message.content == "Sure thing."
        assert max(found.tau2rl["scores"]["logprob"]) == pytest.approx(0.9)
    with OpenAIStub(answer=in_turn("A", "B")) as stub, turns(stub, verifiers=("logprob",)) as served:
        with pytest.raises(openai.InternalServerError, match="logprob"):  # a server without them
            ask(served)


def test_a_judge_chooses(tmp_path: Any) -> None:
    def judge(messages: list[dict[str, Any]], tools: list[Any]) -> str:
        return "SCORE: 90" if "the good one" in messages[0]["content"] else "SCORE: 10"

    with OpenAIStub(answer=in_turn("bad", "the good one", "bad")) as stub, OpenAIStub(answer=judge) as other:
        model = AskedModel(UserConfig(model="openai/judge", api_base=other.api_base), cache=tmp_path, who="judge")
        server = policy(stub)
        with serving(Turns(server, VerifierPool(scorers(["judge"], model=model)), k=3, temperature=1.0), server) as served:
            assert ask(served).choices[0].message.content == "the good one"


def hanging(name: str, until: threading.Event) -> Scorer:
    """A verifier that judges when it may."""

    def score(transcripts: Any) -> list[float]:
        until.wait()
        return [0.0] * len(transcripts)

    return Scorer(name=name, score=score)


def test_a_verifier_that_hangs_is_left_out_and_stops_no_other_request() -> None:
    released = threading.Event()
    pool = VerifierPool([hanging("stuck", released), *scorers(["consistency"])], seconds=2.0, at_once=2)
    with OpenAIStub(answer=in_turn("A", "A", "B")) as stub, turns(stub, pool=pool) as served, ThreadPoolExecutor(8) as clients:
        found = list(clients.map(lambda _: ask(served), range(8)))  # more than the threads that the stuck one has
        assert all(one.tau2rl["left_out"] == {"stuck": "no judgement within 2 s"} for one in found)
        assert all(list(one.tau2rl["scores"]) == ["consistency"] for one in found)
        assert sum(thread.name.startswith("stuck") for thread in threading.enumerate()) == 2
        released.set()
        assert ask(served).tau2rl["left_out"] == {}  # it is asked again


def test_where_no_verifier_judges_the_request_fails() -> None:
    released = threading.Event()
    with OpenAIStub() as stub, turns(stub, pool=VerifierPool([hanging("stuck", released)], seconds=0.2)) as served:
        with pytest.raises(openai.InternalServerError, match=r"`stuck`: no judgement within 0\.2 s") as caught:
            ask(served)
        assert (caught.value.status_code, caught.value.code) == (502, "verifier_error")
        released.set()
        assert ask(served).choices[0].message.content == "Okay."


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("    while True: pass", "no judgement within 4 s"),
        ("    __import__('os')._exit(3)", "could not judge"),
        ("    return 'good'", "could not judge"),
    ],
)
def test_a_verifier_of_ones_own_that_never_ends_or_dies_is_ended(
    body: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_verifier.py").write_text(f"def judge(transcript):\n{body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    seconds = 4.0 if "no judgement" in reason else 60.0
    names = ["own_verifier:judge", "consistency"]
    pool = VerifierPool(scorers(names, seconds=seconds), seconds=seconds)
    with OpenAIStub() as stub, turns(stub, pool=pool) as served:
        assert ask(served).tau2rl["left_out"] == {"own_verifier:judge": reason}
        wait_until(lambda: not multiprocessing.active_children())


def test_a_judge_that_does_not_answer_is_left_out(tmp_path: Path) -> None:
    with OpenAIStub() as stub, OpenAIStub(mode="hang") as other:
        config = UserConfig(model="openai/judge", api_base=other.api_base, timeout_seconds=60.0, retries=0)
        model = AskedModel(config, cache=tmp_path, who="judge")
        pool = VerifierPool(scorers(["judge", "rules"], model=model), seconds=2.0)
        with turns(stub, pool=pool) as served:
            assert ask(served).tau2rl["left_out"] == {"judge": "no judgement within 2 s"}


RIGHT, WRONG = "7", "12345689"


def expected_share(k: int, chance: float) -> float:
    """How often the right one of k draws is the most frequent, the earliest of equals; 20,000 times tried."""
    draws, right = random.Random(0), 0
    for _ in range(20_000):
        drawn = [RIGHT if draws.random() < chance else draws.choice(WRONG) for _ in range(k)]
        right += max(drawn, key=lambda one: (drawn.count(one), -drawn.index(one))) == RIGHT
    return right / 20_000


@pytest.mark.parametrize(("k", "chance", "requests"), [(9, 0.5, 60), pytest.param(5, 0.55, 1000, marks=pytest.mark.slow)])
def test_the_choice_is_right_more_often_than_the_policy(k: int, chance: float, requests: int) -> None:
    draws = random.Random(0)

    def noisy(messages: Any, tools: Any) -> Any:
        return [("get_order", {"id": RIGHT if draws.random() < chance else draws.choice(WRONG)})]

    shares: dict[int, float] = {}
    for attempts in (1, k):
        with OpenAIStub(answer=noisy) as stub, turns(stub, k=attempts, verifiers=("consistency",)) as served:
            asked: Any = client(served)
            found = [asked.chat.completions.create(model="tau2rl", messages=USER, tools=TOOLS) for _ in range(requests)]
            answers = [json.loads(one.choices[0].message.tool_calls[0].function.arguments)["id"] for one in found]
            shares[attempts] = answers.count(RIGHT) / requests
    alone, best = (wilson(shares[n] * requests, requests) for n in (1, k))
    console.emit(f"pass@1 {shares[1]:.3f} {alone}, selected@{k} {shares[k]:.3f} {best}, expected {expected_share(k, chance):.3f}")
    tolerance = 4 * math.sqrt(0.25 / requests)
    assert abs(shares[1] - chance) < tolerance
    assert abs(shares[k] - expected_share(k, chance)) < tolerance
    assert best[0] > alone[1]
