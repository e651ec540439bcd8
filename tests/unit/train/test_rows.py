"""Pins how rows become samples:

- the mask decodes to exactly the assistant's turns, also with consecutive tool results and several calls
- all published layouts are read; the greeting is history; of an AReaL row only the answer is learned
- the sample is what the codec would have produced in a live conversation
- a row that cannot be used is named with its reason; a long one is left out whole
- tokens that were sampled are trained on as they are where the checkpoint writes as their sampler did, also when rendering the
  messages would give others; elsewhere they are not looked at; both are counted
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from tau2rl.chat import codec_fingerprint, make_codec
from tau2rl.chat.native import system_prompt
from tau2rl.chat.tokenizers import Tokenizer, load_tokenizer
from tau2rl.config import ChatConfig
from tau2rl.data.encoding import encode_rows
from tau2rl.data.jsonl import read_row_file
from tau2rl.errors import UserError
from tau2rl.train.tiny import save_tokenizer, train_tokenizer
from tau2rl.types import CallTool, Message, Opening, Say, TrainingSample

TOOLS = [
    {
        "type": "function",
        "function": {"name": "get", "description": "", "parameters": {"type": "object", "properties": {"id": {}}}},
    }
]


def call(id: str, *, as_text: bool = False) -> dict[str, Any]:
    arguments: Any = {"id": id}
    return {"type": "function", "function": {"name": "get", "arguments": json.dumps(arguments) if as_text else arguments}}


MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": system_prompt("Be kind.")},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Two, please."},
    {"role": "assistant", "content": None, "tool_calls": [call("a"), call("b", as_text=True)]},
    {"role": "tool", "content": "1"},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "One and two."},
    {"role": "user", "content": "###STOP###"},
]
CALLS = "\n".join('<tool_call>\n{"name": "get", "arguments": ' + json.dumps({"id": i}) + "}\n</tool_call>" for i in "ab")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer([m["content"] for m in MESSAGES if m["content"]] * 5, vocab_size=500), path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(str(folder))


def one(tokenizer: Tokenizer, row: dict[str, Any]) -> TrainingSample:
    encoded = encode_rows([("row", row)], tokenizer, max_tokens=10_000)
    assert not encoded.dropped, encoded.dropped
    return encoded.samples[0]


def learned(tokenizer: Tokenizer, sample: TrainingSample) -> list[str]:
    spans = [tokenizer.decode(sample.token_ids[start:end]) for start, end in sample.turn_spans]
    masked = [t for t, m in zip(sample.token_ids, sample.loss_mask, strict=True) if m]
    assert tokenizer.decode(masked) == "".join(spans)
    return spans


def test_exactly_the_assistants_turns_are_learned(tokenizer: Tokenizer) -> None:
    sample = one(tokenizer, {"messages": MESSAGES, "tools": TOOLS})
    assert learned(tokenizer, sample) == [f"{CALLS}<|im_end|>", "One and two.<|im_end|>"]
    assert sample.loss_mask[-1] == 1  # nothing behind the last turn


def test_it_is_what_a_live_conversation_would_have_been(tokenizer: Tokenizer, folder: Path) -> None:
    codec = make_codec(ChatConfig(protocol="native", tokenizer=str(folder)))
    opening = (Message(role="assistant", content="Hi!"), Message(role="user", content="Two, please."))
    prompt = codec.open(Opening(domain_policy="Be kind.", messages=opening, tools=tuple(TOOLS)))
    turn = codec.write((CallTool(name="get", arguments={"id": "a"}), CallTool(name="get", arguments={"id": "b"})))
    prompt = codec.extend(prompt, turn, (Message(role="tool", content="1"), Message(role="tool", content="2")))
    live = [*prompt, *codec.write((Say(text="One and two."),))]
    assert list(one(tokenizer, {"messages": MESSAGES, "tools": TOOLS}).token_ids) == live


def test_of_an_areal_row_only_the_answer_is_learned(tokenizer: Tokenizer) -> None:
    answer = {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [{"name": "get", "arguments": {"id": "c"}}]}
    sample = one(tokenizer, {"messages": MESSAGES, "answer": answer, "metadata": {"turn_index": 2}})
    assert learned(tokenizer, sample) == ['<tool_call>\n{"name": "get", "arguments": {"id": "c"}}\n</tool_call><|im_end|>']


def test_a_seed_row_keeps_the_text_of_its_turns_as_it_stands(tokenizer: Tokenizer) -> None:
    written = '<think>\nx\n</think>\n\n<tool_call>\n{"name": "respond", "arguments": {"content": "Hello"}}\n</tool_call>'
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}, {"role": "assistant", "content": written}]
    row = {"task_id": "[retail]7[sample_1]", "prompt": prompt, "response": "", "metadata": {"domain": "retail"}}
    encoded = encode_rows([("row", row)], tokenizer, max_tokens=1000)
    assert encoded.ids == ("[retail]7[sample_1]",)
    assert learned(tokenizer, encoded.samples[0]) == [f"{written}<|im_end|>"]


def test_a_long_row_is_left_out_whole_and_named(tokenizer: Tokenizer) -> None:
    rows = [("short", {"messages": MESSAGES[:4]}), ("long", {"messages": MESSAGES, "id": "17"})]
    length = len(one(tokenizer, rows[1][1]).token_ids)
    encoded = encode_rows(rows, tokenizer, max_tokens=length - 1)
    assert encoded.ids == ("short",)
    assert [(d.id, d.reason, d.tokens) for d in encoded.dropped] == [("17", "too long", length)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "no `messages`"),
        ({"messages": "hello"}, "no `messages`"),
        ({"messages": MESSAGES[:3]}, "no assistant turn"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "narrator"),
        ({"messages": [*MESSAGES[:3], {"role": "assistant", "content": " "}]}, "empty assistant turn"),
        ({"messages": [*MESSAGES[:3], {"role": "assistant", "content": [{"text": "x"}]}]}, "not text"),
        (
            {"messages": [*MESSAGES[:3], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "not JSON",
        ),
        ({"messages": [*MESSAGES[:3], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}]}, "not an object"),
    ],
)
def test_what_cannot_be_used_says_why(tokenizer: Tokenizer, row: dict[str, Any], reason: str) -> None:
    encoded = encode_rows([("file:3", row)], tokenizer, max_tokens=1000)
    assert encoded.samples == ()
    assert encoded.dropped[0].id == "file:3"
    assert reason in encoded.dropped[0].reason


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": []}\n\n{"messages"\n', encoding="utf-8")
    rows = read_row_file(path)
    assert next(rows)[0] == "rows.jsonl:1"
    with pytest.raises(UserError, match="line 3 is not JSON"):
        next(rows)
    with pytest.raises(UserError, match="cannot read"):
        list(read_row_file(tmp_path / "none.jsonl"))


def sampled_row(tokenizer: Tokenizer, folder: Path, protocol: Literal["native", "cookbook"] = "native") -> dict[str, Any]:
    """The row of a conversation whose last turn was sampled byte by byte, as no tokenizer would write it."""
    rendered = one(tokenizer, {"messages": MESSAGES, "tools": TOOLS})
    start, end = rendered.turn_spans[-1]
    spelled = [token for letter in "One and two." for token in tokenizer.encode(letter)]
    ids = [*rendered.token_ids[:start], *spelled, rendered.token_ids[end - 1]]
    return {
        "messages": MESSAGES,
        "tools": TOOLS,
        "metadata": {
            "id": "mock/a#0",
            "chat": codec_fingerprint(make_codec(ChatConfig(protocol=protocol, tokenizer=str(folder)))),
        },
        "token_ids": ids,
        "loss_mask": [*rendered.loss_mask[:start], *[1] * (len(spelled) + 1)],
    }


@pytest.mark.parametrize("protocol", ["native", "cookbook"])
def test_what_was_sampled_is_learned_and_not_what_rendering_gives(
    tokenizer: Tokenizer, folder: Path, protocol: Literal["native", "cookbook"]
) -> None:
    row = sampled_row(tokenizer, folder, protocol)
    encoded = encode_rows([("row", row), ("words", {"messages": MESSAGES, "tools": TOOLS})], tokenizer, max_tokens=10_000)
    exact, rendered = encoded.samples
    assert (encoded.exact, encoded.ids) == (1, ("mock/a#0", "words"))
    assert list(exact.token_ids) == row["token_ids"] != list(rendered.token_ids)
    assert list(exact.loss_mask) == row["loss_mask"]
    assert learned(tokenizer, exact) == learned(tokenizer, rendered) == [f"{CALLS}<|im_end|>", "One and two.<|im_end|>"]


def test_tokens_of_another_tokenizer_are_not_looked_at(tokenizer: Tokenizer, folder: Path) -> None:
    row = sampled_row(tokenizer, folder)
    row["metadata"]["chat"] = codec_fingerprint(make_codec(ChatConfig(protocol="native", tokenizer="bytes")))
    encoded = encode_rows([("row", row)], tokenizer, max_tokens=10_000)
    assert encoded.exact == 0
    assert encoded.samples == (one(tokenizer, {"messages": MESSAGES, "tools": TOOLS}),)


def test_a_turn_that_is_masked_in_the_row_stays_history(tokenizer: Tokenizer, folder: Path) -> None:
    row = sampled_row(tokenizer, folder)
    first = row["loss_mask"].index(1)
    size = row["loss_mask"][first:].index(0)
    row["loss_mask"][first : first + size] = [0] * size
    assert learned(tokenizer, one(tokenizer, row)) == ["One and two.<|im_end|>"]


@pytest.mark.parametrize(("field", "value"), [("token_ids", ["a"] * 3), ("loss_mask", [0, 0, 2]), ("loss_mask", [1, 1])])
def test_tokens_that_cannot_be_used_say_why(tokenizer: Tokenizer, folder: Path, field: str, value: list[Any]) -> None:
    row = {**sampled_row(tokenizer, folder), "token_ids": [1, 2, 3], "loss_mask": [0, 0, 1], field: value}
    (dropped,) = encode_rows([("row", row)], tokenizer, max_tokens=10_000).dropped
    assert "`token_ids`" in dropped.reason
