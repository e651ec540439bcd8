"""The rows that slime reads for `sft`; pinned here:

- a row ends at its last trained turn, marks what is not learned, and is left out whole when it is too long;
- a malformed turn stands where it was, and is not learned; a repair request without the turn that earned it is left out;
- slime's own mask learns exactly the turns that are not marked (with a checkout of slime).
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.slime.sft_data import write_conversations
from tests.stubs.slime_stubs import install

SYSTEM = {"role": "system", "content": "Help."}
GREETING = {"role": "assistant", "content": "Hi! How can I help?"}
ASKED = {"role": "user", "content": "Cancel #W1."}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "cancel", "arguments": '{"id": "W1"}'}}],
}
RESULT = {"role": "tool", "content": "done", "tool_call_id": "1"}
SAID = {"role": "assistant", "content": "It is cancelled."}
THANKS = {"role": "user", "content": "Thank you."}
TOOL = {"type": "function", "function": {"name": "cancel", "description": "", "parameters": {"type": "object", "properties": {}}}}


def rows(tmp_path: Path, *given: dict[str, Any], max_tokens: int = 100_000) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    file = tmp_path / "prompts.jsonl"
    counts = write_conversations(
        [(f"a.jsonl:{i}", row) for i, row in enumerate(given, 1)], ByteTokenizer(), file, max_tokens=max_tokens
    )
    return [json.loads(line) for line in file.read_text().splitlines()], counts.to_json()


def test_a_row_for_slime_marks_what_is_not_learned(tmp_path: Path) -> None:
    history = [SYSTEM, GREETING, ASKED, CALLED, RESULT, SAID, THANKS]
    (row,), told = rows(tmp_path, {"messages": history, "tools": [TOOL], "metadata": {"id": "retail/1#0"}})
    assert [m["role"] for m in row["messages"]] == ["system", "assistant", "user", "assistant", "tool", "assistant"]
    assert [m.get("step_loss_mask", 1) for m in row["messages"]] == [1, 0, 1, 1, 1, 1]
    assert row["messages"][3]["tool_calls"][0]["function"] == {"name": "cancel", "arguments": {"id": "W1"}}
    assert row["messages"][4]["tool_call_id"] == row["messages"][3]["tool_calls"][0]["id"]
    assert row["tools"] == [TOOL]
    assert row["metadata"] == {"id": "retail/1#0"}
    assert (told["used"], told["held_out"], told["dropped"]) == (1, 0, 0)


def test_of_a_row_with_an_answer_only_the_answer_is_learned(tmp_path: Path) -> None:
    (row,), _ = rows(tmp_path, {"messages": [SYSTEM, ASKED, CALLED, RESULT], "answer": SAID})
    assert [m.get("step_loss_mask", 1) for m in row["messages"]] == [1, 1, 0, 1, 1]
    assert "tools" not in row


def test_a_row_that_is_too_long_is_left_out_whole(tmp_path: Path) -> None:
    long = {"messages": [SYSTEM, {"role": "user", "content": "x" * 5000}, SAID], "metadata": {"id": "long"}}
    short = {"messages": [SYSTEM, ASKED, SAID]}
    useless = {"messages": [SYSTEM, ASKED]}
    kept, told = rows(tmp_path, long, short, useless, max_tokens=1000)
    assert [len(row["messages"]) for row in kept] == [3]
    assert told["reasons"] == {"too long": 1, "no assistant turn to learn": 1}
    assert [row["id"] for row in told["dropped_rows"]] == ["long", "a.jsonl:3"]
    assert told["dropped_rows"][0]["tokens"] > 5000
    assert told["longest"] < 1000


MALFORMED = {"role": "assistant", "content": "<tool_call>{cancel", "step_loss_mask": 0}
REPAIR = {"role": "user", "content": "FORMAT ERROR (bad_json): expected `}`. Your last turn was not carried out."}


def test_a_malformed_turn_is_read_and_not_learned(tmp_path: Path) -> None:
    history = [SYSTEM, GREETING, ASKED, MALFORMED, REPAIR, CALLED, RESULT, SAID]
    (row,), _ = rows(tmp_path, {"messages": history, "tools": [TOOL]})
    assert [m["content"] for m in row["messages"][3:5]] == [MALFORMED["content"], REPAIR["content"]]
    assert [m.get("step_loss_mask", 1) for m in row["messages"]] == [1, 0, 1, 0, 1, 1, 1, 1]


def test_a_row_whose_malformed_turn_is_gone_is_left_out_and_counted(tmp_path: Path) -> None:
    kept, told = rows(tmp_path, {"messages": [SYSTEM, ASKED, REPAIR, SAID]}, {"messages": [SYSTEM, ASKED, SAID]})
    assert len(kept) == 1 and told["reasons"] == {"a repair request without the turn that earned it": 1}


def test_a_row_with_nothing_but_malformed_turns_is_left_out(tmp_path: Path) -> None:
    kept, told = rows(tmp_path, {"messages": [SYSTEM, ASKED, MALFORMED, REPAIR, MALFORMED]})
    assert kept == [] and told["reasons"] == {"no assistant turn to learn": 1}


def test_slime_learns_the_turns_that_are_not_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    tokenizers = importlib.import_module("tau2rl.chat.tokenizers")
    train = importlib.import_module("tau2rl.train.tiny")
    train.save_tokenizer(train.train_tokenizer(["It is cancelled. FORMAT ERROR"], vocab_size=400), tmp_path / "tokenizer")
    tokenizer = tokenizers.HFTokenizer(str(tmp_path / "tokenizer"))
    file = tmp_path / "prompts.jsonl"
    row = {"messages": [SYSTEM, GREETING, ASKED, MALFORMED, REPAIR, SAID]}
    write_conversations([("a", row)], tokenizer, file, max_tokens=100_000)
    messages = json.loads(file.read_text())["messages"]
    loaded = importlib.import_module("transformers").AutoTokenizer.from_pretrained(str(tmp_path / "tokenizer"))
    mask = importlib.import_module("slime.utils.mask_utils").MultiTurnLossMaskGenerator(loaded, tokenizer_type="qwen3_5")
    ids, bits = mask.get_loss_mask(messages)
    learned = loaded.decode([token for token, bit in zip(ids, bits, strict=True) if bit])
    assert "It is cancelled." in learned and "cancel" not in learned.replace("cancelled", "")
    assert "How can I help" not in learned
    assert "{cancel" in loaded.decode(ids)
