"""`tau2rl serve --checkpoint`: a model in the process of the endpoint, through the real openai client, pinned here:

- it says and calls what it was trained to, in a stream too, chosen by its own log-probabilities; usage counts its tokens;
- the client's system message is what it reads, and the sampling fields of a request hold;
- what it has no way to obey, and a conversation beyond its context, is the client's error; a turn that is none never goes out;
- its port opens when it is loaded, and what speaks against it is told before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from typer.testing import CliRunner

from tau2rl.cli import app

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_order",
        "description": "Look up an order.",
        "parameters": {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]},
    },
}
SYSTEM = {"role": "system", "content": "Help."}
HELLO: list[Any] = [SYSTEM, {"role": "user", "content": "Hello."}]
ORDER: list[Any] = [SYSTEM, {"role": "user", "content": "Order 7?"}]
SENT: list[Any] = [{"role": "tool", "content": "sent"}, {"role": "assistant", "content": "It is on its way."}]
CALL = {"type": "function", "function": {"name": "get_order", "arguments": '{"id": "7"}'}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Knows two answers by heart."""
    folder = tmp_path_factory.mktemp("served")
    rows = [
        {"messages": [*HELLO, {"role": "assistant", "content": "Good day to you."}]},
        {"messages": [*ORDER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, *SENT], "tools": [TOOL]},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = ["data.val_fraction=0", "train.batch_size=2", "train.lr=0.01", "local.shape.hidden=32", "local.shape.layers=1"]
    words = ["sft", "--inline", "--data", str(folder / "rows.jsonl"), "--steps", "90", "--output", str(folder / "run")]
    for setting in (*sets, "local.shape.heads=1", "local.shape.head_dim=32"):
        words += ["--set", setting]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return folder / "run" / "checkpoints" / "final"


@pytest.fixture(scope="module")
def client(checkpoint: Path) -> Iterator[openai.OpenAI]:
    """Of the command, which serves it."""
    words = ["serve", "--checkpoint", str(checkpoint), "--port", "0", "-k", "3", "--verifier", "logprob", "--temperature", "0.1"]
    with subprocess.Popen([sys.executable, "-m", "tau2rl", *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url, _, _, _, key = process.stdout.readline().split()
            yield openai.OpenAI(base_url=url, api_key=key, max_retries=0)
        finally:
            process.terminate()


def ask(client: openai.OpenAI, messages: list[Any], **more: Any) -> Any:
    return client.chat.completions.create(model="tau2rl", messages=messages, **more)


def test_it_says_what_it_was_trained_to(client: openai.OpenAI) -> None:
    found = ask(client, HELLO)
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == ("Good day to you.", "stop")
    assert found.tau2rl["usable"] == 3 and all(score > 0.9 for score in found.tau2rl["scores"]["logprob"])
    assert found.usage.completion_tokens >= 3 * 2 and found.usage.prompt_tokens % 3 == 0
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, HELLO, stream=True)]
    assert "".join(pieces) == "Good day to you."


def test_it_calls_and_reads_results(client: openai.OpenAI) -> None:
    found = ask(client, ORDER, tools=[TOOL], tool_choice="auto").choices[0]
    [call] = found.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_order", {"id": "7"})
    assert found.finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "sent"}
    again = ask(client, [*ORDER, found.message.model_dump(exclude_none=True), result], tools=[TOOL])
    assert again.choices[0].message.content == "It is on its way."


def test_sampling_fields_hold(client: openai.OpenAI) -> None:
    cut = ask(client, HELLO, max_tokens=2)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3 * 2
    assert "Good day to you.".startswith(cut.choices[0].message.content)


@pytest.mark.parametrize("fields", [{"stop": ["x"]}, {"max_tokens": 0}, {"response_format": {"type": "json_object"}}])
def test_what_it_cannot_obey_is_the_clients_error(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, HELLO, extra_body=fields)
    assert caught.value.code == "refused_upstream"


def test_a_conversation_beyond_its_context_and_a_turn_that_is_none(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, [{"role": "user", "content": "Hello. " * 9000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.InternalServerError) as broken:
        ask(client, ORDER, tools=[TOOL], max_tokens=4)  # the call is cut off in its middle
    assert (broken.value.status_code, broken.value.code) == (502, "upstream_error")


def test_what_speaks_against_it_is_told_before_it_serves(tmp_path: Path, checkpoint: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--checkpoint", str(tmp_path)])
    assert result.exit_code != 0 and str(tmp_path) in f"{result.output} {result.exception}"
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in checkpoint.iterdir():
        if "safetensors" not in file.name:
            (bare / file.name).write_bytes(file.read_bytes())
    result = CliRunner().invoke(app, ["serve", "--checkpoint", str(bare), "--port", "0"])
    assert result.exit_code != 0 and "http://" not in result.output
