"""What stands between clients and the choice, pinned here:

- without the key, or with another one, nothing but `/health` answers; a key in another form is none;
- another model, another path and another method have errors that the openai client knows;
- bodies that are too large are refused unread, announced or not; those that do not come in time too;
- too many requests at once get 429, one that takes too long gets 504, and the server goes on;
- a client that goes takes its attempts with it: the policy server is not asked on, and the next request has its place;
- a policy server that fails is asked again; one that stays away gives a clean error, in which its address is not;
- a conversation that is too long for the model is the client's error, as with OpenAI;
- hostile bodies get 400 and never 500, and the server goes on;
- many requests at once each get their own answer;
- the command prints address and key, and serves litellm, with a verifier that hangs left out;
- it refuses options that would have no effect.
"""

from __future__ import annotations

import functools
import itertools
import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx
import litellm
import openai
import orjson
import pytest
from hypothesis import given, strategies as st
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.env.sandbox import only_writer
from tau2rl.serve.requests import Refusal, read_request
from tests.serving import KEY, Served, turns, wait_until
from tests.stubs.openai import OpenAIStub

USER: list[Any] = [{"role": "user", "content": "Hello"}]


def client(served: Served, key: str = KEY) -> openai.OpenAI:
    return client_of(served.url, key)


@functools.cache
def client_of(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def ask(served: Served, text: str = "Hello", key: str = KEY, **more: Any) -> str:
    messages: Any = [{"role": "user", "content": text}]
    found: Any = client(served, key).chat.completions.create(**{"model": "tau2rl", "messages": messages, **more})
    return found.choices[0].message.content


def raw(served: Served, head: str, body: bytes = b"") -> bytes:
    """What comes back for these bytes; the connection is closed then."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def post(served: Served, body: bytes, key: str = KEY) -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\nHost: x\nConnection: close\nAuthorization: Bearer {key}\n"
    return raw(served, f"{head}Content-Length: {len(body)}\n", body)


def test_only_the_key_opens() -> None:
    with OpenAIStub() as stub, turns(stub) as served:
        for key in ("sk-wrong", "", KEY + "x", KEY[:-1], "ключ"):
            head = f"GET /v1/models HTTP/1.1\nHost: x\nConnection: close\nAuthorization: Bearer {key}\n"
            assert raw(served, head).startswith(b"HTTP/1.1 401"), key
        for line in ("", f"Authorization: Basic {KEY}\n", f"Authorization: {KEY}\n", f"X-Api-Key: {KEY}\n"):
            assert raw(served, f"GET /v1/models HTTP/1.1\nHost: x\nConnection: close\n{line}").startswith(b"HTTP/1.1 401"), line
        with pytest.raises(openai.AuthenticationError) as caught:
            ask(served, key="sk-wrong")
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(litellm.AuthenticationError):
            litellm.completion(model="openai/tau2rl", api_base=served.url, api_key="no", messages=USER)
        assert b'{"status":"ok","mode":"turn"}' in raw(served, "GET /health HTTP/1.1\nHost: x\nConnection: close\n")
        assert stub.bodies == []


def test_what_is_not_there() -> None:
    with OpenAIStub() as stub, turns(stub) as served:
        with pytest.raises(openai.NotFoundError) as caught:
            ask(served, model="gpt-9")
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            client(served).models.retrieve("gpt-9")
        with pytest.raises(openai.NotFoundError):
            client(served).embeddings.create(model="tau2rl", input="x")
        assert raw(served, "GET /v1/chat/completions HTTP/1.1\nHost: x\nConnection: close\n").startswith(b"HTTP/1.1 405")
        for wrong in ({"n": 2}, {"logprobs": True}, {"messages": []}, {"stream_options": 5}, {"tools": [{"type": "function"}]}):
            with pytest.raises(openai.BadRequestError):
                ask(served, extra_body=wrong)
        assert stub.bodies == []


def test_a_body_that_is_too_large_is_refused() -> None:
    with OpenAIStub() as stub, turns(stub, body_bytes=2000) as served:
        with pytest.raises(openai.APIStatusError) as caught:
            ask(served, "x" * 3000)
        assert caught.value.status_code == 413
        head = f"POST /v1/chat/completions HTTP/1.1\nHost: x\nAuthorization: Bearer {KEY}\nTransfer-Encoding: chunked\n"
        assert b" 413 " in raw(served, head, b"800\r\n" + b"x" * 0x800 + b"\r\n")  # the rest is not waited for
        assert ask(served) == "Okay."


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with OpenAIStub() as stub, turns(stub, seconds=2.0) as served:
        head = f"POST /v1/chat/completions HTTP/1.1\nHost: x\nAuthorization: Bearer {KEY}\nContent-Length: 100\n"
        assert b" 408 " in raw(served, head, b"{")
        assert ask(served) == "Okay."


def test_too_many_and_too_long() -> None:
    with OpenAIStub(mode="held") as stub, turns(stub, at_once=2, k=1) as served, ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, served) for _ in range(6)]
        for refused in itertools.islice(as_completed(asked), 4):
            error = refused.exception()
            assert isinstance(error, openai.RateLimitError) and error.response.headers["retry-after"] == "1"
        stub.release()
        assert sorted(one.result() for one in asked if one.exception() is None) == ["Okay.", "Okay."]
        assert ask(served) == "Okay."
    with OpenAIStub(mode="hang") as stub, turns(stub, seconds=2.0, k=2) as served:
        with pytest.raises(openai.InternalServerError) as caught:
            ask(served)
        assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        stub.set_mode("ok")
        assert ask(served) == "Okay."


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_takes_its_attempts_with_it(stream: bool) -> None:
    with OpenAIStub(mode="hang") as stub, turns(stub, at_once=1, k=3) as served:
        impatient = client(served).with_options(timeout=httpx.Timeout(20, read=1))
        with ThreadPoolExecutor(1) as pool:
            gone = pool.submit(impatient.chat.completions.create, model="tau2rl", messages=USER, stream=stream)
            wait_until(lambda: stub.traffic.in_flight == 3)
            assert isinstance(gone.exception(), openai.APITimeoutError)  # it has closed the connection
        wait_until(lambda: stub.traffic.in_flight == 0, 5.0)  # the policy server would have been given 10
        stub.set_mode("ok")
        assert ask(served) == "Okay."  # there is room again
        assert len(stub.bodies) == 6


@pytest.mark.parametrize("mode", ["503", "disconnect"])
def test_a_policy_server_that_fails_is_asked_again(mode: str) -> None:
    with OpenAIStub(mode=[mode, mode, "ok"]) as stub, turns(stub, k=1) as served:
        assert ask(served) == "Okay."
        assert len(stub.bodies) == 3


@pytest.mark.parametrize(
    "mode", ["html", "truncated", "no_choices", "wrong_types", "filtered", "null", "gzip_bomb", "not_object"]
)
def test_a_policy_server_that_cannot_answer_is_a_clean_error(mode: str) -> None:
    with OpenAIStub(mode=mode) as stub, turns(stub, k=2) as served:
        with pytest.raises(openai.InternalServerError) as caught:
            ask(served)
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_error")
        assert str(stub.port) not in str(caught.value) and "stub says" not in str(caught.value)
        stub.set_mode("ok")
        assert ask(served) == "Okay."


def test_one_bad_attempt_does_not_hurt_the_others() -> None:
    with OpenAIStub(mode=["400", "ok"]) as stub, turns(stub, k=3) as served:
        assert ask(served) == "Okay."


def test_a_conversation_that_is_too_long_is_the_clients_error() -> None:
    class Short(OpenAIStub):
        async def reply(self, request: Any, mode: str) -> Any:
            made = await super().reply(request, mode)
            said = {"error": {"message": "This model's maximum context length is 8 tokens.", "code": "context_length_exceeded"}}
            return type(made)(status=400, payload=said)

    with Short() as stub, turns(stub, k=2) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(served)
        assert caught.value.code == "context_length_exceeded"


def test_what_the_policy_server_refuses_is_the_clients_error() -> None:
    with OpenAIStub(mode="400") as stub, turns(stub, k=2) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(served, extra_body={"reasoning_effort": "none of these"})
        assert caught.value.code == "refused_upstream"
        assert str(stub.port) not in str(caught.value) and "stub says" not in str(caught.value)
        stub.set_mode(["400", "null"])  # not all of them
        with pytest.raises(openai.InternalServerError):
            ask(served)


def test_arguments_that_are_nested_too_deeply_are_the_clients_error() -> None:
    def called(depth: int) -> list[Any]:
        text = '{"a":' * depth + "1" + "}" * depth
        call = {"id": "c", "type": "function", "function": {"name": "get_order", "arguments": text}}
        return [*USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "ok"}, *USER]

    with OpenAIStub() as stub, turns(stub) as served:
        for depth in (65, 250, 900, 100_000):
            if depth < 1024:  # as far as JSON is read
                with pytest.raises(openai.BadRequestError, match="nested more than 64 deep"):
                    ask(served, messages=called(depth))
            else:
                assert ask(served, messages=called(depth)) == "Okay."  # no arguments but a text
        assert ask(served, messages=called(64)) == "Okay."
        nested: Any = []
        for _ in range(70):
            nested = [nested]
        with pytest.raises(openai.BadRequestError, match="nested more than 64 deep"):
            ask(served, extra_body={"response_format": nested})


HOSTILE = [
    b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"{}", b'{"model": "tau2rl"}', b'{"model": ["tau2rl"]}',
    b'{"model": "tau2rl", "messages": ' + b"[" * 100_000, b'{"model": "tau2rl", "messages": ' + b"[" * 400 + b"]" * 400 + b"}",
    b'{"model": "tau2rl", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "tau2rl", "messages": [{"role": "user"}]}', b'{"model": "tau2rl", "messages": [{"role": "user", "content": 5}]}',
    b'{"model": "tau2rl", "messages": [{"role": "root", "content": "x"}]}', b'{"model": "tau2rl", "messages": [null]}',
    b'{"model": "tau2rl", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]}',
    b'{"model": "tau2rl", "messages": [{"role": "tool", "content": "x"}]}',
    b'{"model": "tau2rl", "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 5}}]}]}',
    b'{"model": "tau2rl", "messages": [{"role": "user", "content": "x"}], "tools": {"a": 1}}',
    b'{"model": "tau2rl", "messages": [{"role": "user", "content": "x"}], "stream": "yes"}',
    b'{"model": "tau2rl", "messages": [{"role": "user", "content": "x"}], "n": 1e400}',
    b'{"model": "tau2rl", "messages": [{"role": "user", "content": "x"}], "user": {"a": 1}}',
]  # fmt: skip


def test_hostile_bodies_are_refused_and_the_server_goes_on() -> None:
    with OpenAIStub() as stub, turns(stub) as served:
        for body in HOSTILE:
            status = post(served, body).partition(b"\r\n")[0]
            assert status.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404")), (body[:80], status)
        assert raw(served, "GARBAGE\n").startswith(b"HTTP/1.1 400")
        assert raw(served, "GET /" + "x" * 100_000 + " HTTP/1.1\nHost: x\n").startswith(b"HTTP/1.1 4")
        assert stub.bodies == []
        assert ask(served) == "Okay."


NAMES = st.sampled_from(["role", "content", "tool_calls", "function", "name", "arguments", "type", "text", "tool_call_id"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.sampled_from(["user", "tool", "assistant"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from(["messages", "tools", "stream", "stream_options", "user", "n", "seed", "stop"]), JSON))
def test_any_json_is_a_request_or_a_refusal(fields: dict[str, Any]) -> None:
    try:
        made = read_request(orjson.dumps({"model": "tau2rl", **fields}), model="tau2rl")
    except Refusal as refusal:
        assert refusal.status in (400, 404)
    else:
        assert made.messages


def test_many_at_once_each_get_their_own() -> None:
    def echo(messages: list[dict[str, Any]], tools: list[Any]) -> str:
        return f"You said {messages[-1]['content']}"

    with OpenAIStub(answer=echo, latency=0.02) as stub, turns(stub, k=2) as served, ThreadPoolExecutor(32) as pool:
        texts = [f"number {i}" for i in range(64)]
        assert list(pool.map(lambda text: ask(served, text), texts)) == [f"You said {text}" for text in texts]
        assert stub.max_in_flight > 8


def test_the_command_serves_litellm(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import time\ndef stuck(transcript):\n    time.sleep(3600)\n")
    with OpenAIStub(answer=lambda m, t: "Good day.") as stub:
        words = [
            "serve",
            "--model",
            "openai/stub",
            "--api-base",
            stub.api_base,
            "--port",
            "0",
            "-k",
            "2",
            "--served-name",
            "best",
        ]
        words += ["--verifier", "rules", "--verifier", "own:stuck", "--verifier-timeout", "1"]
        process = subprocess.Popen(
            [sys.executable, "-m", "tau2rl", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            url, _, model, _, key = process.stdout.readline().split()
            found: Any = litellm.completion(model=f"openai/{model}", api_base=url, api_key=key, messages=USER)
            assert (model, found.choices[0].message.content) == ("best", "Good day.")
            assert found.tau2rl["left_out"] == {"own:stuck": "no judgement within 1 s"}
            assert json.loads(stub.requests[0].headers["content-length"]) > 0
        finally:
            process.terminate()
            _, said = process.communicate(timeout=20)
        assert "no sandbox: each message is the best of 2 by rules, then own:stuck, up to the first write" in said
        assert "verifier `own:stuck` is left out: no judgement within 1 s" in said
        assert "Traceback" not in said


def test_one_server_writes_on_a_journal(tmp_path: Path) -> None:
    journal = tmp_path / "writes.jsonl"
    words = ["serve", "--model", "openai/stub", "--api-base", "http://127.0.0.1:1/v1", "--domain", "mock"]
    with only_writer(journal):
        second = CliRunner().invoke(app, [*words, "--journal", str(journal)])
    assert (second.exit_code, second.stdout) == (2, "")
    assert "another server writes on" in second.stderr
    with only_writer(journal):  # it went with its holder
        pass


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-calls", "5"], "name one with `--domain`"),
        (["--journal", "x.jsonl"], "name one with `--domain`"),
        (["--judge-model", "openai/judge"], "add `--verifier judge`"),
        (["--judge-model", "openai/judge", "--verifier", "rules", "--verifier", "consistency"], "add `--verifier judge`"),
        (["--domain", "mock", "--read-tool", "get_*"], "leave `--read-tool` out"),
        (["--checkpoint", "somewhere"], "one policy is served"),
        (["--device", "cuda"], "name one with `--checkpoint`"),
    ],
)
def test_options_without_effect_are_refused(words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--model", "openai/stub", *words])
    assert result.exit_code != 0
    assert said in f"{result.output} {result.exception} {getattr(result.exception, 'hint', '')}"


@pytest.mark.parametrize("idle", ["--api-base=http://127.0.0.1:1/v1", "--api-key-env=KEY", "--policy-retries=2"])
def test_options_of_a_server_are_refused_beside_a_checkpoint(idle: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--checkpoint", "somewhere", idle])
    assert f"`{idle.partition('=')[0]}` is about a policy server" in f"{result.output} {result.exception}"
